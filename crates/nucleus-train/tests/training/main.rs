//! The training loop around an engine that computes a least-squares problem directly.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failures;
mod least_squares;
mod resume;
mod steps;
mod store;
