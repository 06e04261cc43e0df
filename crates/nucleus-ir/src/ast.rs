//! The syntax tree of the language: what the parser makes of a text and the printer writes back.
//!
//! One grammar serves hand-written models and every printed stage; `docs/language.md` describes it. Equality of trees ignores
//! places, so `parse(print(tree)) == tree` can be said with `==`.

use crate::dtype::DType;
use crate::source::{Span, Spanned};
use crate::types::Rate;

/// A name.
pub type Name = Spanned<String>;

/// One source file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Its items in order.
    pub items: Vec<Item>,
}

/// A top-level declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `use std { linear, silu };`
    Use {
        /// The module: `std`, or the stem of a file beside this one.
        module: Name,
        /// The functions and constants taken from it.
        names: Vec<Name>,
    },
    /// `config { key: type = default; … }`
    Config(Vec<ConfigKey>),
    /// `const NAME = expression;` computed from config values, other constants and dims.
    Const {
        /// Its name.
        name: Name,
        /// Its value.
        value: Expr,
    },
    /// `dim B, H, W, T;`
    Dims(Vec<Name>),
    /// `require condition, "message";` checked when the config is known; over dims, when sizes are bound.
    Require(Require),
    /// `fn name(…) -> … { … }`
    Function(Function),
    /// `entry name(…) -> (…) { … }`
    Entry(Entry),
}

/// A config key.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigKey {
    /// Its name, the same as in `config.json`.
    pub name: Name,
    /// Its type.
    pub ty: ConfigType,
    /// Its default; `None` if it must be given.
    pub default: Option<Expr>,
}

/// The type of a config key.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigType {
    /// `int`: a signed 64-bit integer.
    Int,
    /// `float`: binary64; an integer is accepted.
    Float,
    /// `bool`.
    Bool,
    /// `string`.
    String,
    /// `[T]`: a list of any length; `[T; n]`: a list of n elements, for which a single T, repeated, is accepted.
    List(Box<ConfigType>, Option<Box<Expr>>),
    /// `T?`: T or `null`.
    Optional(Box<ConfigType>),
}

/// `require condition, "message";`
#[derive(Clone, Debug, PartialEq)]
pub struct Require {
    /// What must hold.
    pub condition: Expr,
    /// What to say if it does not; a string, with `{…}` interpolation.
    pub message: Expr,
}

/// A function: inlined where it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: Name,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Its result, if stated.
    pub result: Option<ResultType>,
    /// Its body.
    pub body: Block,
}

/// A function parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub ty: ParamType,
    /// The value where a call gives none.
    pub default: Option<Expr>,
}

/// The type of a function parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum ParamType {
    /// A tensor whose shape matches the pattern; names in the pattern that are not yet known are bound by it.
    Tensor(TensorPattern),
    /// `tensor`: a tensor of any type.
    AnyTensor,
    /// `int`: an integer or a size.
    Int,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `string`.
    String,
    /// `[T]`: a list of compile-time values.
    List(Box<ParamType>),
}

/// A tensor type as written: `bf16[B, S, 64]`, `[..., K]` (f32, any leading axes).
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPattern {
    /// The element type; `f32` if not written.
    pub dtype: Option<DType>,
    /// `...` in front: any number of leading axes.
    pub leading: bool,
    /// The other sizes.
    pub dims: Vec<Expr>,
    /// The place.
    pub span: SpanOnly,
}

/// A place that equality ignores.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanOnly(pub Span);

impl PartialEq for SpanOnly {
    fn eq(&self, _: &SpanOnly) -> bool {
        true
    }
}

/// What a function returns.
#[derive(Clone, Debug, PartialEq)]
pub enum ResultType {
    /// One tensor.
    Tensor(TensorPattern),
    /// Several tensors.
    Tuple(Vec<TensorPattern>),
    /// A compile-time value.
    Value(ParamType),
}

/// An entry point of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Its inputs.
    pub inputs: Vec<EntryInput>,
    /// Its outputs: the body's value, or tuple of values, in this order.
    pub outputs: Vec<EntryOutput>,
    /// Its body.
    pub body: Block,
}

