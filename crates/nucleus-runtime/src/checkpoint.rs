//! A model's weights as diffusers saves them: a folder with `config.json` and one or many mapped files.
//!
//! Nothing is copied: a weight is a view into its file until the caller packs it and [releases] the pages.
//!
//! [releases]: Checkpoint::release

mod fit;
mod locate;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use serde_json::{Map, Value};
use thiserror::Error;

pub use fit::{Expected, Extras, Mismatch, Problem};
pub use write::write_checkpoint;

use crate::config_json::{ConfigError, read_config};
use crate::convert::{self, ConvertError};
use crate::safetensors_file::{MappedFile, SafetensorsError, StoredDType, graph_dtype, shown};

/// Why a checkpoint was refused.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The path cannot be looked at.
    #[error("cannot open checkpoint `{}`: {source}", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No weights are given to a model that has some.
    #[error(
        "the model has weights, such as `{weight}`: give a diffusers folder or a safetensors file, for example `--weights DIR`, or `random`"
    )]
    NotGiven {
        /// One of the weights.
        weight: String,
    },
    /// A folder without weights.
    #[error(
        "folder `{}` holds no weights: expected `diffusion_pytorch_model.safetensors`, `diffusion_pytorch_model.safetensors.index.json` with its shards, another `.safetensors` file, or a subfolder `transformer`",
        .path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with several sets of weights.
    #[error("folder `{}` holds several sets of weights ({}): name the file to use", .path.display(), listed(.candidates))]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// File names of the candidates, in order.
        candidates: Vec<String>,
    },
    /// A shard whose index is gone.
    #[error("`{}` is one shard of several, and folder `{}` has no index of them: restore its `.safetensors.index.json`", shown(.shard), .path.display())]
    ShardWithoutIndex {
        /// The folder.
        path: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// A file of another kind.
    #[error("`{}` is neither a folder nor a `.safetensors` file nor a `.safetensors.index.json`", .path.display())]
    NotACheckpoint {
        /// The path.
        path: PathBuf,
    },
    /// One of the weight files is broken.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// `config.json`, or the index as JSON, is broken.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The shard index is JSON, but does not describe shards.
    #[error("shard index `{}` is broken: {message}", .path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The index and a shard disagree.
    #[error("shard index `{}` does not fit its shards: {message}", .path.display())]
    IndexShards {
        /// The index file.
        path: PathBuf,
        /// What disagrees.
        message: String,
    },
    /// The weights are not those of the model.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// Up to eight names, then a count.
fn listed(names: &[String]) -> String {
    let mut text =
        names.iter().take(8).map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>().join(", ");
    if names.len() > 8 {
        text.push_str(&format!(" and {} more", names.len() - 8));
    }
    text
}

/// Where a weight lies.
#[derive(Debug)]
struct Weight {
    file: usize,
    dtype: StoredDType,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// An open checkpoint: checked headers and mapped data.
///
/// The files must not be truncated while it is open; see [`MappedFile`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    weights: BTreeMap<String, Weight>,
    config: Option<(PathBuf, Map<String, Value>)>,
}

/// One weight of a checkpoint, still in its file.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// The stored element type, which the graph may not have.
    pub stored_dtype: StoredDType,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Elements, little-endian and row-major; not aligned.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
}

impl WeightView<'_> {
    /// The element type, where the graph has it.
    pub fn dtype(&self) -> Option<DType> {
        graph_dtype(self.stored_dtype)
    }

    /// The element count.
    pub fn elements(&self) -> usize {
        self.bytes.len() * 8 / self.stored_dtype.bitsize()
    }

    /// Writes the elements as `f32`.
    ///
    /// # Errors
    /// The weight is not f32, bf16 or f16, or `out` does not have one place per element.
    pub fn load_f32(&self, out: &mut [f32]) -> Result<(), ConvertError> {
        // A dtype the graph has not is reported by `check`; here it can only be called not a float.
        let dtype = self.dtype().unwrap_or(DType::Bool);
        convert::load_f32(dtype, self.bytes, out)
    }
}

