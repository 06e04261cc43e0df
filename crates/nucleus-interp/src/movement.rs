//! Ops that move elements and compute nothing: transpose, broadcast, slice, concat. (Reshape keeps the elements as they are.)

use crate::real::Real;
use crate::tensor::{Data, Tensor};

/// The sizes before, at and after an axis: element `(o, i, n)` of that view stands at `(o · size + i) · inner + n`.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Applies a generic function to the elements, whatever they are.
macro_rules! any {
    ($data:expr, |$elements:ident| $body:expr) => {
        match $data {
            Data::Float($elements) => Data::Float($body),
            Data::Int($elements) => Data::Int($body),
            Data::Bool($elements) => Data::Bool($body),
        }
    };
}
pub(crate) use any;

/// `y[i₀, …] = x[j₀, …]` with `j[permutation[a]] = i[a]`.
pub(crate) fn transpose<F: Copy>(x: &Data<F>, shape: &[usize], permutation: &[usize]) -> Data<F> {
    let strides = row_major_strides(shape);
    let result_shape: Vec<usize> = permutation.iter().map(|axis| shape[*axis]).collect();
    let result_strides: Vec<usize> = permutation.iter().map(|axis| strides[*axis]).collect();
    any!(x, |x| strided(x, &result_shape, &result_strides))
}

/// Repeats along new leading axes and along axes of size 1: an axis that repeats has stride 0.
pub(crate) fn broadcast<F: Copy>(x: &Data<F>, shape: &[usize], result_shape: &[usize]) -> Data<F> {
    let strides = row_major_strides(shape);
    let added = result_shape.len() - shape.len();
    let mut result_strides = vec![0; result_shape.len()];
    for axis in 0..shape.len() {
        if shape[axis] == result_shape[added + axis] {
            result_strides[added + axis] = strides[axis];
        }
    }
    any!(x, |x| strided(x, result_shape, &result_strides))
}

/// The part of x with `start ≤ i_axis < end`.
pub(crate) fn slice<F: Copy>(x: &Data<F>, shape: &[usize], axis: usize, start: usize, end: usize) -> Data<F> {
    let (outer, size, inner) = around(shape, axis);
    any!(x, |x| {
        let mut result = Vec::with_capacity(outer * (end - start) * inner);
        for o in 0..outer {
            result.extend_from_slice(&x[(o * size + start) * inner..(o * size + end) * inner]);
        }
        result
    })
}

/// The operands one behind the other along an axis; `None` if they are not of one kind.
pub(crate) fn concat<F: Real>(xs: &[&Tensor<F>], axis: usize) -> Option<Data<F>> {
    let shapes: Vec<&[usize]> = xs.iter().map(|x| x.shape()).collect();
    Some(match xs.first()?.data() {
        Data::Float(_) => {
            Data::Float(join(&xs.iter().map(|x| x.floats()).collect::<Option<Vec<_>>>()?, &shapes, axis))
        }
        Data::Int(_) => {
            Data::Int(join(&xs.iter().map(|x| x.ints()).collect::<Option<Vec<_>>>()?, &shapes, axis))
        }
        Data::Bool(_) => {
            Data::Bool(join(&xs.iter().map(|x| x.bools()).collect::<Option<Vec<_>>>()?, &shapes, axis))
        }
    })
}

fn join<T: Copy>(parts: &[&[T]], shapes: &[&[usize]], axis: usize) -> Vec<T> {
    let mut result = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    let (outer, _, inner) = around(shapes[0], axis);
    for o in 0..outer {
        for (part, shape) in parts.iter().zip(shapes) {
            let row = shape[axis] * inner;
            result.extend_from_slice(&part[o * row..(o + 1) * row]);
        }
    }
    result
}

/// The distance between neighbours along every axis.
fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// `y[i₀, i₁, …] = x[i₀ · strides₀ + i₁ · strides₁ + …]`.
fn strided<T: Copy>(x: &[T], shape: &[usize], strides: &[usize]) -> Vec<T> {
    fn walk<T: Copy>(x: &[T], shape: &[usize], strides: &[usize], offset: usize, result: &mut Vec<T>) {
        match (shape, strides) {
            ([size, shape @ ..], [stride, strides @ ..]) => {
                for i in 0..*size {
                    walk(x, shape, strides, offset + i * stride, result);
                }
            }
            _ => result.push(x[offset]),
        }
    }
    let mut result = Vec::with_capacity(shape.iter().product());
    walk(x, shape, strides, 0, &mut result);
    result
}
