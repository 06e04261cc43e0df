//! Element-wise ops. Derivatives that follow from the result (`exp`, `sqrt`, `tanh`, …) reuse it instead of the operand: nothing is computed
//! twice, and the operand need not be kept.
//!
//! At the points where there is no derivative the rules do as PyTorch does: |x| has 0 at 0, the larger and the smaller of equal numbers
//! share their gradient.

use nucleus_ir::Op;
use nucleus_ir::graph::Value;

use super::Backward;
use super::accumulate::Contribution::Whole;
use crate::error::PassError;

/// −x: −dy.
pub(super) fn neg(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let dx = backward.emit(Op::Neg, &[dy])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// |x|: dy with the sign of x, 0 at 0.
pub(super) fn abs(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let wide = backward.wide(x)?;
    let zero = backward.full(0.0, x)?;
    let positive = backward.emit(Op::Less, &[zero, wide])?;
    let negative = backward.emit(Op::Less, &[wide, zero])?;
    let minus = backward.emit(Op::Neg, &[dy])?;
    let rest = backward.emit(Op::Select, &[negative, minus, zero])?;
    let dx = backward.emit(Op::Select, &[positive, dy, rest])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// y = eˣ: dy · y.
pub(super) fn exp(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    times(backward, x, dy, y)
}

/// ln x: dy / x.
pub(super) fn log(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let wide = backward.wide(x)?;
    let dx = backward.emit(Op::Div, &[dy, wide])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// y = √x: dy / 2y.
pub(super) fn sqrt(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    let y = backward.wide(y)?;
    let half = backward.full(0.5, dy)?;
    let halved = backward.emit(Op::Mul, &[dy, half])?;
    let dx = backward.emit(Op::Div, &[halved, y])?;
    backward.contribute(x, Whole(dx));
    Ok(())
}

/// y = 1/√x: −dy · y³ / 2.
pub(super) fn rsqrt(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    let y = backward.wide(y)?;
    let factor = backward.full(-0.5, dy)?;
    let square = backward.emit(Op::Mul, &[y, y])?;
    let cube = backward.emit(Op::Mul, &[square, y])?;
    let scaled = backward.emit(Op::Mul, &[dy, factor])?;
    times(backward, x, scaled, cube)
}

/// y = tanh x: dy · (1 − y²).
pub(super) fn tanh(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    let y = backward.wide(y)?;
    let one = backward.full(1.0, dy)?;
    let square = backward.emit(Op::Mul, &[y, y])?;
    let slope = backward.emit(Op::Sub, &[one, square])?;
    times(backward, x, dy, slope)
}

/// y = 1/(1+e⁻ˣ): dy · y · (1 − y).
pub(super) fn sigmoid(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    let y = backward.wide(y)?;
    let one = backward.full(1.0, dy)?;
    let rest = backward.emit(Op::Sub, &[one, y])?;
    let slope = backward.emit(Op::Mul, &[y, rest])?;
    times(backward, x, dy, slope)
}

/// sin x: dy · cos x.
pub(super) fn sin(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let wide = backward.wide(x)?;
    let slope = backward.emit(Op::Cos, &[wide])?;
    times(backward, x, dy, slope)
}

/// cos x: −dy · sin x.
pub(super) fn cos(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    let wide = backward.wide(x)?;
    let sine = backward.emit(Op::Sin, &[wide])?;
    let minus = backward.emit(Op::Neg, &[dy])?;
    times(backward, x, minus, sine)
}

/// x + y: dy to both.
pub(super) fn add(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    backward.contribute(x, Whole(dy));
    backward.contribute(y, Whole(dy));
    Ok(())
}

/// x − y: dy and −dy.
pub(super) fn sub(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    backward.contribute(x, Whole(dy));
    if backward.is_active(y) {
        neg(backward, y, dy)?;
    }
    Ok(())
}

/// x · y: dy · y and dy · x.
pub(super) fn mul(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    for (to, factor) in [(x, y), (y, x)] {
        if backward.is_active(to) {
            times(backward, to, dy, factor)?;
        }
    }
    Ok(())
}

/// z = x / y: dy / y, and −(dy / y) · z.
pub(super) fn div(backward: &mut Backward, x: Value, y: Value, z: Value, dz: Value) -> Result<(), PassError> {
    let divisor = backward.wide(y)?;
    let dx = backward.emit(Op::Div, &[dz, divisor])?;
    backward.contribute(x, Whole(dx));
    if backward.is_active(y) {
        let minus = backward.emit(Op::Neg, &[dx])?;
        times(backward, y, minus, z)?;
    }
    Ok(())
}

/// max(x, y): dy to the larger, half to each of equals.
pub(super) fn larger(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    for (to, other) in [(x, y), (y, x)] {
        if backward.is_active(to) {
            let loses = backward.emit(Op::Less, &[to, other])?;
            extreme(backward, to, other, loses, dy)?;
        }
    }
    Ok(())
}

/// min(x, y): dy to the smaller, half to each of equals.
pub(super) fn smaller(backward: &mut Backward, x: Value, y: Value, dy: Value) -> Result<(), PassError> {
    for (to, other) in [(x, y), (y, x)] {
        if backward.is_active(to) {
            let loses = backward.emit(Op::Less, &[other, to])?;
            extreme(backward, to, other, loses, dy)?;
        }
    }
    Ok(())
}

/// Nothing where `to` loses, half where it equals `other`, else all.
fn extreme(
    backward: &mut Backward,
    to: Value,
    other: Value,
    loses: Value,
    dy: Value,
) -> Result<(), PassError> {
    let ties = backward.emit(Op::Equal, &[to, other])?;
    let half = backward.full(0.5, dy)?;
    let shared = backward.emit(Op::Mul, &[dy, half])?;
    let wins = backward.emit(Op::Select, &[ties, shared, dy])?;
    let zero = backward.full(0.0, dy)?;
    let dx = backward.emit(Op::Select, &[loses, zero, wins])?;
    backward.contribute(to, Whole(dx));
    Ok(())
}

/// dy to the operand that is chosen.
pub(super) fn select(
    backward: &mut Backward,
    condition: Value,
    y: Value,
    z: Value,
    dy: Value,
) -> Result<(), PassError> {
    let zero = backward.full(0.0, dy)?;
    for (to, branches) in [(y, [dy, zero]), (z, [zero, dy])] {
        if backward.is_active(to) {
            let part = backward.emit(Op::Select, &[condition, branches[0], branches[1]])?;
            backward.contribute(to, Whole(part));
        }
    }
    Ok(())
}

/// From float to float: dy, as if nothing had been rounded. Every gradient is `f32` already.
pub(super) fn cast(backward: &mut Backward, x: Value, dy: Value) -> Result<(), PassError> {
    backward.contribute(x, Whole(dy));
    Ok(())
}

/// Contributes dy · factor.
fn times(backward: &mut Backward, to: Value, dy: Value, factor: Value) -> Result<(), PassError> {
    let factor = backward.wide(factor)?;
    let dx = backward.emit(Op::Mul, &[dy, factor])?;
    backward.contribute(to, Whole(dx));
    Ok(())
}