impl Checkpoint {
    /// Opens a diffusers folder, a pipeline folder with a `transformer` subfolder, a `.safetensors` file, or
    /// a shard index. A `config.json` beside the weights is read too.
    ///
    /// In a folder the candidates are, in this order: `diffusion_pytorch_model.safetensors` or its index,
    /// `model.safetensors` or its index, the subfolder `transformer` (first of all where there is a
    /// `model_index.json`), the only shard index, the only `.safetensors` file.
    ///
    /// # Errors
    /// There are no weights or several sets, a file is broken, index and shards disagree, or `config.json`
    /// is not a small JSON object.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, CheckpointError> {
        let path = path.as_ref();
        let located = locate::locate(path)?;
        let (files, weights) = match &located.weights {
            locate::Weights::Single(file) => open_single(file)?,
            locate::Weights::Sharded(index) => locate::open_shards(index)?,
        };
        let config_path = located.folder.join("config.json");
        // A symbolic link that leads nowhere is not "no config": reading it will say so.
        let config = if config_path.symlink_metadata().is_ok() {
            let map = read_config(&config_path)?;
            Some((config_path, map))
        } else {
            None
        };
        Ok(Checkpoint { path: path.to_path_buf(), files, weights, config })
    }

    /// The weights of one mapped file: its tensors except those whose name begins with `reserved`.
    pub fn from_file(file: MappedFile, reserved: &str) -> Checkpoint {
        let weights = entries(&file, 0).filter(|(name, _)| !name.starts_with(reserved)).collect();
        Checkpoint { path: file.path().to_path_buf(), files: vec![file], weights, config: None }
    }

    /// The path the checkpoint was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mapped files: one, or the shards in the order of their names.
    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// The names of the weights, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// The number of weights.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// True when there are no weights.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The weight of that name.
    pub fn get(&self, name: &str) -> Option<WeightView<'_>> {
        self.weights.get(name).map(|weight| self.view(weight))
    }

    /// Name and weight, in the order of the names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, WeightView<'_>)> {
        self.weights.iter().map(|(name, weight)| (name.as_str(), self.view(weight)))
    }

    fn view<'a>(&'a self, weight: &'a Weight) -> WeightView<'a> {
        let file = &self.files[weight.file];
        WeightView {
            stored_dtype: weight.dtype,
            shape: &weight.shape,
            bytes: &file.bytes()[weight.range.clone()],
            file: file.path(),
        }
    }

    /// Bytes of all weights together.
    pub fn total_bytes(&self) -> u64 {
        self.weights.values().map(|weight| weight.range.len() as u64).sum()
    }

    /// Elements of all weights together.
    pub fn total_elements(&self) -> u64 {
        self.iter().map(|(_, weight)| weight.elements() as u64).sum()
    }

    /// The keys of `config.json`, in its order; `None` where the folder has none.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.config.as_ref().map(|(_, map)| map)
    }

    /// The path of `config.json`, to be named in errors about its values.
    pub fn config_path(&self) -> Option<&Path> {
        self.config.as_ref().map(|(path, _)| path.as_path())
    }

    /// The float dtype that most bytes are stored in; `None` where no weight is f32, bf16 or f16.
    pub fn dtype(&self) -> Option<DType> {
        let mut bytes: BTreeMap<DType, u64> = BTreeMap::new();
        for weight in self.weights.values() {
            if let Some(dtype) = graph_dtype(weight.dtype).filter(|dtype| dtype.is_float()) {
                *bytes.entry(dtype).or_default() += weight.range.len() as u64;
            }
        }
        bytes.into_iter().max_by_key(|&(_, bytes)| bytes).map(|(dtype, _)| dtype)
    }

    /// Tells the kernel that the pages of a weight are not needed any more, so that a packed copy does not
    /// double the resident memory. Views stay valid: a later read brings the pages back from the file.
    /// Does nothing for an unknown name.
    pub fn release(&self, name: &str) {
        if let Some(weight) = self.weights.get(name) {
            self.files[weight.file].release(weight.range.clone());
        }
    }

    /// Asks the kernel to start reading a weight. Does nothing for an unknown name.
    pub fn prefetch(&self, name: &str) {
        if let Some(weight) = self.weights.get(name) {
            self.files[weight.file].prefetch(weight.range.clone());
        }
    }

    /// Tells the kernel that the files are about to be read from front to back, for its read-ahead.
    pub fn advise_sequential(&self) {
        self.files.iter().for_each(MappedFile::advise_sequential);
    }

    /// The weights in the order of files and offsets: the order in which to read them all from a disk.
    pub fn names_in_file_order(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .weights
            .iter()
            .map(|(name, weight)| (weight.file, weight.range.start, name.as_str()))
            .collect();
        names.sort_unstable();
        names.into_iter().map(|(.., name)| name).collect()
    }
}

type Opened = (Vec<MappedFile>, BTreeMap<String, Weight>);

fn open_single(path: &Path) -> Result<Opened, CheckpointError> {
    let file = MappedFile::open(path)?;
    let weights = entries(&file, 0).collect();
    Ok((vec![file], weights))
}

fn entries(file: &MappedFile, index: usize) -> impl Iterator<Item = (String, Weight)> + '_ {
    file.header().tensors.iter().map(move |entry| {
        let weight = Weight {
            file: index,
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            range: entry.range.clone(),
        };
        (entry.name.clone(), weight)
    })
}
