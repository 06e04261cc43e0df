//! Checkpoints as a run writes and reads them.

use std::fs;
use std::path::Path;

use nucleus_ir::DType;
use nucleus_runtime::{Checkpoint, Expected};
use nucleus_train::checkpoint::{CheckpointError, SavedCheckpoint, Store, StoreOptions, latest, list};

use crate::support::{Run, numbered_options};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn steps(out: &Path) -> Vec<u64> {
    list(out).expect("readable").into_iter().map(|(step, _)| step).collect()
}

fn write(run: &mut Run, store: &mut Store, step: u64) {
    run.go_to(step);
    let path = run.write(store).expect("written");
    assert_eq!(path, store.out().join(format!("checkpoint-{step}")));
}

#[test]
fn what_is_written_reads_back_bit_for_bit() {
    let folder = scratch();
    let mut run = Run::new(4096);
    let mut store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    write(&mut run, &mut store, 12);
    let (step, path) = latest(folder.path()).expect("readable").expect("there is one");
    assert_eq!(step, 12);
    let saved = SavedCheckpoint::read(&path).expect("whole");
    run.assert_saved(&saved);
    assert_eq!(saved.weights().dtype(), Some(DType::F32));
    let optimizer: Vec<_> = saved.optimizer().collect();
    assert_eq!(optimizer, [("layer.weight.momentum", &[8, 512][..])]);
    // What diffusers opens is the subfolder, or the checkpoint as a pipeline.
    assert_eq!(Checkpoint::open(&path).expect("as a pipeline").len(), 2);
}

#[test]
fn with_bf16_weights_a_run_goes_on_from_f32() {
    let folder = scratch();
    let mut run = Run::new(1 << 18);
    let options = StoreOptions { dtype: DType::Bf16, ..StoreOptions::default() };
    write(&mut run, &mut Store::open(folder.path(), options).expect("opened"), 3);
    let saved = SavedCheckpoint::read(&folder.path().join("checkpoint-3")).expect("whole");
    assert_eq!(saved.weights().dtype(), Some(DType::Bf16));
    assert_eq!(saved.optimizer().count(), 1, "the f32 weights are not the optimiser's");
    run.assert_saved(&saved);
    let view = saved.weights().get("layer.weight").expect("there");
    let mut rounded = vec![0.0; 1 << 18];
    view.load_f32(&mut rounded).expect("floats");
    let values = &run.weights[0].2;
    assert!(rounded.iter().zip(values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    assert_ne!(&rounded, values);
}

#[test]
fn weights_larger_than_a_shard_are_split() {
    let folder = scratch();
    let mut run = Run::new(4096);
    let options = StoreOptions { max_shard_bytes: 1 << 14, ..StoreOptions::default() };
    write(&mut run, &mut Store::open(folder.path(), options).expect("opened"), 1);
    let path = folder.path().join("checkpoint-1");
    assert!(path.join("transformer/diffusion_pytorch_model.safetensors.index.json").is_file());
    let saved = SavedCheckpoint::read(&path).expect("whole");
    assert_eq!(saved.weights().files().len(), 2);
    run.assert_saved(&saved);
}

#[test]
fn the_newest_stay() {
    let folder = scratch();
    let mut run = Run::new(64);
    let mut store = Store::open(folder.path(), numbered_options(2)).expect("opened");
    for step in [9, 10, 100] {
        write(&mut run, &mut store, step);
    }
    assert_eq!(steps(folder.path()), [10, 100]);
    // A run that goes on from an earlier step must not lose the checkpoint it has just written.
    write(&mut run, &mut store, 11);
    assert_eq!(steps(folder.path()), [10, 11, 100]);
    store.discard_after(11).expect("removed");
    assert_eq!(steps(folder.path()), [10, 11]);
}

#[test]
fn a_checkpoint_of_the_same_step_is_replaced() {
    let folder = scratch();
    let mut run = Run::new(64);
    let mut store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    write(&mut run, &mut store, 5);
    run.state.recipe = "another".to_owned();
    run.write(&mut store).expect("written");
    run.assert_saved(&SavedCheckpoint::read(&folder.path().join("checkpoint-5")).expect("whole"));
    let names: Vec<_> =
        fs::read_dir(folder.path()).expect("readable").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 2, "the checkpoint and the lock: {names:?}");
}

#[test]
fn leftovers_go_and_what_was_moved_aside_comes_back() {
    let folder = scratch();
    let out = folder.path();
    let mut run = Run::new(64);
    write(&mut run, &mut Store::open(out, StoreOptions::default()).expect("opened"), 4);
    // As after a kill between the two renames of a replacement, and in the middle of a removal and of a write.
    fs::rename(out.join("checkpoint-4"), out.join(".checkpoint-4.replaced")).expect("renamed");
    fs::create_dir_all(out.join(".checkpoint-3.removed/transformer")).expect("made");
    fs::create_dir_all(out.join(".checkpoint-5.partial/transformer")).expect("made");
    fs::create_dir_all(out.join(".checkpoint-6.mine")).expect("made");
    assert_eq!(latest(out).expect("readable"), None);
    let store = Store::open(out, StoreOptions::default()).expect("opened");
    assert_eq!(store.recovered().len(), 3);
    assert_eq!(steps(out), [4]);
    run.assert_saved(&SavedCheckpoint::read(&out.join("checkpoint-4")).expect("whole"));
    assert!(out.join(".checkpoint-6.mine").is_dir(), "what has another name is not ours");
    assert!(!out.join(".checkpoint-3.removed").exists() && !out.join(".checkpoint-5.partial").exists());
}

#[test]
fn a_folder_has_one_writer() {
    let folder = scratch();
    let store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    let error = Store::open(folder.path(), StoreOptions::default()).expect_err("locked");
    assert!(matches!(error, CheckpointError::Locked { .. }), "{error}");
    drop(store);
    Store::open(folder.path(), StoreOptions::default()).expect("free again");
}

#[test]
fn what_is_not_finite_is_not_saved() {
    let folder = scratch();
    let mut run = Run::new(64);
    let mut store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    write(&mut run, &mut store, 1);
    run.go_to(2);
    run.optimizer[0].2[17] = f32::NAN;
    let error = run.write(&mut store).expect_err("refused").to_string();
    assert!(error.contains("tensor `layer.weight.momentum` cannot be saved: element 17 is NaN"), "{error}");
    assert!(error.ends_with(&format!(
        "the last good checkpoint is `{}`",
        folder.path().join("checkpoint-1").display()
    )));
    assert_eq!(steps(folder.path()), [1]);
}

#[test]
fn damage_is_noticed_wherever_it_is() {
    let folder = scratch();
    let mut run = Run::new(64);
    let mut store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    let path = folder.path().join("checkpoint-1");
    for (file, part) in [
        ("transformer/diffusion_pytorch_model.safetensors", "its weights are not those"),
        ("optimizer.safetensors", "its optimiser's values are not those"),
        ("transformer/config.json", "its configuration values are not those"),
    ] {
        write(&mut run, &mut store, 1);
        let mut bytes = fs::read(path.join(file)).expect("readable");
        // The lowest bit of the last number, or a digit of `2.5`.
        let index = match file.ends_with(".json") {
            true => bytes.windows(3).position(|text| text == b"2.5").expect("a number") + 2,
            false => bytes.len() - 4,
        };
        bytes[index] ^= 1;
        fs::write(path.join(file), bytes).expect("writable");
        let error = SavedCheckpoint::read(&path).expect_err(file).to_string();
        assert!(error.contains(part), "{file}: {error}");
    }
    write(&mut run, &mut store, 1);
    let file = path.join("optimizer.safetensors");
    let mut bytes = fs::read(&file).expect("readable");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&file, bytes).expect("writable");
    let error = SavedCheckpoint::read(&path).expect_err("infinite").to_string();
    assert!(error.ends_with("tensor `layer.weight.momentum` is not finite: element 63 is inf"), "{error}");
}

