//! The CPU backend: Cranelift for fused loops and epilogues, core::arch micro-kernels for GEMM and attention.

pub mod buffer;
pub mod codegen;
pub mod kernels;
pub mod threads;
