//! `nucleusc merge` as a user meets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nucleus_runtime::{Checkpoint, TensorMap};
use nucleus_tests::parity::{Case, nucleus_image, relative_error};
use serde_json::Value;

fn nucleusc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nucleusc")).args(arguments).output().expect("nucleusc starts")
}

fn succeeds(arguments: &[&str]) -> String {
    let output = nucleusc(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "", "{arguments:?} is quiet on standard error when it succeeds");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(arguments: &[&str]) -> String {
    let output = nucleusc(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The checkpoint of a case with all its weights scaled.
fn scaled(case: &Case, factor: f32, folder: PathBuf) -> String {
    std::fs::create_dir(&folder).expect("writable");
    std::fs::copy(case.folder.join("config.json"), folder.join("config.json")).expect("copied");
    let file = "diffusion_pytorch_model.safetensors";
    let mut map = TensorMap::read(&case.folder.join(file)).expect("readable");
    let names: Vec<String> = map.names().map(str::to_owned).collect();
    for name in names {
        let values = map.get_mut(&name).and_then(|tensor| tensor.as_f32_mut().ok()).expect("f32");
        values.iter_mut().for_each(|value| *value *= factor);
    }
    map.write(&folder.join(file)).expect("written");
    text(&folder).to_owned()
}

#[test]
fn an_average_runs_as_its_formula_says() {
    let scratch = scratch();
    let case = Case::named("all_moe");
    let at = |name: &str| scratch.path().join(name);
    // The newest weighs 1/(1 + 1/√2): the other is scaled so that the average is the fixture.
    let (newest, oldest) = (1.5f64, (1.0 + 0.5f64.sqrt() - 1.5) / 0.5f64.sqrt());
    let old = scaled(&case, oldest as f32, at("old"));
    let new = scaled(&case, newest as f32, at("new"));
    let out = at("out");
    let printed = succeeds(&["merge", &old, &new, "-o", text(&out)]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    assert_eq!(lines[0], format!("  0.414214  {old}"));
    assert_eq!(lines[1], format!("  0.585786  {new}"));
    assert!(lines[2].starts_with(&format!("wrote {}: ", out.display())), "{printed}");
    assert!(lines[2].ends_with("the average of 2 checkpoints"), "{printed}");

    let sample = at("sample.safetensors");
    let (model, inputs) = (nucleus_image(), case.folder.join("inputs.safetensors"));
    let mut run = vec!["run", text(&model), "--weights", text(&out), "--inputs", text(&inputs)];
    let dims: Vec<String> = case.dims.iter().map(|(dim, size)| format!("--dim={dim}={size}")).collect();
    run.extend(dims.iter().map(String::as_str));
    run.extend(["--output", text(&sample)]);
    succeeds(&run);
    let found = TensorMap::read(&sample).expect("readable").get("sample").expect("an output").to_f32_vec();
    let error = relative_error(&found, &case.expected("sample"));
    assert!(error < 1e-4, "{error}");

    // The same from the other end, and listed from the other end.
    let same = at("same");
    let json: Value = serde_json::from_str(&succeeds(&[
        "merge",
        &new,
        &old,
        "--newest-first",
        "--json",
        "-o",
        text(&same),
    ]))
    .expect("JSON");
    assert_eq!(json["checkpoints"][1]["path"], new.as_str());
    assert_eq!(json["weights"], Checkpoint::open(&out).expect("opens").len());
    let file = "diffusion_pytorch_model.safetensors";
    let bytes = |folder: &Path| std::fs::read(folder.join(file)).expect("readable");
    assert_eq!(bytes(&out), bytes(&same));
    let other = at("other");
    succeeds(&["merge", &new, &old, "--heaviest", "oldest", "-o", text(&other)]);
    let (a, b) = (TensorMap::read(&out.join(file)), TensorMap::read(&other.join(file)));
    for ((name, a), (_, b)) in a.expect("readable").iter().zip(b.expect("readable").iter()) {
        assert!(relative_error(&a.to_f32_vec(), &b.to_f32_vec()) < 1e-6, "{name}");
    }
}

#[test]
fn one_checkpoint_is_its_own_average() {
    let scratch = scratch();
    for name in ["sharded", "bf16_moe"] {
        let case = Case::named(name);
        let out = scratch.path().join(name);
        let printed = succeeds(&["merge", text(&case.folder), "-o", text(&out), "--weights", "uniform"]);
        assert!(printed.starts_with("  1.000000  ") && printed.ends_with("of 1 checkpoint\n"), "{printed}");
        let (merged, given) = (Checkpoint::open(&out).expect("opens"), case.checkpoint());
        assert_eq!(merged.config(), given.config());
        assert!(merged.names().eq(given.names()));
        for (weight, view) in given.iter() {
            let copy = merged.get(weight).expect("there");
            assert_eq!(
                (copy.stored_dtype, copy.shape, copy.bytes),
                (view.stored_dtype, view.shape, view.bytes)
            );
        }
    }
}

#[test]
fn mistakes_are_named_and_nothing_is_left() {
    let scratch = scratch();
    let path = |name: &str| text(&scratch.path().join(name)).to_owned();
    let (dense, moe) = (Case::named("dense"), Case::named("all_moe"));
    let (dense, moe) = (text(&dense.folder), text(&moe.folder));
    let out = path("out");
    for (arguments, part) in [
        (vec!["merge", dense, moe, "-o", &out], "cannot be merged: "),
        (vec!["merge", dense, &path("absent"), "-o", &out], "absent"),
        (vec!["merge", dense, "-o", &path("")], "exists already"),
        (vec!["merge", dense, "-o", &out, "--last", "0"], "`0` is not a number from 1"),
        (vec!["merge", dense, "-o", &out, "--weights", "cubic"], "inverse-sqrt"),
        (vec!["merge", "-o", &out], "<CKPT>"),
        (vec!["merge", dense], "--output <DIR>"),
    ] {
        let message = fails(&arguments);
        assert!(message.starts_with("error: ") && message.contains(part), "{arguments:?}: {message}");
    }
    let left: Vec<_> =
        std::fs::read_dir(scratch.path()).expect("readable").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn help_teaches() {
    let help = succeeds(&["merge", "--help"]);
    for part in ["--heaviest newest", "1 − √(i/n)", "Examples:", "--last 16", "inverse-sqrt"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}
