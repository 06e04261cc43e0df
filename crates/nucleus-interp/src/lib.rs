//! The reference evaluator: plain loops, one function per op, in `f32` and `f64`.
//!
//! This crate is the specification of what a graph means; every backend is compared with it. It is clear before it is fast.
//!
//! - Every float is held and computed as `F`, [`f32`] or [`f64`]. A result of type `bf16` or `f16` is rounded to nearest even once, when the op
//!   has computed it; `f64` keeps full precision there unless [`Options::round_storage`] is set.
//! - `matmul`, `grouped_matmul` and `attention` multiply, add and accumulate in `F`. Sums run in ascending index order.
//! - `i32` arithmetic wraps. The largest of no elements is −∞, or the smallest `i32`.
//! - An index outside its axis is an error.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use nucleus_interp::{Options, Tensor, evaluate};
//! use nucleus_ir::{Bindings, DType, Dim, Graph, Input, Op, Output, Rate, Symbol, TensorType, Weight};
//!
//! // y = x · w + x, for x [B, 2] and a weight w [2, 2].
//! let mut graph = Graph::new("residual", vec![Symbol::new("B")]);
//! let ty = TensorType::new(DType::F32, vec![Dim::symbol("B"), Dim::constant(2)]);
//! let x = graph.add_input(Input { name: "x".to_owned(), ty, rate: Rate::Step, default: None });
//! let ty = TensorType::new(DType::F32, vec![Dim::constant(2), Dim::constant(2)]);
//! let w = graph.add_weight(Weight::new("proj.weight".to_owned(), ty));
//! let product = graph.add(Op::Matmul { transpose_a: false, transpose_b: false }, &[x, w], None)?;
//! let y = graph.add(Op::Add, &[product, x], None)?;
//! graph.outputs.push(Output { name: "y".to_owned(), value: y });
//!
//! let dims = Bindings::from_iter([("B", 1)]);
//! let inputs = BTreeMap::from([("x".to_owned(), Tensor::<f32>::float(&[1, 2], vec![1.0, 2.0])?)]);
//! let weights = |name: &str| match name {
//!     "proj.weight" => Tensor::float(&[2, 2], vec![1.0, 10.0, 100.0, 1000.0]).ok(),
//!     _ => None,
//! };
//! let outputs = evaluate(&graph, &dims, &inputs, &weights, &Options::default())?;
//! assert_eq!(outputs[0].0, "y");
//! assert_eq!(outputs[0].1.floats(), Some(&[202.0, 2012.0][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! *Architecture invariant:* this crate does no I/O, has no threads and depends on no backend and no pass.

mod attention;
mod creation;
mod elementwise;
mod error;
mod evaluate;
mod indexing;
mod matmul;
mod movement;
mod node;
mod real;
mod reductions;
mod routing;
mod tensor;
mod verify;

pub use error::{EvalError, NodeError};
pub use evaluate::{Options, Trace, Weights, evaluate, evaluate_traced};
pub use node::evaluate_node;
pub use real::Real;
pub use tensor::{Data, Tensor, TensorError};
