//! `nucleusc` as a user meets it: what it prints, what it writes, how it fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::parity::{Case, nucleus_image, relative_error};

fn nucleusc() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nucleusc"))
}

fn run<const N: usize>(arguments: [&str; N]) -> Output {
    nucleusc().args(arguments).output().expect("nucleusc starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds<const N: usize>(arguments: [&str; N]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "", "{arguments:?} is quiet on standard error when it succeeds");
    stdout(&output)
}

/// The message of a call that fails with exit code 1 and prints nothing on standard output.
fn fails<const N: usize>(arguments: [&str; N]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output), "", "{arguments:?}");
    stderr(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

fn model() -> String {
    text(&nucleus_image()).to_owned()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn dims(case: &Case) -> Vec<String> {
    case.dims.iter().flat_map(|(dim, size)| ["--dim".to_owned(), format!("{dim}={size}")]).collect()
}

fn run_case(case: &Case, model: &str, weights: Option<&str>, extra: &[&str], output: &Path) -> Output {
    let inputs = case.folder.join("inputs.safetensors");
    let mut command = nucleusc();
    command.args(["run", model, "--inputs", text(&inputs), "--output", text(output)]);
    command.args(weights.into_iter().flat_map(|weights| ["--weights", weights])).args(dims(case)).args(extra);
    command.output().expect("nucleusc starts")
}

fn sample(path: &Path) -> Vec<f32> {
    TensorMap::read(path)
        .expect("the output is a safetensors file")
        .get("sample")
        .expect("sample")
        .to_f32_vec()
}

#[test]
fn check_counts_the_parameters_of_the_released_model() {
    let out = succeeds(["check", &model()]);
    assert!(out.lines().any(|line| line == "parameters: 16922679296"), "{out}");
    let json: serde_json::Value =
        serde_json::from_str(&succeeds(["check", &model(), "--json"])).expect("JSON");
    assert_eq!(json["parameters"], 16_922_679_296_u64);
    assert_eq!(json["entries"][0]["name"], "velocity");
}

#[test]
fn check_takes_config_values_from_files_and_the_command_line() {
    let config = Case::named("dense").folder.join("config.json");
    let from_file = succeeds(["check", &model(), "--config", text(&config)]);
    assert!(!from_file.contains("16922679296"), "{from_file}");
    let smaller = succeeds(["check", &model(), "--set", "num_layers=3"]);
    assert!(!smaller.contains("16922679296"), "{smaller}");
}

#[test]
fn compile_writes_an_artifact_that_runs_with_the_same_bits() {
    let case = Case::named("gqa_4_2");
    let folder = scratch();
    let artifact = folder.path().join("model.nuc");
    let report = succeeds(["compile", &model(), "--weights", text(&case.folder), "-o", text(&artifact)]);
    for word in ["parameters: ", "distinct", "FLOPs", "bytes", "arenas", "passes: elaborate"] {
        assert!(report.contains(word), "no `{word}` in {report}");
    }
    let (direct, compiled) =
        (folder.path().join("direct.safetensors"), folder.path().join("compiled.safetensors"));
    let output = run_case(&case, &model(), Some(text(&case.folder)), &[], &direct);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run_case(&case, text(&artifact), None, &[], &compiled);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read(direct).expect("written"), std::fs::read(compiled).expect("written"));

    let inspected = succeeds(["inspect", text(&artifact)]);
    assert!(inspected.contains("transformer_blocks.0.attn.to_q.weight"), "{inspected}");
    let plan = succeeds(["inspect", text(&artifact), "--plan"]);
    assert!(plan.contains("launch k"), "{plan}");
}

#[test]
fn run_meets_diffusers_with_both_backends() {
    let case = Case::named("odd_grid");
    let folder = scratch();
    for backend in ["cpu", "interp"] {
        let output = folder.path().join(format!("{backend}.safetensors"));
        let ran = run_case(&case, &model(), Some(text(&case.folder)), &["--backend", backend], &output);
        assert!(ran.status.success(), "{backend}: {}", stderr(&ran));
        let error = relative_error(&sample(&output), &case.expected("sample"));
        assert!(error <= 1e-5, "{backend}: {error:.1e}");
    }
}

#[test]
fn every_stage_is_written_where_asked() {
    let folder = scratch();
    let (artifact, stages) = (folder.path().join("model.nuc"), folder.path().join("stages"));
    succeeds([
        "compile",
        &model(),
        "--set",
        "num_layers=4",
        "-o",
        text(&artifact),
        "--emit",
        "all",
        "--emit-dir",
        text(&stages),
    ]);
    let mut names: Vec<String> = std::fs::read_dir(&stages)
        .expect("the folder is made")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names.first().map(String::as_str), Some("velocity.00-elaborate.ir"), "{names:?}");
    assert!(names.last().is_some_and(|name| name.ends_with("allocate.plan")), "{names:?}");
    // A printed stage is a model in the language.
    let simplified = stages.join("velocity.02-simplify.ir");
    assert!(succeeds(["check", text(&simplified)]).contains("verified"));
    // A printed plan says what each launch should cost, and reads back all the same.
    let plan = std::fs::read_to_string(stages.join(names.last().expect("names"))).expect("a text");
    assert!(plan.starts_with("// Predicted for the machine `cpu`"), "{plan}");
    let launches: Vec<&str> = plan.lines().filter(|line| line.trim_start().starts_with("launch ")).collect();
    let expected = ["arithmetic", "memory", "latency"];
    assert!(!launches.is_empty());
    assert!(launches.iter().all(|line| expected.iter().any(|bound| line.ends_with(bound))), "{launches:?}");
    let read = nucleus_plan::text::parse_plan(&plan).expect("the text reads back");
    assert_eq!(read.launches.len(), launches.len());
    assert!(succeeds(["inspect", text(&artifact), "--plan"]).contains("// Predicted"));
}

