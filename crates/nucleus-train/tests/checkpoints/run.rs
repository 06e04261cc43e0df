//! Checkpoints between the training loop and an engine.

use nucleus_train::checkpoint::{RunCheckpoints, SavedCheckpoint, Store, StoreOptions};
use nucleus_train::data::Batch;
use nucleus_train::engine::{Engine, EngineError, Losses, NonFinite, State, StateMut, StateTensor};
use nucleus_train::groups::WeightInfo;
use nucleus_train::recipe::Stage;
use nucleus_train::trainer::{Checkpoints, RunPosition};
use serde_json::{Map, json};

/// Heavy-ball descent on Σ (w − 1)², which needs no batch.
#[derive(Clone, Debug, PartialEq)]
struct Descent {
    shape: Vec<usize>,
    weight: Vec<f32>,
    gradient: Vec<f32>,
    momentum: Vec<f32>,
}

impl Descent {
    fn new(shape: &[usize]) -> Descent {
        let zeros = vec![0.0; shape.iter().product()];
        let weight = (0..zeros.len()).map(|i| i as f32 * 0.37).collect();
        Descent { shape: shape.to_vec(), weight, gradient: zeros.clone(), momentum: zeros }
    }

    fn steps(&mut self, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            for (gradient, weight) in self.gradient.iter_mut().zip(&self.weight) {
                *gradient = 2.0 * (weight - 1.0);
            }
            self.update(step, 0.01, 1.0).expect("nothing can fail");
        }
    }
}

impl Engine for Descent {
    fn weights(&self) -> Vec<WeightInfo> {
        vec![WeightInfo { name: "w".to_owned(), shape: self.shape.clone() }]
    }

    fn begin_stage(&mut self, _stage: &Stage) -> Result<(), EngineError> {
        Ok(())
    }

    fn begin_step(&mut self) -> Result<(), EngineError> {
        self.gradient.fill(0.0);
        Ok(())
    }

    fn accumulate(&mut self, _batch: &Batch, scale: f64) -> Result<Losses, EngineError> {
        let mut total = 0.0;
        for (gradient, weight) in self.gradient.iter_mut().zip(&self.weight) {
            *gradient += scale as f32 * 2.0 * (weight - 1.0);
            total += f64::from(weight - 1.0).powi(2);
        }
        Ok(Losses { total, parts: Vec::new() })
    }

    fn gradient_norm(&mut self) -> Result<f64, EngineError> {
        Ok(self.gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt())
    }

    fn update(&mut self, _step: u64, lr_factor: f64, gradient_scale: f64) -> Result<(), EngineError> {
        for ((weight, gradient), momentum) in
            self.weight.iter_mut().zip(&self.gradient).zip(&mut self.momentum)
        {
            *momentum = 0.9 * *momentum + gradient_scale as f32 * gradient;
            *weight -= lr_factor as f32 * *momentum;
        }
        Ok(())
    }

    fn first_non_finite(&mut self) -> Result<Option<NonFinite>, EngineError> {
        let found = self.gradient.iter().any(|value| !value.is_finite());
        Ok(found.then(|| NonFinite::Gradient("w".to_owned())))
    }

    fn state(&self) -> State<'_> {
        let tensor =
            |name: &str, values| StateTensor { name: name.to_owned(), shape: self.shape.clone(), values };
        State {
            weights: vec![tensor("w", &self.weight[..])],
            optimizer: vec![tensor("w.momentum", &self.momentum[..])],
        }
    }

    fn state_mut(&mut self) -> StateMut<'_> {
        let shape = &self.shape;
        fn tensor<'a>(name: &str, shape: &[usize], values: &'a mut [f32]) -> StateTensor<&'a mut [f32]> {
            StateTensor { name: name.to_owned(), shape: shape.to_vec(), values }
        }
        StateMut {
            weights: vec![tensor("w", shape, &mut self.weight)],
            optimizer: vec![tensor("w.momentum", shape, &mut self.momentum)],
        }
    }
}

fn position(step: u64) -> RunPosition {
    RunPosition { step, seed: 7, recipe: "a recipe".to_owned() }
}

#[test]
fn a_run_goes_on_bit_for_bit() {
    for dtype in [nucleus_ir::DType::F32, nucleus_ir::DType::Bf16] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut whole = Descent::new(&[5, 7]);
        whole.steps(1..=20);

        let mut first = Descent::new(&[5, 7]);
        first.steps(1..=12);
        let options = StoreOptions { dtype, ..StoreOptions::default() };
        let open = || {
            let config = |step: u64| {
                let stage = if step < 10 {
                    json!({ "capacity_factors": [4] })
                } else {
                    json!({ "capacity_factors": [2] })
                };
                stage.as_object().cloned().unwrap_or_default()
            };
            RunCheckpoints::new(Store::open(folder.path(), options).expect("opened"), config)
        };
        let mut checkpoints = open();
        assert_eq!(checkpoints.latest().expect("readable"), None);
        checkpoints.save(&position(12), &first).expect("written");
        drop(checkpoints);

        let mut checkpoints = open();
        assert_eq!(checkpoints.latest().expect("readable"), Some(12));
        let mut second = Descent::new(&[5, 7]);
        assert_eq!(checkpoints.load(12, &mut second).expect("read"), position(12));
        second.steps(13..=20);
        assert_eq!((second.weight, second.momentum), (whole.weight, whole.momentum));
        let saved = SavedCheckpoint::open(&folder.path().join("checkpoint-12")).expect("opened");
        assert_eq!(saved.config().expect("a configuration")["capacity_factors"], json!([2]));
    }
}

#[test]
fn a_checkpoint_of_another_engine_leaves_the_engine_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    let mut checkpoints = RunCheckpoints::new(store, |_| Map::new());
    checkpoints.save(&position(1), &Descent::new(&[2, 3])).expect("written");
    let mut other = Descent::new(&[3, 2]);
    let error = checkpoints.load(1, &mut other).expect_err("refused").to_string();
    assert!(error.contains('w') && error.contains("[2, 3]") && error.contains("[3, 2]"), "{error}");
    assert_eq!(other, Descent::new(&[3, 2]));
}
