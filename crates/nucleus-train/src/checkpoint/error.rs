//! Why a checkpoint could not be written or read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nucleus_runtime::safetensors_file::SafetensorsError;
use nucleus_runtime::safetensors_write::WriteError;
use nucleus_runtime::{CheckpointError as WeightsError, TensorError};
use thiserror::Error;

/// Why a checkpoint could not be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
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
    /// Another process writes there.
    #[error("another run writes checkpoints to `{}`: wait for it, stop it, or choose another `out`", .out.display())]
    Locked {
        /// The run's folder.
        out: PathBuf,
    },
    /// A checkpoint could not be completed; those before it are untouched.
    #[error("checkpoint {step} ({bytes} bytes) was not written: {source}; {}", Kept(.last.as_deref(), .out))]
    Write {
        /// Its step.
        step: u64,
        /// The bytes of all its tensors.
        bytes: u64,
        /// The run's folder.
        out: PathBuf,
        /// The newest complete checkpoint.
        last: Option<PathBuf>,
        /// The file that failed, and why.
        source: Box<CheckpointError>,
    },
    /// A file of tensors could not be written.
    #[error(transparent)]
    File(#[from] WriteError),
    /// What was to be saved does not fit together.
    #[error("tensor `{name}` cannot be saved: {problem}")]
    Snapshot {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The folder is no checkpoint of a run.
    #[error("`{}` is no checkpoint of a training run: it has no `{missing}`", .path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// `trainer.json` cannot be used.
    #[error("`{}` is broken: {message}", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The weights cannot be opened, or are not those that are needed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The optimisers' state cannot be opened.
    #[error(transparent)]
    Optimizer(#[from] SafetensorsError),
    /// A tensor of the state is missing, or is another than what is needed.
    #[error("checkpoint `{}`: tensor `{name}` {problem}", .path.display())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The bytes are not those that were written.
    #[error("checkpoint `{}` is damaged: its {what} are not those that were written; use another checkpoint", .path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// Which of its parts.
        what: &'static str,
    },
    /// Not enough memory.
    #[error(transparent)]
    Memory(#[from] TensorError),
}

impl CheckpointError {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { path, action, source }
    }
}

/// What is left after a failed write.
struct Kept<'a>(Option<&'a Path>, &'a Path);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(last) => write!(f, "the last good checkpoint is `{}`", last.display()),
            None => write!(f, "there is no earlier checkpoint in `{}`", self.1.display()),
        }
    }
}
