//! Writing checkpoints: streamed from the run's own memory, seen complete or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::convert::store_f32;
use nucleus_runtime::safetensors_write::{TensorSpec, write_safetensors};
use nucleus_runtime::write_checkpoint;
use serde_json::{Map, Value};

use super::digest::{self, Digest};
use super::folder::{
    Aside, aside_path, checkpoint_path, latest, list, recover, remove_checkpoint, remove_folder, sync_folder,
};
use super::state::{Digests, RunState, StateFile};
use crate::engine::{State, StateTensor};

use super::{CONFIG, CheckpointError, MASTER, OPTIMIZER, TRAINER, TRANSFORMER};

/// Elements that are converted at a time.
const PIECE: usize = 1 << 16;

/// The largest shard: what diffusers and the hubs that serve its folders are used to.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// All that a checkpoint keeps of a run.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Where the run stands.
    pub state: &'a RunState,
    /// The model's configuration, which becomes `config.json`.
    pub config: &'a Map<String, Value>,
    /// The f32 weights, and the optimisers' state, whose names must not begin with `master/`.
    pub tensors: &'a State<'a>,
}

/// How checkpoints are written.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// How many checkpoints stay, the newest first; `None` keeps all.
    pub keep: Option<NonZeroUsize>,
    /// The element type of the weights for diffusers, f32 or bf16. With bf16 the f32 weights lie beside the optimisers' state, so that
    /// a run goes on from them.
    pub dtype: DType,
    /// The most bytes of tensors in one file of weights.
    pub max_shard_bytes: u64,
}

impl Default for StoreOptions {
    /// All checkpoints, in f32, in files of at most 5 GB.
    fn default() -> StoreOptions {
        StoreOptions { keep: None, dtype: DType::F32, max_shard_bytes: MAX_SHARD_BYTES }
    }
}

/// A run's folder, to which this process alone writes.
#[derive(Debug)]
pub struct Store {
    out: PathBuf,
    options: StoreOptions,
    recovered: Vec<PathBuf>,
    /// Locked as long as it is open: the system lets go when the process ends, however it ends.
    _lock: File,
}

impl Store {
    /// Opens or makes a run's folder, and clears away what a killed process left in it.
    ///
    /// # Errors
    /// Another process writes there, or the file system refuses.
    pub fn open(out: &Path, options: StoreOptions) -> Result<Store, CheckpointError> {
        fs::create_dir_all(out).map_err(CheckpointError::io(out, "create folder"))?;
        let path = out.join(".lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(CheckpointError::io(&path, "write"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CheckpointError::Locked { out: out.to_path_buf() }),
            // Some network file systems have no locks: there, two runs in one folder are the user's to avoid.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(CheckpointError::io(&path, "lock")(error)),
        }
        let recovered = recover(out)?;
        Ok(Store { out: out.to_path_buf(), options, recovered, _lock: lock })
    }

    /// The run's folder.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// What a killed process had left, and is gone or back in its place.
    pub fn recovered(&self) -> &[PathBuf] {
        &self.recovered
    }

    /// Writes `checkpoint-<step>` and returns its path. One of the same step is replaced. Then older ones than the newest `keep`, counted
    /// up to this step, are removed.
    ///
    /// Nothing is copied as a whole: f32 tensors go to their file from where they lie.
    ///
    /// # Errors
    /// A tensor is not finite or does not fill its shape, or the file system refuses. The checkpoints that were there are untouched.
    pub fn write(&mut self, snapshot: &Snapshot<'_>) -> Result<PathBuf, CheckpointError> {
        let step = snapshot.state.step;
        let partial = aside_path(&self.out, step, Aside::Partial);
        let written = self.write_partial(&partial, snapshot).and_then(|()| self.put_in_place(&partial, step));
        if let Err(source) = written {
            // What failed is reported; what cannot be removed now goes when the folder is opened again.
            let _ = remove_folder(&partial);
            return Err(CheckpointError::Write {
                step,
                bytes: bytes(snapshot.tensors, self.options.dtype),
                out: self.out.clone(),
                last: latest(&self.out).ok().flatten().map(|(_, path)| path),
                source: Box::new(source),
            });
        }
        self.retain(step)?;
        Ok(checkpoint_path(&self.out, step))
    }

