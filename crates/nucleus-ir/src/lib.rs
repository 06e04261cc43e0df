//! The Nucleus language: lexer, parser, op table, types and dims, graph, verifier, printer, diagnostics.
//!
//! *Architecture invariant:* this crate does no I/O and knows no backend.

pub mod ast;
pub mod diagnostics;
pub mod dim;
pub mod dtype;
pub mod float;
pub mod graph;
pub mod graph_printer;
pub mod infer;
pub mod lexer;
pub mod ops;
pub mod ops_doc;
pub mod parser;
pub mod printer;
pub mod scalar;
pub mod source;
pub mod suggest;
pub mod testing;
pub mod types;
pub mod verify;
pub mod verify_graph;

pub use diagnostics::{Diagnostic, render};
pub use dim::{Bindings, Dim, DimError, Symbol};
pub use dtype::DType;
pub use float::Float;
pub use graph::{Graph, Input, Node, NodeData, Output, Value, ValueDef, Weight};
pub use infer::{Constraint, TypeError, infer};
pub use ops::Op;
pub use parser::parse;
pub use scalar::ScalarOp;
pub use types::{Rate, TensorType};
pub use verify::verify;
