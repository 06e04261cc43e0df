//! The op table: every primitive of the language, declared once.
//!
//! A row gives an op's name, operands, attributes, type rule and meaning. From it come the [`Op`] enum, the names the parser
//! accepts, what the printer writes, and `docs/ops.md`. What an op *does* is stated by exhaustive matches elsewhere (the type
//! rules in [`mod@crate::infer`], the evaluator, derivatives, code generation), so the compiler names every place that a new op
//! must reach.

use serde::{Deserialize, Serialize};

use crate::dim::Dim;
use crate::dtype::DType;
use crate::float::Float;
use crate::scalar::ScalarOp;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Attribute {
    /// A truth value.
    Bool(bool),
    /// A real number.
    Float(Float),
    /// An element type.
    DType(DType),
    /// A size.
    Dim(Dim),
    /// A shape.
    Shape(Vec<Dim>),
    /// One axis, counted from 0. The text may count from the end with negative numbers.
    Axis(usize),
    /// A list of axes, each counted from 0.
    Axes(Vec<usize>),
}

/// What kind of value an attribute takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// See [`Attribute::Bool`].
    Bool,
    /// See [`Attribute::Float`].
    Float,
    /// See [`Attribute::DType`].
    DType,
    /// See [`Attribute::Dim`].
    Dim,
    /// See [`Attribute::Shape`].
    Shape,
    /// See [`Attribute::Axis`].
    Axis,
    /// See [`Attribute::Axes`].
    Axes,
}

impl AttributeKind {
    /// How documentation and diagnostics name the kind.
    pub const fn name(self) -> &'static str {
        match self {
            AttributeKind::Bool => "bool",
            AttributeKind::Float => "float",
            AttributeKind::DType => "dtype",
            AttributeKind::Dim => "size",
            AttributeKind::Shape => "shape",
            AttributeKind::Axis => "axis",
            AttributeKind::Axes => "axes",
        }
    }
}

/// Conversion between an op's fields and [`Attribute`].
trait Field: Sized {
    const KIND: AttributeKind;
    fn to_attribute(&self) -> Attribute;
    fn from_attribute(attribute: &Attribute) -> Option<Self>;
}

macro_rules! field {
    ($ty:ty, $variant:ident) => {
        impl Field for $ty {
            const KIND: AttributeKind = AttributeKind::$variant;
            fn to_attribute(&self) -> Attribute {
                Attribute::$variant(self.clone())
            }
            fn from_attribute(attribute: &Attribute) -> Option<Self> {
                match attribute {
                    Attribute::$variant(value) => Some(value.clone()),
                    _ => None,
                }
            }
        }
    };
}

field!(bool, Bool);
field!(Float, Float);
field!(DType, DType);
field!(Dim, Dim);
field!(Vec<Dim>, Shape);
field!(usize, Axis);
field!(Vec<usize>, Axes);

/// One operand of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandInfo {
    /// Its name in documentation; operands are given by position.
    pub name: &'static str,
    /// How many times it may be given.
    pub count: OperandCount,
}

/// How many times an operand may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandCount {
    /// Exactly once.
    One,
    /// Once or not at all; only the last operand.
    Optional,
    /// One or more times; only the last operand.
    Many,
}

/// One attribute of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeInfo {
    /// Its name: attributes are given as `name = value`.
    pub name: &'static str,
    /// What it takes.
    pub kind: AttributeKind,
    /// The value where the text gives none; `None` means that it must be given.
    pub default: Option<Attribute>,
    /// The meaning, for people.
    pub doc: &'static str,
}

/// One row of the op table.
#[derive(Clone, Debug)]
pub struct OpInfo {
    /// The name in the language.
    pub name: &'static str,
    /// The operands.
    pub operands: &'static [OperandInfo],
    /// The attributes, in the order in which they are printed.
    pub attributes: Vec<AttributeInfo>,
    /// The type rule, for people.
    pub rule: &'static str,
    /// The meaning, for people.
    pub doc: &'static str,
}

