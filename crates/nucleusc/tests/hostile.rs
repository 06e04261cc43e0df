//! `nucleusc` in the hands of someone who means harm: every call ends soon, with exit code 1 and a message that names thing and place.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nucleus_ir::{DType, Dim};
use nucleus_plan::{BufferId, KernelId, Place};
use nucleus_runtime::artifact::write_artifact;
use nucleus_runtime::{Artifact, Compiled, HostTensor, TensorMap};
use nucleus_tests::parity::{Case, nucleus_image};

/// No call of this file may take longer: each is quick on an idle machine, but tests run side by side.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    folder: tempfile::TempDir,
    case: Case,
}

impl Bench {
    fn new(case: &str) -> Bench {
        Bench { folder: tempfile::tempdir().expect("a temporary folder"), case: Case::named(case) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).expect("a writable folder");
        text(&self.path(name)).to_owned()
    }

    /// A copy of the checkpoint that a test may damage.
    fn checkpoint(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        std::fs::create_dir(&copy).expect("a writable folder");
        for entry in std::fs::read_dir(&self.case.folder).expect("the fixture is there") {
            let from = entry.expect("readable").path();
            std::fs::copy(&from, copy.join(from.file_name().expect("a name"))).expect("copied");
        }
        copy
    }

    /// The arguments of a run that would succeed.
    fn run(&self, weights: &Path, inputs: &Path, output: &Path) -> Vec<String> {
        let model = nucleus_image();
        let mut arguments: Vec<String> = ["run", text(&model), "--weights", text(weights)]
            .into_iter()
            .chain(["--inputs", text(inputs), "--output", text(output)])
            .map(str::to_owned)
            .collect();
        for (dim, size) in &self.case.dims {
            arguments.extend(["--dim".to_owned(), format!("{dim}={size}")]);
        }
        arguments
    }

