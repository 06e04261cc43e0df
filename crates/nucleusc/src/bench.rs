//! `nucleusc bench`: the time of an entry, whole runs one after the other, and of steps with a prepared prompt.

mod inputs;
pub(crate) mod measure;
pub(crate) mod profile;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use nucleus_ir::{Bindings, DType};
use nucleus_plan::Profile;
use nucleus_runtime::{Session, TensorMap};
use serde_json::json;

use crate::arguments::BenchArguments;
use crate::{report, run, source};
use measure::Measurement;

/// Runs the command.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.repeat > 0, "--repeat must be at least 1");
    let points = measure::points(&arguments.session.dims, &arguments.sweep)?;
    let source = source::open(&arguments.session)?;
    let dtype = source.options.dtype;
    let start = Instant::now();
    // The first point's, where it names all sizes.
    let sizes = points
        .first()
        .map(|dims| dims.iter().map(|(name, size)| (name.as_str(), *size)).collect::<Bindings>());
    let mut session = run::session(source, &arguments.session, arguments.backend, &|_| sizes.clone())?;
    let load = start.elapsed();
    let mut measurements = Vec::with_capacity(points.len());
    for dims in &points {
        let inputs = match &arguments.inputs {
            Some(path) => TensorMap::read(path)?,
            None => inputs::random_inputs(session.signature(), dims)?,
        };
        let taken = Measurement::take(&mut session, &inputs, dims, arguments.repeat)?;
        if let (Some(path), true) = (&arguments.trace, measurements.len() + 1 == points.len()) {
            let mut traced = Profile::default();
            session.run_profiled(&inputs, dims, Some(&mut traced))?;
            profile::write_trace(path, session.plan(), &traced, 1, &taken.bindings)?;
        }
        measurements.push(taken);
    }
    let text = match (arguments.json, measurements.as_slice()) {
        (true, list) => as_json(&session, dtype, load, list, arguments.profile)?,
        (false, [one]) => describe(&session, dtype, load, one, arguments.profile)?,
        (false, list) => table(&session, dtype, load, list, arguments.profile)?,
    };
    report::print(&text)
}

fn kinds(session: &Session, taken: &Measurement) -> Vec<profile::Kind> {
    profile::kinds(session.plan(), &taken.profile, taken.runs.len(), &taken.bindings, taken.limit())
}

/// One object with everything; a sweep lists its measurements in `sweep`.
fn as_json(
    session: &Session,
    dtype: DType,
    load: Duration,
    list: &[Measurement],
    with_kinds: bool,
) -> anyhow::Result<String> {
    let memory = session.memory_use();
    let mut values = list.iter().map(|taken| {
        let mut value = taken.json();
        if with_kinds {
            let kinds: Vec<_> = kinds(session, taken).iter().map(profile::Kind::json).collect();
            value["profile"] = json!(kinds);
        }
        value
    });
    let mut value = match list {
        [_] => values.next().context("there are no runs")?,
        _ => json!({ "sweep": values.collect::<Vec<_>>() }),
    };
    value["dtype"] = json!(dtype.name());
    value["quantised"] = json!(quantised(session));
    value["threads"] = json!(session.threads());
    value["device"] = json!(session.gpu().map(|gpu| gpu.device().name()));
    value["tiles"] =
        json!(session.tiles().map(|tiles| json!({ "measured": tiles.measured, "modelled": tiles.modelled })));
    value["load_s"] = json!(load.as_secs_f64());
    value["memory"] = json!({ "packed": memory.packed, "plain": memory.plain, "arenas": memory.arenas });
    Ok(value.to_string())
}

