//! The whole compiler with the CPU backend against the evaluator: op by op, on irregular numbers, on merged products, on random graphs, and
//! on the model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod builder;
mod gradients;
mod irregular;
mod model;
mod ops;
mod parts;
mod random;
mod support;
