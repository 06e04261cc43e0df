//! Gradients against finite differences, in `f64` on the evaluator.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod finite;
mod model;
mod ops;
mod random;
mod remat;
mod structure;
