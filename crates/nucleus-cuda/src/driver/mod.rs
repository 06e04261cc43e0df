//! The CUDA driver, as far as plans need it: devices, memory, streams, modules, graphs.
//!
//! The driver's library is looked for when a device is opened, and nothing else in the workspace needs it: programs build and start where there is none.
//! Every failure is a [`CudaError`] that says what was being done.
//!
//! *Architecture invariant:* calls of the driver, and the `unsafe` that they need, are in this module alone. What it hands out is safe to
//! use, but for [`KernelFunction::launch`] and [`Graph::launch`], whose addresses only their caller can vouch for.

mod device;
mod error;
mod graph;
mod library;
mod memory;
mod module;
mod pinned;
mod stream;

pub use device::Device;
pub use error::CudaError;
pub use graph::Graph;
pub use memory::DeviceMemory;
pub use module::{KernelFunction, Module};
pub use pinned::Pinned;
pub use stream::{Event, Stream};
