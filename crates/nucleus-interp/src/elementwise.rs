//! Element-wise ops: one scalar operation on every element of tensors of equal shape.
//!
//! `bf16` and `f16` operands are held as `F`, so arithmetic on them is that of `F`; the caller rounds the result.

use std::cmp::Ordering;

use nucleus_ir::{DType, ScalarOp};

use crate::real::Real;
use crate::tensor::Data;
use crate::tensor::Data::{Bool, Float, Int};

/// Applies `op` to every element; `None` for operands that it is not defined for.
pub(crate) fn apply<F: Real>(op: ScalarOp, operands: &[&Data<F>]) -> Option<Data<F>> {
    match op {
        ScalarOp::Neg => number(operands, |x| -x, i32::wrapping_neg),
        ScalarOp::Abs => number(operands, F::abs, i32::wrapping_abs),
        ScalarOp::Exp => float(operands, F::exp),
        ScalarOp::Log => float(operands, F::ln),
        ScalarOp::Sqrt => float(operands, F::sqrt),
        ScalarOp::Rsqrt => float(operands, |x| F::ONE / x.sqrt()),
        ScalarOp::Tanh => float(operands, F::tanh),
        ScalarOp::Sigmoid => float(operands, |x| F::ONE / (F::ONE + (-x).exp())),
        ScalarOp::Sin => float(operands, F::sin),
        ScalarOp::Cos => float(operands, F::cos),
        ScalarOp::Add => numbers(operands, |x, y| x + y, i32::wrapping_add),
        ScalarOp::Sub => numbers(operands, |x, y| x - y, i32::wrapping_sub),
        ScalarOp::Mul => numbers(operands, |x, y| x * y, i32::wrapping_mul),
        ScalarOp::Div => numbers(operands, |x, y| x / y, divide),
        ScalarOp::Max => numbers(operands, F::max, i32::max),
        ScalarOp::Min => numbers(operands, F::min, i32::min),
        ScalarOp::Less => compare(operands, Ordering::is_lt),
        ScalarOp::LessEqual => compare(operands, Ordering::is_le),
        ScalarOp::Equal => compare(operands, Ordering::is_eq),
        ScalarOp::And => logical(operands, |x, y| x && y),
        ScalarOp::Or => logical(operands, |x, y| x || y),
        ScalarOp::Not => not(operands),
        ScalarOp::Select => select(operands),
        ScalarOp::Cast(to) => match operands {
            [x] => Some(cast(x, to)),
            _ => None,
        },
    }
}

/// Conversion to another element type, without rounding to `bf16` or `f16`.
pub(crate) fn cast<F: Real>(x: &Data<F>, to: DType) -> Data<F> {
    match (to, x) {
        (DType::F32 | DType::Bf16 | DType::F16, Float(x)) => Float(x.clone()),
        (DType::F32 | DType::Bf16 | DType::F16, Int(x)) => Float(map(x, F::from_i32)),
        (DType::F32 | DType::Bf16 | DType::F16, Bool(x)) => {
            Float(map(x, |x| if x { F::ONE } else { F::ZERO }))
        }
        (DType::I32 | DType::I8, Float(x)) => Int(map(x, F::to_i32)),
        (DType::I32 | DType::I8, Int(x)) => Int(x.clone()),
        (DType::I32 | DType::I8, Bool(x)) => Int(map(x, i32::from)),
        (DType::Bool, Float(x)) => Bool(map(x, |x| x != F::ZERO)),
        (DType::Bool, Int(x)) => Bool(map(x, |x| x != 0)),
        (DType::Bool, Bool(x)) => Bool(x.clone()),
    }
}

/// Truncates; 0 where y is 0. `i32::MIN / -1` wraps.
fn divide(x: i32, y: i32) -> i32 {
    if y == 0 { 0 } else { x.wrapping_div(y) }
}

fn map<T: Copy, U>(x: &[T], f: impl Fn(T) -> U) -> Vec<U> {
    x.iter().map(|x| f(*x)).collect()
}

fn map2<T: Copy, U>(x: &[T], y: &[T], f: impl Fn(T, T) -> U) -> Vec<U> {
    x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect()
}

fn float<F: Real>(operands: &[&Data<F>], f: impl Fn(F) -> F) -> Option<Data<F>> {
    match operands {
        [Float(x)] => Some(Float(map(x, f))),
        _ => None,
    }
}

fn number<F: Real>(operands: &[&Data<F>], f: impl Fn(F) -> F, i: impl Fn(i32) -> i32) -> Option<Data<F>> {
    match operands {
        [Float(x)] => Some(Float(map(x, f))),
        [Int(x)] => Some(Int(map(x, i))),
        _ => None,
    }
}

fn numbers<F: Real>(
    operands: &[&Data<F>],
    f: impl Fn(F, F) -> F,
    i: impl Fn(i32, i32) -> i32,
) -> Option<Data<F>> {
    match operands {
        [Float(x), Float(y)] => Some(Float(map2(x, y, f))),
        [Int(x), Int(y)] => Some(Int(map2(x, y, i))),
        _ => None,
    }
}

/// A comparison; false where either operand is NaN. false < true.
fn compare<F: Real>(operands: &[&Data<F>], holds: impl Fn(Ordering) -> bool) -> Option<Data<F>> {
    match operands {
        [Float(x), Float(y)] => Some(Bool(map2(x, y, |x, y| x.partial_cmp(&y).is_some_and(&holds)))),
        [Int(x), Int(y)] => Some(Bool(map2(x, y, |x, y| holds(x.cmp(&y))))),
        [Bool(x), Bool(y)] => Some(Bool(map2(x, y, |x, y| holds(x.cmp(&y))))),
        _ => None,
    }
}

fn logical<F>(operands: &[&Data<F>], f: impl Fn(bool, bool) -> bool) -> Option<Data<F>> {
    match operands {
        [Bool(x), Bool(y)] => Some(Bool(map2(x, y, f))),
        _ => None,
    }
}

fn not<F>(operands: &[&Data<F>]) -> Option<Data<F>> {
    match operands {
        [Bool(x)] => Some(Bool(map(x, |x| !x))),
        _ => None,
    }
}

fn select<F: Real>(operands: &[&Data<F>]) -> Option<Data<F>> {
    match operands {
        [Bool(condition), Float(y), Float(z)] => Some(Float(choose(condition, y, z))),
        [Bool(condition), Int(y), Int(z)] => Some(Int(choose(condition, y, z))),
        [Bool(condition), Bool(y), Bool(z)] => Some(Bool(choose(condition, y, z))),
        _ => None,
    }
}

fn choose<T: Copy>(condition: &[bool], y: &[T], z: &[T]) -> Vec<T> {
    condition
        .iter()
        .zip(y.iter().zip(z))
        .map(|(condition, (y, z))| if *condition { *y } else { *z })
        .collect()
}
