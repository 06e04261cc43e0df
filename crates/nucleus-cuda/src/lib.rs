//! The CUDA backend: kernels printed from the Plan into the templates of `kernels-templates/` and compiled by NVRTC.
//!
//! ```text
//! Kernel ──facts of its launches──► source: slots printed, template chosen ──► KernelSource ──nvrtc──► cubin
//!                                                                                  │               │
//!                                                            functions, grids ─────┴──► CudaProgram ◄┘ modules on a device
//! ```
//!
//! `unsafe` is in `nvrtc/library.rs`, the calls of NVIDIA's compiler, in `driver`, those of its driver, and where launches are put together
//! (`program/execute.rs`), whose addresses a caller vouches for.
//!
//! [`source::kernel_source`] is pure text work and needs neither CUDA nor a GPU; `docs/cuda.md` describes it and how a template is added.

pub mod architecture;
pub mod cache;
pub mod compile;
pub mod cubin;
pub mod cubins;
pub mod driver;
pub mod facts;
pub mod nvrtc;
pub mod program;
pub mod source;
pub mod tiles;
pub mod transfer;
pub mod tuning;

pub use architecture::Architecture;
pub use cache::Cache;
pub use compile::{CompiledKernel, Compiler, DistinctKernel, Image, distinct_kernels};
pub use cubin::{CubinKey, StoredCubins};
pub use cubins::{Cubins, KernelCode, NoCubin};
pub use driver::{CudaError, Device};
pub use facts::Facts;
pub use nvrtc::{Nvrtc, NvrtcError, Resources};
pub use program::{
    CudaBindError, CudaBound, CudaProgram, DevicePointer, DeviceTable, LoadError, RunError, TileCounts,
};
pub use source::{KernelSource, SourceError, kernel_source};
pub use tiles::Tile;
pub use transfer::Transfer;
pub use tuning::{Tuning, TuningError};
