//! Why a plan cannot be loaded onto a device, bound or run there.

use nucleus_plan::BindError;
use thiserror::Error;

use crate::cubins::NoCubin;
use crate::driver::CudaError;
use crate::source::{GridError, SourceError};
use crate::tuning::TuningError;

/// A plan that cannot become a program.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A kernel cannot be printed.
    #[error("kernel k{kernel} of `{entry}`: {source}; use `--backend cpu`")]
    Source {
        /// The kernel's number in the plan.
        kernel: usize,
        /// The plan's entry.
        entry: String,
        /// Why.
        source: SourceError,
    },
    /// The table of measured tiles has one for a kernel that it cannot have.
    #[error("kernel k{kernel} of `{entry}`: {source}")]
    Tuning {
        /// The kernel's number in the plan.
        kernel: usize,
        /// The plan's entry.
        entry: String,
        /// What is wrong with it.
        source: TuningError,
    },
    /// A kernel has no machine code.
    #[error(transparent)]
    Cubin(#[from] NoCubin),
    /// A launch that does not fit its kernel.
    #[error("launch {launch}: {why}")]
    Launch {
        /// The launch's number in the plan.
        launch: usize,
        /// What is wrong.
        why: String,
    },
    /// The driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Sizes that a plan cannot run with on a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaBindError {
    /// They do not fit the plan.
    #[error(transparent)]
    Plan(#[from] BindError),
    /// A size that a kernel cannot take.
    #[error(
        "launch {launch} ({place}): {what} is {value}; kernels for CUDA count in 32 bits: use smaller sizes"
    )]
    Size {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// Which size.
        what: String,
        /// Its value.
        value: i64,
    },
    /// A launch with more blocks than a device takes.
    #[error("launch {launch} ({place}): {source}")]
    Grid {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// How many.
        source: GridError,
    },
}

/// A run that did not finish.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RunError {
    /// A buffer that a launch needs is missing or too small.
    #[error("buffer {buffer}: {why}")]
    Buffer {
        /// The buffer's number.
        buffer: u32,
        /// What is wrong.
        why: String,
    },
    /// A launch failed.
    #[error("launch {launch} ({place}): {source}")]
    Launch {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// Why.
        source: CudaError,
    },
    /// An index outside of what it indexes.
    #[error("launch {launch} ({place}), slot `{slot}`: an index is {value}, outside {start}..{end}")]
    Index {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// The slot.
        slot: String,
        /// The index.
        value: i64,
        /// The first place there is.
        start: i64,
        /// One behind the last.
        end: i64,
    },
    /// The driver failed. What a kernel did wrong shows here, at the end of its stage.
    #[error("{0}; NUCLEUS_CUDA_SYNC=1 makes the error name its launch")]
    Stage(CudaError),
    /// The driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The bound sizes are of another plan.
    #[error("the bound sizes belong to another plan")]
    OtherPlan,
}
