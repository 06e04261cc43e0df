//! The checkpoints of a training run, as its loop sees them.

use std::path::Path;

use nucleus_runtime::Expected;
use serde_json::{Map, Value};

use crate::engine::Engine;
use crate::trainer::{BoxError, Checkpoints, RunPosition};

use super::folder::checkpoint_path;
use super::{CheckpointError, RunState, SavedCheckpoint, Snapshot, Store, latest};

/// A run's folder and the model's configuration.
pub struct RunCheckpoints {
    store: Store,
    config: Box<dyn Fn(u64) -> Map<String, Value>>,
}

impl RunCheckpoints {
    /// `config` gives the model's configuration at a step, which becomes `config.json`: a curriculum changes it from stage to stage.
    pub fn new(store: Store, config: impl Fn(u64) -> Map<String, Value> + 'static) -> RunCheckpoints {
        RunCheckpoints { store, config: Box::new(config) }
    }

    /// The folder.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl Checkpoints for RunCheckpoints {
    fn latest(&mut self) -> Result<Option<u64>, BoxError> {
        Ok(latest(self.store.out())?.map(|(step, _)| step))
    }

    fn load(&mut self, step: u64, engine: &mut dyn Engine) -> Result<RunPosition, BoxError> {
        Ok(load(&checkpoint_path(self.store.out(), step), engine)?)
    }

    fn save(&mut self, position: &RunPosition, engine: &dyn Engine) -> Result<(), BoxError> {
        let RunPosition { step, seed, recipe } = position.clone();
        let state = RunState { step, seed, recipe, extra: Map::new() };
        let config = (self.config)(step);
        self.store.write(&Snapshot { state: &state, config: &config, tensors: &engine.state() })?;
        Ok(())
    }
}

/// Everything is checked before the first number of the engine is overwritten.
fn load(path: &Path, engine: &mut dyn Engine) -> Result<RunPosition, CheckpointError> {
    let saved = SavedCheckpoint::open(path)?;
    let state = engine.state_mut();
    let weights: Vec<Expected> =
        state.weights.iter().map(|tensor| Expected::new(&tensor.name, tensor.shape.clone())).collect();
    saved.check(&weights, state.optimizer.iter().map(|tensor| (&tensor.name[..], &tensor.shape[..])))?;
    saved.verify()?;
    for tensor in state.weights {
        saved.load_weight(&tensor.name, tensor.values)?;
    }
    for tensor in state.optimizer {
        saved.load_optimizer(&tensor.name, tensor.values)?;
    }
    let RunState { step, seed, recipe, .. } = saved.state().clone();
    Ok(RunPosition { step, seed, recipe })
}
