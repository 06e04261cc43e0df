//! Tensors in host memory: what goes into a session and what comes out of it.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use nucleus_ir::DType;
use thiserror::Error;

use crate::convert;

#[cfg(target_endian = "big")]
compile_error!("tensors are stored little-endian and viewed in place: big-endian machines are not supported");

/// Alignment of a tensor's first byte: one cache line, and the widest vector load.
pub const TENSOR_ALIGNMENT: usize = 64;

/// Why a tensor could not be made or viewed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorError {
    /// The data does not fill the shape.
    #[error("shape {shape:?} has {expected} elements, {given} were given")]
    ElementCount {
        /// The shape asked for.
        shape: Vec<usize>,
        /// Its element count.
        expected: usize,
        /// Elements in the data.
        given: usize,
    },
    /// The raw bytes do not fill the shape.
    #[error("shape {shape:?} of {dtype} needs {expected} bytes, {given} were given")]
    ByteCount {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type.
        dtype: DType,
        /// Bytes of that many elements.
        expected: usize,
        /// Bytes in the data.
        given: usize,
    },
    /// The size in bytes does not fit the address space.
    #[error("shape {shape:?} of {dtype} has more bytes than this machine can address")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type.
        dtype: DType,
    },
    /// The allocator refused.
    #[error("not enough memory for shape {shape:?} of {dtype} ({bytes} bytes)")]
    OutOfMemory {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type.
        dtype: DType,
        /// Bytes asked of the allocator.
        bytes: usize,
    },
    /// A typed view of a tensor of another dtype.
    #[error("the tensor holds {actual}, not {wanted}")]
    WrongDType {
        /// The dtype of the view.
        wanted: DType,
        /// The dtype of the tensor.
        actual: DType,
    },
    /// A byte of a bool tensor is neither 0 nor 1.
    #[error("element {index} of a bool tensor is byte {value}; only 0 and 1 are bools")]
    NotBool {
        /// Row-major index of the first such element.
        index: usize,
        /// The byte.
        value: u8,
    },
    /// A conversion that is not between floats.
    #[error(transparent)]
    Convert(#[from] convert::ConvertError),
}

/// One aligned line of memory.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; TENSOR_ALIGNMENT]);

/// A dense row-major tensor that owns its bytes, aligned to [`TENSOR_ALIGNMENT`].
///
/// Elements are little-endian; a bool is one byte, 0 or 1.
#[derive(Clone)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    elements: usize,
    /// Holds `elements * dtype.size()` bytes, rounded up to whole lines.
    lines: Vec<Line>,
}

/// The element count of `shape`, or `None` where it, or its size in bytes, does not fit.
pub(crate) fn checked_elements(dtype: DType, shape: &[usize]) -> Option<usize> {
    let elements = if shape.contains(&0) {
        0
    } else {
        shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?
    };
    // Allocations are limited to `isize::MAX` bytes, and the last line must still fit.
    let bytes = elements.checked_mul(dtype.size())?;
    (bytes <= isize::MAX as usize - TENSOR_ALIGNMENT).then_some(elements)
}

