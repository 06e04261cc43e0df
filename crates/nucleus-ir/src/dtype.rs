//! Element types.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// Two's complement 32-bit integer; indices are of this type.
    I32,
    /// One byte, 0 or 1.
    Bool,
    /// Two's complement 8-bit integer: quantised weights. Nothing computes in it; it is cast to a float where it is used.
    I8,
}

impl DType {
    /// Every element type, in the order of declaration.
    pub const ALL: [DType; 6] = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool, DType::I8];

    /// The types that values may have other than weights: all but `i8`.
    pub const COMPUTED: [DType; 5] = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::Bool | DType::I8 => 1,
        }
    }

    /// True for `f32`, `bf16` and `f16`.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// The name used in the language, e.g. `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::Bool => "bool",
            DType::I8 => "i8",
        }
    }

    /// The element type of that name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
