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

/// What becomes of an axis in a broadcast.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kept,
    Repeated,
}

/// dy summed over the axes along which x was repeated. Neighbouring axes that are repeated are summed as one, so that the gradient
/// of a bias, say, is one reduction over all tokens of all images.
pub(super) fn broadcast(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let (from, to) = (backward.shape(x).to_vec(), backward.shape(dy).to_vec());
    let new_axes = to.len() - from.len();
    let mut runs: Vec<(Kind, Dim)> = Vec::new();
    for (axis, size) in to.iter().enumerate() {
        if size.is_constant(1) {
            continue;
        }
        let repeated = axis < new_axes || from[axis - new_axes].is_constant(1);
        let kind = if repeated { Kind::Repeated } else { Kind::Kept };
        match runs.last_mut() {
            Some((last, total)) if *last == kind => *total = backward.dim(total.mul(size))?,
            _ => runs.push((kind, size.clone())),
        }
    }
    let mut dx = backward.reshape(dy, runs.iter().map(|(_, size)| size.clone()).collect())?;
    for (axis, (kind, _)) in runs.iter().enumerate().rev() {
        if *kind == Kind::Repeated {
            dx = backward.emit(Op::ReduceSum { axis, keep: false }, &[dx])?;
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