#[test]
fn what_is_missing_or_strange_is_named() {
    let folder = scratch();
    let mut run = Run::new(64);
    let mut store = Store::open(folder.path(), StoreOptions::default()).expect("opened");
    let path = folder.path().join("checkpoint-1");
    for file in ["trainer.json", "optimizer.safetensors", "transformer/config.json"] {
        write(&mut run, &mut store, 1);
        fs::remove_file(path.join(file)).expect("removed");
        let error = SavedCheckpoint::open(&path).expect_err(file).to_string();
        assert!(error.ends_with(&format!("it has no `{file}`")), "{error}");
    }
    write(&mut run, &mut store, 1);
    let file = path.join("trainer.json");
    let text = fs::read_to_string(&file).expect("readable");
    for (from, to, part) in [
        ("\"version\": 1", "\"version\": 2", "it has version 2, this program reads version 1"),
        ("\"version\": 1,", "", "it does not say its `version`"),
        ("\"step\": 1,", "", "missing field `step`"),
        ("{", "[", "line 2"),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replacen(from, to, 1)).expect("writable");
        let error = SavedCheckpoint::open(&path).expect_err(part).to_string();
        assert!(error.contains("trainer.json") && error.contains(part), "{error}");
    }
}

#[test]
fn tensors_are_compared_with_those_of_the_run() {
    let folder = scratch();
    let mut run = Run::new(64);
    write(&mut run, &mut Store::open(folder.path(), StoreOptions::default()).expect("opened"), 1);
    let saved = SavedCheckpoint::open(&folder.path().join("checkpoint-1")).expect("opened");
    let weights = [Expected::new("layer.weight", [8, 8]), Expected::new("layer.bias", [3])];
    let momentum: (&str, &[usize]) = ("layer.weight.momentum", &[8, 8]);
    saved.check(&weights, [momentum]).expect("they fit");
    let refused = |weights: &[Expected], optimizer: &[(&str, &[usize])]| {
        saved.check(weights, optimizer.iter().copied()).expect_err("refused").to_string()
    };
    assert!(refused(&weights[..1], &[momentum]).contains("layer.bias"));
    let error = refused(&weights, &[("layer.weight.momentum", &[4, 16])]);
    assert!(
        error.ends_with("tensor `layer.weight.momentum` has shape [8, 8], the optimiser needs [4, 16]"),
        "{error}"
    );
    let error = refused(&weights, &[]);
    assert!(
        error.ends_with("`layer.weight.momentum` is state that the optimisers of this recipe do not have"),
        "{error}"
    );
    let error = refused(&weights, &[momentum, ("layer.bias.variance", &[3])]);
    assert!(error.contains("tensor `layer.bias.variance` is missing"), "{error}");
    let error = saved.load_weight("layer.bias", &mut [0.0; 2]).expect_err("refused").to_string();
    assert!(error.contains("tensor `layer.bias`") && error.contains("element counts differ"), "{error}");
}
