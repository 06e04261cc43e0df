//! `nucleusc train`, killed at any instant, loses nothing but the steps since its last checkpoint.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nucleus_tests::training::Run;

const STEPS: u64 = 150;
const KILLS: u64 = 20;

fn run() -> Run {
    Run::of("original")
        .with("steps = 6", &format!("steps = {STEPS}"))
        .with("[run]\n", "[run]\ncheckpoint_every = 1\nkeep = 2\nthreads = 1\n")
}

/// How a process that trains went.
struct Process {
    /// Lines that it printed, one for each step and one at its end.
    lines: usize,
    /// From its start to its first step.
    startup: Duration,
    /// From its first step to its end.
    steps: Duration,
}

/// Trains. With `kill` the process is killed that long after the end of that step, 0 for the start of the process.
fn train(run: &Run, kill: Option<(usize, Duration)>) -> Process {
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_nucleusc"))
        .args(["train", "--json"])
        .arg(run.write())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nucleusc starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let (mut lines, mut startup) = (0, Duration::ZERO);
    while kill.is_none_or(|(step, _)| lines < step) && output.next().is_some() {
        lines += 1;
        if lines == 1 {
            startup = start.elapsed();
        }
    }
    if let Some((_, wait)) = kill {
        // The instant of the kill is what this test varies.
        std::thread::sleep(wait);
        child.kill().expect("a child can be killed");
    }
    let status = child.wait().expect("the child ends");
    assert_eq!(status.success(), kill.is_none(), "{status}");
    Process { lines, startup, steps: start.elapsed() - startup }
}

fn files(run: &Run) -> Vec<Vec<u8>> {
    let folder = run.out().join(format!("checkpoint-{STEPS}"));
    let names = [
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "optimizer.safetensors",
        "trainer.json",
    ];
    names.map(|name| std::fs::read(folder.join(name)).expect("a complete checkpoint")).into()
}

/// The log without the times.
fn log(run: &Run) -> Vec<String> {
    let text = std::fs::read_to_string(run.out().join("log.jsonl")).expect("a log");
    text.lines().map(|line| line.split(",\"seconds\"").next().unwrap_or(line).to_owned()).collect()
}

#[test]
fn kills_at_any_instant_change_no_bit() {
    let whole = run();
    let undisturbed = train(&whole, None);
    assert_eq!(undisturbed.lines as u64, STEPS + 1);
    let step = undisturbed.steps / STEPS as u32;

    let killed = run();
    // A linear congruential generator spreads the instants.
    let mut state = 1u64;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    for _ in 0..KILLS {
        let after = below(5) as usize;
        let span = if after == 0 { undisturbed.startup } else { 2 * step };
        let wait = span.mul_f64(below(1000) as f64 / 1000.0);
        train(&killed, Some((after, wait)));
    }
    let rest = train(&killed, None);
    assert!(rest.lines > 1, "something was left to do");
    assert!((rest.lines as u64) < STEPS, "something was done before");
    assert!(files(&killed) == files(&whole), "other bits");
    assert_eq!(log(&killed), log(&whole));
    let left = std::fs::read_dir(killed.out()).expect("the folder of the run");
    let names: Vec<String> =
        left.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    let unfinished = names.iter().find(|name| name.contains("partial") || name.contains("replaced"));
    assert_eq!(unfinished, None, "{names:?}");
}
