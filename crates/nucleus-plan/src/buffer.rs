//! Buffers: where the tensors of a plan live.

use nucleus_ir::{DType, Dim, Rate};
use serde::{Deserialize, Serialize};

/// A handle to a buffer of one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BufferId(pub u32);

/// Where a buffer lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// A weight of the checkpoint, by name.
    Weight(String),
    /// The plan's input of that position.
    Input(u32),
    /// The plan's output of that position.
    Output(u32),
    /// In an arena. There is one arena per rate: values that a later stage still needs live in the arena of the rate at which they
    /// are computed, and so does everything computed per model, when the run-time sizes are not known yet; all others share the arena
    /// of the steps. The byte offset, a multiple of 64, is set by the allocate pass.
    Arena {
        /// Whose arena.
        rate: Rate,
        /// Where in it; `None` before allocation.
        offset: Option<Dim>,
    },
    /// State that persists between runs and that the plan updates in place, by name.
    State(String),
}

/// A tensor in memory: dense and row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Buffer {
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<Dim>,
    /// Where it lives.
    pub place: Place,
}
