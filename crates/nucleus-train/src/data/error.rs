//! What is wrong with training data.

use std::io;
use std::path::{Path, PathBuf};

use nucleus_data::DatasetError;
use nucleus_runtime::safetensors_file::SafetensorsError;
use nucleus_runtime::{TensorError, TensorFileError};
use thiserror::Error;

/// Why there is no batch.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file system refused.
    #[error("cannot read `{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder or its description is not what it should be.
    #[error("`{}`: {problem}", .path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor is missing or wrong.
    #[error("tensor `{tensor}` in `{}` {problem}", .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No complete, consistent safetensors file.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// A tensor that cannot be read.
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    /// A data set that cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A batch that does not fit into memory.
    #[error("cannot make a batch: {0}")]
    Memory(#[from] TensorError),
    /// A stage without data.
    #[error("stage {stage} has no batch: {problem}")]
    Stage {
        /// The stage, from 1.
        stage: usize,
        /// Why, and what would help.
        problem: String,
    },
}

impl DataError {
    pub(super) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> DataError {
        DataError::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), problem: problem.into() }
    }

    pub(super) fn folder(path: &Path, problem: impl Into<String>) -> DataError {
        DataError::Folder { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Io { path, source }
    }
}
