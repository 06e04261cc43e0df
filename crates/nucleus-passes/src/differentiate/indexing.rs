//! Rows by index: gather and scatter are each other's duals. Indices themselves are constants.

use nucleus_ir::graph::Value;
use nucleus_ir::{DType, Dim, Float, Op};

use super::Backward;
use super::accumulate::Contribution::{Rows, Whole};
use crate::error::PassError;

/// dy, row by row, to the rows that were read.
pub(super) fn gather(backward: &mut Backward, x: Value, index: Value, dy: Value) -> Result<(), PassError> {
    backward.contribute(x, Rows { index, updates: dy });
    Ok(())
}

/// dy to the base; to the updates the rows of dy that they were added to.
pub(super) fn scatter_add(
    backward: &mut Backward,
    base: Value,
    index: Value,
    updates: Value,
    dy: Value,
) -> Result<(), PassError> {
    backward.contribute(base, Whole(dy));
    if backward.is_active(updates) {
        let rows = backward.emit(Op::Gather, &[dy, index])?;
        backward.contribute(updates, Whole(rows));
    }
    Ok(())
}

/// dy to the base; to row `positions[b, j]` of the updates the row of dy at the target whose segment has j.
///
/// The target of j is the number of segments that end at or before it. That takes a comparison for each target and j, and holds for any
/// offsets and positions; graphs that come from text rarely have this op, which a later pass makes of `scatter_add`.
pub(super) fn segment_sum(
    backward: &mut Backward,
    base: Value,
    [offsets, positions]: [Value; 2],
    updates: Value,
    dy: Value,
) -> Result<(), PassError> {
    backward.contribute(base, Whole(dy));
    if !backward.is_active(updates) {
        return Ok(());
    }
    let (batch, targets) = (backward.shape(base)[0].clone(), backward.shape(base)[1].clone());
    let row = backward.shape(base)[2..].to_vec();
    let count = backward.shape(positions)[1].clone();
    let per_position = vec![batch.clone(), count.clone()];

    let cube = vec![batch.clone(), targets.clone(), count.clone()];
    let one = Dim::constant(1);
    let last = backward.dim(targets.add(&one))?;
    let ends = backward.emit(Op::Slice { axis: 1, start: one.clone(), end: last }, &[offsets])?;
    let ends = backward.reshape(ends, vec![batch.clone(), targets.clone(), one.clone()])?;
    let ends = backward.broadcast(ends, cube.clone())?;
    let j = backward.emit(Op::Iota { shape: cube, axis: 2 }, &[])?;
    let ended = backward.emit(Op::LessEqual, &[ends, j])?;
    let ended = backward.emit(Op::Cast { to: DType::I32 }, &[ended])?;
    let target = backward.emit(Op::ReduceSum { axis: 1, keep: false }, &[ended])?;

    // What lies before the first segment or behind the last one belongs to none.
    let size = backward.emit(Op::Size { dim: targets }, &[])?;
    let size = backward.broadcast(size, per_position.clone())?;
    let j = backward.emit(Op::Iota { shape: per_position.clone(), axis: 1 }, &[])?;
    let first =
        backward.emit(Op::Slice { axis: 1, start: Dim::constant(0), end: one.clone() }, &[offsets])?;
    let first = backward.broadcast(first, per_position.clone())?;
    let begun = backward.emit(Op::LessEqual, &[first, j])?;
    let open = backward.emit(Op::Less, &[target, size])?;
    let inside = backward.emit(Op::And, &[begun, open])?;
    let nowhere = backward.emit(Op::Constant { value: Float(0.0), dtype: DType::I32 }, &[])?;
    let nowhere = backward.broadcast(nowhere, per_position.clone())?;
    let target = backward.emit(Op::Select, &[inside, target, nowhere])?;

    let rows = backward.emit(Op::Gather, &[dy, target])?;
    let mut shape = per_position;
    shape.extend(row.iter().map(|_| one.clone()));
    let inside = backward.reshape(inside, shape)?;
    let shape = backward.shape(rows).to_vec();
    let inside = backward.broadcast(inside, shape.clone())?;
    let zeros = backward.zeros(&shape)?;
    let rows = backward.emit(Op::Select, &[inside, rows, zeros])?;
    let sums = backward.emit(Op::ScatterAdd, &[zeros, positions, rows])?;
    let shape = backward.shape(updates).to_vec();
    let sums = backward.reshape(sums, shape)?;
    backward.contribute(updates, Whole(sums));
    Ok(())
}

/// The gradient of the gate of expert e's slot goes to the affinity of (the slot's token, e).
///
/// Written as a scatter of one-hot rows to the tokens: its index map is the one through which the experts' results are put back, so a graph
/// that has both inverts it once.
pub(super) fn expert_choice(
    backward: &mut Backward,
    affinity: Value,
    slot_token: Value,
    dy: Value,
) -> Result<(), PassError> {
    let mut rows = backward.shape(dy).to_vec();
    rows.push(Dim::constant(1));
    let dy = backward.reshape(dy, rows.clone())?;
    rows[3] = backward.shape(affinity)[2].clone();
    let dy = backward.broadcast(dy, rows.clone())?;
    let expert = backward.emit(Op::Iota { shape: rows.clone(), axis: 1 }, &[])?;
    let column = backward.emit(Op::Iota { shape: rows.clone(), axis: 3 }, &[])?;
    let own = backward.emit(Op::Equal, &[expert, column])?;
    let zeros = backward.zeros(&rows)?;
    let updates = backward.emit(Op::Select, &[own, dy, zeros])?;
    backward.contribute(affinity, Rows { index: slot_token, updates });
    Ok(())
}
