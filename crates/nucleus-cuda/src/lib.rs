//! The CUDA backend: kernels printed from the Plan and compiled by NVRTC.
