//! What an expression evaluates to.

use std::fmt;
use std::rc::Rc;

use nucleus_ir::{DType, Dim, Float, Graph, Value};

/// A compile-time value, or a handle to a tensor of the graph under construction.
#[derive(Clone, Debug)]
pub(super) enum Term {
    /// A signed 64-bit integer; also a size that no run-time dim occurs in.
    Int(i64),
    /// A binary64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Str(Rc<str>),
    /// `null`.
    Null,
    /// An element type.
    DType(DType),
    /// A list of compile-time values.
    List(Rc<[Term]>),
    /// Several values: what an op with several results gives.
    Tuple(Rc<[Term]>),
    /// A size that depends on run-time dims.
    Dim(Dim),
    /// `(factor · size) / divisor` in binary64, not yet rounded to a size.
    Scaled {
        /// The size.
        size: Dim,
        /// What it is multiplied by first.
        factor: f64,
        /// What the product is divided by.
        divisor: f64,
    },
    /// A tensor.
    Tensor(Value),
    /// The value of a block that ends in a statement.
    Unit,
    /// The value of an expression in which an error was reported; operations on it say nothing.
    Poison,
}

impl Term {
    /// The term of a size: an integer where no run-time dim occurs.
    pub(super) fn size(dim: Dim) -> Term {
        dim.as_constant().map_or(Term::Dim(dim), Term::Int)
    }

    /// The size, for integers and sizes.
    pub(super) fn as_size(&self) -> Option<Dim> {
        match self {
            Term::Int(value) => Some(Dim::constant(*value)),
            Term::Dim(dim) => Some(dim.clone()),
            _ => None,
        }
    }

    /// The number, for integers and floats.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Term::Int(value) => Some(*value as f64),
            Term::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn is_poison(&self) -> bool {
        matches!(self, Term::Poison)
    }

    /// How diagnostics name the kind of value, with its type if it is a tensor of `graph`.
    pub(super) fn describe(&self, graph: &Graph) -> String {
        match self {
            Term::Tensor(value) => format!("a tensor {}", graph.ty(*value)),
            other => other.kind().to_owned(),
        }
    }

    /// How diagnostics name the kind of value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Term::Int(_) => "an int",
            Term::Float(_) => "a float",
            Term::Bool(_) => "a bool",
            Term::Str(_) => "a string",
            Term::Null => "null",
            Term::DType(_) => "an element type",
            Term::List(_) => "a list",
            Term::Tuple(_) => "a tuple",
            Term::Dim(_) => "a run-time size",
            Term::Scaled { .. } => "a scaled size",
            Term::Tensor(_) => "a tensor",
            Term::Unit => "nothing",
            Term::Poison => "an invalid value",
        }
    }
}

/// The text that string interpolation and diagnostics show; tensors have none.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Int(value) => write!(f, "{value}"),
            Term::Float(value) => write!(f, "{}", Float(*value)),
            Term::Bool(value) => write!(f, "{value}"),
            Term::Str(value) => f.write_str(value),
            Term::DType(dtype) => write!(f, "{dtype}"),
            Term::Dim(dim) => write!(f, "{dim}"),
            Term::Scaled { size, factor, divisor } => {
                write!(f, "{} * ({size}) / {}", Float(*factor), Float(*divisor))
            }
            Term::List(items) => write_items(f, "[", items, "]"),
            Term::Tuple(items) => write_items(f, "(", items, ")"),
            Term::Null | Term::Tensor(_) | Term::Unit | Term::Poison => f.write_str(self.kind()),
        }
    }
}

fn write_items(f: &mut fmt::Formatter<'_>, open: &str, items: &[Term], close: &str) -> fmt::Result {
    const SHOWN: usize = 8;
    f.write_str(open)?;
    for (index, item) in items.iter().take(SHOWN).enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        match item {
            Term::Str(text) => write!(f, "{comma}\"{text}\"")?,
            item => write!(f, "{comma}{item}")?,
        }
    }
    if items.len() > SHOWN {
        write!(f, ", … {} in all", items.len())?;
    }
    f.write_str(close)
}
