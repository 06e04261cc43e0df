//! Averages of checkpoints, element by element.

use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use nucleus_ir::DType;
use nucleus_runtime::safetensors_write::TensorSpec;
use nucleus_runtime::{Checkpoint, write_checkpoint};
use nucleus_train::checkpoint::{Store, StoreOptions};
use nucleus_train::merge::{Heaviest, MergeOptions, Merged, Order, Weighting, coefficients, merge};
use serde_json::json;

use crate::support::Run;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Element `i` of weight `a` in checkpoint `number`.
fn element(number: usize, i: usize) -> f32 {
    ((number * 31 + i * 7) % 101) as f32 * 0.01 - 0.3 * number as f32
}

/// A folder as diffusers saves it: weights `a` of 3×n elements and `b` with one.
fn folder(path: PathBuf, number: usize, n: usize, dtype: DType) -> PathBuf {
    let specs = [TensorSpec::new("a", dtype, [3, n]), TensorSpec::new("b", dtype, [1])];
    let config = json!({ "_diffusers_version": number, "num_layers": 2, "capacity_factors": [number] });
    write_checkpoint(&path, config.as_object(), &specs, u64::MAX, &mut |spec, sink| {
        let count: usize = spec.shape.iter().product();
        (0..count).try_for_each(|i| match dtype {
            DType::Bf16 => sink.write_all(&bf16::from_f32(element(number, i)).to_le_bytes()),
            _ => sink.write_all(&element(number, i).to_le_bytes()),
        })
    })
    .expect("written");
    path
}

fn merged(inputs: &[PathBuf], output: &Path, options: &MergeOptions) -> Merged {
    merge(inputs, output, options, &mut |_, _| {}).expect("merged")
}

fn refused(inputs: &[PathBuf], output: &Path) -> String {
    let error = merge(inputs, output, &MergeOptions::default(), &mut |_, _| {}).expect_err("refused");
    assert!(!output.join("diffusion_pytorch_model.safetensors").exists());
    error.to_string()
}

fn weight(folder: &Path, name: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).expect("opens");
    let view = checkpoint.get(name).expect("there");
    let mut values = vec![0.0; view.elements()];
    view.load_f32(&mut values).expect("floats");
    values
}

#[test]
fn every_element_is_the_weighted_average() {
    let scratch = scratch();
    // More elements than are averaged at a time, and not a multiple of that.
    let n = 20_001;
    let inputs: Vec<_> =
        (0..3).map(|i| folder(scratch.path().join(format!("c{i}")), i, n, DType::F32)).collect();
    for (name, weighting, heaviest) in [
        ("newest", Weighting::InverseSqrt, Heaviest::Newest),
        ("oldest", Weighting::InverseSqrt, Heaviest::Oldest),
        ("uniform", Weighting::Uniform, Heaviest::Newest),
    ] {
        let output = scratch.path().join(name);
        let options = MergeOptions { weighting, heaviest, ..MergeOptions::default() };
        let mut heard = Vec::new();
        let result =
            merge(&inputs, &output, &options, &mut |done, total| heard.push((done, total))).expect("merged");
        let c = coefficients(3, weighting, heaviest);
        assert_eq!(result.shares.iter().map(|share| share.coefficient).collect::<Vec<_>>(), c);
        assert_eq!((result.weights, result.bytes), (2, 4 * (3 * n as u64 + 1)));
        assert_eq!(heard.last(), Some(&(result.bytes, result.bytes)));
        for (i, value) in weight(&output, "a").into_iter().enumerate() {
            let expected: f64 = (0..3).map(|k| c[k] * f64::from(element(k, i))).sum();
            assert_eq!(value, expected as f32, "{name}, element {i}");
        }
        // Keys that are no configuration do not count as differing.
        assert_eq!(result.differing_keys, ["capacity_factors"]);
        let config = Checkpoint::open(&output).expect("opens").config().cloned().expect("a configuration");
        assert_eq!(config["capacity_factors"], json!([2]), "the newest one's");
    }
}

