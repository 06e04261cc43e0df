//! `nucleusc bench`: the time of an entry, whole runs one after the other, and of steps with a prepared prompt.

mod inputs;
mod profile;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use anyhow::Context;
use nucleus_cpu::Profile;
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_runtime::{Session, TensorMap};
use serde_json::json;

use crate::arguments::BenchArguments;
use crate::{report, run, source};

/// Times and what they are measured against.
struct Timings {
    /// Seconds of whole runs.
    runs: Vec<f64>,
    /// Seconds of steps with the prompt prepared.
    steps: Vec<f64>,
    /// FLOP/s of multiply-adds in registers on the same threads, measured between the runs.
    limits: Vec<f64>,
}

/// Runs the command.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.repeat > 0, "--repeat must be at least 1");
    let source = source::open(&arguments.session)?;
    let dtype = source.options.dtype;
    let start = Instant::now();
    let mut session = run::session(source, &arguments.session)?;
    let load = start.elapsed();
    let dims = &arguments.session.dims;
    let inputs = match &arguments.inputs {
        Some(path) => TensorMap::read(path)?,
        None => inputs::random_inputs(session.signature(), dims)?,
    };
    let bindings = session.signature().bind(&inputs, dims)?;
    let mut profile = Profile::default();
    let timings = time(&mut session, &inputs, dims, arguments.repeat, &mut profile)?;
    if let Some(path) = &arguments.trace {
        let mut traced = Profile::default();
        session.run_profiled(&inputs, dims, Some(&mut traced))?;
        profile::write_trace(path, session.plan(), &traced)?;
    }

    let middle = median(&timings.runs).context("there are no runs")?;
    let step = median(&timings.steps).context("there are no runs")?;
    let limit = median(&timings.limits).context("there are no runs")?;
    let (work, bytes) = work(&session, &bindings);
    let memory = session.memory_use();
    let kinds = arguments
        .profile
        .then(|| profile::kinds(session.plan(), &profile, timings.runs.len(), &bindings, limit));
    let quantised = session.plan().weights.iter().any(|(_, ty)| ty.dtype == DType::I8);
    if arguments.json {
        let value = json!({
            "dtype": dtype.name(),
            "quantised": quantised,
            "threads": session.threads(),
            "dims": bindings.iter().map(|(dim, size)| (dim.to_string(), size)).collect::<BTreeMap<_, _>>(),
            "load_s": load.as_secs_f64(),
            "runs_s": timings.runs,
            "median_s": middle,
            "step_median_s": step,
            "flops": work,
            "gflops": work as f64 / middle / 1e9,
            "limit_gflops": limit / 1e9,
            "fraction_of_limit": work as f64 / middle / limit,
            "bytes": bytes,
            "memory": { "packed": memory.packed, "plain": memory.plain, "arenas": memory.arenas },
            "profile": kinds.as_ref().map(|kinds| kinds.iter().map(profile::Kind::json).collect::<Vec<_>>()),
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    let sizes: Vec<String> = bindings.iter().map(|(dim, size)| format!("{dim}={size}")).collect();
    writeln!(
        text,
        "{} in {dtype}{}, {} threads, {}",
        session.plan().entry,
        if quantised { " with int8 weights" } else { "" },
        session.threads(),
        sizes.join(" ")
    )?;
    let spread = |best: fn(f64, f64) -> f64| timings.runs.iter().copied().reduce(best).unwrap_or(middle);
    writeln!(
        text,
        "median {middle:.4} s of {} runs ({:.4} to {:.4} s); a step with the prompt prepared {step:.4} s",
        timings.runs.len(),
        spread(f64::min),
        spread(f64::max),
    )?;
    writeln!(
        text,
        "{:.1} GFLOP, {:.1} GFLOP/s, {:.0} % of the {:.0} GFLOP/s that multiply-adds in registers reach; at least {:.1} GB/s",
        work as f64 / 1e9,
        work as f64 / middle / 1e9,
        100.0 * work as f64 / middle / limit,
        limit / 1e9,
        bytes as f64 / middle / 1e9,
    )?;
    writeln!(
        text,
        "loaded in {}; memory: packed weights {}, other weights {}, arenas {}",
        report::duration(load),
        report::bytes(memory.packed),
        report::bytes(memory.plain),
        report::bytes(memory.arenas)
    )?;
    if let Some(kinds) = kinds {
        text.push_str(&profile::table(&kinds));
    }
    report::print(&text)
}

fn time(
    session: &mut Session,
    inputs: &TensorMap,
    dims: &[(String, i64)],
    repeat: usize,
    profile: &mut Profile,
) -> anyhow::Result<Timings> {
    let (mut fixed, mut changing) = (TensorMap::new(), TensorMap::new());
    for (name, tensor) in inputs.iter() {
        let per_step =
            session.signature().inputs.iter().any(|spec| spec.name == *name && spec.rate == Rate::Step);
        let map = if per_step { &mut changing } else { &mut fixed };
        map.insert(name.clone(), tensor.clone());
    }
    session.run(inputs, dims)?;
    let bindings = session.signature().bind(inputs, dims)?;
    let sizes: Vec<(String, i64)> = bindings.iter().map(|(dim, size)| (dim.to_string(), size)).collect();
    let prompt = session.prepare(&fixed, &sizes)?;
    let mut timings = Timings { runs: Vec::new(), steps: Vec::new(), limits: Vec::new() };
    for _ in 0..repeat {
        timings.limits.push(session.peak_flops());
        let start = Instant::now();
        session.run_profiled(inputs, dims, Some(&mut *profile))?;
        timings.runs.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        session.step(&prompt, &changing)?;
        timings.steps.push(start.elapsed().as_secs_f64());
    }
    Ok(timings)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

/// Floating-point operations and least bytes of one run: everything but the stage `model`.
fn work(session: &Session, bindings: &Bindings) -> (i64, i64) {
    let launches = session.plan().launches.iter().filter(|launch| launch.stage != Rate::Model);
    launches.fold((0, 0), |(flops, bytes): (i64, i64), launch| {
        let more = |dim: &nucleus_ir::Dim| dim.eval(bindings).unwrap_or(0);
        (flops.saturating_add(more(&launch.flops)), bytes.saturating_add(more(&launch.bytes)))
    })
}
