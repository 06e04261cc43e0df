//! Tensors: a dense, row-major array with an element type and a shape.

use nucleus_ir::{DType, Dim, TensorType};

use crate::elementwise;
use crate::real::Real;

/// The largest size of one axis; the same bound as that of a type.
const MAX_SIZE: usize = 1 << 40;

/// The elements of a tensor in row-major order. Every float type is held as `F`.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<F> {
    /// Elements of an `f32`, `bf16` or `f16` tensor.
    Float(Vec<F>),
    /// Elements of an `i32` tensor.
    Int(Vec<i32>),
    /// Elements of a `bool` tensor.
    Bool(Vec<bool>),
}

impl<F> Data<F> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::Float(x) => x.len(),
            Data::Int(x) => x.len(),
            Data::Bool(x) => x.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No elements of the kind that `dtype` is held in.
    pub(crate) fn empty(dtype: DType) -> Data<F> {
        match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => Data::Float(Vec::new()),
            DType::I32 | DType::I8 => Data::Int(Vec::new()),
            DType::Bool => Data::Bool(Vec::new()),
        }
    }
}

/// Why elements and a type do not make a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The number of elements is not the product of the shape.
    #[error("a tensor of shape {shape:?} cannot hold {given} elements")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// How many elements were given.
        given: usize,
    },
    /// An element type that the elements are not of.
    #[error("elements held as {held} are not of type {dtype}")]
    Kind {
        /// What the elements are.
        held: &'static str,
        /// The type asked for.
        dtype: DType,
    },
}

/// A tensor whose elements, element type and shape agree.
///
/// A `bf16` or `f16` tensor holds its elements as `F`; whether they are values of that narrower type is up to who makes it
/// ([`Tensor::cast`] rounds). [`evaluate`](crate::evaluate) rounds inputs and weights where it rounds results.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<F> {
    dtype: DType,
    shape: Vec<usize>,
    data: Data<F>,
}

