//! Plans of small programs: which kernels they have, and that they compute what the evaluator computes.

mod model;
mod random;
mod support;
