//! `--backend cuda` as a user meets it: without CUDA, and with the fake driver and compiler of `tests/fake-cuda`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::fake_cuda::{FakeCuda, counts};
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::parity::{nucleus_image, relative_error};
use nucleus_tests::training::Run;
use tempfile::TempDir;

/// A value per model, one per prompt, and one per step that needs both: kernels of every stage.
const MODEL: &str = "dim B, N;
entry f(x: [B, N, 8] per step, p: [N, 8] per prompt) -> (y: [B, N, 8], z: [N, B, 8]) {
    let gain = exp(weight(\"w\", [8]) * 0.25);
    let q = tanh(p) * broadcast(gain, [N, 8]);
    let y = x * broadcast(q, [B, N, 8]) + broadcast(weight(\"v\", [8]), [B, N, 8]);
    (y, transpose(y, permutation = [1, 0, 2]))
}
";

/// A folder with the model and its inputs.
struct Place {
    folder: TempDir,
    fake: FakeCuda,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("model.ir"), MODEL).expect("a writable folder");
        let mut inputs = TensorMap::new();
        let noise =
            |count: usize| (0..count).map(|i| (i * 37 % 64) as f32 / 32.0 - 1.0).collect::<Vec<f32>>();
        let tensor = |shape: &[usize]| HostTensor::from_f32(shape, &noise(shape.iter().product()));
        inputs.insert("x", tensor(&[2, 5, 8]).expect("a tensor"));
        inputs.insert("p", tensor(&[5, 8]).expect("a tensor"));
        inputs.write(&folder.path().join("in.safetensors")).expect("a writable folder");
        Place { folder, fake: FakeCuda::build(Path::new(env!("CARGO_TARGET_TMPDIR"))) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A call of `nucleusc` in the folder that finds the fake driver.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
        self.fake.give(&mut command).current_dir(self.folder.path()).env("FAKE_CUDA_LOG", self.path("log"));
        command
    }

    /// Runs the model, or what stands for it.
    fn run(&self, model: &str, backend: &str, output: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = self.command();
        command.args(["run", model, "--weights", "random:3", "--dtype", "f32", "--inputs", "in.safetensors"]);
        command.args(["--output", output, "--backend", backend]).envs(variables.iter().copied());
        command.output().expect("nucleusc starts")
    }

    fn outputs(&self, name: &str) -> TensorMap {
        TensorMap::read(&self.path(name)).expect("outputs were written")
    }

    fn assert_near(&self, got: &str, want: &str) {
        let (got, want) = (self.outputs(got), self.outputs(want));
        for (name, want) in want.iter() {
            let got = got.get(name).unwrap_or_else(|| panic!("no `{name}`"));
            assert_eq!(got.shape(), want.shape(), "{name}");
            let error = relative_error(&got.to_f32_vec(), &want.to_f32_vec());
            assert!(error <= 2e-6, "{name}: {error:.1e}");
        }
    }
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The message of a call that failed as errors do, with nothing left over in the driver.
#[track_caller]
fn failed(output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(output.stdout.is_empty());
    message
}

#[test]
fn without_cuda_one_sentence_says_what_is_missing() {
    let place = Place::new();
    // Files that no loader takes hide a driver that the system may have.
    let broken = place.path("broken");
    std::fs::create_dir(&broken).expect("a writable folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(broken.join(name), "no library").expect("a writable folder");
    }
    let folder = broken.to_str().expect("a name in UTF-8");
    for arguments in [
        vec![
            "run",
            "model.ir",
            "--weights",
            "random",
            "--inputs",
            "in.safetensors",
            "--output",
            "out.safetensors",
        ],
        vec!["bench", "model.ir", "--weights", "random", "--dim", "B=1", "--dim", "N=2"],
    ] {
        let mut command = place.command();
        command.args(arguments).args(["--backend", "cuda"]).env("LD_LIBRARY_PATH", folder);
        let message = failed(&command.output().expect("nucleusc starts"));
        assert_eq!(
            message,
            "error: no CUDA driver: none of libcuda.so, libcuda.so.1 was found; install NVIDIA's driver (R580 or newer), or use `--backend cpu`\n"
        );
    }
}

#[test]
fn a_run_uploads_captures_one_graph_and_gives_the_processors_answer() {
    let place = Place::new();
    succeeded(&place.run("model.ir", "cpu", "cpu.safetensors", &[]));
    succeeded(&place.run("model.ir", "cuda", "gpu.safetensors", &[]));
    place.assert_near("gpu.safetensors", "cpu.safetensors");
    let log = counts(&place.path("log"));
    assert_eq!((log["captures"], log["graph_launches"]), (1, 1), "{log:?}");
    // Two weights of 32 bytes, x and p; both outputs.
    assert!(log["uploads"] >= 64 + 320 + 160 && log["downloads"] >= 640, "{log:?}");
    // Launches are named where they are waited for, and then nothing is captured.
    succeeded(&place.run("model.ir", "cuda", "watched.safetensors", &[("NUCLEUS_CUDA_SYNC", "1")]));
    place.assert_near("watched.safetensors", "cpu.safetensors");
    assert_eq!(counts(&place.path("log"))["captures"], 0);
}

#[test]
fn an_artifact_with_cubins_needs_no_compiler() {
    let place = Place::new();
    let mut compile = place.command();
    compile.args(["compile", "model.ir", "--target", "cuda:sm_90", "-o", "model.nuc"]);
    succeeded(&compile.output().expect("nucleusc starts"));
    succeeded(&place.run("model.ir", "cpu", "cpu.safetensors", &[]));
    let none = place.path("none");
    let nowhere = [("NUCLEUS_NVRTC", none.to_str().expect("a name in UTF-8")), ("NUCLEUS_CACHE", "cache")];
    succeeded(&place.run("model.nuc", "cuda", "gpu.safetensors", &nowhere));
    place.assert_near("gpu.safetensors", "cpu.safetensors");
    let mut bench = place.command();
    bench.args([
        "bench",
        "model.nuc",
        "--weights",
        "random:3",
        "--dim",
        "B=2",
        "--dim",
        "N=3",
        "--repeat",
        "1",
    ]);
    let said = succeeded(&bench.args(["--backend", "cuda"]).envs(nowhere).output().expect("nucleusc starts"));
    assert!(said.contains("multiply-adds in registers"), "limits are measured, too: {said}");
    // Another device needs other machine code.
    let other = [nowhere[0], nowhere[1], ("FAKE_CUDA_CAPABILITY", "80")];
    let message = failed(&place.run("model.nuc", "cuda", "gpu.safetensors", &other));
    assert!(message.contains("NVRTC") && message.contains("NUCLEUS_NVRTC"), "{message}");
}

#[test]
fn memory_is_counted_before_anything_is_uploaded() {
    let place = Place::new();
    let small = [("FAKE_CUDA_MEMORY", "2000")];
    let message = failed(&place.run("model.ir", "cuda", "gpu.safetensors", &small));
    for part in ["not enough memory on Fake GPU 0 for weights (", "arenas (", "2000 are free", "are missing"]
    {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
    let log = counts(&place.path("log"));
    assert_eq!((log["allocations"], log["uploads"], log["launches"]), (0, 0, 0), "{log:?}");
}

#[test]
fn every_allocation_may_fail_and_nothing_is_left_over() {
    let place = Place::new();
    for number in 1..100 {
        let fail = [("FAKE_CUDA_FAIL_ALLOCATION", &*number.to_string())];
        let output = place.run("model.ir", "cuda", "gpu.safetensors", &fail);
        if output.status.success() {
            assert!(number > 4, "{} allocations", number - 1);
            return;
        }
        let message = failed(&output);
        assert!(message.contains("not enough memory on Fake GPU 0 for "), "{message}");
    }
    panic!("there are more allocations than that");
}

#[test]
fn a_launch_that_goes_wrong_is_an_error_at_the_end_of_its_stage() {
    let place = Place::new();
    let launches = {
        succeeded(&place.run("model.ir", "cuda", "gpu.safetensors", &[]));
        counts(&place.path("log"))["launches"]
    };
    for number in 1..=launches {
        let number = number.to_string();
        let message = failed(&place.run("model.ir", "cuda", "x", &[("FAKE_CUDA_FAIL_LAUNCH", &number)]));
        assert!(message.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{message}");
        assert!(message.contains("NUCLEUS_CUDA_SYNC=1 makes the error name its launch"), "{message}");
        let watched = [("FAKE_CUDA_FAIL_LAUNCH", &*number), ("NUCLEUS_CUDA_SYNC", "1")];
        let message = failed(&place.run("model.ir", "cuda", "x", &watched));
        assert!(message.contains("error: launch ") && message.contains("(map"), "{message}");
    }
}

#[test]
fn devices_are_chosen_and_refused_by_name() {
    let place = Place::new();
    let second = [("NUCLEUS_CUDA_DEVICE", "1"), ("FAKE_CUDA_DEVICES", "2")];
    succeeded(&place.run("model.ir", "cuda", "gpu.safetensors", &second));
    let message = failed(&place.run("model.ir", "cuda", "x", &[("NUCLEUS_CUDA_DEVICE", "3")]));
    assert!(message.contains("no CUDA device 3: NUCLEUS_CUDA_DEVICE names it, and there are 1"), "{message}");
    let message = failed(&place.run("model.ir", "cuda", "x", &[("FAKE_CUDA_CAPABILITY", "75")]));
    assert!(message.contains("Fake GPU 0 has compute capability 7.5"), "{message}");
}

#[test]
fn bench_measures_graphs_and_the_limits_of_the_device() {
    let place = Place::new();
    let mut bench = place.command();
    bench.args([
        "bench",
        "model.ir",
        "--weights",
        "random:3",
        "--dtype",
        "f32",
        "--dim",
        "B=2",
        "--dim",
        "N=3",
    ]);
    bench.args(["--backend", "cuda", "--repeat", "2", "--json", "--profile"]);
    let said = succeeded(&bench.output().expect("nucleusc starts"));
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(json["device"], "Fake GPU 0");
    for key in ["median_s", "step_median_s", "limit_gflops", "copy_bytes_per_s"] {
        assert!(json[key].as_f64().expect("a number") > 0.0, "{key} in {said}");
    }
    assert!(json["profile"][0]["seconds"].as_f64().expect("a number") > 0.0, "{said}");
    // A run of its own prompt and a prepared one: two graphs, of which warming up, timed runs and timed steps are launches.
    let log = counts(&place.path("log"));
    assert_eq!((log["captures"], log["graph_launches"]), (2, 5), "{log:?}");
}

#[test]
fn gradients_are_the_processors() {
    let (case, place) = (GradientCase::named("dense"), Place::new());
    let mut inputs = case.inputs();
    for (name, value) in [("z_loss", case.z_loss), ("wavelet", case.wavelet)] {
        inputs.insert(name, HostTensor::from_f32(&[], &[value as f32]).expect("a scalar"));
    }
    inputs.write(&place.path("batch.safetensors")).expect("a writable folder");
    let mut command = place.command();
    command.arg("grad").arg(nucleus_image()).arg("--weights").arg(&case.weights);
    command.args(["--inputs", "batch.safetensors", "--output", "grads.safetensors", "--backend", "cuda"]);
    command.args(case.dims.iter().flat_map(|(dim, size)| ["--dim".to_owned(), format!("{dim}={size}")]));
    let said = succeeded(&command.output().expect("nucleusc starts"));
    assert!(said.contains("norm of the gradient "), "{said}");
    let got = place.outputs("grads.safetensors");
    for (name, want) in case.expected().iter().filter(|(name, _)| !name.starts_with("loss.")) {
        let got = got.get(name).unwrap_or_else(|| panic!("no `{name}`")).to_f32_vec();
        let want = want.to_f32_vec();
        // Weights that the loss does not reach have the gradient 0.
        let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let off = got.iter().zip(&want).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
        assert!(off <= 3e-5 * largest, "{name}: off by {off:.1e}, the largest is {largest:.1e}");
    }
}

#[test]
fn a_run_trains_with_everything_on_the_device() {
    let run = Run::of("original").with("steps = 6", "steps = 2");
    let place = Place::new();
    let recipe = run.write();
    let mut command = place.command();
    command.arg("train").arg(&recipe).args(["--backend", "cuda"]);
    let said = succeeded(&command.output().expect("nucleusc starts"));
    assert!(said.contains("reached step 2"), "{said}");
    let log = std::fs::read_to_string(run.out().join("log.jsonl")).expect("a log");
    let losses = run.expected_column("loss");
    for (line, want) in log.lines().zip(&losses) {
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let loss = json["loss"].as_f64().expect("a number");
        assert!((loss - want).abs() <= 1e-3 * want.abs(), "{loss} instead of {want}");
    }
    assert!(run.out().join("checkpoint-2/trainer.json").is_file());
}
