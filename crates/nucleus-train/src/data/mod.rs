//! Batches: read from files or cut from a data set, with noise and noise levels drawn where files have none.
//!
//! *Invariant:* a batch is a function of the data, the recipe's seed and its [`Place`]. Nothing is remembered that would have to be
//! saved: caches only save time.

mod batches;
mod error;
mod patches;
mod shards;

use nucleus_ir::DType;
use nucleus_runtime::{HostTensor, TensorError, TensorMap};

use crate::random::{Purpose, Streams};
use crate::recipe::{DataKind, Recipe, StageAt, Stages};
use crate::timesteps::TimestepSampling;

pub use batches::Batches;
pub use error::DataError;
pub use patches::pack;
pub use shards::{ShardOptions, Shards};

/// What one forward and backward pass is computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Inputs of the loss by name. There may be more than the entry takes: an engine picks those that it has.
    pub tensors: TensorMap,
    /// Sizes that no shape decides: `H` and `W`, the grid of image tokens.
    pub dims: Vec<(String, i64)>,
    /// Pictures in the batch.
    pub items: usize,
    /// Image tokens of one picture: H · W.
    pub image_tokens: usize,
}

/// Which batch of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place<'a> {
    /// The step, from 1.
    pub step: u64,
    /// Microbatch in the step, from 0.
    pub microbatch: u64,
    /// The stage.
    pub at: StageAt<'a>,
    /// Microbatches of the stage before this one.
    pub index_in_stage: u64,
    /// Microbatches of the run before this one.
    pub index: u64,
}

impl<'a> Place<'a> {
    /// The place of a microbatch (from 0) of a step (from 1).
    pub fn of(stages: &'a Stages, step: u64, microbatch: u64) -> Place<'a> {
        let at = stages.at(step);
        let before: u64 =
            stages.iter().take(at.number).map(|stage| stage.steps * stage.accumulate as u64).sum();
        let index_in_stage = at.step_in_stage * at.stage.accumulate as u64 + microbatch;
        Place { step, microbatch, at, index_in_stage, index: before + index_in_stage }
    }
}

/// Where batches come from.
pub trait Source {
    /// The batch of a place: the same whenever it is asked for.
    ///
    /// # Errors
    /// Data that is missing or wrong, by file and tensor.
    fn batch(&mut self, place: &Place<'_>) -> Result<Batch, DataError>;

    /// Checks what can be checked before the first step: that every stage has data.
    ///
    /// # Errors
    /// As for [`Source::batch`].
    fn check(&self, stages: &Stages) -> Result<(), DataError>;
}

/// What is drawn where data does not give it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draws {
    /// The run's generators.
    pub streams: Streams,
    /// How noise levels are distributed.
    pub timesteps: TimestepSampling,
}

impl Draws {
    /// Standard normal noise, f32 of that shape.
    fn noise(&self, place: &Place<'_>, shape: &[usize]) -> Result<HostTensor, TensorError> {
        let mut noise = HostTensor::zeros(DType::F32, shape)?;
        let mut stream = self.streams.stream(Purpose::Noise, &[place.step, place.microbatch]);
        stream.fill_normal(noise.as_f32_mut()?);
        Ok(noise)
    }

    /// Noise levels f32 `[items]` for pictures of `image_tokens` tokens.
    fn timestep(
        &self,
        place: &Place<'_>,
        items: usize,
        image_tokens: usize,
    ) -> Result<HostTensor, TensorError> {
        let mut stream = self.streams.stream(Purpose::Timestep, &[place.step, place.microbatch]);
        HostTensor::from_f32(&[items], &self.timesteps.sample(&mut stream, image_tokens, items))
    }
}

/// The batches that a recipe names, for a model with patches of `patch_size` × `patch_size`.
///
/// # Errors
/// There is no data, it is broken, or it does not fit the recipe.
pub fn open(recipe: &Recipe, patch_size: usize) -> Result<Box<dyn Source>, DataError> {
    let draws = Draws { streams: Streams::new(recipe.run.seed), timesteps: recipe.objective.timesteps };
    let path = &recipe.data.path;
    let source: Box<dyn Source> = match recipe.data.kind {
        DataKind::Batches => Box::new(Batches::open(path, draws)?),
        DataKind::Shards { text_dropout, flip } => {
            Box::new(Shards::open(path, ShardOptions { patch_size, text_dropout, flip }, draws)?)
        }
    };
    source.check(&recipe.stages)?;
    Ok(source)
}

/// All sizes of a batch.
fn sizes(items: usize, grid: (usize, usize), text: usize) -> Vec<(String, i64)> {
    let mut sizes = grid_dims(grid.0, grid.1);
    sizes.extend([("B".to_owned(), items as i64), ("T".to_owned(), text as i64)]);
    sizes
}

/// The sizes that a grid of image tokens binds.
fn grid_dims(height: usize, width: usize) -> Vec<(String, i64)> {
    vec![("H".to_owned(), height as i64), ("W".to_owned(), width as i64)]
}
