//! The CPU backend: Cranelift for fused loops and epilogues, core::arch micro-kernels for GEMM and attention.

pub mod buffer;
pub mod codegen;
pub mod executor;
pub mod kernels;
pub mod program;
pub mod threads;

pub use executor::{BufferPointer, BufferTable, CompileError, CpuBound, ExecuteError};
pub use nucleus_plan::{BindError, BoundPlan, Profile};
pub use program::{CpuProgram, Options, PackSource, Slicing, WeightUse};
