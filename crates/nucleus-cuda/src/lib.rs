//! The CUDA backend: kernels printed from the Plan into the templates of `kernels-templates/` and compiled by NVRTC.
//!
//! The crate holds its place in the workspace: plans are backend-neutral, and nothing here runs them yet.
