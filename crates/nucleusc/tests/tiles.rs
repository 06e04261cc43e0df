//! `--tuning` and `--emit tiles` as a user meets them, with the fake driver and compiler of `tests/fake-cuda`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nucleus_runtime::{Artifact, HostTensor, TensorMap};
use nucleus_tests::fake_cuda::FakeCuda;
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::parity::{nucleus_image, relative_error};
use nucleus_tests::training::Run;
use tempfile::TempDir;

const MODEL: &str = "dim B, N;
entry f(x: [B, N, 40] per step) -> (y: [B, N, 24]) { matmul(tanh(x), weight(\"w\", [40, 24])) }
";

const TARGET: [&str; 2] = ["--target", "cuda:sm_90"];

/// A folder with the model and its inputs.
struct Place {
    folder: TempDir,
    fake: FakeCuda,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("model.ir"), MODEL).expect("a writable folder");
        let noise: Vec<f32> = (0..2 * 5 * 40).map(|i| (i * 37 % 64) as f32 / 32.0 - 1.0).collect();
        let mut inputs = TensorMap::new();
        inputs.insert("x", HostTensor::from_f32(&[2, 5, 40], &noise).expect("a tensor"));
        inputs.write(&folder.path().join("in.safetensors")).expect("a writable folder");
        Place { folder, fake: FakeCuda::build(Path::new(env!("CARGO_TARGET_TMPDIR"))) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a writable folder");
    }

    fn call(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
        self.fake.give(&mut command).current_dir(self.folder.path()).args(arguments);
        command.envs(variables.iter().copied()).output().expect("nucleusc starts")
    }

    #[track_caller]
    fn succeeds(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (String, String) {
        let output = self.call(arguments, variables);
        let [said, noted] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{arguments:?}: {noted}");
        (said, noted)
    }

    /// The message of a call that failed as errors do.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments, &[]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(!self.path("model.nuc").exists() && output.stdout.is_empty(), "{arguments:?}");
        message
    }

    /// Compiles, and gives the table of the tiles that were chosen.
    #[track_caller]
    fn compile(&self, extra: &[&str]) -> String {
        let call = ["compile", "model.ir", "-o", "model.nuc", "--emit", "tiles", "--emit-dir", "kernels"];
        self.succeeds(&[&call[..], &TARGET, extra].concat(), &[]);
        std::fs::read_to_string(self.path("kernels/tiles.toml")).expect("it was asked for")
    }

    /// Benchmarks a model: how many tiles are measured ones, how many the cost model's.
    #[track_caller]
    fn counts(&self, model: &str, extra: &[&str], variables: &[(&str, &str)]) -> [u64; 2] {
        let sizes = ["--weights", "random:3", "--dim", "B=1", "--dim", "N=2", "--repeat", "1"];
        let call = [&["bench", model], &sizes[..], &["--backend", "cuda", "--json"], extra].concat();
        let (said, noted) = self.succeeds(&call, variables);
        let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let [measured, modelled] =
            ["measured", "modelled"].map(|key| json["tiles"][key].as_u64().expect("a number"));
        assert_eq!(noted.contains("warning: no entry of `"), !extra.is_empty() && measured == 0, "{noted}");
        [measured, modelled]
    }
}

/// The table with another tile, for one device.
fn changed(table: &str, device: &str) -> String {
    let tile = [
        ("rows", 32),
        ("columns", 32),
        ("depth", 16),
        ("stages", 3),
        ("warps", 1),
        ("across", 1),
        ("blocks", 2),
    ];
    let line = |line: &str| {
        let of = tile.iter().find(|(key, _)| line.starts_with(&format!("{key} = ")));
        match of {
            Some((key, value)) => format!("{key} = {value}\n"),
            None if line.starts_with("architecture") => format!("{line}\ndevice = \"{device}\"\n"),
            None => format!("{line}\n"),
        }
    };
    table.lines().map(line).collect()
}

#[test]
fn an_artifact_compiled_with_a_table_runs_with_it_on_its_device_and_without_it_on_others() {
    let place = Place::new();
    let model = place.compile(&[]);
    assert!(model.contains("; chosen by the model\n[[tile]]\narchitecture = \"sm_90\"\n"), "{model}");
    place.write("tiles.toml", &changed(&model, "Fake GPU 0"));
    let table = place.compile(&["--tuning", "tiles.toml"]);
    // As other devices have it, and as this one does.
    assert!(table.starts_with(&model), "{table}");
    assert!(
        table.contains("; chosen by a table\n[[tile]]\narchitecture = \"sm_90\"\ndevice = \"Fake GPU 0\"\n"),
        "{table}"
    );
    let compiled = Artifact::open(&place.path("model.nuc")).expect("just written").into_parts().0;
    assert_eq!(compiled.tuning.len(), 1);
    let (said, _) = place.succeeds(&["inspect", "model.nuc"], &[]);
    assert!(said.contains("tiles   1 measured\n"), "{said}");

    let run = |model: &str, backend: &str, output: &str, variables: &[(&str, &str)]| {
        let files = ["--inputs", "in.safetensors", "--output", output, "--backend", backend];
        place.succeeds(
            &[&["run", model, "--weights", "random:3", "--dtype", "f32"], &files[..]].concat(),
            variables,
        );
        let outputs = TensorMap::read(&place.path(output)).expect("outputs were written");
        outputs.get("y").expect("the entry has this output").to_f32_vec()
    };
    let none = place.path("none").display().to_string();
    let nowhere = [("NUCLEUS_NVRTC", &*none), ("NUCLEUS_CACHE", "cache")];
    let second = [&nowhere[..], &[("NUCLEUS_CUDA_DEVICE", "1"), ("FAKE_CUDA_DEVICES", "2")]].concat();
    let want = run("model.ir", "cpu", "cpu.safetensors", &[]);
    for (device, tiles) in [(&nowhere[..], [1, 0]), (&second, [0, 1])] {
        let error = relative_error(&run("model.nuc", "cuda", "gpu.safetensors", device), &want);
        assert!(error <= 2e-6, "{device:?}: {error:.1e}");
        assert_eq!(place.counts("model.nuc", &[], device), tiles, "{device:?}");
    }
    // A table that is given comes before the one inside.
    place.write("second.toml", &changed(&model, "Fake GPU 1"));
    let variables = [("NUCLEUS_CUDA_DEVICE", "1"), ("FAKE_CUDA_DEVICES", "2")];
    assert_eq!(place.counts("model.nuc", &["--tuning", "second.toml"], &variables), [1, 0]);
}

#[test]
fn a_table_is_for_texts_too_and_one_of_other_kernels_is_a_warning() {
    let place = Place::new();
    let model = place.compile(&[]);
    // What was emitted is a table as it is, for every device of the architecture.
    assert_eq!(place.counts("model.ir", &[], &[]), [0, 1]);
    place.write("tiles.toml", &model);
    assert_eq!(place.counts("model.ir", &["--dtype", "f32", "--tuning", "tiles.toml"], &[]), [1, 0]);
    // In bf16 it is another kernel.
    assert_eq!(place.counts("model.ir", &["--dtype", "bf16", "--tuning", "tiles.toml"], &[]), [0, 1]);
    let again = place.compile(&["--tuning", "tiles.toml"]);
    assert_eq!(again.replace("chosen by a table", "chosen by the model"), model);
}

#[test]
fn what_is_wrong_with_a_table_is_said_with_its_line_and_the_way_out() {
    let place = Place::new();
    let model = place.compile(&[]);
    std::fs::remove_file(place.path("model.nuc")).expect("it was written");
    let compile = ["compile", "model.ir", "-o", "model.nuc", "--tuning", "t.toml"];
    let cuda = [&compile[..], &TARGET].concat();
    let line_of = |text: &str, start: &str| {
        text.lines().position(|line| line.starts_with(start)).expect("the table has it") + 1
    };
    let entry = line_of(&model, "[[tile]]");
    let message = place.fails(&cuda);
    assert!(message.starts_with("error: the table of tiles `t.toml` cannot be read: "), "{message}");
    let replaced = |start: &str, with: &str| {
        let line = |line: &str| format!("{}\n", if line.starts_with(start) { with } else { line });
        model.lines().map(line).collect::<String>()
    };
    let cases = [
        (replaced("warps", "warps = 3"), entry, "`warps = 3`: expected a power of two from 1 to 16"),
        (replaced("stages", "stages = 99"), entry, "`stages = 99`: expected a number from 2 to 16"),
        (replaced("blocks", "blocks = 999999999999"), line_of(&model, "blocks"), "`blocks` must be a number"),
        (
            replaced("depth", "height = 2"),
            line_of(&model, "depth"),
            "unknown key `height`: expected one of architecture",
        ),
        (
            replaced("shape", "shape = \"1x2\""),
            entry,
            "`shape` is `1x2`: expected batch, rows, columns and depth",
        ),
        (replaced("kernel", ""), entry, "`kernel` is missing"),
        (
            replaced("depth", "depth = 64"),
            entry,
            "`depth = 64`: products in f32 have 16 or 32 (a matmul in f32 on sm_90); correct the entry, or remove it",
        ),
        (replaced("across", "across = 1"), entry, "warps of "),
        (format!("{model}{}", model), 2 * entry + 10, "the entry in line"),
    ];
    for (text, line, what) in &cases {
        place.write("t.toml", text);
        let message = place.fails(&cuda);
        let first = message.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("the table of tiles `t.toml`, line {line}: ")), "{message}\n{text}");
        assert!(first.contains(what), "no `{what}` in {message}");
    }
    // What loads kernels says the same.
    place.write("t.toml", &replaced("depth", "depth = 64"));
    let files = ["--inputs", "in.safetensors", "--output", "out.safetensors", "--dtype", "f32"];
    let run = [&["run", "model.ir", "--weights", "random", "--tuning", "t.toml"], &files[..]].concat();
    let message = place.fails(&[&run[..], &["--backend", "cuda"]].concat());
    assert!(message.contains("kernel k") && message.contains("products in f32 have 16 or 32"), "{message}");

    // Where there are no such kernels a table is an error.
    place.write("t.toml", &model);
    assert!(place.fails(&compile).contains(
        "--tuning gives the tiles of kernels for GPUs: it needs a target such as --target cuda:sm_90"
    ));
    let needs = "--tuning gives the tiles of kernels for GPUs: it needs --backend cuda";
    for backend in ["cpu", "interp"] {
        let message = place.fails(&[&run[..], &["--backend", backend]].concat());
        assert!(message.contains(needs), "{message}");
    }
    let bench =
        ["bench", "model.ir", "--weights", "random", "--dim", "B=1", "--dim", "N=2", "--tuning", "t.toml"];
    assert!(place.fails(&bench).contains(needs));
    // Other commands do not pass over it either: they refuse it where there are no such kernels, and read it where there are.
    place.write("broken.toml", "rows");
    let (case, run) = (GradientCase::named("dense"), Run::of("original"));
    let recipe = run.write().display().to_string();
    case.inputs().write(&place.path("batch.safetensors")).expect("a writable folder");
    let [ir, weights] = [nucleus_image(), case.weights].map(|path| path.display().to_string());
    let batch = ["--inputs", "batch.safetensors", "--output", "grads.safetensors"];
    for command in [
        &["train", &recipe, "--check"][..],
        &["sample", &recipe, "--caption", "a", "-o", "a.png"],
        &[&["grad", &ir, "--weights", &weights], &batch[..]].concat(),
    ] {
        let message = place.fails(&[command, &["--tuning", "t.toml"]].concat());
        assert!(message.contains(needs), "{command:?}: {message}");
        let message = place.fails(&[command, &["--tuning", "broken.toml", "--backend", "cuda"]].concat());
        assert!(message.contains("the table of tiles `broken.toml`, line 1: "), "{command:?}: {message}");
    }
    let message =
        place.fails(&["compile", "model.ir", "-o", "model.nuc", "--emit", "tiles", "--emit-dir", "k"]);
    assert!(message.contains("--emit tiles needs a GPU"), "{message}");
}
