//! Scalar arithmetic: constants, neutral elements, casts.

use nucleus_ir::graph::Value;
use nucleus_ir::{DType, Float, Op, ScalarOp};

use super::{Rewriter, Site};
use crate::error::PassError;

/// A scalar op on scalar constants → the constant that the evaluator computes in `f32`.
///
/// `bf16` and `f16` are folded only where nothing is rounded to them: an evaluation in `f64`, which keeps full precision in those types, then
/// still measures the error of the storage and not of the folding.
pub(super) fn constants(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let Some(op) = site.op.scalar() else { return Ok(None) };
    let mut operands = Vec::with_capacity(site.operands.len());
    for operand in site.operands {
        match rewriter.constant(*operand) {
            Some((value, dtype))
                if !is_narrow(dtype) || f64::from(round_to(value.0 as f32, dtype)) == value.0 =>
            {
                operands.push(Scalar::new(value, dtype));
            }
            _ => return Ok(None),
        }
    }
    let dtypes: Vec<DType> =
        site.operands.iter().map(|operand| rewriter.graph().ty(*operand).dtype).collect();
    let (Some(dtype), Some(result)) = (op.result(&dtypes), evaluate(op, &operands)) else { return Ok(None) };
    let value = match result {
        // A constant of i32 reaches −(2³¹ − 1); the one value below has no literal.
        Scalar::Int(i32::MIN) => return Ok(None),
        Scalar::Int(value) => f64::from(value),
        Scalar::Bool(value) => f64::from(u8::from(value)),
        Scalar::Float(value) if is_narrow(dtype) && round_to(value, dtype) != value => return Ok(None),
        Scalar::Float(value) => f64::from(value),
    };
    rewriter.emit(Op::Constant { value: Float(value), dtype }, &[], site.scope).map(Some)
}

/// A scalar as the evaluator holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Float(f32),
    Int(i32),
    Bool(bool),
}

impl Scalar {
    fn new(value: Float, dtype: DType) -> Scalar {
        match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => Scalar::Float(round_to(value.0 as f32, dtype)),
            DType::I32 | DType::I8 => Scalar::Int(value.0 as i32),
            DType::Bool => Scalar::Bool(value.0 != 0.0),
        }
    }
}

fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
}

fn round_to(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => half::bf16::from_f32(value).to_f32(),
        DType::F16 => half::f16::from_f32(value).to_f32(),
        DType::F32 | DType::I32 | DType::Bool | DType::I8 => value,
    }
}

/// `op` on these scalars; `None` where the result is left to the machine's mathematical library.
fn evaluate(op: ScalarOp, operands: &[Scalar]) -> Option<Scalar> {
    use Scalar::{Bool, Float, Int};
    use ScalarOp::*;
    Some(match (op, operands) {
        (Neg, [Float(x)]) => Float(-x),
        (Neg, [Int(x)]) => Int(x.wrapping_neg()),
        (Abs, [Float(x)]) => Float(x.abs()),
        (Abs, [Int(x)]) => Int(x.wrapping_abs()),
        (Sqrt, [Float(x)]) => Float(x.sqrt()),
        (Rsqrt, [Float(x)]) => Float(1.0 / x.sqrt()),
        (Add, [Float(x), Float(y)]) => Float(x + y),
        (Add, [Int(x), Int(y)]) => Int(x.wrapping_add(*y)),
        (Sub, [Float(x), Float(y)]) => Float(x - y),
        (Sub, [Int(x), Int(y)]) => Int(x.wrapping_sub(*y)),
        (Mul, [Float(x), Float(y)]) => Float(x * y),
        (Mul, [Int(x), Int(y)]) => Int(x.wrapping_mul(*y)),
        (Div, [Float(x), Float(y)]) => Float(x / y),
        (Div, [Int(x), Int(y)]) => Int(if *y == 0 { 0 } else { x.wrapping_div(*y) }),
        (Max, [Float(x), Float(y)]) => Float(if x.is_nan() || x > y { *x } else { *y }),
        (Max, [Int(x), Int(y)]) => Int(*x.max(y)),
        (Min, [Float(x), Float(y)]) => Float(if x.is_nan() || x < y { *x } else { *y }),
        (Min, [Int(x), Int(y)]) => Int(*x.min(y)),
        (Less, [x, y]) => Bool(compare(*x, *y)?.is_some_and(std::cmp::Ordering::is_lt)),
        (LessEqual, [x, y]) => Bool(compare(*x, *y)?.is_some_and(std::cmp::Ordering::is_le)),
        (Equal, [x, y]) => Bool(compare(*x, *y)?.is_some_and(std::cmp::Ordering::is_eq)),
        (And, [Bool(x), Bool(y)]) => Bool(*x && *y),
        (Or, [Bool(x), Bool(y)]) => Bool(*x || *y),
        (Not, [Bool(x)]) => Bool(!x),
        (Select, [Bool(condition), y, z]) => {
            if *condition {
                *y
            } else {
                *z
            }
        }
        (Cast(to), [x]) => cast(*x, to),
        _ => return None,
    })
}