#[test]
fn bench_measures_one_size_or_walks_several() {
    let (model, weights) = (model(), text(&Case::named("dense").folder).to_owned());
    let common = ["bench", &model, "--weights", &weights, "--dim", "B=1", "--dim", "T=3", "--repeat", "2"];
    let bench = |extra: &[&str]| {
        let output = nucleusc().args(common).args(extra).output().expect("nucleusc starts");
        assert!(output.status.success(), "{extra:?}: {}", stderr(&output));
        stdout(&output)
    };
    let one = bench(&["--dim", "H=2", "--dim", "W=3", "--profile"]);
    assert!(one.contains("H=2") && one.contains("new sizes bound in") && one.contains("matmul"), "{one}");
    let swept = bench(&["--sweep", "H=2,4,3", "--sweep", "W=3,2,5"]);
    let has = |sizes: &str| swept.lines().any(|line| line.contains(sizes));
    assert!(has("H=2 T=3 W=3") && has("H=4 T=3 W=2") && has("H=3 T=3 W=5"), "{swept}");
    let json: serde_json::Value =
        serde_json::from_str(&bench(&["--sweep", "H=2,4", "--dim", "W=2", "--json"])).expect("JSON");
    let flops = |at: usize| json["sweep"][at]["flops"].as_f64().expect("a number");
    assert!(flops(1) > 1.5 * flops(0), "{json}");
    let message =
        stderr(&nucleusc().args(common).args(["--sweep", "H=2,4", "--sweep", "W=2"]).output().unwrap());
    assert!(message.contains("walked together"), "{message}");
}

#[test]
fn help_teaches() {
    let help = succeeds(["--help"]);
    for word in ["check", "compile", "run", "inspect", "Examples:"] {
        assert!(help.contains(word), "no `{word}` in {help}");
    }
    for command in ["check", "compile", "run", "bench", "inspect"] {
        assert!(succeeds([command, "--help"]).contains("Examples:"), "{command}");
    }
}

#[test]
fn errors_point_into_the_text() {
    let folder = scratch();
    let path = folder.path().join("model.ir");
    std::fs::write(&path, "entry f(x: [4] per step) -> (y: [4]) {\n    x + yy\n}\n").expect("written");
    let message = fails(["check", text(&path)]);
    assert!(message.starts_with("error"), "{message}");
    assert!(message.contains("yy") && message.contains("model.ir:2"), "{message}");
}

#[test]
fn mistakes_are_named_with_the_way_out() {
    let case = Case::named("dense");
    let folder = scratch();
    let out = folder.path().join("out.safetensors");
    let weights = text(&case.folder);
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--set", "num_layerz=3"], "num_layers"),
        (vec!["--set", "num_layers"], "key=value"),
        (vec!["--set", "num_layers=true"], "num_layers"),
        (vec!["--set", "num_layers=1000000000"], "num_layers"),
        (vec!["--dim", "Q=3"], "no dim `Q`"),
        (vec!["--dim", "B=7"], "dim `B`"),
        (vec!["--dim", "T=0"], "dim `T`"),
        (vec!["--entry", "lost"], "velocity"),
    ];
    for (extra, want) in cases {
        let output = run_case(&case, &model(), Some(weights), &extra, &out);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {message}");
        assert!(message.contains(want), "{extra:?}: {message}");
        assert!(!out.exists(), "{extra:?} leaves no output");
    }
    let missing = run_case(&case, &model(), None, &[], &out);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("--weights"), "{}", stderr(&missing));
    assert!(fails(["check", "no-such-file.ir"]).contains("no-such-file.ir"));
    assert!(fails(["check"]).contains("Usage"));
    assert!(
        fails(["compile", &model(), "-o", text(&out), "--emit", "nothing", "--emit-dir", "x"])
            .contains("nothing")
    );
}

