//! A scalar that depends on every output.

use crate::dtype::DType;
use crate::float::Float;
use crate::graph::{Graph, Input, Output, Value};
use crate::ops::Op;
use crate::types::{Rate, TensorType};

/// Puts Σ over the float outputs of Σ cotangent · output in front of the outputs. An output whose size is beyond the limits of dims is left out.
pub(super) fn with_loss(mut graph: Graph) -> Graph {
    let outputs = graph.outputs.clone();
    let zero = graph.add(Op::Constant { value: Float(0.0), dtype: DType::F32 }, &[], None);
    let mut loss = zero.unwrap_or_else(|_| unreachable!("a constant has no operands that could be wrong"));
    for output in outputs {
        if let Some(sum) = weighted_sum(&mut graph, &output)
            && let Ok(sum) = graph.add(Op::Add, &[loss, sum], None)
        {
            loss = sum;
        }
    }
    graph.outputs.insert(0, Output { name: "loss".to_owned(), value: loss });
    graph
}

fn weighted_sum(graph: &mut Graph, output: &Output) -> Option<Value> {
    let ty = graph.ty(output.value).clone();
    if !ty.dtype.is_float() {
        return None;
    }
    let count = ty.elements().ok()?;
    let (name, ty) = (format!("cotangent.{}", output.name), TensorType::new(DType::F32, ty.shape));
    let cotangent = graph.add_input(Input { name, ty, rate: Rate::Step, default: Some(Float(1.0)) });
    let mut add = |op, operands: &[Value]| graph.add(op, operands, None).ok();
    let wide = add(Op::Cast { to: DType::F32 }, &[output.value])?;
    let product = add(Op::Mul, &[wide, cotangent])?;
    let flat = add(Op::Reshape { shape: vec![count] }, &[product])?;
    add(Op::ReduceSum { axis: 0, keep: false }, &[flat])
}