fn describe(
    session: &Session,
    dtype: DType,
    load: Duration,
    taken: &Measurement,
    with_kinds: bool,
) -> anyhow::Result<String> {
    let mut text = String::new();
    let entry = &session.plan().entry;
    writeln!(text, "{entry} in {}, {}, {}", types(session, dtype), machine(session), taken.sizes())?;
    let spread = |best: fn(f64, f64) -> f64| taken.runs.iter().copied().reduce(best).unwrap_or(0.0);
    writeln!(
        text,
        "median {:.4} s of {} runs ({:.4} to {:.4} s); a step with the prompt prepared {:.4} s; new sizes bound in {:.2} ms",
        taken.run(),
        taken.runs.len(),
        spread(f64::min),
        spread(f64::max),
        taken.step(),
        1e3 * taken.bind,
    )?;
    writeln!(
        text,
        "{:.1} GFLOP, {:.1} GFLOP/s, {:.0} % of the {:.0} GFLOP/s that multiply-adds in registers reach; at least {:.1} GB/s",
        taken.flops / 1e9,
        taken.flops / taken.run() / 1e9,
        100.0 * taken.fraction(),
        taken.limit() / 1e9,
        taken.bytes / taken.run() / 1e9,
    )?;
    if let Some(copy) = taken.copy() {
        writeln!(text, "copies in the GPU's memory reach {:.0} GB/s, read and written", copy / 1e9)?;
    }
    writeln!(text, "{}", loaded(session, load))?;
    if let Some(tiles) = session.tiles().filter(|tiles| tiles.measured > 0) {
        let all = tiles.measured + tiles.modelled;
        writeln!(text, "tiles of {} of {all} kernels of matrix products are measured ones", tiles.measured)?;
    }
    if with_kinds {
        text.push_str(&profile::table(&kinds(session, taken)));
    }
    Ok(text)
}

/// A line for each measurement of a sweep.
fn table(
    session: &Session,
    dtype: DType,
    load: Duration,
    list: &[Measurement],
    with_kinds: bool,
) -> anyhow::Result<String> {
    let mut text = String::new();
    let entry = &session.plan().entry;
    let types = types(session, dtype);
    writeln!(text, "{entry} in {types}, {}; {}", machine(session), loaded(session, load))?;
    let width = list.iter().map(|taken| taken.sizes().len()).max().unwrap_or(0);
    writeln!(
        text,
        "{:width$} {:>9} {:>9} {:>8} {:>10} {:>9} {:>9} {:>7} {:>10}",
        "sizes", "median s", "step s", "bind ms", "GFLOP", "GFLOP/s", "of limit", "GB/s", "arenas"
    )?;
    for taken in list {
        writeln!(
            text,
            "{:width$} {:9.4} {:9.4} {:8.2} {:10.1} {:9.1} {:7.0} % {:7.1} {:>10}",
            taken.sizes(),
            taken.run(),
            taken.step(),
            1e3 * taken.bind,
            taken.flops / 1e9,
            taken.flops / taken.run() / 1e9,
            100.0 * taken.fraction(),
            taken.bytes / taken.run() / 1e9,
            report::bytes(taken.arenas),
        )?;
    }
    for taken in list.iter().filter(|_| with_kinds) {
        write!(text, "\n{}\n{}", taken.sizes(), profile::table(&kinds(session, taken)))?;
    }
    Ok(text)
}

/// What computes: the number of threads, or the GPU.
fn machine(session: &Session) -> String {
    match session.gpu() {
        Some(gpu) => gpu.device().name().to_owned(),
        None => format!("{} threads", session.threads()),
    }
}

fn quantised(session: &Session) -> bool {
    session.plan().weights.iter().any(|(_, ty)| ty.dtype == DType::I8)
}

fn types(session: &Session, dtype: DType) -> String {
    if quantised(session) { format!("{dtype} with int8 weights") } else { dtype.to_string() }
}

fn loaded(session: &Session, load: Duration) -> String {
    let memory = session.memory_use();
    format!(
        "loaded in {}; memory: packed weights {}, other weights {}, arenas {}",
        report::duration(load),
        report::bytes(memory.packed),
        report::bytes(memory.plain),
        report::bytes(memory.arenas)
    )
}