#[test]
fn another_models_weights_and_inputs_are_refused() {
    let (dense, gqa) = (Case::named("dense"), Case::named("gqa_4_1"));
    let folder = scratch();
    let out = folder.path().join("out.safetensors");
    // The config of one checkpoint with the weights of another.
    let config = gqa.folder.join("config.json");
    let output = run_case(&dense, &model(), Some(text(&dense.folder)), &["--config", text(&config)], &out);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does not fit the model"), "{}", stderr(&output));
    // The outputs of a run as the inputs of the next.
    let wrong = dense.folder.join("expected.safetensors");
    let message = fails([
        "run",
        &model(),
        "--weights",
        text(&dense.folder),
        "--inputs",
        text(&wrong),
        "--output",
        text(&out),
    ]);
    assert!(message.contains("no input `sample`"), "{message}");
}

#[test]
fn broken_artifacts_are_refused() {
    let folder = scratch();
    let artifact = folder.path().join("model.nuc");
    succeeds(["compile", &model(), "--set", "num_layers=1", "-o", text(&artifact)]);
    let bytes = std::fs::read(&artifact).expect("written");
    let broken = folder.path().join("broken.nuc");
    // One flipped bit in every region of the file, and truncations.
    let step = bytes.len() / 24;
    for position in (0..bytes.len()).step_by(step.max(1)) {
        let mut copy = bytes.clone();
        copy[position] ^= 0x10;
        std::fs::write(&broken, &copy).expect("written");
        let output = run(["inspect", text(&broken)]);
        assert_eq!(output.status.code(), Some(1), "bit flip at {position}: {}", stdout(&output));
        std::fs::write(&broken, &bytes[..position]).expect("written");
        assert_eq!(run(["inspect", text(&broken)]).status.code(), Some(1), "cut at {position}");
    }
    let tensors = Case::named("dense").folder.join("inputs.safetensors");
    let renamed: PathBuf = folder.path().join("tensors.nuc");
    std::fs::copy(tensors, &renamed).expect("copied");
    assert!(fails(["inspect", text(&renamed)]).contains("not a compiled model"));
}

/// A model with one weight that is large enough to be quantised, and its checkpoint.
fn projection(folder: &Path) -> (String, String, String) {
    let model = folder.join("projection.ir");
    let source = "use std { linear };\ndim B, S;\nentry project(x: [B, S, 1024] per step) -> (y: [B, S, 1024]) {\n    linear(x, \"proj\", out = 1024)\n}\n";
    std::fs::write(&model, source).expect("a writable folder");
    let values =
        |count: usize| -> Vec<f32> { (0..count).map(|i| ((i * 7919) % 2003) as f32 / 1e5 - 0.01).collect() };
    let mut weights = TensorMap::new();
    let weight = HostTensor::from_f32(&[1024, 1024], &values(1 << 20)).expect("a tensor");
    weights.insert("proj.weight", weight);
    weights.insert("proj.bias", HostTensor::from_f32(&[1024], &values(1024)).expect("a tensor"));
    let checkpoint = folder.join("model.safetensors");
    weights.write(&checkpoint).expect("a writable folder");
    let mut inputs = TensorMap::new();
    inputs.insert("x", HostTensor::from_f32(&[1, 3, 1024], &values(3 * 1024)).expect("a tensor"));
    let input = folder.join("inputs.safetensors");
    inputs.write(&input).expect("a writable folder");
    (text(&model).to_owned(), text(&checkpoint).to_owned(), text(&input).to_owned())
}