/// An input of an entry: `name: bool[B, T] per prompt optional = true`.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryInput {
    /// Its name.
    pub name: Name,
    /// Its type; no `...`.
    pub ty: TensorPattern,
    /// How often it may change.
    pub rate: Rate,
    /// For an optional input, the value of every element when it is not given.
    pub default: Option<Expr>,
}

/// An output of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutput {
    /// Its name.
    pub name: Name,
    /// Its type; no `...`.
    pub ty: TensorPattern,
}

/// `{ statements… value }`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// The statements.
    pub statements: Vec<Statement>,
    /// The value, an expression without a semicolon.
    pub value: Option<Box<Expr>>,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `let pattern: type per rate = expression at "scope";` — `var` instead of `let` allows assignment.
    Let(Let),
    /// `name = expression;` gives a `var` another value.
    Assign {
        /// The variable.
        name: Name,
        /// Its new value.
        value: Expr,
    },
    /// `for i in from..to { … }`, unrolled at elaboration.
    For {
        /// The loop variable.
        name: Name,
        /// First value.
        from: Expr,
        /// One past the last value.
        to: Expr,
        /// The body; its value is dropped.
        body: Block,
    },
    /// `require condition, "message";`
    Require(Require),
    /// `expression;` for its weights; block-like expressions need no semicolon.
    Expr(Expr),
}

/// A `let` or `var` statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Let {
    /// `var`: may be assigned.
    pub mutable: bool,
    /// One name, or several for a tuple.
    pub names: Vec<Name>,
    /// `(a, b)` rather than `a`, also for one name.
    pub tuple: bool,
    /// The stated types, one per name, if any.
    pub types: Vec<TensorPattern>,
    /// The rate a stage printed, if any.
    pub rate: Option<Rate>,
    /// The value.
    pub value: Expr,
    /// The scope a stage printed, if any: where the hand-written text had the op.
    pub scope: Option<Spanned<String>>,
}

/// An expression with its place. Equality ignores the place.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Its place.
    pub span: Span,
}

impl PartialEq for Expr {
    fn eq(&self, other: &Expr) -> bool {
        self.kind == other.kind
    }
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `42`
    Int(i64),
    /// `1.5`, `1e-6`, `inf`, `nan`
    Float(crate::float::Float),
    /// `true`, `false`
    Bool(bool),
    /// `null`
    Null,
    /// `"transformer_blocks.{i}"`
    String(Vec<StringPart>),
    /// A name.
    Name(String),
    /// `[a, b, …]`
    List(Vec<Expr>),
    /// `(a, b, …)`
    Tuple(Vec<Expr>),
    /// `list[i]`, also of a tuple.
    Index(Box<Expr>, Box<Expr>),
    /// `f(a, b, name = c)`: a function, a builtin or an op of the table.
    Call {
        /// What is called.
        callee: Name,
        /// By position.
        args: Vec<Expr>,
        /// By name.
        named: Vec<(Name, Expr)>,
    },
    /// `-x`, `!x`
    Unary(UnaryOperator, Box<Expr>),
    /// `x + y`
    Binary(BinaryOperator, Box<Expr>, Box<Expr>),
    /// `if condition { … } else { … }`: the condition is a compile-time value.
    If {
        /// The condition.
        condition: Box<Expr>,
        /// Where it holds.
        then: Block,
        /// Where it does not: a block, or another `if`.
        otherwise: Option<Box<Expr>>,
    },
    /// `scope "name" { … }`: prefixes the names of weights.
    Scope {
        /// The prefix.
        name: Box<Expr>,
        /// The body.
        body: Block,
    },
    /// `{ … }`
    Block(Block),
    /// `bf16`: an element type.
    DType(DType),
}

/// A piece of a string.
#[derive(Clone, Debug, PartialEq)]
pub enum StringPart {
    /// Characters, escapes resolved.
    Text(String),
    /// `{expression}`
    Interpolation(Expr),
}

/// A prefix operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOperator {
    /// `-`
    Neg,
    /// `!`
    Not,
}

/// An infix operator, from the weakest binding to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOperator {
    /// `??`: the left value, or the right one where the left is `null`.
    Coalesce,
    /// `||`
    Or,
    /// `&&`
    And,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`: on integers a float
    Div,
    /// `%`: on integers, the result has the sign of the divisor
    Rem,
}
