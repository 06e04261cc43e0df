//! Runs a compiled plan: launch after launch, each over all threads.

mod attention;
mod bind;
mod bounds;
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
pub(crate) mod slots;
mod table;

pub use bind::BoundPlan;
pub(crate) use bounds::{points, range};
pub use error::{BindError, CompileError, ExecuteError};
pub(crate) use launch::BoundAccess;
pub use run::Profile;
pub(crate) use run::{buffer_name, panic_message};
pub use table::{BufferPointer, BufferTable};