#[test]
fn bf16_stays_bf16_and_is_rounded_once() {
    let scratch = scratch();
    let inputs: Vec<_> =
        (0..4).map(|i| folder(scratch.path().join(format!("c{i}")), i, 500, DType::Bf16)).collect();
    let output = scratch.path().join("out");
    merged(&inputs, &output, &MergeOptions::default());
    assert_eq!(Checkpoint::open(&output).expect("opens").dtype(), Some(DType::Bf16));
    let c = coefficients(4, Weighting::InverseSqrt, Heaviest::Newest);
    for (i, value) in weight(&output, "a").into_iter().enumerate() {
        let exact: f64 = (0..4).map(|k| c[k] * bf16::from_f32(element(k, i)).to_f64()).sum();
        // Nothing of eight bits lies nearer.
        let spacing = 2f64.powi(exact.abs().max(1e-30).log2().floor() as i32 - 7);
        assert!((f64::from(value) - exact).abs() <= spacing / 2.0, "element {i}: {value} for {exact}");
    }
}

#[test]
fn checkpoints_of_a_run_are_ordered_by_their_steps() {
    let scratch = scratch();
    let out = scratch.path().join("run");
    let mut store = Store::open(&out, StoreOptions::default()).expect("opened");
    let mut run = Run::new(64);
    for step in [200, 1000, 50] {
        run.go_to(step);
        run.write(&mut store).expect("written");
    }
    let steps = |result: &Merged| result.shares.iter().map(|share| share.step).collect::<Vec<_>>();
    // In the order in which a shell lists them.
    let listed =
        ["checkpoint-1000", "checkpoint-200", "checkpoint-50/transformer"].map(|name| out.join(name));
    let result = merged(&listed, &scratch.path().join("a"), &MergeOptions::default());
    assert_eq!(steps(&result), [Some(50), Some(200), Some(1000)]);
    // The folder of the run stands for all of them.
    let options = MergeOptions { last: Some(2), ..MergeOptions::default() };
    let result = merged(std::slice::from_ref(&out), &scratch.path().join("b"), &options);
    assert_eq!(steps(&result), [Some(200), Some(1000)]);
    let options = MergeOptions { order: Order::NewestFirst, ..MergeOptions::default() };
    let result = merged(&listed[..2], &scratch.path().join("c"), &options);
    assert_eq!(steps(&result), [Some(200), Some(1000)]);
    let text = fs::read_to_string(scratch.path().join("c/merge.json")).expect("readable");
    let note: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&note["weighting"], &note["heaviest"]), (&json!("inverse-sqrt"), &json!("newest")));
    assert_eq!(note["checkpoints"][1]["step"], 1000);
}

#[test]
fn what_does_not_go_together_is_refused_and_leaves_nothing() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let good = folder(path("good"), 0, 8, DType::F32);
    let shape = folder(path("shape"), 1, 9, DType::F32);
    let dtype = folder(path("dtype"), 1, 8, DType::Bf16);
    let names = path("names");
    let fill = &mut |_: &TensorSpec, sink: &mut dyn std::io::Write| sink.write_all(&[0; 4]);
    write_checkpoint(&names, None, &[TensorSpec::new("b", DType::F32, [1])], u64::MAX, fill)
        .expect("written");
    let whole = path("whole");
    write_checkpoint(&whole, None, &[TensorSpec::new("b", DType::I32, [1])], u64::MAX, fill)
        .expect("written");
    let nan = folder(path("nan"), 2, 8, DType::F32);
    let file = nan.join("diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&file).expect("readable");
    // Weight `b`, the last of the file.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).expect("writable");

    let out = path("out");
    for (other, part) in [
        (&shape, "weight `a` has shape [3, 8] in the first and [3, 9] in the second"),
        (&dtype, "weight `a` is stored as F32 in the first and as BF16 in the second"),
        (&names, "only the first has weight `a`"),
        (&whole, "weight `b` in "),
        (&nan, "element 0 is NaN in `"),
        (&path("absent"), "absent"),
    ] {
        let error = refused(&[good.clone(), other.clone()], &out);
        assert!(error.contains(part), "{error}");
        assert!(error.contains(other.file_name().and_then(|name| name.to_str()).expect("a name")), "{error}");
    }
    assert_eq!(refused(&[], &out), "there are no checkpoints to merge");
    let error =
        merge(&[good], &shape, &MergeOptions::default(), &mut |_, _| {}).expect_err("refused").to_string();
    assert!(error.ends_with("exists already: remove it, or give a new folder"), "{error}");
    let mut left: Vec<_> =
        fs::read_dir(scratch.path()).expect("readable").flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["dtype", "good", "names", "nan", "shape", "whole"]);
}
