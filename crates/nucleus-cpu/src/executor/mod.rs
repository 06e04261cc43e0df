//! Runs a compiled plan: launch after launch, each over all threads.

mod ahead;
mod attention;
mod bind;
mod check;
mod combination;
pub(crate) mod compiled;
mod contraction;
mod error;
mod launch;
mod loops;
pub(crate) mod pack;
mod reduction;
mod reduction_order;
mod routing;
mod run;
mod shared;
mod slices;
pub(crate) mod slots;
mod table;

pub use bind::CpuBound;
pub use error::{CompileError, ExecuteError};
pub(crate) use launch::BoundAccess;
pub(crate) use run::{buffer_name, panic_message};
pub use table::{BufferPointer, BufferTable};
