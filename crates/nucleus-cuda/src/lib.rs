//! The CUDA backend: kernels printed from the Plan into the templates of `kernels-templates/` and compiled by NVRTC.
//!
//! ```text
//! Kernel ──facts of its launches──► source: slots printed, template chosen ──► KernelSource ──nvrtc──► cubin
//!                                                                                  │
//!                                                            functions, grids ─────┴──► what a launch dispatches
//! ```
//!
//! [`source::kernel_source`] is pure text work and needs neither CUDA nor a GPU; `docs/cuda.md` describes it and how a template is added.

pub mod architecture;
pub mod cubins;
pub mod driver;
pub mod facts;
pub mod program;
pub mod source;
pub mod transfer;

pub use architecture::Architecture;
pub use cubins::{CubinError, Cubins};
pub use driver::{CudaError, Device};
pub use facts::Facts;
pub use program::{CudaBindError, CudaBound, CudaProgram, DevicePointer, DeviceTable, LoadError, RunError};
pub use source::{KernelSource, SourceError, kernel_source};
pub use transfer::Transfer;
