//! What stops a run, what is said, and what stays.

use nucleus_train::groups::{AdamW, Group, Optimizer};
use nucleus_train::trainer::{TrainError, Trainer};

use crate::least_squares::{LeastSquares, Pictures, recipe};
use crate::store::Store;

#[test]
fn a_loss_that_is_not_finite_stops_before_the_weights_are_touched() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 20, "");
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    source.spoilt = Some(7);
    let error =
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut ()).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("step 7: the loss is "), "{text}");
    assert!(
        text.contains("the gradient of `blocks.2.proj.weight` in layer `blocks.2`. The step was not taken, the checkpoint of step 5 is kept"),
        "{text}"
    );
    assert!(engine.weights.iter().flatten().all(|weight| weight.is_finite()));
    assert_eq!(store.saved.keys().copied().collect::<Vec<_>>(), [5]);
    let log = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
}

#[test]
fn a_gradient_that_is_not_finite_stops_too() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 20, "");
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    engine.spoil_gradient_from = Some(0);
    let error =
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 1: the norm of the gradient is NaN; the first that is not finite is the gradient of `blocks.2.proj.weight` in layer `blocks.2`. The step was not taken, there is no checkpoint yet; a smaller lr or a longer warm-up may help"
    );
    assert_eq!(engine.weights, LeastSquares::new().weights);
}

#[test]
fn a_checkpoint_that_cannot_be_written_keeps_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), 20, "");
    let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(1));
    let mut store = Store { full_at: Some(10), ..Store::default() };
    let error =
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot write the checkpoint of step 10: no space left on device");
    assert_eq!(store.saved.keys().copied().collect::<Vec<_>>(), [5]);
}

#[test]
fn weights_without_a_group_are_refused_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = recipe(dir.path(), 20, "");
    let params = vec!["blocks.*".to_owned()];
    recipe.groups = vec![Group { params, optimizer: Optimizer::AdamW(AdamW::default()), default: false }];
    let (mut engine, mut source) = (LeastSquares::new(), Pictures::new(1));
    let error = Trainer::new(&recipe, &mut engine, &mut source).err().unwrap();
    assert!(matches!(error, TrainError::Group(_)));
    assert!(error.to_string().starts_with("no group takes weight `out.bias`"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let recipe = recipe(&file.join("out"), 20, "");
    let (mut engine, mut source, mut store) = (LeastSquares::new(), Pictures::new(1), Store::default());
    let error =
        Trainer::new(&recipe, &mut engine, &mut source).unwrap().run(&mut store, &mut ()).unwrap_err();
    assert!(
        error.to_string().contains("cannot make folder `") && error.to_string().contains("file/out"),
        "{error}"
    );
}
