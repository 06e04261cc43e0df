//! A run from its recipe: model, engine, data and the folder it writes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nucleus_ir::Bindings;
use nucleus_passes::elaborate::ConfigValue;
use nucleus_passes::remat::{Policy, Remat};
use nucleus_runtime::{Checkpoint, Gpu, Model, ModelError, config_json};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::checkpoint::{CheckpointError, RunCheckpoints, Store, StoreOptions};
use crate::data::{Batches, DataError, Draws, ShardOptions, Shards, Source};
use crate::graph_engine::{GraphEngine, GraphEngineError, LossOptions};
use crate::random::Streams;
use crate::recipe::{DataKind, Recipe, Recompute, Start};
use crate::start::{StartError, fresh, from_checkpoint};

/// The model that a recipe without `ir` trains.
const SHIPPED: &str = "nucleus_image";

/// Why a run could not be put together.
#[derive(Debug, Error)]
pub enum AssembleError {
    /// The model cannot be read or does not compile.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A recipe without `ir`, in a program without the model that it means.
    #[error("there is no model `{SHIPPED}` in this program: give one as `ir`")]
    NotShipped,
    /// The checkpoint to start from cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] nucleus_runtime::CheckpointError),
    /// The checkpoint to start from has no configuration.
    #[error("`{}` has no config.json", .0.display())]
    NoConfig(PathBuf),
    /// `config.json` cannot be read.
    #[error(transparent)]
    Config(#[from] config_json::ConfigError),
    /// The checkpoint to start from is of another model.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The engine cannot be made.
    #[error(transparent)]
    Engine(#[from] GraphEngineError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Pictures cannot be cut into patches.
    #[error("data of kind \"shards\" needs the key `patch_size` in the model's config.json")]
    NoPatchSize,
    /// Words that the model has no vector for.
    #[error("the vocabulary of `{}` has {words} words, but `vocabulary_size` of the model is {size}", .path.display())]
    Vocabulary {
        /// The model's.
        size: i64,
        /// The data's.
        words: usize,
        /// The data set.
        path: PathBuf,
    },
    /// The folder of the run cannot be opened.
    #[error(transparent)]
    Folder(#[from] CheckpointError),
}

/// The parts of a run.
pub struct Assembled {
    /// What computes.
    pub engine: GraphEngine,
    /// Where batches come from.
    pub source: Box<dyn Source>,
    /// The model's configuration.
    pub config: Map<String, Value>,
}

/// Puts a run together, its weights as at its start.
///
/// # Errors
/// A part of the recipe does not fit the others, or a file cannot be read.
pub fn assemble(recipe: &Recipe) -> Result<Assembled, AssembleError> {
    assemble_on(recipe, None)
}

/// [`assemble`] with an engine on a GPU, if one is given.
///
/// # Errors
/// As for [`assemble`], or the GPU fails.
pub fn assemble_on(recipe: &Recipe, gpu: Option<&Gpu>) -> Result<Assembled, AssembleError> {
    let mut model = model(recipe.model.ir.as_deref())?;
    let (config_path, checkpoint) = match &recipe.model.start {
        Start::Checkpoint(path) => {
            let checkpoint = Checkpoint::open(path)?;
            let config = checkpoint.config_path().map(Path::to_path_buf);
            (config.ok_or_else(|| AssembleError::NoConfig(path.clone()))?, Some(checkpoint))
        }
        Start::Fresh { config, .. } => (config.clone(), None),
    };
    let config = config_json::read_config(&config_path)?;
    model.apply_json(&config_path, &config)?;
    let objective = &recipe.objective;
    let draws = Draws { streams: Streams::new(recipe.run.seed), timesteps: objective.timesteps };
    let (source, largest) = source(recipe, &model, draws)?;
    let policy = match recipe.model.remat {
        Recompute::Nothing => None,
        Recompute::Cheap => Some(Policy::Cheap),
        Recompute::Everything => Some(Policy::Full),
        Recompute::Within(bytes) => Some(Policy::Memory(bytes)),
    };
    let options = LossOptions {
        dtype: recipe.model.dtype.into(),
        remat: policy.map(|policy| Remat { policy, sizes: largest }),
        coefficients: vec![
            ("z_loss".to_owned(), objective.z_loss),
            ("wavelet".to_owned(), objective.wavelet),
        ],
        orthogonality: objective.orthogonality,
        routers: objective.routers.clone(),
    };
    let mut engine = GraphEngine::with_gpu(model, &recipe.groups, options, recipe.run.threads, gpu)?;
    match (&recipe.model.start, checkpoint) {
        (Start::Fresh { seed, zero_init, .. }, _) => fresh(engine.parameters_mut(), zero_init, *seed),
        (Start::Checkpoint(_), Some(checkpoint)) => from_checkpoint(engine.parameters_mut(), &checkpoint)?,
        (Start::Checkpoint(_), None) => {}
    }
    Ok(Assembled { engine, source, config })
}

/// The batches of a run, and the sizes of the largest.
fn source(
    recipe: &Recipe,
    model: &Model,
    draws: Draws,
) -> Result<(Box<dyn Source>, Bindings), AssembleError> {
    let (source, largest): (Box<dyn Source>, _) = match recipe.data.kind {
        DataKind::Batches => {
            let batches = Batches::open(&recipe.data.path, draws)?;
            let largest = batches.largest()?;
            (Box::new(batches), largest)
        }
        DataKind::Shards { text_dropout, flip } => {
            let patch_size = patch_size(model)?;
            let options = ShardOptions { patch_size, text_dropout, flip };
            let shards = Shards::open(&recipe.data.path, options, draws)?;
            check_vocabulary(model, shards.dataset().vocabulary().len(), &recipe.data.path)?;
            let largest = shards.largest(&recipe.stages)?;
            (Box::new(shards), largest)
        }
    };
    Ok((source, largest.iter().map(|(name, size)| (name.as_str(), *size)).collect()))
}

/// A model with word vectors must have one for every word of the data.
fn check_vocabulary(model: &Model, words: usize, path: &Path) -> Result<(), AssembleError> {
    match model.config().get("vocabulary_size") {
        Some(ConfigValue::Int(size)) if (*size).max(0).unsigned_abs() < words as u64 => {
            Err(AssembleError::Vocabulary { size: *size, words, path: path.to_path_buf() })
        }
        _ => Ok(()),
    }
}

/// The side of the model's patches.
///
/// # Errors
/// The configuration does not give it.
pub fn patch_size(model: &Model) -> Result<usize, AssembleError> {
    match model.config().get("patch_size") {
        Some(ConfigValue::Int(size)) if *size >= 1 => Ok(usize::try_from(*size).unwrap_or(1)),
        _ => Err(AssembleError::NoPatchSize),
    }
}

/// The folder of a run and its checkpoints, cleared of what a killed process left there.
///
/// # Errors
/// Another process trains there, or the file system refuses.
pub fn checkpoints(recipe: &Recipe, config: Map<String, Value>) -> Result<RunCheckpoints, AssembleError> {
    let keep = recipe.run.keep.and_then(NonZeroUsize::new);
    let store = Store::open(&recipe.run.out, StoreOptions { keep, ..StoreOptions::default() })?;
    let stages = recipe.stages.clone();
    // A stage's capacity factors are part of the model from then on.
    Ok(RunCheckpoints::new(store, move |step| {
        let mut config = config.clone();
        let layers = config.get("num_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
        if let Some(factor) = &stages.at(step).stage.capacity_factor
            && let Ok(factors) = factor.per_layer(layers)
        {
            config.insert("capacity_factors".to_owned(), Value::from(factors));
        }
        config
    }))
}

/// The model of that path, or the shipped one.
///
/// # Errors
/// The text cannot be read, or has errors.
pub fn model(path: Option<&Path>) -> Result<Model, AssembleError> {
    match path {
        Some(path) => Ok(Model::open(path)?),
        None => Ok(Model::shipped(SHIPPED).ok_or(AssembleError::NotShipped)??),
    }
}
