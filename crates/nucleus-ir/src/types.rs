//! The type of a tensor: element type and symbolic shape.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dim::{Dim, DimError, product};
use crate::dtype::DType;

/// The type of a tensor value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// Sizes, outermost first; empty for a scalar. Tensors are dense and row-major.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> TensorType {
        TensorType { dtype, shape }
    }

    /// A scalar of that element type.
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType { dtype, shape: Vec::new() }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn elements(&self) -> Result<Dim, DimError> {
        product(&self.shape)
    }

    /// The size in bytes.
    pub fn bytes(&self) -> Result<Dim, DimError> {
        self.elements()?.mul(&Dim::constant(self.dtype.size() as i64))
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType { dtype, shape: self.shape.clone() }
    }
}

/// Shows a shape as `[B, H*W, 64]`.
pub struct ShapeDisplay<'a>(pub &'a [Dim]);

impl fmt::Display for ShapeDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, ShapeDisplay(&self.shape))
    }
}

/// How often an input may change, and so how often a value that depends on it must be computed. Ordered: a value's rate is
/// the largest rate of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rate {
    /// Depends on the weights alone: computed when a model is loaded.
    Model,
    /// Changes with the prompt or the run-time sizes.
    Prompt,
    /// Changes at every step.
    Step,
}

impl Rate {
    /// Every rate, slowest first.
    pub const ALL: [Rate; 3] = [Rate::Model, Rate::Prompt, Rate::Step];

    /// The name after `per` in the language.
    pub const fn name(self) -> &'static str {
        match self {
            Rate::Model => "model",
            Rate::Prompt => "prompt",
            Rate::Step => "step",
        }
    }

    /// The rate of that name.
    pub fn from_name(name: &str) -> Option<Rate> {
        Rate::ALL.into_iter().find(|rate| rate.name() == name)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "per {}", self.name())
    }
}