impl HostTensor {
    /// A tensor of zeros (of `false` for bools).
    ///
    /// # Errors
    /// The size overflows, or there is not that much memory.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<HostTensor, TensorError> {
        let elements = checked_elements(dtype, shape)
            .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })?;
        let bytes = elements * dtype.size();
        let count = bytes.div_ceil(TENSOR_ALIGNMENT);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| TensorError::OutOfMemory {
            shape: shape.to_vec(),
            dtype,
            bytes,
        })?;
        lines.resize(count, Line::zeroed());
        Ok(HostTensor { dtype, shape: shape.to_vec(), elements, lines })
    }

    /// An `f32` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_f32(shape: &[usize], data: &[f32]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::F32, shape, data)
    }

    /// A `bf16` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_bf16(shape: &[usize], data: &[bf16]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::Bf16, shape, data)
    }

    /// An `f16` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_f16(shape: &[usize], data: &[f16]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::F16, shape, data)
    }

    /// An `i32` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_i32(shape: &[usize], data: &[i32]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::I32, shape, data)
    }

    /// An `i8` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_i8(shape: &[usize], data: &[i8]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::I8, shape, data)
    }

    /// A `bool` tensor of those elements, row-major.
    ///
    /// # Errors
    /// `data` does not have as many elements as `shape`.
    pub fn from_bool(shape: &[usize], data: &[bool]) -> Result<HostTensor, TensorError> {
        HostTensor::from_elements(DType::Bool, shape, data)
    }

    fn from_elements<T: bytemuck::NoUninit>(
        dtype: DType,
        shape: &[usize],
        data: &[T],
    ) -> Result<HostTensor, TensorError> {
        match checked_elements(dtype, shape) {
            Some(expected) if expected != data.len() => {
                Err(TensorError::ElementCount { shape: shape.to_vec(), expected, given: data.len() })
            }
            _ => HostTensor::from_bytes(dtype, shape, bytemuck::cast_slice(data)),
        }
    }

    /// A tensor of little-endian elements, row-major. The bytes need no alignment.
    ///
    /// # Errors
    /// `bytes` is not as long as the shape needs, or is no bool where a bool is due.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<HostTensor, TensorError> {
        let elements = checked_elements(dtype, shape)
            .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })?;
        let expected = elements * dtype.size();
        if expected != bytes.len() {
            return Err(TensorError::ByteCount {
                shape: shape.to_vec(),
                dtype,
                expected,
                given: bytes.len(),
            });
        }
        let mut tensor = HostTensor::zeros(dtype, shape)?;
        tensor.bytes_mut().copy_from_slice(bytes);
        if dtype == DType::Bool {
            tensor.as_bool()?;
        }
        Ok(tensor)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element count: the product of the shape.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The elements' bytes, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.elements * self.dtype.size()]
    }

    /// The elements' bytes, to be overwritten. In a bool tensor every byte must stay 0 or 1.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.elements * self.dtype.size();
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }

    fn expect(&self, wanted: DType) -> Result<(), TensorError> {
        if self.dtype == wanted {
            Ok(())
        } else {
            Err(TensorError::WrongDType { wanted, actual: self.dtype })
        }
    }

    /// The elements of an `f32` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_f32(&self) -> Result<&[f32], TensorError> {
        self.expect(DType::F32)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements of an `f32` tensor, to be overwritten.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_f32_mut(&mut self) -> Result<&mut [f32], TensorError> {
        self.expect(DType::F32)?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// The elements of a `bf16` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_bf16(&self) -> Result<&[bf16], TensorError> {
        self.expect(DType::Bf16)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements of an `f16` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_f16(&self) -> Result<&[f16], TensorError> {
        self.expect(DType::F16)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements of an `i32` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_i32(&self) -> Result<&[i32], TensorError> {
        self.expect(DType::I32)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements of an `i8` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype.
    pub fn as_i8(&self) -> Result<&[i8], TensorError> {
        self.expect(DType::I8)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements of a `bool` tensor.
    ///
    /// # Errors
    /// The tensor is of another dtype, or [`bytes_mut`](HostTensor::bytes_mut) left a byte that is no bool.
    pub fn as_bool(&self) -> Result<&[bool], TensorError> {
        self.expect(DType::Bool)?;
        let bytes = self.bytes();
        bytemuck::checked::try_cast_slice(bytes).map_err(|_| {
            let index = bytes.iter().position(|&byte| byte > 1).unwrap_or(0);
            TensorError::NotBool { index, value: bytes[index] }
        })
    }

    /// Every element as `f32`: floats widened, integers rounded to nearest, bools as 0 and 1.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(self.bytes()).to_vec(),
            DType::I32 => {
                let elements: &[i32] = bytemuck::cast_slice(self.bytes());
                elements.iter().map(|&value| value as f32).collect()
            }
            DType::Bool => self.bytes().iter().map(|&byte| f32::from(byte)).collect(),
            DType::I8 => self.bytes().iter().map(|&byte| f32::from(byte as i8)).collect(),
            DType::Bf16 => {
                let mut out = vec![0.0; self.elements];
                convert::bf16_to_f32(bytemuck::cast_slice(self.bytes()), &mut out);
                out
            }
            DType::F16 => {
                let mut out = vec![0.0; self.elements];
                convert::f16_to_f32(bytemuck::cast_slice(self.bytes()), &mut out);
                out
            }
        }
    }

    /// The same values in float dtype `to`, rounded to nearest even.
    ///
    /// # Errors
    /// One of the dtypes is not a float (equal dtypes are always fine), or there is not enough memory.
    pub fn to_dtype(&self, to: DType) -> Result<HostTensor, TensorError> {
        if to == self.dtype {
            return Ok(self.clone());
        }
        if !to.is_float() || !self.dtype.is_float() {
            return Err(convert::ConvertError::NotFloat { from: self.dtype, to }.into());
        }
        let mut out = HostTensor::zeros(to, &self.shape)?;
        convert::convert(self.dtype, self.bytes(), to, out.bytes_mut())?;
        Ok(out)
    }
}

impl PartialEq for HostTensor {
    /// Equal dtype, shape and bits: a NaN equals itself, `-0.0` does not equal `0.0`.
    fn eq(&self, other: &HostTensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_viewed_by_its_own_dtype_only() {
        for n in [0usize, 1, 15, 16, 17, 1000] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let tensor = HostTensor::from_f32(&[n], &values).unwrap();
            assert_eq!(tensor.bytes().as_ptr() as usize % TENSOR_ALIGNMENT, 0);
            assert_eq!(tensor.as_f32().unwrap(), values);
            assert_eq!(tensor.elements(), n);
        }
        let tensor = HostTensor::from_i32(&[2], &[1, -2]).unwrap();
        assert_eq!(tensor.as_i32().unwrap(), [1, -2]);
        assert_eq!(tensor.as_f32().unwrap_err().to_string(), "the tensor holds i32, not f32");
        assert_eq!(tensor.to_f32_vec(), [1.0, -2.0]);
    }

    #[test]
    fn a_scalar_has_one_element() {
        let tensor = HostTensor::from_f32(&[], &[3.0]).unwrap();
        assert_eq!((tensor.elements(), tensor.shape().len()), (1, 0));
    }

    #[test]
    fn counts_are_checked() {
        let error = HostTensor::from_f32(&[2, 3], &[0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] has 6 elements, 5 were given");
        let error = HostTensor::from_bytes(DType::Bf16, &[2, 3], &[0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] of bf16 needs 12 bytes, 11 were given");
        for shape in [vec![usize::MAX, 2], vec![usize::MAX], vec![isize::MAX as usize / 4]] {
            let error = HostTensor::zeros(DType::F32, &shape).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("shape {shape:?} of f32 has more bytes than this machine can address")
            );
        }
        let shape = [usize::MAX, usize::MAX, 0];
        assert_eq!(HostTensor::zeros(DType::F32, &shape).unwrap().elements(), 0);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let error = HostTensor::zeros(DType::F32, &[1 << 60]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("not enough memory for shape [{}] of f32 ({} bytes)", 1u64 << 60, 1u64 << 62)
        );
    }

    #[test]
    fn bools_are_0_or_1() {
        let tensor = HostTensor::from_bool(&[3], &[true, false, true]).unwrap();
        assert_eq!(tensor.as_bool().unwrap(), [true, false, true]);
        assert_eq!(tensor.to_f32_vec(), [1.0, 0.0, 1.0]);
        let error = HostTensor::from_bytes(DType::Bool, &[3], &[1, 0, 7]).unwrap_err();
        assert_eq!(error.to_string(), "element 2 of a bool tensor is byte 7; only 0 and 1 are bools");
    }

    #[test]
    fn half_floats_widen_exactly_and_narrow_by_rounding() {
        let tensor = HostTensor::from_f32(&[2], &[1.0, 1.0 + 1.0 / 256.0]).unwrap();
        let narrow = tensor.to_dtype(DType::Bf16).unwrap();
        assert_eq!(narrow.to_f32_vec(), [1.0, 1.0]);
        assert_eq!(narrow.as_bf16().unwrap().len(), 2);
        let narrow = tensor.to_dtype(DType::F16).unwrap();
        assert_eq!(narrow.to_f32_vec(), [1.0, 1.0 + 1.0 / 256.0]);
        assert_eq!(narrow.as_f16().unwrap().len(), 2);
        assert_eq!(
            tensor.to_dtype(DType::I32).unwrap_err().to_string(),
            "cannot convert f32 to i32: both must be f32, bf16 or f16"
        );
    }
}
