//! Reductions along one axis.

use nucleus_ir::graph::Value;
use nucleus_ir::{DType, Dim, Op};

use super::Backward;
use super::accumulate::Contribution::Whole;
use crate::error::PassError;

/// dy repeated along the axis that was summed.
pub(super) fn reduce_sum(backward: &mut Backward, x: Value, axis: usize, dy: Value) -> Result<(), PassError> {
    let dx = spread(backward, dy, x, axis)?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// dy to the largest element, equal shares to several that are.
pub(super) fn reduce_max(
    backward: &mut Backward,
    x: Value,
    axis: usize,
    y: Value,
    dy: Value,
) -> Result<(), PassError> {
    let largest = spread(backward, y, x, axis)?;
    let is_largest = backward.emit(Op::Equal, &[x, largest])?;
    let ones = backward.emit(Op::Cast { to: DType::F32 }, &[is_largest])?;
    let count = backward.emit(Op::ReduceSum { axis, keep: true }, &[ones])?;
    let shape = backward.shape(count).to_vec();
    let dy = backward.reshape(dy, shape)?;
    let share = backward.emit(Op::Div, &[dy, count])?;
    let share = spread(backward, share, x, axis)?;
    let zero = backward.full(0.0, x)?;
    let dx = backward.emit(Op::Select, &[is_largest, share, zero])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// A reduction of `x` along `axis`, kept or not, repeated to the shape of `x`.
fn spread(backward: &mut Backward, reduced: Value, x: Value, axis: usize) -> Result<Value, PassError> {
    let shape = backward.shape(x).to_vec();
    let mut kept = shape.clone();
    kept[axis] = Dim::constant(1);
    let reduced = backward.reshape(reduced, kept)?;
    backward.broadcast(reduced, shape)
}
