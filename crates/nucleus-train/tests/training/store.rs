//! Checkpoints in memory.

use std::collections::BTreeMap;

use nucleus_train::engine::Engine;
use nucleus_train::trainer::{BoxError, Checkpoints, RunPosition};

/// Name and elements of every tensor.
type Tensors = Vec<(String, Vec<f32>)>;

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) saved: BTreeMap<u64, (RunPosition, Tensors)>,
    /// Saving this step fails, as on a full disk.
    pub(crate) full_at: Option<u64>,
}

impl Checkpoints for Store {
    fn latest(&mut self) -> Result<Option<u64>, BoxError> {
        Ok(self.saved.keys().last().copied())
    }

    fn load(&mut self, step: u64, engine: &mut dyn Engine) -> Result<RunPosition, BoxError> {
        let (position, tensors) = self.saved.get(&step).ok_or("there is no such checkpoint")?;
        let state = engine.state_mut();
        for (to, (name, values)) in state.weights.into_iter().chain(state.optimizer).zip(tensors) {
            assert_eq!(to.name, *name);
            to.values.copy_from_slice(values);
        }
        Ok(position.clone())
    }

    fn save(&mut self, position: &RunPosition, engine: &dyn Engine) -> Result<(), BoxError> {
        if self.full_at == Some(position.step) {
            return Err("no space left on device".into());
        }
        let state = engine.state();
        let tensors = state.weights.iter().chain(&state.optimizer);
        let copied = tensors.map(|tensor| (tensor.name.clone(), tensor.values.to_vec())).collect();
        self.saved.insert(position.step, (position.clone(), copied));
        Ok(())
    }
}
