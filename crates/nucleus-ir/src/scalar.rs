//! Scalar operations: the element-wise part of the op table, shared with the scalar functions of a plan.

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// An operation on scalars. As an op of the graph it is applied to every element of tensors of equal shape; inside a kernel
/// of a plan it is one step of a prologue, an epilogue or a loop body.
///
/// Arithmetic on `bf16` and `f16` is defined as: widen to `f32`, compute, round to nearest even. `i32` arithmetic wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ScalarOp {
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// eˣ.
    Exp,
    /// Natural logarithm.
    Log,
    /// √x.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1+e⁻ˣ).
    Sigmoid,
    /// Sine of an angle in radians.
    Sin,
    /// Cosine of an angle in radians.
    Cos,
    /// x + y.
    Add,
    /// x − y.
    Sub,
    /// x · y.
    Mul,
    /// x / y; for `i32` rounded towards zero, and 0 where y is 0.
    Div,
    /// The larger; NaN if either is.
    Max,
    /// The smaller; NaN if either is.
    Min,
    /// x < y.
    Less,
    /// x ≤ y.
    LessEqual,
    /// x = y.
    Equal,
    /// Logical and of booleans.
    And,
    /// Logical or of booleans.
    Or,
    /// Logical negation of a boolean.
    Not,
    /// `y` where the boolean `x` is true, else `z`.
    Select,
    /// Conversion: floats round to nearest even, float to `i32` truncates and saturates (NaN gives 0), booleans become 0 or 1,
    /// numbers become `x ≠ 0`. An `i8` becomes a float; nothing becomes an `i8`.
    Cast(DType),
}

impl ScalarOp {
    /// Every operation but the casts.
    pub const ALL: [ScalarOp; 23] = [
        ScalarOp::Neg,
        ScalarOp::Abs,
        ScalarOp::Exp,
        ScalarOp::Log,
        ScalarOp::Sqrt,
        ScalarOp::Rsqrt,
        ScalarOp::Tanh,
        ScalarOp::Sigmoid,
        ScalarOp::Sin,
        ScalarOp::Cos,
        ScalarOp::Add,
        ScalarOp::Sub,
        ScalarOp::Mul,
        ScalarOp::Div,
        ScalarOp::Max,
        ScalarOp::Min,
        ScalarOp::Less,
        ScalarOp::LessEqual,
        ScalarOp::Equal,
        ScalarOp::And,
        ScalarOp::Or,
        ScalarOp::Not,
        ScalarOp::Select,
    ];

    /// The name of the op of the table that applies this operation to every element.
    pub const fn name(self) -> &'static str {
        match self {
            ScalarOp::Neg => "neg",
            ScalarOp::Abs => "abs",
            ScalarOp::Exp => "exp",
            ScalarOp::Log => "log",
            ScalarOp::Sqrt => "sqrt",
            ScalarOp::Rsqrt => "rsqrt",
            ScalarOp::Tanh => "tanh",
            ScalarOp::Sigmoid => "sigmoid",
            ScalarOp::Sin => "sin",
            ScalarOp::Cos => "cos",
            ScalarOp::Add => "add",
            ScalarOp::Sub => "sub",
            ScalarOp::Mul => "mul",
            ScalarOp::Div => "div",
            ScalarOp::Max => "max",
            ScalarOp::Min => "min",
            ScalarOp::Less => "less",
            ScalarOp::LessEqual => "less_equal",
            ScalarOp::Equal => "equal",
            ScalarOp::And => "and",
            ScalarOp::Or => "or",
            ScalarOp::Not => "not",
            ScalarOp::Select => "select",
            ScalarOp::Cast(_) => "cast",
        }
    }

    /// The operation of that name; casts carry a dtype and are not found by name.
    pub fn from_name(name: &str) -> Option<ScalarOp> {
        ScalarOp::ALL.into_iter().find(|op| op.name() == name)
    }

    /// How many operands it takes.
    pub const fn arity(self) -> usize {
        match self {
            ScalarOp::Neg
            | ScalarOp::Abs
            | ScalarOp::Exp
            | ScalarOp::Log
            | ScalarOp::Sqrt
            | ScalarOp::Rsqrt
            | ScalarOp::Tanh
            | ScalarOp::Sigmoid
            | ScalarOp::Sin
            | ScalarOp::Cos
            | ScalarOp::Not
            | ScalarOp::Cast(_) => 1,
            ScalarOp::Add
            | ScalarOp::Sub
            | ScalarOp::Mul
            | ScalarOp::Div
            | ScalarOp::Max
            | ScalarOp::Min
            | ScalarOp::Less
            | ScalarOp::LessEqual
            | ScalarOp::Equal
            | ScalarOp::And
            | ScalarOp::Or => 2,
            ScalarOp::Select => 3,
        }
    }

    /// The dtype of the result for operands of these dtypes, or `None` where the operation is not defined for them.
    pub fn result(self, operands: &[DType]) -> Option<DType> {
        use ScalarOp::*;
        match (self, operands) {
            (Exp | Log | Sqrt | Rsqrt | Tanh | Sigmoid | Sin | Cos, [x]) if x.is_float() => Some(*x),
            (Neg | Abs, [x]) if computes(*x) => Some(*x),
            (Not, [DType::Bool]) => Some(DType::Bool),
            (Cast(DType::I8), _) => None,
            (Cast(to), [DType::I8]) => to.is_float().then_some(to),
            (Cast(to), [_]) => Some(to),
            (Add | Sub | Mul | Div | Max | Min, [x, y]) if x == y && computes(*x) => Some(*x),
            (Less | LessEqual | Equal, [x, y]) if x == y && *x != DType::I8 => Some(DType::Bool),
            (And | Or, [DType::Bool, DType::Bool]) => Some(DType::Bool),
            (Select, [DType::Bool, y, z]) if y == z && *y != DType::I8 => Some(*y),
            _ => None,
        }
    }
}

/// True for the types that arithmetic is defined for: all but truth values and quantised weights.
fn computes(dtype: DType) -> bool {
    !matches!(dtype, DType::Bool | DType::I8)
}
