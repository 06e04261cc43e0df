//! Why checkpoints could not be merged.

use std::io;
use std::path::{Path, PathBuf};

use nucleus_runtime::safetensors_write::WriteError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;

/// Why checkpoints could not be merged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there are no checkpoints to merge")]
    Nothing,
    /// The output is there already.
    #[error("`{}` exists already: remove it, or give a new folder", .path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// An input cannot be used.
    #[error(transparent)]
    Input(#[from] nucleus_runtime::CheckpointError),
    /// A folder of a run cannot be read.
    #[error(transparent)]
    Run(#[from] CheckpointError),
    /// Two checkpoints of different models.
    #[error("`{}` and `{}` cannot be merged: {problem}", .first.display(), .second.display())]
    Different {
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// How they differ, naming a weight.
        problem: String,
    },
    /// A weight that has no average.
    #[error(
        "weight `{name}` in `{}` is stored as {dtype}: only f32, bf16 and f16 have averages; merge checkpoints before they are quantised",
        .path.display()
    )]
    NotFloat {
        /// The checkpoint.
        path: PathBuf,
        /// The weight.
        name: String,
        /// Its stored type.
        dtype: String,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl MergeError {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> MergeError {
        let path = path.to_path_buf();
        move |source| MergeError::Io { path, action, source }
    }
}