    /// Removes checkpoints of later steps: a run that goes on from an earlier one makes its own.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn discard_after(&mut self, step: u64) -> Result<(), CheckpointError> {
        // The newest first: a kill between two of them leaves a run without gaps.
        for (later, _) in list(&self.out)?.into_iter().rev().take_while(|&(found, _)| found > step) {
            remove_checkpoint(&self.out, later)?;
        }
        sync_folder(&self.out)
    }

    fn write_partial(&self, partial: &Path, snapshot: &Snapshot<'_>) -> Result<(), CheckpointError> {
        check(snapshot)?;
        remove_folder(partial)?;
        fs::create_dir(partial).map_err(CheckpointError::io(partial, "create folder"))?;

        let transformer = partial.join(TRANSFORMER);
        let weights = Part::new(&snapshot.tensors.weights, "", self.options.dtype);
        let mut digest = Digest::default();
        write_checkpoint(
            &transformer,
            Some(snapshot.config),
            &weights.specs,
            self.options.max_shard_bytes,
            &mut |spec, sink| weights.fill(spec, sink, &mut digest),
        )?;
        let weights = digest.finish();

        let mut state = Part::new(&snapshot.tensors.optimizer, "", DType::F32);
        if self.options.dtype != DType::F32 {
            state.extend(Part::new(&snapshot.tensors.weights, MASTER, DType::F32));
        }
        let mut digest = Digest::default();
        write_safetensors(&partial.join(OPTIMIZER), &state.specs, &BTreeMap::new(), &mut |spec, sink| {
            state.fill(spec, sink, &mut digest)
        })?;

        let trainer = partial.join(TRAINER);
        let config = digest::of_file(&transformer.join(CONFIG))?;
        let digests = Digests { config, weights, optimizer: digest.finish() };
        StateFile::new(snapshot.state.clone(), digests).write(&trainer)?;
        sync_folder(&transformer)?;
        sync_folder(partial)
    }

    fn put_in_place(&self, partial: &Path, step: u64) -> Result<(), CheckpointError> {
        let path = checkpoint_path(&self.out, step);
        let replaced = aside_path(&self.out, step, Aside::Replaced);
        // A folder cannot be renamed over one that is not empty. A kill between the two renames is undone by `recover`.
        let replaces = path.exists();
        if replaces {
            remove_folder(&replaced)?;
            fs::rename(&path, &replaced).map_err(CheckpointError::io(&path, "replace"))?;
        }
        if let Err(error) = fs::rename(partial, &path) {
            if replaces {
                // If this fails too, `recover` does it.
                let _ = fs::rename(&replaced, &path);
            }
            return Err(CheckpointError::io(&path, "write")(error));
        }
        sync_folder(&self.out)?;
        remove_folder(&replaced)
    }

    fn retain(&self, newest: u64) -> Result<(), CheckpointError> {
        let Some(keep) = self.options.keep else { return Ok(()) };
        let mut steps: Vec<u64> = list(&self.out)?.into_iter().map(|(step, _)| step).collect();
        steps.retain(|&step| step <= newest);
        let surplus = steps.len().saturating_sub(keep.get());
        for &step in &steps[..surplus] {
            remove_checkpoint(&self.out, step)?;
        }
        Ok(())
    }
}

type Tensor<'a> = StateTensor<&'a [f32]>;

fn all<'a>(state: &'a State<'a>) -> impl Iterator<Item = &'a Tensor<'a>> {
    state.weights.iter().chain(&state.optimizer)
}

/// What the tensors take on the disk.
fn bytes(state: &State<'_>, dtype: DType) -> u64 {
    let elements =
        |tensors: &[Tensor<'_>]| tensors.iter().map(|tensor| tensor.values.len() as u64).sum::<u64>();
    let (weights, optimizer) = (elements(&state.weights), elements(&state.optimizer));
    let rounded = if dtype == DType::F32 { 0 } else { weights * dtype.size() as u64 };
    rounded + (weights + optimizer) * DType::F32.size() as u64
}

/// Refuses what could be written but not read back.
fn check(snapshot: &Snapshot<'_>) -> Result<(), CheckpointError> {
    for tensor in all(snapshot.tensors) {
        let elements = tensor.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        if elements != Some(tensor.values.len()) {
            return Err(CheckpointError::Snapshot {
                name: tensor.name.clone(),
                problem: format!("it has {} elements, its shape is {:?}", tensor.values.len(), tensor.shape),
            });
        }
        if let Some(index) = tensor.values.iter().position(|value| !value.is_finite()) {
            return Err(CheckpointError::Snapshot {
                name: tensor.name.clone(),
                problem: format!("element {index} is {}", tensor.values[index]),
            });
        }
    }
    match snapshot.tensors.optimizer.iter().find(|tensor| tensor.name.starts_with(MASTER)) {
        Some(tensor) => Err(CheckpointError::Snapshot {
            name: tensor.name.clone(),
            problem: format!("names of optimiser state must not begin with `{MASTER}`"),
        }),
        None => Ok(()),
    }
}

/// The tensors of one file, or of the files that shards make.
struct Part<'a> {
    specs: Vec<TensorSpec>,
    values: BTreeMap<String, &'a [f32]>,
}

impl<'a> Part<'a> {
    fn new(tensors: &[Tensor<'a>], prefix: &str, dtype: DType) -> Part<'a> {
        let name = |tensor: &Tensor<'_>| format!("{prefix}{}", tensor.name);
        Part {
            specs: tensors
                .iter()
                .map(|tensor| TensorSpec::new(name(tensor), dtype, tensor.shape.clone()))
                .collect(),
            values: tensors.iter().map(|tensor| (name(tensor), tensor.values)).collect(),
        }
    }

    fn extend(&mut self, other: Part<'a>) {
        self.specs.extend(other.specs);
        self.values.extend(other.values);
    }

    fn fill(&self, spec: &TensorSpec, sink: &mut dyn Write, digest: &mut Digest) -> io::Result<()> {
        digest.tensor(&spec.name, spec.dtype, &spec.shape);
        let values = self.values.get(&spec.name).copied().unwrap_or_default();
        let dtype = nucleus_runtime::safetensors_file::graph_dtype(spec.dtype).unwrap_or(DType::F32);
        let mut buffer = vec![0; PIECE * dtype.size()];
        for piece in values.chunks(PIECE) {
            let bytes: &[u8] = if dtype == DType::F32 {
                bytemuck::cast_slice(piece)
            } else {
                let bytes = &mut buffer[..piece.len() * dtype.size()];
                store_f32(piece, dtype, bytes).map_err(io::Error::other)?;
                bytes
            };
            digest.bytes(bytes);
            sink.write_all(bytes)?;
        }
        Ok(())
    }
}
