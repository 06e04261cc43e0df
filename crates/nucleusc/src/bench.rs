//! `nucleusc bench`: the time of an entry, whole runs one after the other.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use anyhow::Context;
use nucleus_cpu::Profile;
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_runtime::inputs::evaluated_shape;
use nucleus_runtime::{HostTensor, InputSpec, Session, Signature, TensorMap};
use serde_json::json;

use crate::arguments::BenchArguments;
use crate::{report, run, source};

/// Runs the command.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.repeat > 0, "--repeat must be at least 1");
    let source = source::open(&arguments.session)?;
    let dtype = source.dtype;
    let start = Instant::now();
    let mut session = run::session(source, &arguments.session)?;
    let load = start.elapsed();
    let inputs = match &arguments.inputs {
        Some(path) => TensorMap::read(path)?,
        None => random_inputs(session.signature(), &arguments.session.dims)?,
    };
    let bindings = session.signature().bind(&inputs, &arguments.session.dims)?;
    session.run(&inputs, &arguments.session.dims)?;
    let mut profile = arguments.profile.then(Profile::default);
    let mut runs = Vec::new();
    for _ in 0..arguments.repeat {
        let start = Instant::now();
        session.run_profiled(&inputs, &arguments.session.dims, profile.as_mut())?;
        runs.push(start.elapsed().as_secs_f64());
    }
    let median = median(&runs).context("there are no runs")?;
    let work = flops(&session, &bindings);
    let memory = session.memory_use();
    let kinds = profile.as_ref().map(|profile| profile.by_anchor(session.plan()));
    if arguments.json {
        let value = json!({
            "dtype": dtype.name(),
            "threads": session.threads(),
            "dims": bindings.iter().map(|(dim, size)| (dim.to_string(), size)).collect::<BTreeMap<_, _>>(),
            "load_s": load.as_secs_f64(),
            "runs_s": runs,
            "median_s": median,
            "flops": work,
            "gflops": work as f64 / median / 1e9,
            "memory": { "packed": memory.packed, "plain": memory.plain, "arenas": memory.arenas },
            "profile": kinds.as_ref().map(|kinds| kinds.iter().map(|(kind, (seconds, launches))| {
                json!({ "kernel": kind, "launches": launches, "seconds": seconds / runs.len() as f64 })
            }).collect::<Vec<_>>()),
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    let sizes: Vec<String> = bindings.iter().map(|(dim, size)| format!("{dim}={size}")).collect();
    writeln!(
        text,
        "{} in {dtype}, {} threads, {}",
        session.plan().entry,
        session.threads(),
        sizes.join(" ")
    )?;
    let spread = |best: fn(f64, f64) -> f64| runs.iter().copied().reduce(best).unwrap_or(median);
    writeln!(
        text,
        "median {:.4} s of {} runs ({:.4} to {:.4} s), {:.1} GFLOP, {:.1} GFLOP/s",
        median,
        runs.len(),
        spread(f64::min),
        spread(f64::max),
        work as f64 / 1e9,
        work as f64 / median / 1e9
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
        let total: f64 = kinds.values().map(|(seconds, _)| seconds).sum();
        for (kind, (seconds, launches)) in kinds {
            let per_run = seconds / runs.len() as f64;
            writeln!(
                text,
                "  {kind:16} {launches:6} launches {per_run:9.4} s {:5.1} %",
                100.0 * seconds / total
            )?;
        }
    }
    report::print(&text)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

/// Floating-point operations of one run: everything but the stage `model`.
fn flops(session: &Session, bindings: &Bindings) -> i64 {
    let launches = session.plan().launches.iter().filter(|launch| launch.stage != Rate::Model);
    launches.filter_map(|launch| launch.flops.eval(bindings).ok()).fold(0, i64::saturating_add)
}

/// Inputs of the given sizes: floats between −1 and 1 that follow from the position, masks all true. Optional inputs are left out.
fn random_inputs(signature: &Signature, dims: &[(String, i64)]) -> anyhow::Result<TensorMap> {
    let bindings: Bindings = dims.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let mut map = TensorMap::new();
    for InputSpec { name, ty, .. } in signature.inputs.iter().filter(|spec| spec.default.is_none()) {
        let shape = evaluated_shape(ty, &bindings)
            .with_context(|| format!("input `{name}` is random: its sizes must be given, e.g. --dim B=1"))?;
        let elements: usize = shape
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size))
            .context("an input is too large")?;
        anyhow::ensure!(elements <= 1 << 32, "input `{name}` would have {elements} elements");
        let tensor = match ty.dtype {
            DType::Bool => HostTensor::from_bool(&shape, &vec![true; elements])?,
            DType::I32 => HostTensor::from_i32(&shape, &vec![0; elements])?,
            DType::F32 | DType::Bf16 | DType::F16 => {
                // A multiplicative congruential sequence (Knuth's MMIX constants): the same inputs on every machine.
                let mut state = 0x9e37_79b9_7f4a_7c15_u64;
                let values: Vec<f32> = (0..elements)
                    .map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                    })
                    .collect();
                HostTensor::from_f32(&shape, &values)?
            }
        };
        map.insert(name.clone(), tensor);
    }
    Ok(map)
}
