//! `nucleusc grad` as a user meets it.

use std::path::Path;
use std::process::{Command, Output};

use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::parity::nucleus_image;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The inputs of a case with the coefficients of its loss.
fn inputs(case: &GradientCase) -> TensorMap {
    let mut inputs = case.inputs();
    for (name, value) in [("z_loss", case.z_loss), ("wavelet", case.wavelet)] {
        inputs.insert(name, HostTensor::from_f32(&[], &[value as f32]).expect("a scalar"));
    }
    inputs
}

/// Runs the command on those inputs; it writes `grads.safetensors` into the folder.
fn grad(case: &GradientCase, inputs: &TensorMap, folder: &Path, extra: &[&str]) -> Output {
    let (model, path) = (nucleus_image(), folder.join("batch.safetensors"));
    inputs.write(&path).expect("a writable folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
    command.args(["grad", text(&model), "--weights", text(&case.weights), "--inputs", text(&path)]);
    command.args(["--output", text(&folder.join("grads.safetensors"))]);
    command.args(case.dims.iter().flat_map(|(dim, size)| ["--dim".to_owned(), format!("{dim}={size}")]));
    command.args(extra).output().expect("nucleusc starts")
}

fn assert_near(folder: &Path, case: &GradientCase) {
    let got = TensorMap::read(&folder.join("grads.safetensors")).expect("gradients are written");
    let expected = case.expected();
    assert_eq!(got.get("loss").expect("the loss").shape(), [1]);
    let mut count = 0;
    for (name, want) in expected.iter().filter(|(name, _)| !name.starts_with("loss.")) {
        let tensor = got.get(name).unwrap_or_else(|| panic!("no `{name}`"));
        assert_eq!(tensor.shape(), want.shape(), "{name}");
        let (got, want) = (tensor.to_f32_vec(), want.to_f32_vec());
        let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let off = got.iter().zip(&want).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
        assert!(off <= 3e-5 * largest, "{name}: off by {off:.1e}, the largest is {largest:.1e}");
        count += 1;
    }
    assert_eq!(got.len(), count, "nothing else is written");
}

#[test]
fn gradients_of_a_batch_are_written_by_the_names_of_the_weights() {
    let (case, folder) = (GradientCase::named("everything"), scratch());
    let output = grad(&case, &inputs(&case), folder.path(), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "", "quiet on standard error when it succeeds");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["loss ", "norm of the gradient ", "wrote ", "grads.safetensors"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    assert_near(folder.path(), &case);
}

#[test]
fn sizes_may_come_from_the_grid_and_the_answer_as_json() {
    let (mut case, folder) = (GradientCase::named("odd_grid"), scratch());
    let mut given = inputs(&case);
    let size = |name: &str| case.dims.iter().find(|(dim, _)| dim == name).expect("H and W").1 as i32;
    let grid = HostTensor::from_i32(&[2], &[size("H"), size("W")]).expect("two numbers");
    given.insert("grid", grid);
    case.dims.clear();
    let output = grad(&case, &given, folder.path(), &["--json", "--threads", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let want = f64::from(case.expected().get("loss").expect("the loss").to_f32_vec()[0]);
    let loss = json["loss"].as_f64().expect("a number");
    assert!((loss - want).abs() <= 1e-5 * want, "{loss} instead of {want}");
    assert!(json["gradient_norm"].as_f64().expect("a number") > 0.0);
    assert_eq!(json["weights"], case.expected().len() - 4);
    assert_near(folder.path(), &case);
}

#[test]
fn products_may_be_of_bf16() {
    let (case, folder) = (GradientCase::named("dense"), scratch());
    let output = grad(&case, &inputs(&case), folder.path(), &["--dtype", "bf16", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let want = f64::from(case.expected().get("loss").expect("the loss").to_f32_vec()[0]);
    let error = (json["loss"].as_f64().expect("a number") / want - 1.0).abs();
    assert!(error > 1e-7 && error < 1e-2, "{error:.1e}");
}

#[test]
fn mistakes_are_named_with_the_way_out() {
    let (case, folder) = (GradientCase::named("dense"), scratch());
    let fails = |given: &TensorMap, extra: &[&str], parts: &[&str]| {
        let output = grad(&case, given, folder.path(), extra);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{parts:?}: {message}");
        assert!(output.stdout.is_empty(), "{parts:?}");
        assert!(parts.iter().all(|part| message.contains(part)), "no {parts:?} in {message}");
        assert!(!folder.path().join("grads.safetensors").exists(), "{parts:?} leaves no output");
    };
    let good = inputs(&case);
    fails(&good, &["--threads", "0"], &["--threads must be at least 1"]);
    fails(&good, &["--dim", "Q=3"], &["no dim `Q`", "B, H, W, T"]);
    fails(&good, &["--dim", "B=77"], &["`B`"]);
    fails(&good, &["--weights", "no-such-folder"], &["--weights"]);
    fails(&good, &["--dtype", "f64"], &["f64"]);

    let mut without = inputs(&case);
    without.remove("noise");
    fails(&without, &[], &["`noise`", "is not given"]);

    let mut stranger = inputs(&case);
    stranger.insert("hidden_states", HostTensor::from_f32(&[1], &[0.0]).expect("a tensor"));
    fails(&stranger, &[], &["no input `hidden_states`", "latents"]);

    let mut wrong = inputs(&case);
    wrong.insert("noise", HostTensor::from_f32(&[1, 2], &[0.0; 2]).expect("a tensor"));
    fails(&wrong, &[], &["`noise`"]);

    let mut grid = inputs(&case);
    grid.insert("grid", HostTensor::from_f32(&[2], &[1.5, 2.0]).expect("a tensor"));
    fails(&grid, &[], &["`grid` must hold two integers"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let (case, folder) = (GradientCase::named("dense"), scratch());
    let output = Command::new(env!("CARGO_BIN_EXE_nucleusc"))
        .args(["grad", text(&nucleus_image()), "--weights", text(&case.weights)])
        .args(["--inputs", "no-such-batch.safetensors", "--output", text(&folder.path().join("out"))])
        .output()
        .expect("nucleusc starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no-such-batch.safetensors"), "{}", stderr(&output));
}