#[test]
fn quantised_artifacts_run_like_weights_quantised_at_load() {
    let folder = scratch();
    let (model, weights, inputs) = projection(folder.path());
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    let (artifact, plain) = (path("int8.nuc"), path("plain.nuc"));
    let report = succeeds(["compile", &model, "--weights", &weights, "--quantize", "int8", "-o", &artifact]);
    assert!(report.contains("large weights in int8"), "{report}");
    succeeds(["compile", &model, "--weights", &weights, "-o", &plain]);
    let size = |path: &str| std::fs::metadata(path).expect("written").len();
    assert!(size(&artifact) < (1 << 20) + (1 << 16) && size(&plain) > 4 << 20);

    let inspected = succeeds(["inspect", &artifact]);
    for word in
        ["int8, with a scale per output channel", "I8     [1024, 1024]  proj.weight", "F32    [1024, 1]"]
    {
        assert!(inspected.contains(word), "no `{word}` in {inspected}");
    }
    let plan = succeeds(["inspect", &artifact, "--plan"]);
    assert!(plan.contains("weight \"proj.weight\": i8[1024, 1024];"), "{plan}");

    let y = |name: &str, arguments: &[&str]| {
        let output = path(name);
        let ran =
            nucleusc().arg("run").args(arguments).args(["--inputs", &inputs, "--output", &output]).output();
        let ran = ran.expect("nucleusc starts");
        assert!(ran.status.success(), "{name}: {}", stderr(&ran));
        TensorMap::read(Path::new(&output)).expect("written").get("y").expect("an output").to_f32_vec()
    };
    let stored = y("stored", &[&artifact]);
    assert_eq!(stored, y("loaded", &[&model, "--weights", &weights, "--quantize", "int8"]));
    assert_eq!(stored, y("given", &[&artifact, "--weights", &weights]), "the artifact's plan, other weights");
    assert!(relative_error(&y("interp", &[&artifact, "--backend", "interp"]), &stored) < 1e-5);
    let exact = y("exact", &[&model, "--weights", &weights]);
    let error = relative_error(&stored, &exact);
    assert!(error > 1e-5 && error < 0.02, "{error}");
    assert_eq!(y("plain", &[&plain]), exact);

    let message = fails(["bench", &plain, "--quantize", "int8", "--dim", "B=1", "--dim", "S=2"]);
    assert!(message.contains("is compiled without quantisation"), "{message}");
}

#[test]
fn random_weights_need_no_file() {
    let folder = scratch();
    let (model, _, inputs) = projection(folder.path());
    let sizes = ["--dim", "B=1", "--dim", "S=5"];
    let bench = |extra: &[&str]| {
        let ran =
            nucleusc().args(["bench", &model, "--repeat", "1", "--json"]).args(sizes).args(extra).output();
        let ran = ran.expect("nucleusc starts");
        assert!(ran.status.success(), "{extra:?}: {}", stderr(&ran));
        serde_json::from_str::<serde_json::Value>(&stdout(&ran)).expect("JSON")
    };
    let quantised = bench(&["--weights", "random", "--quantize", "int8"]);
    assert_eq!((&quantised["dtype"], &quantised["quantised"]), (&"bf16".into(), &true.into()));
    assert_eq!(bench(&["--weights", "random:7", "--dtype", "f32"])["dtype"], "f32");
    let message = fails(["bench", &model, "--weights", "random:x", "--dim", "B=1", "--dim", "S=5"]);
    assert!(message.contains("`x` is not a seed"), "{message}");

    // The same weights in every type, so the same answer up to rounding.
    let y = |name: &str, weights: &str, extra: &[&str]| {
        let output = text(&folder.path().join(name)).to_owned();
        let mut run = nucleusc();
        run.args(["run", &model, "--weights", weights, "--inputs", &inputs, "--output", &output]).args(extra);
        let ran = run.output().expect("nucleusc starts");
        assert!(ran.status.success(), "{name}: {}", stderr(&ran));
        TensorMap::read(Path::new(&output)).expect("written").get("y").expect("an output").to_f32_vec()
    };
    let float = y("float", "random:1", &["--dtype", "f32"]);
    assert!(relative_error(&y("int8", "random:1", &["--dtype", "f32", "--quantize", "int8"]), &float) < 1e-5);
    assert!(relative_error(&y("other", "random:2", &["--dtype", "f32"]), &float) > 0.1);
}

#[test]
fn weights_are_asked_for_where_a_model_has_some() {
    let folder = scratch();
    let plain = folder.path().join("plain.ir");
    std::fs::write(&plain, "entry double(x: [4] per step) -> (y: [4]) { x + x }").expect("written");
    assert!(succeeds(["bench", text(&plain), "--repeat", "1"]).contains("double in f32"));
    let linear = folder.path().join("linear.ir");
    let model = "use std { linear };\nentry layer(x: [2, 4] per step) -> (y: [2, 3]) { linear(x, \"layer\", out = 3, bias = false) }";
    std::fs::write(&linear, model).expect("written");
    let message = fails(["bench", text(&linear)]);
    assert!(message.contains("has weights, such as `layer.weight`"), "{message}");
}

#[test]
fn a_session_does_not_run_what_trains() {
    let folder = scratch();
    let (model, artifact) = (folder.path().join("loss.ir"), folder.path().join("loss.nuc"));
    let loss = "use std { linear };\nentry loss(x: [4] per step) -> (loss: []) {\n    reduce_sum(reshape(linear(reshape(x, [1, 4]), \"layer\", out = 3, bias = false), [3]), axis = 0)\n}";
    std::fs::write(&model, loss).expect("written");
    succeeds(["compile", text(&model), "--dtype", "f32", "--gradients", "-o", text(&artifact)]);
    let message = fails(["bench", text(&artifact), "--weights", "random"]);
    assert!(message.contains("weight `layer.weight` is under training"), "{message}");
}
