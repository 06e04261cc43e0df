//! What a step does, and in which order.

use std::fs;

use nucleus_train::engine::Engine;
use nucleus_train::log::StepRecord;
use nucleus_train::recipe::{CapacityFactor, Stage};
use nucleus_train::trainer::{BoxError, Observer, Summary, Trainer};
use serde_json::Value;

use crate::least_squares::{Call, LeastSquares, Pictures, recipe};
use crate::store::Store;

/// Writes down what it hears.
#[derive(Default)]
struct Listener {
    heard: Vec<String>,
    records: Vec<StepRecord>,
    stop_after: Option<u64>,
}

impl Observer<LeastSquares> for Listener {
    fn started(&mut self, from: u64, to: u64) {
        self.heard.push(format!("started {from} {to}"));
    }
    fn note(&mut self, text: &str) {
        self.heard.push(format!("note {text}"));
    }
    fn stage(&mut self, number: usize, stage: &Stage) {
        self.heard.push(format!("stage {number} batch {}", stage.batch));
    }
    fn step(&mut self, record: &StepRecord) {
        self.records.push(record.clone());
    }
    fn saved(&mut self, step: u64) {
        self.heard.push(format!("saved {step}"));
    }
    fn sample(&mut self, step: u64, engine: &mut LeastSquares) -> Result<(), BoxError> {
        assert_eq!(engine.weights().len(), 2);
        self.heard.push(format!("sample {step}"));
        Ok(())
    }
    fn stop(&mut self) -> bool {
        self.stop_after.is_some_and(|step| self.records.len() as u64 >= step)
    }
}

#[test]
fn a_run_learns_and_its_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 300, "");
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    let mut trainer = Trainer::new(&recipe, &mut engine, &mut source).unwrap();
    let summary = trainer.run(&mut store, &mut ()).unwrap();
    assert_eq!(summary, Summary { from: 0, reached: 300, stopped: false });
    let text = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 300);
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let mean =
        |lines: &[Value]| lines.iter().map(|line| number(line, "loss")).sum::<f64>() / lines.len() as f64;
    // The third channel is 1, so a bias of 1 alone takes a third of 1 off; the others are learnt from x_t.
    assert!(mean(&lines[250..]) < 0.8 * mean(&lines[..10]), "{} {}", mean(&lines[..10]), mean(&lines[250..]));
    for (index, line) in lines.iter().enumerate() {
        let step = index as f64 + 1.0;
        assert_eq!(number(line, "step"), step);
        assert_eq!(number(line, "lr"), 0.05 * (step / 4.0).min(1.0));
        assert_eq!(number(line, "tokens"), 16.0);
        let parts = number(line, "velocity") + number(line, "ridge");
        assert!((parts - number(line, "loss")).abs() < 1e-12);
    }
    assert!(fs::metadata(dir.path().join("loss.png")).unwrap().len() > 1000);
    assert_eq!(store.saved.len(), 60);
}

#[test]
fn a_step_accumulates_clips_and_updates_once() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 6, "accumulate = 2\nclip_grad_norm = 0.25\n");
    let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(1));
    let mut listener = Listener::default();
    let mut trainer = Trainer::new(&recipe, &mut engine, &mut source).unwrap();
    let first = trainer.step(1, &mut listener).unwrap();
    let calls = engine.take_calls();
    let scale = 0.25 / (first.grad_norm + 1e-6);
    assert!(scale < 1.0, "the test needs a gradient that is clipped");
    let stage = Stage { steps: 6, batch: 4, accumulate: 2, resolution: None, capacity_factor: None };
    let expected = [
        Call::Stage(stage),
        Call::Begin,
        Call::Accumulate(0.5),
        Call::Accumulate(0.5),
        Call::Norm,
        Call::Update { step: 1, lr_factor: 0.25, gradient_scale: scale },
    ];
    assert_eq!(calls, expected);
    assert_eq!(first.tokens, 32);
}

#[test]
fn a_batch_taken_twice_is_the_batch_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let record = |accumulate: usize| {
        let recipe = recipe(dir.path(), 6, &format!("accumulate = {accumulate}\n"));
        let (mut engine, mut source) = (LeastSquares::new(), Repeated(Pictures::new(1)));
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().step(1, &mut ()).unwrap()
    };
    let (once, twice) = (record(1), record(2));
    assert_eq!(once.loss, twice.loss);
    // Twice as many f32 additions, 32 for an element of the gradient.
    assert!((once.grad_norm - twice.grad_norm).abs() < 32.0 * f64::from(f32::EPSILON) * once.grad_norm);
}

/// Gives the same batch always.
struct Repeated(Pictures);

impl nucleus_train::data::Source for Repeated {
    fn batch(
        &mut self,
        place: &nucleus_train::data::Place<'_>,
    ) -> Result<nucleus_train::data::Batch, nucleus_train::data::DataError> {
        self.0.batch(&nucleus_train::data::Place { index: 0, ..*place })
    }
    fn check(&self, _stages: &nucleus_train::recipe::Stages) -> Result<(), nucleus_train::data::DataError> {
        Ok(())
    }
}

#[test]
fn stages_checkpoints_and_samples_come_when_they_are_due() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(
        dir.path(),
        13,
        "sample_every = 6\n[[run.sample]]\ncaption = 'x'\n[[stage]]\nsteps = 7\n[[stage]]\nbatch = 2\naccumulate = 3\ncapacity_factor = [0, 2]\n",
    );
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    let mut listener = Listener::default();
    Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut listener).unwrap();
    let expected = [
        "started 0 13",
        "stage 1 batch 4",
        "saved 5",
        "sample 6",
        "stage 2 batch 2",
        "saved 10",
        "sample 12",
        "saved 13",
        "sample 13",
    ];
    assert_eq!(listener.heard, expected);
    let tokens: Vec<u64> = listener.records.iter().map(|record| record.tokens).collect();
    assert_eq!(tokens[..7], [16; 7]);
    assert_eq!(tokens[7..], [24; 6]);
    let stages: Vec<&Stage> = engine
        .calls
        .iter()
        .filter_map(|call| if let Call::Stage(stage) = call { Some(stage) } else { None })
        .collect();
    assert_eq!(stages.len(), 2);
    assert_eq!(stages[1].capacity_factor, Some(CapacityFactor::PerLayer(vec![0.0, 2.0])));
}

#[test]
fn an_observer_ends_a_run_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 20, "");
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    let mut listener = Listener { stop_after: Some(7), ..Listener::default() };
    let mut trainer = Trainer::new(&recipe, &mut engine, &mut source).unwrap();
    let summary = trainer.run(&mut store, &mut listener).unwrap();
    assert_eq!(summary, Summary { from: 0, reached: 7, stopped: true });
    assert_eq!(store.saved.keys().copied().collect::<Vec<_>>(), [5, 7]);
}

#[test]
fn patterns_that_name_nothing_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = recipe(dir.path(), 1, "");
    recipe.groups[0].params.insert(0, "blokcs.*".to_owned());
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    let mut listener = Listener::default();
    Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut listener).unwrap();
    assert_eq!(listener.heard[0], "note pattern `blokcs.*` of [[group]] number 1 names no weight");
}
