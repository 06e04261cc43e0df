//! What the test targets of this workspace share: locating fixtures, reading cases, comparing tensors.

pub mod backend;
pub mod evaluation;
pub mod fake_cuda;
pub mod gradients;
pub mod parity;
pub mod scalars;
pub mod tensors;
pub mod training;
