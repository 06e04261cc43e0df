//! One op on given tensors: types checked, sizes bound, the op's function called, its result rounded.

use nucleus_ir::ops::Attribute;
use nucleus_ir::{Bindings, DType, Dim, DimError, Op, TensorType, TypeError, infer};

use crate::error::NodeError;
use crate::evaluate::Options;
use crate::real::Real;
use crate::tensor::{Data, Tensor, element_bytes, round};
use crate::{attention, creation, elementwise, indexing, matmul, movement, reductions, routing};

/// Applies one op to tensors and returns its results. `dims` gives values to the sizes in the op's attributes.
///
/// # Errors
///
/// Operands that [`infer`](nucleus_ir::infer()) rejects, sizes without a value, indices outside their axis, and results larger than the memory limit.
pub fn evaluate_node<F: Real>(
    op: &Op,
    dims: &Bindings,
    operands: &[&Tensor<F>],
    options: &Options,
) -> Result<Vec<Tensor<F>>, NodeError> {
    let op = bind_sizes(op, dims)?;
    let types: Vec<TensorType> = operands.iter().map(|operand| operand.ty()).collect();
    let result_types = infer(&op, &types.iter().collect::<Vec<_>>())?;
    let mut available = options.memory_limit;
    let mut shapes = Vec::new();
    for ty in &result_types {
        let shape = constant_shape(&op, ty)?;
        let bytes = bytes_of::<F>(ty.dtype, &shape);
        available = u64::try_from(bytes)
            .ok()
            .and_then(|bytes| available.checked_sub(bytes))
            .ok_or_else(|| NodeError::Memory { result: ty.to_string(), bytes, available })?;
        shapes.push(shape);
    }
    let all_empty = shapes.iter().all(|shape| shape.contains(&0));
    let results = if all_empty && !follows_indices(&op) {
        // Loops run over the axes of the result; without elements, an axis may still be as long as no loop can be.
        result_types.iter().map(|ty| Data::empty(ty.dtype)).collect()
    } else {
        apply(&op, operands, &shapes)?
    };
    let rounding = options.rounds::<F>();
    let results = result_types.iter().zip(shapes).zip(results).map(|((ty, shape), mut data)| {
        if rounding {
            round(&mut data, ty.dtype);
        }
        Tensor::new(ty.dtype, shape, data).map_err(|error| shape_error(&op, error.to_string()))
    });
    results.collect()
}

/// The bytes that a tensor takes in this evaluator.
pub(crate) fn bytes_of<F>(dtype: DType, shape: &[usize]) -> u128 {
    // Sizes are at most 2^40, so four axes or more may pass even 2^128.
    let elements = if shape.contains(&0) {
        0
    } else {
        shape.iter().fold(1u128, |total, size| total.saturating_mul(*size as u128))
    };
    elements.saturating_mul(u128::from(element_bytes::<F>(dtype)))
}

fn shape_error(op: &Op, why: String) -> NodeError {
    NodeError::Type(TypeError::Shape { op: op.name(), why })
}

/// The same op with every size in its attributes a constant.
fn bind_sizes(op: &Op, dims: &Bindings) -> Result<Op, NodeError> {
    let bind = |dim: &Dim| -> Result<Dim, DimError> { Ok(Dim::constant(dim.eval(dims)?)) };
    let mut attributes = Vec::new();
    for (name, attribute) in op.attributes() {
        let attribute = match attribute {
            Attribute::Dim(dim) => Attribute::Dim(bind(&dim)?),
            Attribute::Shape(shape) => Attribute::Shape(shape.iter().map(bind).collect::<Result<_, _>>()?),
            other => other,
        };
        attributes.push((name.to_owned(), attribute));
    }
    Ok(Op::new(op.name(), &attributes)?)
}

fn constant_shape(op: &Op, ty: &TensorType) -> Result<Vec<usize>, NodeError> {
    let sizes = ty.shape.iter().map(|dim| usize::try_from(dim.as_constant()?).ok());
    sizes.collect::<Option<_>>().ok_or_else(|| shape_error(op, format!("{ty} is not the type of a tensor")))
}

/// True for the ops whose loops run over indices: they are evaluated even for empty results, since a wrong index is still wrong.
fn follows_indices(op: &Op) -> bool {
    matches!(op, Op::Gather | Op::ScatterAdd | Op::SegmentSum | Op::InvertIndex { .. })
}

