//! A run made up for tests: its tensors follow from the step.

use std::num::NonZeroUsize;

use nucleus_train::checkpoint::{CheckpointError, RunState, SavedCheckpoint, Snapshot, Store, StoreOptions};
use nucleus_train::engine::{State, StateTensor};
use serde_json::{Map, Value, json};

pub struct Run {
    pub state: RunState,
    pub config: Map<String, Value>,
    pub weights: Vec<(String, Vec<usize>, Vec<f32>)>,
    pub optimizer: Vec<(String, Vec<usize>, Vec<f32>)>,
}

pub fn numbered_options(keep: usize) -> StoreOptions {
    StoreOptions { keep: NonZeroUsize::new(keep), ..StoreOptions::default() }
}

impl Run {
    /// A run of one matrix with `elements` elements (a multiple of 8) and a bias, at step 0.
    pub fn new(elements: usize) -> Run {
        let tensor = |name: &str, shape: Vec<usize>| {
            let values = vec![0.0; shape.iter().product()];
            (name.to_owned(), shape, values)
        };
        let config = json!({ "num_layers": 2, "eps": 5e-7, "capacity_factors": [0, 2.5] });
        let mut run = Run {
            state: RunState { seed: u64::MAX, recipe: "r".to_owned(), ..RunState::default() },
            config: config.as_object().cloned().unwrap_or_default(),
            weights: vec![tensor("layer.weight", vec![8, elements / 8]), tensor("layer.bias", vec![3])],
            optimizer: vec![tensor("layer.weight.momentum", vec![8, elements / 8])],
        };
        run.go_to(0);
        run
    }

    /// The state after that many steps.
    pub fn go_to(&mut self, step: u64) {
        self.state.step = step;
        self.state.extra.insert("tokens".to_owned(), json!(step * 4096));
        for (number, (.., values)) in self.weights.iter_mut().chain(&mut self.optimizer).enumerate() {
            for (index, value) in values.iter_mut().enumerate() {
                *value = (step as f32).sin() + (index % 1013) as f32 * 0.125 - number as f32;
            }
        }
    }

    pub fn write(&self, store: &mut Store) -> Result<std::path::PathBuf, CheckpointError> {
        store.write(&Snapshot {
            state: &self.state,
            config: &self.config,
            tensors: &State { weights: borrowed(&self.weights), optimizer: borrowed(&self.optimizer) },
        })
    }

    /// What was saved is this run, bit for bit.
    pub fn assert_saved(&self, saved: &SavedCheckpoint) {
        assert_eq!(saved.state(), &self.state);
        assert_eq!(saved.config(), Some(&self.config));
        for (name, _, values) in &self.weights {
            let mut loaded = vec![f32::NAN; values.len()];
            saved.load_weight(name, &mut loaded).expect("the weight is there");
            assert!(bits(&loaded).eq(bits(values)), "{name} at step {}", self.state.step);
        }
        for (name, _, values) in &self.optimizer {
            let mut loaded = vec![f32::NAN; values.len()];
            saved.load_optimizer(name, &mut loaded).expect("the state is there");
            assert!(bits(&loaded).eq(bits(values)), "{name} at step {}", self.state.step);
        }
    }
}

fn borrowed(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<StateTensor<&[f32]>> {
    tensors
        .iter()
        .map(|(name, shape, values)| StateTensor {
            name: name.clone(),
            shape: shape.clone(),
            values: &values[..],
        })
        .collect()
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}
