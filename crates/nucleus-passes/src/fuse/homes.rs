//! Where stored values lie.

use std::collections::HashMap;

use nucleus_ir::graph::{Value, ValueDef};
use nucleus_ir::{DType, Dim, Op, Rate, TensorType};
use nucleus_plan::{Buffer, BufferId, Place, Plan};

use super::affine::row_major;
use super::group::Kind;
use super::state::State;
use crate::error::PassError;

/// Where a stored value lies.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) buffer: BufferId,
    pub(crate) dtype: DType,
    pub(crate) offset: Dim,
    pub(crate) strides: Vec<Dim>,
    /// True if the value fills the buffer in row-major order.
    pub(crate) dense: bool,
}

impl Home {
    /// A buffer that the value fills in row-major order.
    pub(crate) fn dense(buffer: BufferId, ty: &TensorType) -> Result<Home, PassError> {
        let strides = row_major(&ty.shape)?;
        Ok(Home { buffer, dtype: ty.dtype, offset: Dim::constant(0), strides, dense: true })
    }
}

/// Buffers for all stored values. Later values first, so that the pieces of a concatenation find it.
pub(crate) fn homes(state: &State, plan: &mut Plan) -> Result<Vec<Option<Home>>, PassError> {
    let graph = &state.graph;
    let mut homes: Vec<Option<Home>> = vec![None; graph.value_count()];
    for (value, data) in graph.values().rev() {
        let used = !state.uses[value.index()].is_empty()
            || state.output[value.index()].is_some()
            || state.is_output[value.index()]
            || state.owner[value.index()].is_some();
        if !state.stored[value.index()] || !used {
            continue;
        }
        if homes[value.index()].is_some() {
            // A piece of a concatenation may itself be joined of pieces.
            place_pieces(state, value, &mut homes)?;
            continue;
        }
        let place = match (data.def, state.output[value.index()]) {
            (ValueDef::Input(position), _) => Place::Input(position as u32),
            (ValueDef::Weight(position), _) => {
                let weight = &graph.weights[position];
                match weight.rate {
                    Rate::Model => Place::Weight(weight.name.clone()),
                    Rate::Prompt | Rate::Step => Place::State(weight.name.clone()),
                }
            }
            (_, Some(output)) => Place::Output(output as u32),
            _ => Place::Arena { rate: state.rate(value), offset: None },
        };
        let axes = match (&place, state.output[value.index()]) {
            (Place::Output(_), Some(output)) => state.laid_out(graph.outputs[output].value).1,
            _ => (0..data.ty.rank()).collect(),
        };
        let mut shape = data.ty.shape.clone();
        axes.iter().zip(&data.ty.shape).for_each(|(axis, extent)| shape[*axis] = extent.clone());
        let strides = row_major(&shape)?;
        let buffer = BufferId(plan.buffers.len() as u32);
        plan.buffers.push(Buffer { dtype: data.ty.dtype, shape, place });
        homes[value.index()] = Some(Home {
            dense: axes.is_sorted(),
            strides: axes.iter().map(|axis| strides[*axis].clone()).collect(),
            ..Home::dense(buffer, &data.ty)?
        });
        place_pieces(state, value, &mut homes)?;
    }
    Ok(homes)
}

/// Lets the kernels that compute the pieces of a concatenation write them to their place in it.
fn place_pieces(state: &State, concat: Value, homes: &mut [Option<Home>]) -> Result<(), PassError> {
    let Some(owner) = state.owner[concat.index()] else { return Ok(()) };
    if state.groups[owner].kind != Kind::Pieces(concat) {
        return Ok(());
    }
    let Some((_, data)) = state.def(concat) else { return Ok(()) };
    let (Op::Concat { axis }, Some(home)) = (&data.op, homes[concat.index()].clone()) else { return Ok(()) };
    let mut occurrences: HashMap<Value, u32> = HashMap::new();
    data.operands.iter().for_each(|piece| *occurrences.entry(*piece).or_default() += 1);
    let mut start = Dim::constant(0);
    for piece in &data.operands {
        let index = piece.index();
        let ty = state.graph.ty(*piece);
        let offset = home.offset.add(&start.mul(&home.strides[*axis])?)?;
        start = start.add(&ty.shape[*axis])?;
        let is_output = state.output[index].is_some() || state.is_output[index];
        let once = occurrences[piece] == 1;
        // No kernel may read one part of a buffer and write another: launches are ordered by whole buffers.
        let read_elsewhere = state.uses[index].iter().any(|node| {
            let result = state.graph.node(*node).results[0];
            result != concat && state.owner[result.index()] != state.owner[index]
        });
        // What is written or read whole, not through a scalar function, stays dense.
        let whole = state.written_whole(*piece) || ty.dtype == DType::I32;
        let free = state.stored[index] && state.owner[index].is_some() && homes[index].is_none();
        let fits = state.rate(*piece) == state.rate(concat) && !whole;
        if free && fits && once && !read_elsewhere && !is_output {
            homes[index] = Some(Home { offset, dense: false, ..home.clone() });
        }
    }
    Ok(())
}