/// The order of two scalars of one type: `Some(None)` if either is NaN, `None` if the types differ.
fn compare(x: Scalar, y: Scalar) -> Option<Option<std::cmp::Ordering>> {
    match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => Some(x.partial_cmp(&y)),
        (Scalar::Int(x), Scalar::Int(y)) => Some(Some(x.cmp(&y))),
        (Scalar::Bool(x), Scalar::Bool(y)) => Some(Some(x.cmp(&y))),
        _ => None,
    }
}

fn cast(x: Scalar, to: DType) -> Scalar {
    match (to, x) {
        (DType::F32 | DType::Bf16 | DType::F16, Scalar::Float(x)) => Scalar::Float(x),
        (DType::F32 | DType::Bf16 | DType::F16, Scalar::Int(x)) => Scalar::Float(x as f32),
        (DType::F32 | DType::Bf16 | DType::F16, Scalar::Bool(x)) => Scalar::Float(f32::from(u8::from(x))),
        (DType::I32 | DType::I8, Scalar::Float(x)) => Scalar::Int(x as i32),
        (DType::I32 | DType::I8, Scalar::Int(x)) => Scalar::Int(x),
        (DType::I32 | DType::I8, Scalar::Bool(x)) => Scalar::Int(i32::from(x)),
        (DType::Bool, Scalar::Float(x)) => Scalar::Bool(x != 0.0),
        (DType::Bool, Scalar::Int(x)) => Scalar::Bool(x != 0),
        (DType::Bool, Scalar::Bool(x)) => Scalar::Bool(x),
    }
}

