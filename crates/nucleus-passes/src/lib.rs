//! The passes from a verified graph to a Plan, one file per pass.

pub mod allocate;
pub mod differentiate;
pub mod elaborate;
pub mod epilogue;
pub mod error;
pub mod fuse;
pub mod group;
pub mod merge;
pub mod pipeline;
pub mod precision;
pub mod quantize;
pub mod remat;
mod replace;
pub mod rewrite;
pub mod route;
pub mod schedule;
pub mod simplify;
pub mod stage;

pub use differentiate::Gradients;
pub use error::PassError;
pub use pipeline::{CompileError, CompileOptions, Observer, PassTiming, compile_entry};
pub use remat::Remat;