/// What is wrong with an op's operands or attributes before types are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// There is no such op.
    #[error("there is no op `{0}`")]
    Unknown(String),
    /// An attribute that the op does not have.
    #[error("op `{op}` has no attribute `{attribute}`")]
    UnknownAttribute {
        /// The op.
        op: &'static str,
        /// The attribute.
        attribute: String,
    },
    /// A required attribute is not given.
    #[error("op `{op}` needs attribute `{attribute}`")]
    MissingAttribute {
        /// The op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
    },
    /// An attribute of the wrong kind.
    #[error("attribute `{attribute}` of op `{op}` must be a {expected}")]
    AttributeKind {
        /// The op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

macro_rules! operand_count {
    () => {
        OperandCount::One
    };
    (optional) => {
        OperandCount::Optional
    };
    (many) => {
        OperandCount::Many
    };
}

macro_rules! default_attribute {
    () => {
        None
    };
    ($value:expr) => {
        Some(Field::to_attribute(&$value))
    };
}

macro_rules! ops {
    (
        $(
            #[doc = $doc:literal] $(#[doc = $more:literal])*
            $variant:ident = $name:literal ( $($operand:ident $($count:ident)?),* )
                $({ $($(#[doc = $field_doc:literal])* $field:ident : $ty:ty $(= $default:expr)?),+ })?
                -> $rule:literal $(, scalar $scalar:expr)?;
        )*
    ) => {
        /// A primitive operation with its attributes. See the [module documentation](self).
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Op {
            $(
                #[doc = $doc] $(#[doc = $more])*
                $variant $({ $($(#[doc = $field_doc])* $field: $ty),+ })?,
            )*
        }

        impl Op {
            /// The name in the language.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$variant { .. } => $name,)* }
            }

            /// The attributes and their values, in the order of the table.
            pub fn attributes(&self) -> Vec<(&'static str, Attribute)> {
                match self {
                    $(Op::$variant $({ $($field),+ })? => vec![$($((stringify!($field), Field::to_attribute($field))),+)?],)*
                }
            }

            /// The scalar operation that this op applies to every element, if it is an element-wise one.
            pub fn scalar(&self) -> Option<ScalarOp> {
                match self {
                    $($(Op::$variant { .. } => Some($scalar),)?)*
                    Op::Cast { to } => Some(ScalarOp::Cast(*to)),
                    _ => None,
                }
            }

            /// The row of the table.
            pub fn info(&self) -> OpInfo {
                match self { $(Op::$variant { .. } => info::$variant(),)* }
            }

            /// The op of that name with these attributes.
            pub fn new(name: &str, given: &[(String, Attribute)]) -> Result<Op, OpError> {
                let row = op_info(name).ok_or_else(|| OpError::Unknown(name.to_owned()))?;
                if let Some((attribute, _)) =
                    given.iter().find(|(attribute, _)| row.attributes.iter().all(|known| known.name != attribute))
                {
                    return Err(OpError::UnknownAttribute { op: row.name, attribute: attribute.clone() });
                }
                match name {
                    $($name => Ok(Op::$variant $({ $($field: take(&row, given, stringify!($field))?),+ })?),)*
                    _ => Err(OpError::Unknown(name.to_owned())),
                }
            }
        }

        /// Every row, in the order of the table.
        pub fn op_table() -> Vec<OpInfo> {
            vec![$(info::$variant()),*]
        }

        /// The row of the op of that name.
        pub fn op_info(name: &str) -> Option<OpInfo> {
            match name {
                $($name => Some(info::$variant()),)*
                _ => None,
            }
        }

        #[expect(non_snake_case, reason = "one function per row, named as the variant")]
        mod info {
            use super::*;
            $(
                pub(super) fn $variant() -> OpInfo {
                    OpInfo {
                        name: $name,
                        operands: &[
                            $(OperandInfo { name: stringify!($operand), count: operand_count!($($count)?) }),*
                        ],
                        attributes: vec![$($(AttributeInfo {
                            name: stringify!($field),
                            kind: <$ty as Field>::KIND,
                            default: default_attribute!($($default)?),
                            doc: concat!($($field_doc),*).trim_ascii(),
                        }),+)?],
                        rule: $rule,
                        doc: concat!($doc $(, "\n", $more)*),
                    }
                }
            )*
        }
    };
}

fn take<T: Field>(row: &OpInfo, given: &[(String, Attribute)], name: &'static str) -> Result<T, OpError> {
    let known = row.attributes.iter().find(|attribute| attribute.name == name);
    let value = given.iter().find(|(attribute, _)| attribute == name).map(|(_, value)| value);
    let value = value.or(known.and_then(|attribute| attribute.default.as_ref()));
    let value = value.ok_or(OpError::MissingAttribute { op: row.name, attribute: name })?;
    T::from_attribute(value).ok_or(OpError::AttributeKind {
        op: row.name,
        attribute: name,
        expected: T::KIND.name(),
    })
}

ops! {
    /// A scalar constant.
    Constant = "constant" () { /// The value; for `i32` a whole number, for `bool` 0 or 1.
        value: Float, /// Its element type.
        dtype: DType = DType::F32 } -> "() → dtype[]";
    /// A size as a scalar; it must fit an `i32` at run time.
    Size = "size" () { /// The size.
        dim: Dim } -> "() → i32[]";
    /// The coordinate along one axis: `iota[i₀, …] = i_axis`.
    Iota = "iota" () { /// The shape of the result.
        shape: Vec<Dim>, /// The axis whose coordinate is taken.
        axis: usize = 0usize } -> "() → i32[shape]";

    /// −x, element by element.
    Neg = "neg" (x) -> "N[s] → N[s], N a number", scalar ScalarOp::Neg;
    /// |x|, element by element.
    Abs = "abs" (x) -> "N[s] → N[s]", scalar ScalarOp::Abs;
    /// eˣ, element by element.
    Exp = "exp" (x) -> "F[s] → F[s], F a float", scalar ScalarOp::Exp;
    /// The natural logarithm, element by element.
    Log = "log" (x) -> "F[s] → F[s]", scalar ScalarOp::Log;
    /// √x, element by element.
    Sqrt = "sqrt" (x) -> "F[s] → F[s]", scalar ScalarOp::Sqrt;
    /// 1/√x, element by element.
    Rsqrt = "rsqrt" (x) -> "F[s] → F[s]", scalar ScalarOp::Rsqrt;
    /// The hyperbolic tangent, element by element.
    Tanh = "tanh" (x) -> "F[s] → F[s]", scalar ScalarOp::Tanh;
    /// 1/(1+e⁻ˣ), element by element.
    Sigmoid = "sigmoid" (x) -> "F[s] → F[s]", scalar ScalarOp::Sigmoid;
    /// The sine of angles in radians, element by element.
    Sin = "sin" (x) -> "F[s] → F[s]", scalar ScalarOp::Sin;
    /// The cosine of angles in radians, element by element.
    Cos = "cos" (x) -> "F[s] → F[s]", scalar ScalarOp::Cos;
    /// x + y, element by element.
    Add = "add" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Add;
    /// x − y, element by element.
    Sub = "sub" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Sub;
    /// x · y, element by element.
    Mul = "mul" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Mul;
    /// x / y, element by element; `i32` division truncates and gives 0 where y is 0.
    Div = "div" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Div;
    /// The larger of x and y, element by element; NaN if either is.
    Max = "max" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Max;
    /// The smaller of x and y, element by element; NaN if either is.
    Min = "min" (x, y) -> "N[s], N[s] → N[s]", scalar ScalarOp::Min;
    /// x < y, element by element.
    Less = "less" (x, y) -> "T[s], T[s] → bool[s]", scalar ScalarOp::Less;
    /// x ≤ y, element by element.
    LessEqual = "less_equal" (x, y) -> "T[s], T[s] → bool[s]", scalar ScalarOp::LessEqual;
    /// x = y, element by element.
    Equal = "equal" (x, y) -> "T[s], T[s] → bool[s]", scalar ScalarOp::Equal;
    /// Logical and, element by element.
    And = "and" (x, y) -> "bool[s], bool[s] → bool[s]", scalar ScalarOp::And;
    /// Logical or, element by element.
    Or = "or" (x, y) -> "bool[s], bool[s] → bool[s]", scalar ScalarOp::Or;
    /// Logical negation, element by element.
    Not = "not" (x) -> "bool[s] → bool[s]", scalar ScalarOp::Not;
    /// `y` where the condition holds, else `z`, element by element.
    Select = "select" (condition, y, z) -> "bool[s], T[s], T[s] → T[s]", scalar ScalarOp::Select;
    /// Conversion to another element type: floats round to nearest even; a float becomes an `i32` by truncation, saturating, NaN as 0;
    /// a boolean becomes 0 or 1; a number becomes `x ≠ 0`. An `i8` becomes a float of the same value; nothing becomes an `i8`.
    Cast = "cast" (x) { /// The element type of the result.
        to: DType } -> "T[s] → to[s]";

    /// x, through which no gradient flows: to differentiation it is a constant.
    StopGradient = "stop_gradient" (x) -> "T[s] → T[s]";
    /// x, computed not before `event`: what is computed from the result waits for `event`, whose elements are not read. Equal computations on
    /// either side of it stay apart; recomputation of forward values in a backward pass is written with it.
    After = "after" (x, event) -> "T[s], U[u] → T[s]";
    /// The same elements in row-major order under another shape.
    Reshape = "reshape" (x) { /// The shape of the result; as many elements as x has.
        shape: Vec<Dim> } -> "T[s] → T[shape], equal element counts";
    /// Reorders axes: axis i of the result is axis `permutation[i]` of x.
    Transpose = "transpose" (x) { /// A permutation of the axes of x.
        permutation: Vec<usize> } -> "T[s] → T[s permuted]";
    /// Repeats along new leading axes and along axes of size 1.
    Broadcast = "broadcast" (x) { /// The shape of the result; aligned with x at the last axis.
        shape: Vec<Dim> } -> "T[s] → T[shape], each axis of s equal to that of shape or 1";
    /// The part of x with `start ≤ i_axis < end`.
    Slice = "slice" (x) { /// The axis that is cut.
        axis: usize, /// First coordinate.
        start: Dim, /// One past the last coordinate.
        end: Dim } -> "T[…, n, …] → T[…, end − start, …]";
    /// The operands one behind the other along an axis.
    Concat = "concat" (xs many) { /// The axis along which they are joined.
        axis: usize } -> "T[…, nᵢ, …]… → T[…, Σ nᵢ, …]";

    /// Rows by index, per batch item: `y[b, i…, r…] = x[b, index[b, i…], r…]`. An index outside 0 … S−1 is an error of the evaluator
    /// and undefined elsewhere; the ops that make indices never make one.
    Gather = "gather" (x, index) -> "T[B, S, r…], i32[B, i…] → T[B, i…, r…]";
    /// Adds rows by index, per batch item: `y = base; y[b, index[b, i…], r…] += updates[b, i…, r…]`, in ascending order of (i…).
    ScatterAdd = "scatter_add" (base, index, updates) -> "F[B, S, r…], i32[B, i…], F[B, i…, r…] → F[B, S, r…]";
    /// The inverse of an index map in compressed rows, per batch item: the positions p (counted through i… in row-major order) with
    /// `index[b, p] = t` are `positions[b, offsets[b, t]] … positions[b, offsets[b, t + 1] − 1]`, ascending.
    InvertIndex = "invert_index" (index) { /// The number of targets t.
        size: Dim } -> "i32[B, i…] → offsets: i32[B, size + 1], positions: i32[B, Π i]";
    /// Sums the rows that an inverted index map lists: `y[b, t, r…] = base[b, t, r…] + Σ_p updates[b, positions[b, p], r…]` for p from `offsets[b, t]`
    /// to `offsets[b, t + 1] − 1`; `updates` is read with its axes i… as one. What `scatter_add` becomes when its index map is inverted.
    SegmentSum = "segment_sum" (base, offsets, positions, updates)
        -> "F[B, S, r…], i32[B, S + 1], i32[B, Π i], F[B, i…, r…] → F[B, S, r…]";

    /// The sum over one axis; an empty sum is 0.
    ReduceSum = "reduce_sum" (x) { /// The axis that is summed.
        axis: usize, /// Keep the axis with size 1.
        keep: bool = false } -> "N[…, n, …] → N[…, …] or N[…, 1, …]";
    /// The largest element along one axis; NaN if any is.
    ReduceMax = "reduce_max" (x) { /// The axis that is searched.
        axis: usize, /// Keep the axis with size 1.
        keep: bool = false } -> "N[…, n, …] → N[…, …] or N[…, 1, …]";

    /// Matrix product, accumulated and returned in `f32`. Leading axes of `b` are either absent (one matrix for all) or equal to those of `a`.
    Matmul = "matmul" (a, b) { /// Use aᵀ, stored [K, M].
        transpose_a: bool = false, /// Use bᵀ, stored [N, K].
        transpose_b: bool = false } -> "F[l…, M, K], F[l…, K, N] or F[K, N] → f32[l…, M, N]";
    /// One matrix per group: `y[b, e] = x[b, e] · w[e]`, accumulated and returned in `f32`. Every group has the same number of rows.
    GroupedMatmul = "grouped_matmul" (x, w) { /// Use `w[e]`ᵀ, stored [E, N, K].
        transpose_b: bool = false } -> "F[B, E, C, K], F[E, K, N] → f32[B, E, C, N]";
    /// Scaled dot-product attention, non-causal: `softmax(scale · q kᵀ) v` per head, accumulated and returned in `f32`. Query head h uses key head
    /// ⌊h·G/A⌋ (grouped-query attention). Keys with a false mask are left out; a query without any key gives zeros.
    Attention = "attention" (q, k, v, mask optional) { /// Factor on the dot products, usually 1/√d.
        scale: Float } -> "F[B, S, A, d], F[B, L, G, d], F[B, L, G, d], bool[B, L] → f32[B, S, A, d], G divides A";
    /// The gradients of attention: for `y = attention(q, k, v, mask)` and `dy`, the gradient of a loss with respect to y, those with respect to q, k and v.
    /// Probabilities are computed again, so that no matrix of queries by keys outlives a block of queries. Key heads sum over their query heads; a
    /// key with a false mask and a query without any key get zeros.
    AttentionGrad = "attention_grad" (q, k, v, dy, mask optional) { /// Factor on the dot products, as in `attention`.
        scale: Float } -> "F[B, S, A, d], F[B, L, G, d], F[B, L, G, d], F[B, S, A, d], bool[B, L] → f32[B, S, A, d], f32[B, L, G, d], f32[B, L, G, d]";
    /// Expert choice: every expert takes the `capacity` tokens of largest affinity, per batch item. Ties go to the lowest token index, NaN counts as
    /// smaller than every number; the slots of an expert are in ascending token order. `gate` is the affinity of the chosen tokens.
    ExpertChoice = "expert_choice" (affinity) { /// Tokens per expert, 1 … S.
        capacity: Dim } -> "f32[B, S, E] → slot_token: i32[B, E, capacity], gate: f32[B, E, capacity]";
}
