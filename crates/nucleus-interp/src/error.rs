//! Why an evaluation fails. Every error names the thing, its place and what would be right.

use std::sync::Arc;

use nucleus_ir::ops::OpError;
use nucleus_ir::{DimError, TypeError};

/// Why one op cannot be evaluated on given tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The op does not apply to tensors of these types.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The op's attributes do not belong to it.
    #[error(transparent)]
    Attribute(#[from] OpError),
    /// A size in an attribute has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// An index outside its axis.
    #[error("{operand}[{position}] is {index}, outside 0 .. {size}")]
    Index {
        /// The operand that holds it.
        operand: &'static str,
        /// Where it stands, counted through the operand in row-major order.
        position: usize,
        /// Its value.
        index: i32,
        /// How many rows there are.
        size: usize,
    },
    /// Offsets of segments that do not ascend.
    #[error("offsets[{position}] is {offset}, below {before} before it; the offsets of a batch item ascend")]
    Descending {
        /// Where it stands, counted through the operand in row-major order.
        position: usize,
        /// The offset.
        offset: i32,
        /// The one before it.
        before: i32,
    },
    /// A coordinate or size that an `i32` does not hold.
    #[error("{what} is {size}, which an i32 does not hold")]
    IndexRange {
        /// What it is.
        what: &'static str,
        /// Its value.
        size: i64,
    },
    /// The result does not fit what is left of the memory limit.
    #[error("the result {result} takes {bytes} bytes; {available} are left of the memory limit")]
    Memory {
        /// The type of the result.
        result: String,
        /// What it takes.
        bytes: u128,
        /// What is left of the limit.
        available: u64,
    },
}

/// Why a graph cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A run-time size of the graph has no value.
    #[error("dim `{dim}` of `{graph}` has no value")]
    UnboundDim {
        /// The graph.
        graph: String,
        /// The dim.
        dim: String,
    },
    /// A run-time size below 1.
    #[error("dim `{dim}` of `{graph}` is {value}; a dim is at least 1")]
    DimNotPositive {
        /// The graph.
        graph: String,
        /// The dim.
        dim: String,
        /// Its value.
        value: i64,
    },
    /// A size in a type cannot be computed.
    #[error("{what}: {source}")]
    Dim {
        /// Whose type.
        what: String,
        /// Why.
        source: DimError,
    },
    /// A size in a type is negative or absurd.
    #[error("{what}: size `{formula}` is {value}; a size lies in 0 ..= 2^40")]
    Size {
        /// Whose type.
        what: String,
        /// The size.
        formula: String,
        /// Its value.
        value: i64,
    },
    /// A relation between sizes does not hold.
    #[error("{what}: `{smaller}` = {smaller_value} is not at most `{larger}` = {larger_value}")]
    Constraint {
        /// What the relation means.
        what: String,
        /// The formula of the side that must be smaller.
        smaller: String,
        /// Its value.
        smaller_value: i64,
        /// The formula of the side that must be larger.
        larger: String,
        /// Its value.
        larger_value: i64,
    },
    /// A name that is not an input of the graph.
    #[error("`{graph}` has no input `{name}`; its inputs are {known}")]
    UnknownInput {
        /// The graph.
        graph: String,
        /// The name.
        name: String,
        /// The inputs, for people.
        known: String,
    },
    /// A required input is not given.
    #[error("input `{name}` of `{graph}` is not given: it needs {expected}")]
    MissingInput {
        /// The graph.
        graph: String,
        /// The input.
        name: String,
        /// Its type.
        expected: String,
    },
    /// A weight is not given.
    #[error("weight `{name}` of `{graph}` is not given: it needs {expected}")]
    MissingWeight {
        /// The graph.
        graph: String,
        /// The weight.
        name: String,
        /// Its type.
        expected: String,
    },
    /// An input or weight of another type than the graph declares.
    #[error("{what} has type {given}, the graph needs {declared}{}", expansion(declared, expected))]
    Type {
        /// The input or weight.
        what: String,
        /// The type of the tensor.
        given: String,
        /// The declared type, with its formulas.
        declared: String,
        /// The declared type under the bound sizes.
        expected: String,
    },
    /// An input or weight does not fit what is left of the memory limit.
    #[error("{what}, {ty}, takes {bytes} bytes; {available} are left of the memory limit")]
    Memory {
        /// The input or weight.
        what: String,
        /// Its type.
        ty: String,
        /// What it takes.
        bytes: u128,
        /// What is left of the limit.
        available: u64,
    },
    /// A node fails.
    #[error("node {node}, `{op}`{}: {source}", place(scope))]
    Node {
        /// Its position in the graph.
        node: usize,
        /// Its op.
        op: &'static str,
        /// The scope in which the text wrote it.
        scope: Option<Arc<str>>,
        /// Why.
        source: NodeError,
    },
    /// The tables of the graph contradict each other, as they may in one that was read from a file.
    #[error("graph `{graph}` is malformed: {what}")]
    Malformed {
        /// The graph.
        graph: String,
        /// The contradiction.
        what: String,
    },
}

fn expansion(declared: &str, expected: &str) -> String {
    if declared == expected { String::new() } else { format!(" = {expected}") }
}

fn place(scope: &Option<Arc<str>>) -> String {
    scope.as_ref().map(|scope| format!(" in `{scope}`")).unwrap_or_default()
}