/// Neutral elements and involutions, only where they are exact for every operand: `x + 0` is not (−0 + 0 is 0), `x · 0` is not (NaN).
pub(super) fn neutral(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let uniform =
        |value: Value| rewriter.uniform_constant(value).map(|(value, dtype)| Scalar::new(value, dtype));
    let is = |value: Value, wanted: f32| match uniform(value) {
        Some(Scalar::Float(x)) => x.to_bits() == wanted.to_bits(),
        Some(Scalar::Int(x)) => x as f32 == wanted && x.abs() <= 1,
        _ => false,
    };
    let nothing = |value: Value| match uniform(value) {
        Some(Scalar::Float(x)) => x.to_bits() == (-0.0f32).to_bits(),
        Some(Scalar::Int(x)) => x == 0,
        _ => false,
    };
    Ok(match (site.op, site.operands) {
        (Op::Add, [x, y]) if nothing(*y) => Some(*x),
        (Op::Add, [x, y]) if nothing(*x) => Some(*y),
        (Op::Sub, [x, y]) if is(*y, 0.0) => Some(*x),
        (Op::Mul, [x, y]) if is(*y, 1.0) => Some(*x),
        (Op::Mul, [x, y]) if is(*x, 1.0) => Some(*y),
        (Op::Div, [x, y]) if is(*y, 1.0) => Some(*x),
        (Op::Max | Op::Min | Op::And | Op::Or, [x, y]) if x == y => Some(*x),
        (Op::And, [x, y]) | (Op::Or, [x, y]) => {
            let absorbing = matches!(site.op, Op::Or);
            match (uniform(*x), uniform(*y)) {
                (Some(Scalar::Bool(value)), _) => Some(if value == absorbing { *x } else { *y }),
                (_, Some(Scalar::Bool(value))) => Some(if value == absorbing { *y } else { *x }),
                _ => None,
            }
        }
        (Op::Select, [_, y, z]) if y == z => Some(*y),
        (Op::Select, [condition, y, z]) => match uniform(*condition) {
            Some(Scalar::Bool(true)) => Some(*y),
            Some(Scalar::Bool(false)) => Some(*z),
            _ => None,
        },
        (Op::Neg, [x]) => match rewriter.op(*x) {
            Some((Op::Neg, [inner])) => Some(*inner),
            _ => None,
        },
        (Op::Not, [x]) => match rewriter.op(*x) {
            Some((Op::Not, [inner])) => Some(*inner),
            _ => None,
        },
        (Op::Abs, [x]) => match rewriter.op(*x) {
            Some((Op::Abs, _)) => Some(*x),
            _ => None,
        },
        _ => None,
    })
}

/// `x / c` → `x · (1/c)` for a constant c whose reciprocal is exact: a power of two whose reciprocal is a normal number.
pub(super) fn division_by_power_of_two(
    rewriter: &mut Rewriter<'_>,
    site: &Site<'_>,
) -> Result<Option<Value>, PassError> {
    let (Op::Div, [x, y]) = (site.op, site.operands) else { return Ok(None) };
    let Some((value, dtype)) = rewriter.uniform_constant(*y) else { return Ok(None) };
    let Scalar::Float(divisor) = Scalar::new(value, dtype) else { return Ok(None) };
    let largest = if dtype == DType::F16 { 14 } else { 126 };
    if !is_power_of_two(divisor, largest) {
        return Ok(None);
    }
    let reciprocal = Op::Constant { value: Float(f64::from(1.0 / divisor)), dtype };
    let mut factor = rewriter.emit(reciprocal, &[], site.scope)?;
    if !rewriter.shape(*y).is_empty() {
        let shape = rewriter.shape(*y).to_vec();
        factor = rewriter.emit(Op::Broadcast { shape }, &[factor], site.scope)?;
    }
    rewriter.emit(Op::Mul, &[*x, factor], site.scope).map(Some)
}

fn is_power_of_two(x: f32, largest_exponent: i32) -> bool {
    let exponent = ((x.to_bits() >> 23) & 0xff) as i32 - 127;
    x.to_bits() & 0x007f_ffff == 0 && exponent.abs() <= largest_exponent
}

/// A cast to the type that the operand has → the operand; a cast of a cast that lost nothing → a cast of its operand.
pub(super) fn casts(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let (Op::Cast { to }, [x]) = (site.op, site.operands) else { return Ok(None) };
    if rewriter.graph().ty(*x).dtype == *to {
        return Ok(Some(*x));
    }
    let Some((Op::Cast { to: between }, &[source])) = rewriter.op(*x) else { return Ok(None) };
    let stored = rewriter.graph().ty(source).dtype;
    if !lossless(stored, *between) || ScalarOp::Cast(*to).result(&[stored]).is_none() {
        return Ok(None);
    }
    rewriter.emit(site.op.clone(), &[source], site.scope).map(Some)
}

/// True if a cast keeps every value apart from every other and a later cast sees the same number.
fn lossless(from: DType, to: DType) -> bool {
    matches!((from, to), (DType::Bf16 | DType::F16, DType::F32) | (DType::Bool | DType::I8, _)) || from == to
}
