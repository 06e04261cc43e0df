//! Reading checkpoints: structure first, contents on demand.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::convert::load_f32;
use nucleus_runtime::safetensors_file::{HeaderEntry, MappedFile, StoredDType, graph_dtype};
use nucleus_runtime::{Checkpoint, Expected, Extras};
use serde_json::{Map, Value};

use super::digest::{self, Digest};
use super::state::{Digests, RunState, StateFile};
use super::{CONFIG, CheckpointError, MASTER, OPTIMIZER, TRAINER, TRANSFORMER};

/// Elements that are looked at at a time.
const PIECE: usize = 1 << 16;

/// An open checkpoint of a run: mapped files with checked headers.
#[derive(Debug)]
pub struct SavedCheckpoint {
    path: PathBuf,
    state: RunState,
    digests: Digests,
    weights: Checkpoint,
    optimizer: MappedFile,
}

impl SavedCheckpoint {
    /// Opens the folder `checkpoint-<step>` and checks its structure. Only headers are read: see [`SavedCheckpoint::verify`].
    ///
    /// # Errors
    /// A file is missing or broken.
    pub fn open(path: &Path) -> Result<SavedCheckpoint, CheckpointError> {
        for missing in [TRAINER, OPTIMIZER, "transformer/config.json"] {
            if !path.join(missing).exists() {
                return Err(CheckpointError::Incomplete { path: path.to_path_buf(), missing });
            }
        }
        let file = StateFile::read(&path.join(TRAINER))?;
        let weights = Checkpoint::open(path.join(TRANSFORMER))?;
        let optimizer = MappedFile::open(&path.join(OPTIMIZER))?;
        let saved = SavedCheckpoint {
            path: path.to_path_buf(),
            state: file.state,
            digests: file.digests,
            weights,
            optimizer,
        };
        match saved.optimizer.header().tensors.iter().find(|entry| entry.dtype != StoredDType::F32) {
            Some(entry) => Err(saved.tensor_error(&entry.name, format!("is {}, not F32", entry.dtype))),
            None => Ok(saved),
        }
    }

    /// [`SavedCheckpoint::open`], then [`SavedCheckpoint::verify`].
    ///
    /// # Errors
    /// As for both.
    pub fn read(path: &Path) -> Result<SavedCheckpoint, CheckpointError> {
        let saved = SavedCheckpoint::open(path)?;
        saved.verify()?;
        Ok(saved)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// The model's configuration.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.weights.config()
    }

    /// The weights as diffusers reads them.
    pub fn weights(&self) -> &Checkpoint {
        &self.weights
    }

    /// Names and shapes of the optimisers' state, in the order of the file.
    pub fn optimizer(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let entries = self.optimizer.header().tensors.iter();
        entries
            .filter(|entry| !entry.name.starts_with(MASTER))
            .map(|entry| (entry.name.as_str(), entry.shape.as_slice()))
    }

