//! Why a plan cannot be compiled, bound or run.

use nucleus_ir::DType;

use crate::buffer::OutOfMemory;
use crate::codegen::CodegenError;
use crate::kernels::{IsaError, KernelError};
use crate::threads::ThreadsError;

/// A plan that cannot become a program.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A kernel cannot be compiled.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// The worker threads did not start.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The environment asks for an instruction set that this machine lacks.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A launch that does not fit its kernel.
    #[error("launch {launch}: {why}")]
    Launch {
        /// The launch's number in the plan.
        launch: usize,
        /// What is wrong.
        why: String,
    },
}

/// A run that did not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError {
    /// A buffer that a launch needs is missing, too small or of another type.
    #[error("buffer {buffer}{name}: {why}")]
    Buffer {
        /// The buffer's number.
        buffer: u32,
        /// Its name in parentheses, where it has one.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An arena that is too small.
    #[error("the {rate} arena has {bytes} bytes; the plan needs {needed}")]
    Arena {
        /// Whose.
        rate: &'static str,
        /// Its size.
        bytes: usize,
        /// The size it should have.
        needed: usize,
    },
    /// An index outside of what it indexes.
    #[error("launch {launch} ({place}), slot `{slot}`: an index is {value}, outside 0..{size}")]
    Index {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// The slot.
        slot: String,
        /// The index.
        value: i64,
        /// The number of places there are.
        size: i64,
    },
    /// A routing kernel refused its operands.
    #[error("launch {launch} ({place}): {source}")]
    Kernel {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// Why.
        source: KernelError,
    },
    /// A launch that does not fit this machine's kernels.
    #[error("launch {launch} ({place}): {why}")]
    Launch {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// There is not enough memory for what a launch computes on the way.
    #[error("launch {launch} ({place}): {source}; use smaller sizes or fewer threads")]
    Memory {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// How much was missing.
        source: OutOfMemory,
    },
    /// Packed weights that do not fit into memory.
    #[error("packing the weights: {source}")]
    Pack {
        /// How much was missing.
        #[from]
        source: OutOfMemory,
    },
    /// A defect of this program: a worker thread panicked.
    #[error("launch {launch} ({place}) failed inside: {message}")]
    Panic {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// What the thread said.
        message: String,
    },
    /// The bound sizes are of another plan.
    #[error("the bound sizes belong to another plan")]
    OtherPlan,
}

impl ExecuteError {
    pub(crate) fn stored_type(buffer: u32, name: String, stored: DType, wanted: DType) -> ExecuteError {
        let why = format!("it holds {stored}, and the launch reads {wanted}; convert it first");
        ExecuteError::Buffer { buffer, name, why }
    }
}
