//! Recipes: the TOML text that describes a run. `docs/training.md` lists every key.
//!
//! A recipe that was read is right in itself: ranges hold, stages add up, keys that exclude each other are not both there. What
//! depends on the model or the data is checked where they are known.

mod error;
mod groups;
mod reader;
mod sections;
mod stages;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use toml::de::DeTable;

use crate::groups::Group;
use crate::schedule::Schedule;
use crate::timesteps::TimestepSampling;

pub use error::RecipeError;
pub use stages::{CapacityFactor, Stage, StageAt, Stages};

/// Largest recipe that is read, in bytes.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// A recipe, with all defaults in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The folder of the recipe file: paths in the recipe are relative to it, those here are not.
    pub folder: PathBuf,
    /// The model and where it starts.
    pub model: ModelRecipe,
    /// Where batches come from.
    pub data: DataRecipe,
    /// What is minimised.
    pub objective: Objective,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Which optimiser moves which weight: the groups of the recipe, then the default ones. The first match wins.
    pub groups: Vec<Group>,
    /// The curriculum: at least one stage, their steps add up to the steps of the run.
    pub stages: Stages,
    /// Everything else.
    pub run: RunRecipe,
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRecipe {
    /// The model's text; `None` for the shipped `nucleus_image.ir`.
    pub ir: Option<PathBuf>,
    /// The weights to start from.
    pub start: Start,
    /// Element type of the factors of products.
    pub dtype: ComputeDType,
    /// What the backward pass recomputes instead of keeping it.
    pub remat: Recompute,
}

/// Forward values that a backward pass recomputes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// None.
    Nothing,
    /// Those that are cheap for the memory that they take.
    Cheap,
    /// All but the inputs of layers.
    Everything,
    /// As few as possible, so that the backward pass holds no more than so many bytes of forward values at a time.
    Within(u64),
}

/// Where training starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A diffusers folder.
    Checkpoint(PathBuf),
    /// Random weights.
    Fresh {
        /// The `config.json`.
        config: PathBuf,
        /// Seed of the weights.
        seed: u64,
        /// Patterns of the weights that start at zero.
        zero_init: Vec<String>,
    },
}

/// Element type of the factors of products; everything else is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeDType {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl From<ComputeDType> for DType {
    fn from(dtype: ComputeDType) -> DType {
        match dtype {
            ComputeDType::F32 => DType::F32,
            ComputeDType::Bf16 => DType::Bf16,
        }
    }
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DataRecipe {
    /// What lies in the folder.
    pub kind: DataKind,
    /// The folder.
    pub path: PathBuf,
}

/// What a data folder holds.
#[derive(Clone, Debug, PartialEq)]
pub enum DataKind {
    /// Files with one batch each.
    Batches,
    /// A data set of shards.
    Shards {
        /// Probability that an item is trained without its text.
        text_dropout: f64,
        /// Mirror half of the pictures.
        flip: bool,
    },
}

/// `[objective]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Coefficient of the router z-loss.
    pub z_loss: f64,
    /// Coefficient of the wavelet loss.
    pub wavelet: f64,
    /// Coefficient of the router rows' orthogonality update.
    pub orthogonality: f64,
    /// Patterns of the weights that are routers.
    pub routers: Vec<String>,
    /// How noise levels are drawn.
    pub timesteps: TimestepSampling,
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecipe {
    /// The folder that the run writes.
    pub out: PathBuf,
    /// Largest norm of the gradient; `None` for no clipping.
    pub clip_grad_norm: Option<f64>,
    /// Seed of everything that is drawn while training.
    pub seed: u64,
    /// Worker threads; `None` for all cores.
    pub threads: Option<usize>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// How many checkpoints stay; `None` for all.
    pub keep: Option<usize>,
    /// Whether to go on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Steps between samples; `None` for none.
    pub sample_every: Option<u64>,
    /// Steps of the sampler.
    pub sample_steps: u64,
    /// Classifier-free guidance of samples.
    pub guidance: f64,
    /// The pictures of a sample grid.
    pub samples: Vec<SampleRecipe>,
}

/// `[[run.sample]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleRecipe {
    /// What the picture shows.
    pub caption: String,
    /// Height and width in pixels; `None` for the largest bucket's.
    pub size: Option<(usize, usize)>,
    /// Seed of the noise that it starts from.
    pub seed: u64,
}

impl Recipe {
    /// Reads the recipe file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has a key or value that no recipe has; the message names file, line and column.
    pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
        let io_error = |source| RecipeError::Io { path: path.to_path_buf(), source };
        let odd = |problem: String| RecipeError::NotARecipe { path: path.to_path_buf(), problem };
        // Opening a pipe would wait for its writer, so the kind is looked at first.
        if !std::fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(odd("is not a regular file".to_owned()));
        }
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(io_error)?
            .take(MAX_RECIPE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        if bytes.len() as u64 > MAX_RECIPE_BYTES {
            return Err(odd(format!("is larger than {MAX_RECIPE_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| odd("is not UTF-8".to_owned()))?;
        Recipe::parse(path, &text)
    }

    /// Reads the text of a recipe; `path` is named in errors, and paths in the text are relative to its folder.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Recipe, RecipeError> {
        let source = reader::Source { path, text };
        let document = DeTable::parse(text).map_err(|error| {
            source.error(error.span().map_or(0, |span| span.start), error.message().trim_end())
        })?;
        let root = reader::Table::root(&source, &document);
        root.only(&["model", "data", "objective", "schedule", "group", "stage", "run"])?;
        let model = sections::model(&root.table("model", sections::MODEL_KEYS)?)?;
        let (data, batch) = sections::data(&root.table("data", sections::DATA_KEYS)?)?;
        let objective = sections::objective(&root.table("objective", sections::OBJECTIVE_KEYS)?)?;
        let schedule = sections::schedule(&root.table("schedule", sections::SCHEDULE_KEYS)?)?;
        let groups = groups::groups(&root, model.dtype)?;
        let (run, steps, accumulate) = sections::run(&root.table("run", sections::RUN_KEYS)?)?;
        let stages = stages::stages(&root, &data, steps, batch, accumulate)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Recipe { folder, model, data, objective, schedule, groups, stages, run })
    }

    /// A hash of everything in the recipe that decides the weights after a step: two recipes of one fingerprint train alike up to the
    /// smaller of their numbers of steps. Paths count as the recipe writes them, so its folder may move.
    pub fn fingerprint(&self) -> String {
        let Recipe { folder, model, data, objective, schedule, groups, stages, run } = self;
        let written = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_path_buf();
        let start = match &model.start {
            Start::Checkpoint(path) => Start::Checkpoint(written(path)),
            Start::Fresh { config, seed, zero_init } => {
                Start::Fresh { config: written(config), seed: *seed, zero_init: zero_init.clone() }
            }
        };
        let model = ModelRecipe {
            ir: model.ir.as_deref().map(written),
            start,
            dtype: model.dtype,
            remat: model.remat,
        };
        let data = DataRecipe { kind: data.kind.clone(), path: written(&data.path) };
        let stages: Vec<&Stage> = stages.iter().collect();
        // The last stage's end is the run's, which may be moved.
        let lengths: Vec<u64> = stages.iter().rev().skip(1).map(|stage| stage.steps).collect();
        let settings: Vec<_> = stages
            .iter()
            .map(|stage| (stage.batch, stage.accumulate, stage.resolution, &stage.capacity_factor))
            .collect();
        let text = format!(
            "{:?}",
            (model, data, objective, schedule, groups, lengths, settings, run.clip_grad_norm, run.seed)
        );
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}
