//! Ops without operands: constants, sizes and coordinates.

use nucleus_ir::DType;

use crate::error::NodeError;
use crate::movement::around;
use crate::real::Real;
use crate::tensor::Data;

/// `count` elements of that value: `bool` is true unless the value is 0, `i32` truncates.
pub(crate) fn full<F: Real>(value: f64, dtype: DType, count: usize) -> Data<F> {
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => Data::Float(vec![F::from_f64(value); count]),
        DType::I32 | DType::I8 => Data::Int(vec![value as i32; count]),
        DType::Bool => Data::Bool(vec![value != 0.0; count]),
    }
}

/// `size`: a size as a scalar.
pub(crate) fn size<F>(size: i64) -> Result<Data<F>, NodeError> {
    let size = i32::try_from(size).map_err(|_| NodeError::IndexRange { what: "the size", size })?;
    Ok(Data::Int(vec![size]))
}

/// `iota[i₀, …] = i_axis`.
pub(crate) fn iota<F>(shape: &[usize], axis: usize) -> Result<Data<F>, NodeError> {
    let (outer, size, inner) = around(shape, axis);
    let size = i32::try_from(size)
        .map_err(|_| NodeError::IndexRange { what: "the size of the axis", size: size as i64 })?;
    let mut result = Vec::with_capacity(outer * size as usize * inner);
    for _ in 0..outer {
        for coordinate in 0..size {
            result.extend(std::iter::repeat_n(coordinate, inner));
        }
    }
    Ok(Data::Int(result))
}
