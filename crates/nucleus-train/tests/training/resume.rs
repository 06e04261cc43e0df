//! A run that is interrupted and goes on is the run that was not interrupted, bit for bit.

use std::fs;
use std::path::Path;

use nucleus_train::trainer::{Observer, Summary, TrainError, Trainer};

use crate::least_squares::{LeastSquares, Pictures, recipe};
use crate::store::Store;

const STAGES: &str =
    "accumulate = 2\nclip_grad_norm = 0.5\n[[stage]]\nsteps = 7\n[[stage]]\nsteps = 16\nbatch = 3\n";

/// Runs until the data breaks at `broken`, or to the end.
fn run(out: &Path, store: &mut Store, broken: Option<u64>) -> (Result<Summary, TrainError>, [Vec<f32>; 2]) {
    let recipe = recipe(out, 23, STAGES);
    let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(9));
    source.broken = broken;
    let summary = Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(store, &mut ());
    (summary, engine.weights)
}

/// The log without the times.
fn log(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| line.split(",\"seconds\"").next().unwrap().to_owned()).collect()
}

#[test]
fn resuming_from_any_step_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let (summary, weights) = run(&whole, &mut Store::default(), None);
    assert_eq!(summary.unwrap().reached, 23);
    for broken in 1..=23 {
        let out = dir.path().join(format!("broken-{broken}"));
        let mut store = Store::default();
        let (summary, _) = run(&out, &mut store, Some(broken));
        let error = summary.unwrap_err().to_string();
        let kept = match (broken - 1) / 5 * 5 {
            0 => "there is no checkpoint yet".to_owned(),
            step => format!("the checkpoint of step {step} is kept"),
        };
        let said = format!("it broke. The step was not taken, {kept}");
        assert!(error.starts_with(&format!("step {broken}: ")) && error.ends_with(&said), "{error}");
        assert_eq!(log(&out).len() as u64, broken - 1);
        let (summary, resumed) = run(&out, &mut store, None);
        assert_eq!(summary.unwrap().from, (broken - 1) / 5 * 5);
        assert_eq!(resumed, weights, "after a break in step {broken}");
        assert_eq!(log(&out), log(&whole));
    }
}

#[test]
fn a_finished_run_has_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    run(dir.path(), &mut store, None).0.unwrap();
    let before = log(dir.path());
    let (summary, _) = run(dir.path(), &mut store, None);
    assert_eq!(summary.unwrap(), Summary { from: 23, reached: 23, stopped: false });
    assert_eq!(log(dir.path()), before);
}

#[test]
fn without_resume_a_run_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    run(dir.path(), &mut store, None).0.unwrap();
    let recipe = recipe(dir.path(), 23, "resume = false\n");
    let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(9));
    let mut trainer = Trainer::new(&recipe, &mut engine, &mut source).unwrap();
    let error = trainer.run(&mut store, &mut ()).unwrap_err().to_string();
    assert!(error.contains("holds a run that reached step 23: choose another `out`"), "{error}");
    assert_eq!(log(dir.path()).len(), 23);
}

#[derive(Default)]
struct Notes(Vec<String>);

impl Observer<LeastSquares> for Notes {
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

#[test]
fn another_recipe_is_noticed_and_more_steps_are_not_another() {
    let dir = tempfile::tempdir().unwrap();
    let notes = |steps: u64, more: &str, store: &mut Store| {
        let recipe = recipe(dir.path(), steps, more);
        let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(9));
        let mut notes = Notes::default();
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(store, &mut notes).unwrap();
        notes.0
    };
    let mut store = Store::default();
    assert!(notes(3, "", &mut store).is_empty());
    assert!(notes(6, "keep = 1\n", &mut store).is_empty());
    let noted = notes(8, "clip_grad_norm = 1.0\n", &mut store);
    assert!(noted[0].starts_with("the recipe is not the one that reached step 6"), "{noted:?}");
}