/// The results of an op whose operands `infer` accepts; `shapes` are those of the results.
fn apply<F: Real>(
    op: &Op,
    operands: &[&Tensor<F>],
    shapes: &[Vec<usize>],
) -> Result<Vec<Data<F>>, NodeError> {
    let mismatch = || shape_error(op, "the operands are not what its type rule says".to_owned());
    let operand = |position: usize| operands.get(position).copied().ok_or_else(mismatch);
    let floats = |position: usize| -> Result<(&[F], &[usize]), NodeError> {
        let x = operand(position)?;
        Ok((x.floats().ok_or_else(mismatch)?, x.shape()))
    };
    let ints = |position: usize| -> Result<(&[i32], &[usize]), NodeError> {
        let x = operand(position)?;
        Ok((x.ints().ok_or_else(mismatch)?, x.shape()))
    };
    let result = match op {
        Op::Constant { value, dtype } => creation::full(value.0, *dtype, 1),
        Op::Size { dim } => creation::size(constant(dim)?)?,
        Op::Iota { shape: _, axis } => creation::iota(&shapes[0], *axis)?,

        Op::Neg
        | Op::Abs
        | Op::Exp
        | Op::Log
        | Op::Sqrt
        | Op::Rsqrt
        | Op::Tanh
        | Op::Sigmoid
        | Op::Sin
        | Op::Cos
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Max
        | Op::Min
        | Op::Less
        | Op::LessEqual
        | Op::Equal
        | Op::And
        | Op::Or
        | Op::Not
        | Op::Select
        | Op::Cast { .. } => {
            let data: Vec<&Data<F>> = operands.iter().map(|operand| operand.data()).collect();
            op.scalar().and_then(|scalar| elementwise::apply(scalar, &data)).ok_or_else(mismatch)?
        }

        Op::StopGradient | Op::After | Op::Reshape { .. } => operand(0)?.data().clone(),
        Op::Transpose { permutation } => {
            let x = operand(0)?;
            movement::transpose(x.data(), x.shape(), permutation)
        }
        Op::Broadcast { .. } => {
            let x = operand(0)?;
            movement::broadcast(x.data(), x.shape(), &shapes[0])
        }
        Op::Slice { axis, start, end: _ } => {
            let x = operand(0)?;
            let start = usize::try_from(constant(start)?).map_err(|_| mismatch())?;
            movement::slice(x.data(), x.shape(), *axis, start, start + shapes[0][*axis])
        }
        Op::Concat { axis } => movement::concat(operands, *axis).ok_or_else(mismatch)?,

        Op::Gather => {
            let (x, (index, index_shape)) = (operand(0)?, ints(1)?);
            indexing::gather(x.data(), x.shape(), index, index_shape)?
        }
        Op::ScatterAdd => {
            let ((base, base_shape), (index, index_shape), (updates, _)) = (floats(0)?, ints(1)?, floats(2)?);
            Data::Float(indexing::scatter_add(base, base_shape, index, index_shape, updates)?)
        }
        Op::InvertIndex { size } => {
            let (index, index_shape) = ints(0)?;
            let (offsets, positions) = indexing::invert_index(index, index_shape, constant(size)?)?;
            return Ok(vec![Data::Int(offsets), Data::Int(positions)]);
        }
        Op::SegmentSum => {
            let ((base, base_shape), (updates, _)) = (floats(0)?, floats(3)?);
            let ((offsets, _), (positions, positions_shape)) = (ints(1)?, ints(2)?);
            Data::Float(indexing::segment_sum(
                base,
                base_shape,
                offsets,
                positions,
                positions_shape,
                updates,
            )?)
        }

        Op::ReduceSum { axis, keep: _ } => {
            let x = operand(0)?;
            reductions::sum(x.data(), x.shape(), *axis).ok_or_else(mismatch)?
        }
        Op::ReduceMax { axis, keep: _ } => {
            let x = operand(0)?;
            reductions::max(x.data(), x.shape(), *axis).ok_or_else(mismatch)?
        }

        Op::Matmul { transpose_a, transpose_b } => {
            Data::Float(matmul::matmul(floats(0)?, floats(1)?, *transpose_a, *transpose_b))
        }
        Op::GroupedMatmul { transpose_b } => {
            Data::Float(matmul::grouped_matmul(floats(0)?, floats(1)?, *transpose_b))
        }
        Op::Attention { scale } => {
            let mask = operands.get(3).map(|mask| mask.bools().ok_or_else(mismatch)).transpose()?;
            let scale = F::from_f64(scale.0);
            Data::Float(attention::attention(floats(0)?, floats(1)?, floats(2)?.0, mask, scale))
        }
        Op::AttentionGrad { scale } => {
            let mask = operands.get(4).map(|mask| mask.bools().ok_or_else(mismatch)).transpose()?;
            let scale = F::from_f64(scale.0);
            let ((dy, _), (v, _)) = (floats(3)?, floats(2)?);
            let gradients = attention::attention_grad(floats(0)?, floats(1)?, v, dy, mask, scale);
            return Ok(gradients.map(Data::Float).into());
        }
        Op::ExpertChoice { capacity: _ } => {
            let (affinity, shape) = floats(0)?;
            let (slot_token, gate) = routing::expert_choice(affinity, shape, shapes[0][2])?;
            return Ok(vec![Data::Int(slot_token), Data::Float(gate)]);
        }
    };
    Ok(vec![result])
}

/// The value of a size that [`bind_sizes`] made constant.
fn constant(dim: &Dim) -> Result<i64, NodeError> {
    Ok(dim.eval(&Bindings::new())?)
}
