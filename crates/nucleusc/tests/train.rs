//! `nucleusc train` as a user meets it.

use std::path::Path;
use std::process::{Command, Output};

use nucleus_tests::training::Run;

fn train(recipe: &Path, extra: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
    command.arg("train").arg(recipe).args(extra).output().expect("nucleusc starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(recipe: &Path, extra: &[&str]) -> String {
    let output = train(recipe, extra);
    assert!(output.status.success(), "{extra:?}: {}", stderr(&output));
    stdout(&output)
}

/// The message of a call that fails with exit code 1 and prints nothing on standard output.
fn fails(recipe: &Path, extra: &[&str]) -> String {
    let output = train(recipe, extra);
    assert_eq!(output.status.code(), Some(1), "{extra:?}: {}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output), "", "{extra:?}");
    stderr(&output)
}

#[test]
fn help_teaches() {
    for command in ["train", "grad"] {
        let output = Command::new(env!("CARGO_BIN_EXE_nucleusc")).args([command, "--help"]).output();
        let help = stdout(&output.expect("nucleusc starts"));
        assert!(help.contains("Examples:") && help.contains(&format!("nucleusc {command} ")), "{help}");
    }
}

#[test]
fn a_run_writes_its_log_its_curve_and_a_checkpoint() {
    let run = Run::of("original");
    let said = succeeds(&run.write(), &[]);
    assert!(said.contains("reached step 6 in") && said.contains("run"), "{said}");
    for file in [
        "log.jsonl",
        "loss.png",
        "checkpoint-6/trainer.json",
        "checkpoint-6/optimizer.safetensors",
        "checkpoint-6/transformer/config.json",
        "checkpoint-6/transformer/diffusion_pytorch_model.safetensors",
    ] {
        assert!(run.out().join(file).is_file(), "no `{file}`");
    }
    let log = std::fs::read_to_string(run.out().join("log.jsonl")).expect("a log");
    let losses = run.expected_column("loss");
    assert_eq!(log.lines().count(), losses.len());
    for (line, want) in log.lines().zip(losses) {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let loss = line["loss"].as_f64().expect("a number");
        assert!((loss / want - 1.0).abs() <= 1e-5, "{loss} instead of {want}");
    }
    // Nothing is left to do, and it is said so.
    let again = train(&run.write(), &[]);
    assert!(again.status.success());
    assert!(stderr(&again).contains("step 6 is reached already"), "{}", stderr(&again));
    // A longer recipe goes on.
    let longer = run.with("steps = 6", "steps = 7");
    assert!(succeeds(&longer.write(), &[]).contains("reached step 7"));
}

#[test]
fn json_is_a_line_for_each_step_and_one_at_the_end() {
    let run = Run::of("original").with("steps = 6", "steps = 2");
    let said = succeeds(&run.write(), &["--json"]);
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert_eq!((&lines[0]["step"], &lines[1]["step"]), (&1.into(), &2.into()));
    assert!(lines[0]["loss"].is_f64() && lines[0]["grad_norm"].is_f64() && lines[0]["lr"].is_f64());
    assert_eq!((&lines[2]["from"], &lines[2]["reached"]), (&0.into(), &2.into()));
    assert_eq!(lines[2]["stopped"], false);
}

#[test]
fn a_check_trains_nothing() {
    let run = Run::of("match_rms_adamw");
    let said = succeeds(&run.write(), &["--check"]);
    assert!(said.contains("6 steps in 1 stage,") && said.contains("ready"), "{said}");
    assert!(!run.out().exists());
}

#[test]
fn a_bench_times_steps_and_writes_nothing() {
    let run = Run::of("original");
    let json: serde_json::Value =
        serde_json::from_str(&succeeds(&run.write(), &["--bench", "1", "--json", "--profile"]))
            .expect("JSON");
    let number = |name: &str| json[name].as_f64().unwrap_or_else(|| panic!("no `{name}` in {json}"));
    let (step, loss) = (number("step_seconds"), number("forward_backward_seconds"));
    assert!((loss + number("optimizer_seconds") - step).abs() <= 1e-9);
    let fraction = number("flops") / loss / number("peak_flops");
    assert!((fraction / number("fraction_of_limit") - 1.0).abs() <= 1e-9 && fraction > 0.0 && fraction < 1.0);
    // The operations by kind of kernel are all operations.
    let kinds = json["profile"].as_array().expect("a list");
    let total: f64 = kinds.iter().map(|kind| kind["flops"].as_f64().expect("a number")).sum();
    assert!((total / number("flops") - 1.0).abs() <= 1e-9, "{json}");
    for name in ["attention_grad f32", "grouped_matmul f32", "matmul f32", "expert_choice"] {
        assert!(kinds.iter().any(|kind| kind["kernel"] == name), "no `{name}` in {json}");
    }
    // What the optimisers' programs take is most of their time, and no more than it.
    let programs = json["optimizer_profile"].as_array().expect("a list");
    let name = |program: &serde_json::Value| program["program"].as_str().expect("a name").to_owned();
    let names: Vec<String> = programs.iter().map(name).collect();
    assert!(names.iter().any(|name| name == "gradient norm") && names.iter().any(|name| name == "adamw"));
    assert!(names.iter().any(|name| name.starts_with("muon ")), "{names:?}");
    let seconds = |kind: &serde_json::Value| kind["seconds"].as_f64().expect("a number");
    let of_program = |program: &serde_json::Value| -> f64 {
        program["profile"].as_array().expect("a list").iter().map(seconds).sum()
    };
    let launches: f64 = programs.iter().map(of_program).sum();
    assert!(launches > 0.0 && launches <= number("optimizer_seconds"), "{json}");
    let said = succeeds(&run.write(), &["--bench", "2", "--profile"]);
    for part in
        ["forward and backward", "optimisers", "% of the", "predicted s", "attention_grad", "gradient norm"]
    {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    assert!(!run.out().exists());
    assert!(fails(&run.write(), &["--bench", "0"]).contains("--bench must be at least 1"));
    assert!(fails(&run.write(), &["--profile"]).contains("--bench"));
    assert!(fails(&run.write(), &["--bench", "1", "--check"]).contains("cannot be used with"));
}

#[test]
fn mistakes_in_recipes_are_named_with_their_place() {
    let changed = |part: &str, replacement: &str| Run::of("original").with(part, replacement);
    let cases = [
        (
            changed("warmup_steps = 2", "warmup_stepz = 2"),
            vec!["recipe.toml:17", "warmup_stepz", "warmup_steps"],
        ),
        (changed("[objective]", "[objektive]"), vec!["objektive"]),
        (changed("steps = 6", "steps = 0"), vec!["steps"]),
        (changed("dtype = \"f32\"", "dtype = \"f16\""), vec!["f16", "bf16"]),
        (changed("path = \"batches\"", "path = \"nowhere\""), vec!["nowhere"]),
        (changed("checkpoint = \"transformer\"", "checkpoint = \"nowhere\""), vec!["nowhere"]),
        (changed("checkpoint = \"transformer\"", "checkpoint = \"batches\""), vec!["batches"]),
        (changed("betas = [0.8, 0.9]", "betas = [0.8, 1.0]"), vec!["betas"]),
        (changed("[model]\n", "[model]\nir = \"no.ir\"\n"), vec!["no.ir"]),
    ];
    for (run, parts) in cases {
        let message = fails(&run.write(), &["--check"]);
        assert!(message.starts_with("error"), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "no {parts:?} in {message}");
        assert!(!run.out().exists());
    }
    assert!(fails(Path::new("no-such-recipe.toml"), &[]).contains("no-such-recipe.toml"));
}

#[test]
fn batches_that_do_not_fit_are_named() {
    use nucleus_runtime::HostTensor;
    let run = Run::of("original");
    run.change_batch("000.safetensors", |tensors| {
        let text = tensors.get("encoder_hidden_states").expect("a batch has text");
        let [items, length, _] = text.shape()[..] else { panic!("text has three axes") };
        let other = HostTensor::zeros(nucleus_ir::DType::F32, &[items, length, 7]).expect("a tensor");
        tensors.insert("encoder_hidden_states", other);
    });
    let message = fails(&run.write(), &[]);
    assert!(message.contains("step 1") && message.contains("encoder_hidden_states"), "{message}");
    let run = Run::of("original");
    run.change_batch("000.safetensors", |tensors| {
        tensors.remove("latents");
    });
    let message = fails(&run.write(), &[]);
    assert!(message.contains("000.safetensors") && message.contains("latents"), "{message}");
}
