//! Data movement: what was repeated is summed, what was joined is cut apart, what was cut out is joined again.

use nucleus_ir::graph::Value;
use nucleus_ir::{Dim, Op};

use super::Backward;
use super::accumulate::Contribution::{Part, Whole};
use crate::error::PassError;

/// dy to x, none to the event.
pub(super) fn after(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    backward.contribute(x, Whole(dy));
    Ok(())
}

/// dy in the shape of x.
pub(super) fn reshape(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let shape = backward.shape(x).to_vec();
    let dx = backward.reshape(dy, shape)?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// dy with its axes where they came from.
pub(super) fn transpose(
    backward: &mut Backward,
    x: Value,
    permutation: &[usize],
    dy: Value,
) -> Result<(), PassError> {
    let mut inverse = vec![0; permutation.len()];
    for (axis, from) in permutation.iter().enumerate() {
        inverse[*from] = axis;
    }
    let dx = backward.emit(Op::Transpose { permutation: inverse }, &[dy])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// One axis of dy as it is summed: an axis of the broadcast, or several neighbours along which x was repeated.
struct Run {
    size: Dim,
    repeated: bool,
    /// The axis stays with size 1, as x has it.
    keep: bool,
}

/// dy summed over the axes along which x was repeated. Neighbouring axes that are repeated are summed as one, so that the gradient
/// of a bias, say, is one reduction over all tokens of all images.
pub(super) fn broadcast(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let (from, to) = (backward.shape(x).to_vec(), backward.shape(dy).to_vec());
    let new_axes = to.len() - from.len();
    let mut runs: Vec<Run> = Vec::new();
    for (axis, size) in to.iter().enumerate() {
        let repeated = axis < new_axes || (from[axis - new_axes].is_constant(1) && !size.is_constant(1));
        match runs.last_mut() {
            Some(run) if run.repeated && (repeated || size.is_constant(1)) => {
                run.size = backward.dim(run.size.mul(size))?;
                run.keep = false;
            }
            _ => runs.push(Run { size: size.clone(), repeated, keep: axis >= new_axes }),
        }
    }
    let mut dx = backward.reshape(dy, runs.iter().map(|run| run.size.clone()).collect())?;
    for (axis, run) in runs.iter().enumerate().rev() {
        if run.repeated {
            dx = backward.emit(Op::ReduceSum { axis, keep: run.keep }, &[dx])?;
        }
    }
    let dx = backward.reshape(dx, from)?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// dy at the place of the slice. Where the slices of one value together make it up, their gradients are joined, not padded and summed.
pub(super) fn slice(
    backward: &mut Backward,
    x: Value,
    (axis, start, end): (usize, &Dim, &Dim),
    dy: Value,
) -> Result<(), PassError> {
    backward.contribute(x, Part { axis, start: start.clone(), end: end.clone(), gradient: dy });
    Ok(())
}

/// To each piece its slice of dy.
pub(super) fn concat(
    backward: &mut Backward,
    pieces: &[Value],
    axis: usize,
    dy: Value,
) -> Result<(), PassError> {
    let mut start = Dim::constant(0);
    for piece in pieces {
        let end = backward.dim(start.add(&backward.shape(*piece)[axis]))?;
        if backward.is_active(*piece) {
            let dx = backward.emit(Op::Slice { axis, start, end: end.clone() }, &[dy])?;
            backward.contribute(*piece, Whole(dx));
        }
        start = end;
    }
    Ok(())
}
