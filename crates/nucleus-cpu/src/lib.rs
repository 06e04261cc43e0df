//! The CPU backend: Cranelift for fused loops and epilogues, core::arch micro-kernels for GEMM and attention.

pub mod buffer;
pub mod codegen;
pub mod executor;
pub mod kernels;
pub mod program;
pub mod threads;

pub use executor::{BindError, BoundPlan, BufferPointer, BufferTable, CompileError, ExecuteError, Profile};
pub use program::{CpuProgram, Options, PackSource, WeightUse};
