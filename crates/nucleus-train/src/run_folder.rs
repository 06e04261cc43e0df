//! The folder of a run: checkpoints written and read for the training loop.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::Expected;
use serde_json::{Map, Value};

use crate::checkpoint::{
    CheckpointError, RunState, SavedCheckpoint, Snapshot, Store, StoreOptions, Tensor, latest,
};
use crate::engine::{Engine, StateTensor};
use crate::trainer::{BoxError, Checkpoints, RunPosition};

/// The checkpoints of a run, for [`Trainer::run`](crate::trainer::Trainer::run).
#[derive(Debug)]
pub struct RunFolder {
    store: Store,
    /// The model's `config.json`.
    config: Map<String, Value>,
}

impl RunFolder {
    /// Opens or makes the folder, and clears away what a killed process left there.
    ///
    /// # Errors
    /// Another process trains there, or the file system refuses.
    pub fn open(
        out: &Path,
        keep: Option<usize>,
        config: Map<String, Value>,
    ) -> Result<RunFolder, CheckpointError> {
        let keep = keep.and_then(NonZeroUsize::new);
        let options = StoreOptions { keep, dtype: DType::F32, ..StoreOptions::default() };
        Ok(RunFolder { store: Store::open(out, options)?, config })
    }

    /// What a killed process had left.
    pub fn recovered(&self) -> &[PathBuf] {
        self.store.recovered()
    }
}

fn tensors<'a>(list: &'a [StateTensor<&'a [f32]>]) -> Vec<Tensor<'a>> {
    list.iter()
        .map(|tensor| Tensor { name: &tensor.name, shape: &tensor.shape, values: tensor.values })
        .collect()
}

impl Checkpoints for RunFolder {
    fn latest(&mut self) -> Result<Option<u64>, BoxError> {
        Ok(latest(self.store.out())?.map(|(step, _)| step))
    }

    fn load(&mut self, step: u64, engine: &mut dyn Engine) -> Result<RunPosition, BoxError> {
        let path = self.store.out().join(format!("checkpoint-{step}"));
        let saved = SavedCheckpoint::read(&path)?;
        {
            let state = engine.state();
            let weights: Vec<Expected> = state
                .weights
                .iter()
                .map(|tensor| Expected::new(tensor.name.clone(), tensor.shape.clone()))
                .collect();
            let optimizer =
                state.optimizer.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
            saved.check(&weights, optimizer)?;
        }
        let mut state = engine.state_mut();
        for tensor in &mut state.weights {
            saved.load_weight(&tensor.name, tensor.values)?;
        }
        for tensor in &mut state.optimizer {
            saved.load_optimizer(&tensor.name, tensor.values)?;
        }
        let RunState { step, seed, recipe, .. } = saved.state().clone();
        Ok(RunPosition { step, seed, recipe })
    }

    fn save(&mut self, position: &RunPosition, engine: &dyn Engine) -> Result<(), BoxError> {
        let state = engine.state();
        let run = RunState {
            step: position.step,
            seed: position.seed,
            recipe: position.recipe.clone(),
            extra: Map::new(),
        };
        let (weights, optimizer) = (tensors(&state.weights), tensors(&state.optimizer));
        let snapshot =
            Snapshot { state: &run, config: &self.config, weights: &weights, optimizer: &optimizer };
        self.store.write(&snapshot)?;
        Ok(())
    }
}
