//! Plans of small programs: which kernels they have, and that they compute what the evaluator computes.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod hostile;
mod model;
mod programs;
mod random;
mod support;