    fn inputs(&self) -> PathBuf {
        self.case.folder.join("inputs.safetensors")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

fn call<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Output {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("nucleusc starts");
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    output
}

/// The message of a call that must fail: exit code 1, nothing on standard output, no trace of a panic.
fn fails<A: AsRef<std::ffi::OsStr> + std::fmt::Debug>(arguments: &[A]) -> String {
    let output = call(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown: String = format!("{arguments:?}").chars().take(300).collect();
    assert_eq!(output.status.code(), Some(1), "{shown}: {message}");
    assert!(output.stdout.is_empty(), "{shown}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(message.starts_with("error"), "{shown}: {message}");
    assert!(!message.contains("panicked") && !message.contains("failed inside"), "{shown}: {message}");
    assert!(message.len() < 1 << 16, "{shown}: a message of {} bytes", message.len());
    message
}

#[test]
fn absurd_config_values() {
    let model = nucleus_image();
    let nested = format!("num_layers={}", "[".repeat(5000));
    let factors = |factor: &str| format!("capacity_factors=[{}]", [factor; 32].join(","));
    let negative = factors("-1");
    let cases: &[(&str, &str)] = &[
        ("num_layers=1000000000", "capacity_factors"),
        ("num_layers=-1", "num_layers (-1)"),
        ("num_layers=99999999999999999999999", "num_layers"),
        (&nested, "num_layers"),
        ("attention_head_dim=0", "attention_head_dim (0)"),
        ("attention_head_dim=9223372036854775807", "64-bit"),
        ("num_experts=0", "gate.weight"),
        ("num_experts=-3", "gate.weight"),
        ("num_key_value_heads=0", "num_key_value_heads (0)"),
        ("num_key_value_heads=3", "num_key_value_heads (3)"),
        ("capacity_factors=[nan]", "capacity_factors"),
        ("capacity_factors=1e999", "1e999"),
        (&negative, "error"),
        ("axes_dims_rope=[-16,88,56]", "axes_dims_rope"),
        ("patch_size=99999999999", "patch_size"),
        ("moe_intermediate_dim=4611686018427387904", "moe_intermediate_dim"),
        ("mlp_ratio=1e300", "64-bit"),
        ("dense_moe_strategy=xyz", "xyz"),
        ("=3", "key=value"),
    ];
    for (setting, want) in cases {
        for command in [vec!["check"], vec!["compile", "-o", "/nonexistent/out.nuc"]] {
            let arguments = [command, vec![text(&model), "--set", setting]].concat();
            let message = fails(&arguments);
            assert!(message.contains(want), "{setting}: {message}");
        }
    }
}

#[test]
fn a_capacity_that_no_size_can_have() {
    // The text is right and so is its plan; only sizes can show that every expert would take more tokens than there are.
    let bench = Bench::new("first_dense");
    let out = bench.path("out.safetensors");
    for factor in ["1e308", "1e17", "1000"] {
        for backend in ["cpu", "interp"] {
            let mut arguments = bench.run(&bench.case.folder, &bench.inputs(), &out);
            let factors = format!("capacity_factors=[{}]", [factor; 32].join(","));
            arguments.extend(["--backend", backend, "--set", &factors].map(str::to_owned));
            fails(&arguments);
            assert!(!out.exists(), "{factor} leaves no output");
        }
    }
}

#[test]
fn broken_texts() {
    let bench = Bench::new("dense");
    let entry = |body: &str| format!("dim B;\nentry f(x: [B, 8] per step) -> (y: [B, 8]) {{\n{body}\n}}\n");
    let doubling: String =
        (1..60).map(|i| format!("fn g{i}(x: [8]) -> [8] {{ g{}(x) * g{0}(x + 1.5) }}\n", i - 1)).collect();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (entry(&format!("{}x{}", "(".repeat(200_000), ")".repeat(200_000))).into(), "nested"),
        (entry(&format!("{}x", "-".repeat(200_000))).into(), "nested"),
        (entry("x + yy\r").replace('\n', "\r\n").into(), "yy"),
        (entry("x\0").into(), "\\0"),
        (format!("\u{feff}{}", entry("x + yy")).into(), "feff"),
        (b"\xff\xfee\0n\0t\0r\0y\0".to_vec(), "UTF-8"),
        (vec![b' '; (16 << 20) + 1], "16777216"),
        (vec![b'@'; 16 << 20], "@@"),
        ("fn f() -> [4] {".repeat(1 << 20).into(), "expected"),
        (
            format!("fn g0(x: [8]) -> [8] {{ x + x }}\n{doubling}entry f(x: [8] per step) -> (y: [8]) {{ g59(x) }}")
                .into(),
            "nodes",
        ),
        (
            b"fn g(x: [4]) -> [4] { g(x) }\nentry f(x: [4] per step) -> (y: [4]) { g(x) }".to_vec(),
            "calls itself",
        ),
        (Vec::new(), "no entry"),
    ];
    for (bytes, want) in cases {
        let path = bench.write("model.ir", bytes);
        let message = fails(&["check", &path]);
        assert!(message.contains(want), "{want}: {message}");
        assert!(message.contains("model.ir"), "{want}: {message}");
    }
}

#[test]
fn long_programs_compile_in_time_that_does_not_explode() {
    let bench = Bench::new("dense");
    let program = |rounds: usize, body: &str, result: &str| {
        format!(
            "dim B;\nentry f(x: [B, 8] per step) -> (y: {result}) {{\n    var a = x;\n    for i in 0..{rounds} {{ a = {body}; }}\n    a\n}}\n"
        )
    };
    let cases = [
        // One expression of thousands of steps, each of which could join the kernel of the one before.
        program(3000, "a * x + i", "[B, 8]"),
        // Views that no loop can follow back.
        program(1000, "reshape(transpose(reshape(a, [8, B]), [1, 0]), [B, 8])", "[B, 8]"),
        // 2^30 pieces, were concatenations joined without bound.
        program(30, "concat(a, a, axis = 0)", "[1073741824 * B, 8]"),
    ];
    for case in cases {
        let path = bench.write("model.ir", &case);
        let output = call(&["compile", &path, "-o", text(&bench.path("out.nuc"))]);
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn sizes_beyond_memory() {
    let bench = Bench::new("dense");
    let model = bench.write(
        "sum.ir",
        "dim N, M;\nentry f(x: [N] per step) -> (y: [N, M]) { broadcast(reshape(x, [N, 1]), [N, M]) * 2 }\n",
    );
    let mut inputs = TensorMap::new();
    inputs.insert("x", HostTensor::from_f32(&[4], &[1.0; 4]).expect("a tensor"));
    let x = bench.path("x.safetensors");
    inputs.write(&x).expect("written");
    let out = bench.path("out.safetensors");
    let mut empty = TensorMap::new();
    std::mem::take(&mut empty).write(&bench.path("none.safetensors")).expect("written");
    let none = bench.path("none.safetensors");
    for (size, want) in [
        ("M=2147483648", "34359738368 bytes"),
        ("M=99999999999999999999", "not a whole number"),
        ("M=2147483649", "between 1 and"),
        ("M=0", "between 1 and"),
        ("M=-5", "between 1 and"),
        ("M", "NAME=SIZE"),
        ("Q=4", "no dim `Q`"),
    ] {
        let message = fails(&[
            "run",
            &model,
            "--weights",
            text(&none),
            "--inputs",
            text(&x),
            "--output",
            text(&out),
            "--dim",
            size,
        ]);
        assert!(message.contains(want), "{size}: {message}");
        assert!(!out.exists(), "{size} leaves no output");
    }
    let folder = text(&bench.case.folder);
    let image = nucleus_image();
    let wide = ["bench", text(&image), "--weights", folder, "--dim", "B=1", "--dim", "T=1"];
    for side in ["2147483648", "30000"] {
        let (h, w) = (format!("H={side}"), format!("W={side}"));
        fails(&[&wide[..], &["--dim", &h, "--dim", &w]].concat());
    }
}

#[test]
fn wrong_inputs() {
    let bench = Bench::new("dense");
    let right = TensorMap::read(&bench.inputs()).expect("the fixture's inputs");
    let shape = right.get("hidden_states").expect("an input").shape().to_vec();
    let elements: usize = shape.iter().product();
    let zeros =
        |shape: &[usize]| HostTensor::from_f32(shape, &vec![0.0; shape.iter().product()]).expect("a tensor");
    let cases: Vec<(&str, HostTensor, &str)> = vec![
        (
            "hidden_states",
            HostTensor::from_i32(&shape, &vec![1; elements]).expect("a tensor"),
            "hidden_states",
        ),
        ("hidden_states", zeros(&[]), "hidden_states"),
        ("hidden_states", zeros(&[0, 0, 0]), "dim"),
        ("hidden_states", zeros(&[shape[0], shape[1], shape[2] + 1]), "hidden_states"),
        ("hidden_states", zeros(&[1; 300]), "hidden_states"),
        ("timestep", zeros(&[shape[0] + 1]), "dim `B`"),
        ("encoder_hidden_states_mask", zeros(&[1, 1]), "encoder_hidden_states_mask"),
        ("sample", zeros(&[1]), "no input `sample`"),
        ("\u{1b}[31m", zeros(&[1]), "no input"),
    ];
    let out = bench.path("out.safetensors");
    for (name, tensor, want) in cases {
        let mut inputs = right.clone();
        inputs.insert(name, tensor);
        let path = bench.path("inputs.safetensors");
        inputs.write(&path).expect("written");
        for backend in ["cpu", "interp"] {
            let mut arguments = bench.run(&bench.case.folder, &path, &out);
            arguments.extend(["--backend".to_owned(), backend.to_owned()]);
            let message = fails(&arguments);
            assert!(message.contains(want), "{name} {backend}: {message}");
            assert!(!out.exists(), "{name} leaves no output");
        }
    }
    // Values may be anything: NaN in, no crash.
    let mut inputs = right.clone();
    inputs
        .insert("hidden_states", HostTensor::from_f32(&shape, &vec![f32::NAN; elements]).expect("a tensor"));
    let path = bench.path("inputs.safetensors");
    inputs.write(&path).expect("written");
    let output = call(&bench.run(&bench.case.folder, &path, &out));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn damaged_checkpoints() {
    let bench = Bench::new("dense");
    let out = bench.path("out.safetensors");
    let weights = |folder: &Path| folder.join("diffusion_pytorch_model.safetensors");
    let read = |path: &Path| std::fs::read(path).expect("readable");
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let replace = |name: &'static str, bytes: Vec<u8>| -> Damage<'_> {
        Box::new(move |folder: &Path| std::fs::write(folder.join(name), &bytes).expect("written"))
    };
    let edit = |change: fn(&mut TensorMap)| -> Damage<'_> {
        Box::new(move |folder: &Path| {
            let mut tensors = TensorMap::read(&weights(folder)).expect("the fixture's weights");
            change(&mut tensors);
            tensors.write(&weights(folder)).expect("written");
        })
    };
    let cases: Vec<(Damage<'_>, &str)> = vec![
        (
            Box::new(|folder| {
                let bytes = read(&weights(folder));
                std::fs::write(weights(folder), &bytes[..bytes.len() - 7]).expect("written");
            }),
            "diffusion_pytorch_model.safetensors",
        ),
        (
            Box::new(|folder| {
                let mut bytes = read(&weights(folder));
                bytes[7] = 0x7f;
                std::fs::write(weights(folder), bytes).expect("written");
            }),
            "diffusion_pytorch_model.safetensors",
        ),
        (replace("config.json", Vec::new()), "config.json"),
        (replace("config.json", b"[1, 2]".to_vec()), "config.json"),
        (replace("config.json", "[".repeat(1 << 20).into_bytes()), "config.json"),
        (replace("config.json", br#"{"num_layers": 1e400}"#.to_vec()), "config.json"),
        (replace("config.json", br#"{"num_layers": {"a": 1}}"#.to_vec()), "num_layers"),
        (replace("config.json", br#"{"sample_size": 32}"#.to_vec()), "sample_size"),
        (
            edit(|tensors| {
                tensors.remove("img_in.weight");
            }),
            "img_in.weight",
        ),
        (
            edit(|tensors| {
                tensors.insert("surplus", HostTensor::from_f32(&[1], &[0.0]).expect("a tensor"));
            }),
            "surplus",
        ),
        (
            edit(|tensors| {
                tensors
                    .insert("proj_out.weight", HostTensor::from_f32(&[3, 1], &[0.0; 3]).expect("a tensor"));
            }),
            "proj_out.weight",
        ),
        (
            edit(|tensors| {
                let shape = tensors.get("img_in.bias").expect("a weight").shape().to_vec();
                let ones = vec![1; shape.iter().product()];
                tensors.insert("img_in.bias", HostTensor::from_i32(&shape, &ones).expect("a tensor"));
            }),
            "img_in.bias",
        ),
        (
            edit(|tensors| {
                let shape = tensors.get("proj_out.weight").expect("a weight").shape().to_vec();
                tensors.insert("proj_out.weight", HostTensor::zeros(DType::I8, &shape).expect("a tensor"));
            }),
            "weight `proj_out.weight` is stored as I8",
        ),
    ];
    for (number, (damage, want)) in cases.iter().enumerate() {
        let folder = bench.checkpoint(&format!("damaged{number}"));
        damage(&folder);
        let message = fails(&bench.run(&folder, &bench.inputs(), &out));
        assert!(message.contains(want), "case {number}, {want}: {message}");
        assert!(!out.exists(), "case {number} leaves no output");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let bench = Bench::new("dense");
    let folder = bench.path("shards");
    std::fs::create_dir(&folder).expect("a writable folder");
    let index = r#"{"metadata": {}, "weight_map": {"img_in.weight": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), index).expect("written");
    assert!(fails(&["inspect", text(&folder)]).contains("model-00002-of-00002.safetensors"));
    let outside = index.replace("model-00002-of-00002", "../../etc/passwd");
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), outside).expect("written");
    assert!(fails(&["inspect", text(&folder)]).contains("passwd"));
}

#[test]
fn paths_that_are_not_what_they_should_be() {
    let bench = Bench::new("dense");
    let (model, inputs) = (nucleus_image(), bench.inputs());
    let folder = text(bench.folder.path()).to_owned();
    let empty = bench.write("empty.nuc", "");
    let blank = bench.write("empty.safetensors", "");
    for arguments in [
        vec!["check", "/"],
        vec!["check", &folder],
        vec!["check", ""],
        vec!["check", "/dev/zero"],
        vec!["check", text(&inputs)],
        vec!["inspect", "/dev/null"],
        vec!["inspect", &folder],
        vec!["inspect", &empty],
        vec!["inspect", &blank],
        vec!["inspect", text(&model)],
        vec!["compile", text(&model), "-o", "/nonexistent/out.nuc"],
        vec!["compile", text(&model), "-o", &folder],
        vec!["compile", text(&model), "-o", "out.nuc", "--emit", "all", "--emit-dir", "/dev/null/x"],
    ] {
        fails(&arguments);
    }
    let missing = bench.path("missing/out.safetensors");
    let message = fails(&bench.run(&bench.case.folder, &inputs, &missing));
    assert!(message.contains("missing"), "{message}");
    assert_eq!(
        std::fs::read_dir(bench.folder.path()).expect("readable").count(),
        2,
        "nothing is left behind"
    );
}

#[test]
fn the_output_may_replace_the_input() {
    let bench = Bench::new("dense");
    let both = bench.path("both.safetensors");
    std::fs::copy(bench.inputs(), &both).expect("copied");
    let output = call(&bench.run(&bench.case.folder, &both, &both));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(TensorMap::read(&both).expect("whole").get("sample").is_some());
}

#[test]
fn numbers_of_threads_and_repetitions() {
    let bench = Bench::new("dense");
    let out = bench.path("out.safetensors");
    let run = |threads: &str| {
        let mut arguments = bench.run(&bench.case.folder, &bench.inputs(), &out);
        arguments.extend(["--threads".to_owned(), threads.to_owned()]);
        arguments
    };
    assert!(fails(&run("0")).contains("--threads"));
    assert!(fails(&run("99999999999999999999999")).contains("--threads"));
    fails(&run("-1"));
    let many = call(&run("100000000"));
    assert!(many.status.success(), "{}", String::from_utf8_lossy(&many.stderr));
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let strange = std::ffi::OsStr::from_bytes(b"\xff\xfe.ir");
    fails(&[std::ffi::OsStr::new("check"), strange]);
    fails(&[std::ffi::OsStr::new("--\u{fffd}"), strange]);
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nucleusc"))
        .args(["compile", text(&nucleus_image()), "--set", "num_layers=4", "--json", "-o"])
        .arg(tempfile::tempdir().expect("a temporary folder").keep().join("out.nuc"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nucleusc starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.code().is_some(), "ended by a signal");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn artifacts_whose_hash_fits_but_whose_plan_is_nonsense() {
    let bench = Bench::new("dense");
    let artifact = bench.path("model.nuc");
    let weights = text(&bench.case.folder);
    let made = call(&["compile", text(&nucleus_image()), "--weights", weights, "-o", text(&artifact)]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (compiled, _) = Artifact::open(&artifact).expect("it was just written").into_parts();
    type Change = fn(&mut Compiled);
    let changes: &[(Change, &str)] = &[
        (|compiled| compiled.plans[0].launches[0].operands[0] = BufferId(1 << 30), "there is no buffer"),
        (|compiled| compiled.plans[0].launches[0].kernel = KernelId(u32::MAX), "there is no kernel"),
        (|compiled| compiled.plans[0].launches.clear(), "never written"),
        (
            |compiled| compiled.plans[0].buffers.iter_mut().for_each(|buffer| buffer.shape.clear()),
            "buffer b0",
        ),
        (|compiled| compiled.plans[0].kernels[0].size_args = u32::MAX, "size arguments"),
        (|compiled| compiled.plans[0].weights.clear(), "stands for nothing"),
        (
            |compiled| {
                for buffer in &mut compiled.plans[0].buffers {
                    if let Place::Arena { offset, .. } = &mut buffer.place {
                        *offset = Some(Dim::constant(0));
                    }
                }
            },
            "while both are in use",
        ),
        (|compiled| compiled.text.main.1 = "fn".to_owned(), "expected"),
    ];
    let out = bench.path("out.safetensors");
    for (number, (change, want)) in changes.iter().enumerate() {
        let mut compiled = compiled.clone();
        change(&mut compiled);
        let path = bench.path(&format!("changed{number}.nuc"));
        write_artifact(&path, &compiled, None, &mut |_, _| {}).expect("written");
        let mut arguments = bench.run(&bench.case.folder, &bench.inputs(), &out);
        arguments[1] = text(&path).to_owned();
        arguments.extend(["--entry".to_owned(), compiled.plans[0].entry.clone()]);
        let message = fails(&arguments);
        let named = message.contains("changed") && message.contains(&format!("changed{number}.nuc"));
        assert!(named && message.contains(want), "change {number}, {want}: {message}");
        assert!(!out.exists(), "change {number} leaves no output");
    }
}
