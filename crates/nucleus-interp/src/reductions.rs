//! Reductions over one axis, in ascending order of its coordinate.

use crate::movement::around;
use crate::real::Real;
use crate::tensor::Data;

/// The sum over an axis; an empty sum is 0. `i32` sums wrap. `None` for `bool`.
pub(crate) fn sum<F: Real>(x: &Data<F>, shape: &[usize], axis: usize) -> Option<Data<F>> {
    match x {
        Data::Float(x) => Some(Data::Float(fold(x, shape, axis, F::ZERO, |sum, x| sum + x))),
        Data::Int(x) => Some(Data::Int(fold(x, shape, axis, 0, i32::wrapping_add))),
        Data::Bool(_) => None,
    }
}

/// The largest element along an axis; NaN if any is; −∞ or the smallest `i32` without any. `None` for `bool`.
pub(crate) fn max<F: Real>(x: &Data<F>, shape: &[usize], axis: usize) -> Option<Data<F>> {
    match x {
        Data::Float(x) => Some(Data::Float(fold(x, shape, axis, F::NEG_INFINITY, F::max))),
        Data::Int(x) => Some(Data::Int(fold(x, shape, axis, i32::MIN, i32::max))),
        Data::Bool(_) => None,
    }
}

fn fold<T: Copy>(x: &[T], shape: &[usize], axis: usize, initial: T, f: impl Fn(T, T) -> T) -> Vec<T> {
    let (outer, size, inner) = around(shape, axis);
    let mut result = vec![initial; outer * inner];
    for o in 0..outer {
        for i in 0..size {
            for n in 0..inner {
                let so_far = &mut result[o * inner + n];
                *so_far = f(*so_far, x[(o * size + i) * inner + n]);
            }
        }
    }
    result
}
