//! `trainer.json`: where a run stands.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CheckpointError;

/// The form of `trainer.json` that this version writes and reads.
const VERSION: u32 = 1;

/// More than any run's state has.
const MAX_BYTES: u64 = 1 << 20;

/// What continuing a run needs to know besides its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done: the number in the folder's name.
    pub step: u64,
    /// The run's seed. With `step` it decides every random number to come.
    pub seed: u64,
    /// A digest of the recipe, to notice that another one goes on with the run.
    pub recipe: String,
    /// Whatever else the trainer keeps.
    #[serde(default)]
    pub extra: Map<String, Value>,
}

impl RunState {
    /// Reads a `trainer.json`.
    ///
    /// # Errors
    /// The file cannot be read, or is not one that this version writes.
    pub fn read(path: &Path) -> Result<RunState, CheckpointError> {
        Ok(StateFile::read(path)?.state)
    }
}

/// Digests of a checkpoint's parts, in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digests {
    pub(super) config: String,
    pub(super) weights: String,
    pub(super) optimizer: String,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateFile {
    version: u32,
    /// The program that wrote it, for people.
    written_by: String,
    #[serde(flatten)]
    pub(super) state: RunState,
    pub(super) digests: Digests,
}

impl StateFile {
    pub(super) fn new(state: RunState, digests: Digests) -> StateFile {
        StateFile {
            version: VERSION,
            written_by: concat!("nucleus-train ", env!("CARGO_PKG_VERSION")).to_owned(),
            state,
            digests,
        }
    }

    /// Writes the file and brings it to the disk.
    pub(super) fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let write = || {
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            let mut file = File::create_new(path)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(CheckpointError::io(path, "write"))
    }

    pub(super) fn read(path: &Path) -> Result<StateFile, CheckpointError> {
        let broken = |message: String| CheckpointError::State { path: path.to_path_buf(), message };
        let io_error = |source| CheckpointError::Io { path: path.to_path_buf(), action: "read", source };
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(broken("it is not a regular file".to_owned()));
        }
        let mut text = Vec::new();
        let file = File::open(path).map_err(io_error)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(io_error)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(broken(format!("it has more than {MAX_BYTES} bytes")));
        }
        let value: Value = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(broken(format!(
                    "it has version {version}, this program reads version {VERSION}: continue with the one that wrote it"
                )));
            }
            None => return Err(broken("it does not say its `version`".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| broken(error.to_string()))
    }
}