    /// Checks that weights and optimiser state are those that a run needs: every name, every shape, nothing else.
    ///
    /// # Errors
    /// They are not; all weights that do not fit are reported, and the first tensor of the state.
    pub fn check<'a>(
        &self,
        weights: &[Expected],
        optimizer: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), CheckpointError> {
        self.weights.check(weights, Extras::Refuse)?;
        let mut needed: std::collections::BTreeMap<&str, &[usize]> = optimizer.into_iter().collect();
        for (name, stored) in self.optimizer() {
            match needed.remove(name) {
                Some(shape) if shape == stored => {}
                Some(shape) => {
                    let problem = format!("has shape {stored:?}, the optimiser needs {shape:?}");
                    return Err(self.tensor_error(name, problem));
                }
                None => {
                    let problem = "is state that the optimisers of this recipe do not have".to_owned();
                    return Err(self.tensor_error(name, problem));
                }
            }
        }
        match needed.first_key_value() {
            Some((name, _)) => {
                let problem = "is missing; was the checkpoint written with other optimisers?".to_owned();
                Err(self.tensor_error(name, problem))
            }
            None => Ok(()),
        }
    }

    /// Reads everything once: every number is finite, every byte is the one that was written.
    ///
    /// # Errors
    /// It is not so; the tensor or the part is named.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        // `open` has read it, so it is a small file.
        let config = digest::of_file(&self.path.join(TRANSFORMER).join(CONFIG))?;
        self.compare("configuration values", &config, &self.digests.config)?;
        let mut digest = Digest::default();
        for name in self.weights.names_in_file_order() {
            let Some(view) = self.weights.get(name) else { continue };
            digest.tensor(name, view.stored_dtype, view.shape);
            digest.bytes(view.bytes);
            self.check_finite(name, view.dtype(), view.bytes)?;
            self.weights.release(name);
        }
        self.compare("weights", &digest.finish(), &self.digests.weights)?;
        let mut digest = Digest::default();
        for entry in &self.optimizer.header().tensors {
            let bytes = &self.optimizer.bytes()[entry.range.clone()];
            digest.tensor(&entry.name, entry.dtype, &entry.shape);
            digest.bytes(bytes);
            self.check_finite(&entry.name, graph_dtype(entry.dtype), bytes)?;
            self.optimizer.release(entry.range.clone());
        }
        self.compare("optimiser's values", &digest.finish(), &self.digests.optimizer)
    }

    /// Copies a weight into `values`: the f32 one, where the checkpoint has it beside the rounded one.
    ///
    /// # Errors
    /// There is no such weight, or it has another number of elements.
    pub fn load_weight(&self, name: &str, values: &mut [f32]) -> Result<(), CheckpointError> {
        if let Some(entry) = self.entry(&format!("{MASTER}{name}")) {
            return self.load_entry(entry, values);
        }
        let view = self.weights.get(name).ok_or_else(|| self.missing(name))?;
        let loaded = view.load_f32(values).map_err(|error| self.tensor_error(name, format!(": {error}")));
        self.weights.release(name);
        loaded
    }

    /// Copies a tensor of the optimisers' state into `values`.
    ///
    /// # Errors
    /// There is no such tensor, or it has another number of elements.
    pub fn load_optimizer(&self, name: &str, values: &mut [f32]) -> Result<(), CheckpointError> {
        self.load_entry(self.entry(name).ok_or_else(|| self.missing(name))?, values)
    }

    fn entry(&self, name: &str) -> Option<&HeaderEntry> {
        self.optimizer.header().tensors.iter().find(|entry| entry.name == name)
    }

    fn load_entry(&self, entry: &HeaderEntry, values: &mut [f32]) -> Result<(), CheckpointError> {
        let bytes = &self.optimizer.bytes()[entry.range.clone()];
        let loaded = load_f32(DType::F32, bytes, values);
        self.optimizer.release(entry.range.clone());
        loaded.map_err(|error| self.tensor_error(&entry.name, format!(": {error}")))
    }

    fn check_finite(&self, name: &str, dtype: Option<DType>, bytes: &[u8]) -> Result<(), CheckpointError> {
        let Some(dtype) = dtype.filter(|dtype| dtype.is_float()) else {
            return Err(self.tensor_error(name, "is not of a float type".to_owned()));
        };
        let mut values = vec![0f32; PIECE.min(bytes.len() / dtype.size())];
        for (number, piece) in bytes.chunks(PIECE * dtype.size()).enumerate() {
            let values = &mut values[..piece.len() / dtype.size()];
            load_f32(dtype, piece, values).map_err(|error| self.tensor_error(name, format!(": {error}")))?;
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let problem =
                    format!("is not finite: element {} is {}", number * PIECE + index, values[index]);
                return Err(self.tensor_error(name, problem));
            }
        }
        Ok(())
    }

    fn compare(&self, what: &'static str, found: &str, written: &str) -> Result<(), CheckpointError> {
        if found == written {
            Ok(())
        } else {
            Err(CheckpointError::Damaged { path: self.path.clone(), what })
        }
    }

    fn missing(&self, name: &str) -> CheckpointError {
        self.tensor_error(name, "is missing".to_owned())
    }

    fn tensor_error(&self, name: &str, problem: String) -> CheckpointError {
        CheckpointError::Tensor { path: self.path.clone(), name: name.to_owned(), problem }
    }
}