impl<F: Real> Tensor<F> {
    /// A tensor of these elements, in row-major order.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Data<F>) -> Result<Tensor<F>, TensorError> {
        let held = match data {
            Data::Float(_) => "float",
            Data::Int(_) => "i32",
            Data::Bool(_) => "bool",
        };
        let fits = match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => matches!(data, Data::Float(_)),
            DType::I32 => matches!(data, Data::Int(_)),
            DType::I8 => matches!(&data, Data::Int(x) if x.iter().all(|x| i8::try_from(*x).is_ok())),
            DType::Bool => matches!(data, Data::Bool(_)),
        };
        if !fits {
            return Err(TensorError::Kind { held, dtype });
        }
        if element_count(&shape) != Some(data.len()) || shape.iter().any(|size| *size > MAX_SIZE) {
            return Err(TensorError::Length { given: data.len(), shape });
        }
        Ok(Tensor { dtype, shape, data })
    }

    /// An `f32` tensor.
    pub fn float(shape: &[usize], elements: Vec<F>) -> Result<Tensor<F>, TensorError> {
        Tensor::new(DType::F32, shape.to_vec(), Data::Float(elements))
    }

    /// An `i32` tensor.
    pub fn int(shape: &[usize], elements: Vec<i32>) -> Result<Tensor<F>, TensorError> {
        Tensor::new(DType::I32, shape.to_vec(), Data::Int(elements))
    }

    /// A `bool` tensor.
    pub fn bool(shape: &[usize], elements: Vec<bool>) -> Result<Tensor<F>, TensorError> {
        Tensor::new(DType::Bool, shape.to_vec(), Data::Bool(elements))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements in row-major order.
    pub fn data(&self) -> &Data<F> {
        &self.data
    }

    /// Gives up the shape for the elements.
    pub fn into_data(self) -> Data<F> {
        self.data
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements of a float tensor.
    pub fn floats(&self) -> Option<&[F]> {
        match &self.data {
            Data::Float(x) => Some(x),
            Data::Int(_) | Data::Bool(_) => None,
        }
    }

    /// The elements of an `i32` tensor.
    pub fn ints(&self) -> Option<&[i32]> {
        match &self.data {
            Data::Int(x) => Some(x),
            Data::Float(_) | Data::Bool(_) => None,
        }
    }

    /// The elements of a `bool` tensor.
    pub fn bools(&self) -> Option<&[bool]> {
        match &self.data {
            Data::Bool(x) => Some(x),
            Data::Float(_) | Data::Int(_) => None,
        }
    }

    /// The type, with constant sizes.
    pub fn ty(&self) -> TensorType {
        // `new` keeps every size far inside i64.
        TensorType::new(self.dtype, self.shape.iter().map(|size| Dim::constant(*size as i64)).collect())
    }

    /// The same values as another element type, by the rules of the op `cast`. With `rounding`, a `bf16` or `f16` result is rounded to
    /// nearest even; without it, floats keep their full precision.
    pub fn cast(&self, to: DType, rounding: bool) -> Tensor<F> {
        let mut data = elementwise::cast(&self.data, to);
        if rounding {
            round(&mut data, to);
        }
        Tensor { dtype: to, shape: self.shape.clone(), data }
    }

    /// The same tensor in the other arithmetic: exact from `f32` to `f64`, to the nearest from `f64` to `f32`.
    pub fn convert<G: Real>(&self) -> Tensor<G> {
        let data = match &self.data {
            Data::Float(x) => Data::Float(x.iter().map(|x| G::from_f64(x.to_f64())).collect()),
            Data::Int(x) => Data::Int(x.clone()),
            Data::Bool(x) => Data::Bool(x.clone()),
        };
        Tensor { dtype: self.dtype, shape: self.shape.clone(), data }
    }

    /// The bytes that the elements take in this evaluator, which holds every float as `F`.
    pub(crate) fn bytes(&self) -> u64 {
        self.len() as u64 * element_bytes::<F>(self.dtype)
    }
}

/// Rounds the elements to the nearest `bf16` or `f16`; leaves other types alone.
pub(crate) fn round<F: Real>(data: &mut Data<F>, dtype: DType) {
    if let (Data::Float(elements), DType::Bf16 | DType::F16) = (data, dtype) {
        for x in elements {
            *x = x.round_to(dtype);
        }
    }
}

/// The number of elements of a shape; `None` beyond the address space.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere wins over an overflow elsewhere.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |total, size| total.checked_mul(*size))
}

/// The bytes that an element of that type takes in this evaluator.
pub(crate) fn element_bytes<F>(dtype: DType) -> u64 {
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => size_of::<F>() as u64,
        // Held like every integer.
        DType::I32 | DType::I8 => 4,
        DType::Bool => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_type_and_shape_must_agree() {
        let tensor = Tensor::<f32>::float(&[2, 3], vec![0.0; 6]).unwrap();
        assert_eq!((tensor.ty().to_string().as_str(), tensor.bytes()), ("f32[2, 3]", 24));
        let error = Tensor::<f32>::float(&[2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a tensor of shape [2, 3] cannot hold 5 elements");
        let error = Tensor::<f32>::new(DType::Bool, vec![1], Data::Int(vec![1])).unwrap_err();
        assert_eq!(error.to_string(), "elements held as i32 are not of type bool");
        assert!(Tensor::<f32>::int(&[usize::MAX, 2], vec![]).is_err());
        assert!(Tensor::<f32>::int(&[usize::MAX, 0], vec![]).is_err());
        assert!(Tensor::<f32>::bool(&[1 << 40, 1 << 40, 0], vec![]).unwrap().is_empty());
        assert_eq!(Tensor::<f64>::int(&[], vec![3]).unwrap().len(), 1);
    }

    #[test]
    fn cast_rounds_when_asked() {
        let tensor = Tensor::<f64>::float(&[2], vec![257.0, 0.1]).unwrap();
        assert_eq!(tensor.cast(DType::Bf16, false).floats().unwrap(), [257.0, 0.1]);
        assert_eq!(tensor.cast(DType::Bf16, true).floats().unwrap()[0], 256.0);
        assert_eq!(tensor.cast(DType::I32, true).ints().unwrap(), [257, 0]);
        assert_eq!(tensor.convert::<f32>().floats().unwrap(), [257.0f32, 0.1]);
    }
}
