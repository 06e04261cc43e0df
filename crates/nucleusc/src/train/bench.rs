//! `nucleusc train --bench`: how long a step takes, its parts, and what the machine's limit would allow.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use nucleus_ir::{Bindings, Rate};
use nucleus_plan::Profile;
use nucleus_runtime::Routine;
use nucleus_train::data::{Place, Source};
use nucleus_train::engine::Engine;
use nucleus_train::graph_engine::GraphEngine;
use nucleus_train::recipe::Recipe;
use nucleus_train::trainer::clip_scale;
use serde_json::{Value, json};

use crate::arguments::TrainArguments;
use crate::bench::measure::median;
use crate::bench::profile::{self, Kind};
use crate::report;

/// What one step took.
#[derive(Clone, Copy, Default)]
struct Parts {
    /// Seconds of forward and backward passes.
    loss: f64,
    /// Seconds of clipping and the optimisers.
    optimizer: f64,
    /// Floating-point operations of forward and backward passes.
    flops: f64,
    /// FLOP/s of multiply-adds in registers on the same threads, measured before the step.
    limit: f64,
}

impl Parts {
    fn json(&self) -> Value {
        json!({ "forward_backward_seconds": self.loss, "optimizer_seconds": self.optimizer })
    }
}

/// The launches of equal microbatches, summed.
#[derive(Default)]
struct Launches {
    profile: Profile,
    bindings: Option<Bindings>,
    runs: usize,
}

impl Launches {
    /// Adds a microbatch. The sizes of the last one are those that are kept, as times of different sizes have no sum that means something.
    fn add(&mut self, profile: Profile, bindings: Option<&Bindings>) {
        let same = self.bindings.as_ref() == bindings && self.profile.seconds.len() == profile.seconds.len();
        if !same {
            *self = Launches { profile, bindings: bindings.cloned(), runs: 1 };
            return;
        }
        self.runs += 1;
        for (sum, seconds) in self.profile.seconds.iter_mut().zip(&profile.seconds) {
            *sum += seconds;
        }
    }

    fn kinds(&self, routine: &Routine, limit: f64) -> Vec<Kind> {
        let Some(bindings) = &self.bindings else { return Vec::new() };
        profile::kinds(routine.plan(), &self.profile, self.runs, bindings, limit)
    }

    fn trace(&self, path: &Path, routine: &Routine) -> anyhow::Result<()> {
        let Some(bindings) = &self.bindings else { return Ok(()) };
        profile::write_trace(path, routine.plan(), &self.profile, self.runs, bindings)
    }
}

/// Times steps and prints what they took.
pub(super) fn bench(
    arguments: &TrainArguments,
    recipe: &Recipe,
    engine: &mut GraphEngine,
    source: &mut dyn Source,
    repeat: usize,
) -> anyhow::Result<()> {
    anyhow::ensure!(repeat > 0, "--bench must be at least 1");
    let mut steps = Vec::new();
    let mut launches = Launches::default();
    engine.begin_stage(recipe.stages.at(1).stage)?;
    for step in 1..=repeat as u64 + 1 {
        // All steps are of the first stage.
        let first = recipe.stages.at(1).stage;
        let at = recipe.stages.at((step - 1) % first.steps + 1);
        let limits = engine.routine().map(Routine::limits).transpose()?;
        let mut parts = Parts { limit: limits.map_or(0.0, |limits| limits.flops), ..Parts::default() };
        // Events between the launches of a GPU keep them from running as one graph.
        let with_profile = arguments.profile || arguments.trace.is_some() || engine.gpu().is_none();
        engine.begin_step()?;
        for microbatch in 0..at.stage.accumulate as u64 {
            let batch = source.batch(&Place::of(&recipe.stages, at.step_in_stage + 1, microbatch))?;
            let mut profile = Profile::default();
            let scale = 1.0 / at.stage.accumulate as f64;
            let start = Instant::now();
            if with_profile {
                engine.accumulate_profiled(&batch, scale, &mut profile)?;
            } else {
                engine.accumulate(&batch, scale)?;
            }
            parts.loss += start.elapsed().as_secs_f64();
            parts.flops += engine.routine().map_or(0.0, flops);
            if step > 1 {
                launches.add(profile, engine.routine().and_then(Routine::bindings));
            }
        }
        let start = Instant::now();
        let norm = engine.gradient_norm()?;
        let scale = clip_scale(recipe.run.clip_grad_norm, norm);
        engine.update(step, recipe.schedule.factor(step), scale)?;
        engine.wait()?;
        parts.optimizer += start.elapsed().as_secs_f64();
        if step > 1 {
            steps.push(parts);
        } else if arguments.profile {
            engine.begin_optimizer_profile();
        }
    }
    let median = |of: fn(&Parts) -> f64| median(&steps.iter().map(of).collect::<Vec<f64>>());
    let (loss, optimizer) = (median(|parts| parts.loss), median(|parts| parts.optimizer));
    let step = median(|parts| parts.loss + parts.optimizer);
    let (flops, limit) = (median(|parts| parts.flops), median(|parts| parts.limit));
    let fraction = flops / loss / limit;
    let kinds = match engine.routine() {
        Some(routine) if arguments.profile => launches.kinds(routine, limit),
        _ => Vec::new(),
    };
    let optimizers: Vec<(&str, Vec<Kind>)> = engine
        .optimizer_profile()
        .filter_map(|program| {
            let routine = program.routine();
            let bindings = routine.bindings()?;
            let (profile, runs) = program.profile();
            let mut kinds = profile::kinds(routine.plan(), profile, runs, bindings, limit);
            // Of one step, in which a program may run several times.
            profile::repeated(&mut kinds, runs as f64 / repeat as f64);
            Some((program.name(), kinds))
        })
        .collect();
    if let (Some(path), Some(routine)) = (&arguments.trace, engine.routine()) {
        launches.trace(path, routine)?;
    }
    let (parameters, arenas) = engine.memory();
    if arguments.json {
        let mut value = json!({
            "step_seconds": step,
            "forward_backward_seconds": loss,
            "optimizer_seconds": optimizer,
            "flops": flops,
            "peak_flops": limit,
            "fraction_of_limit": fraction,
            "threads": engine.threads().count(),
            "parameter_bytes": parameters,
            "arena_bytes": arenas,
            "repeat": repeat,
            "steps": steps.iter().map(Parts::json).collect::<Vec<Value>>(),
        });
        if arguments.profile {
            value["profile"] = kinds.iter().map(Kind::json).collect();
            value["optimizer_profile"] = optimizers
                .iter()
                .map(|(name, kinds)| json!({ "program": name, "profile": kinds.iter().map(Kind::json).collect::<Vec<Value>>() }))
                .collect();
        }
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    writeln!(
        text,
        "step {:.2} ms: forward and backward {:.2} ms, optimisers {:.2} ms (medians of {repeat})",
        step * 1e3,
        loss * 1e3,
        optimizer * 1e3,
    )?;
    writeln!(
        text,
        "forward and backward: {:.3} GFLOP, {:.1} GFLOP/s, {:.0} % of the {:.0} GFLOP/s that multiply-adds in registers reach on {}",
        flops / 1e9,
        flops / loss / 1e9,
        100.0 * fraction,
        limit / 1e9,
        engine.gpu().map_or_else(
            || format!("{} threads", engine.threads().count()),
            |gpu| gpu.device().name().to_owned()
        ),
    )?;
    write!(text, "parameters and state {}, arenas {}", report::bytes(parameters), report::bytes(arenas))?;
    if arguments.profile {
        write!(text, "\n{}", profile::table(&kinds).trim_end())?;
        for (name, kinds) in &optimizers {
            write!(text, "\n{name}\n{}", profile::table(kinds).trim_end())?;
        }
    }
    report::print(&text)
}

/// Floating-point operations of the last run of a routine.
fn flops(routine: &Routine) -> f64 {
    let Some(bindings) = routine.bindings() else { return 0.0 };
    let launches = routine.plan().launches.iter().filter(|launch| launch.stage != Rate::Model);
    launches.map(|launch| launch.flops.eval(bindings).unwrap_or(0) as f64).sum()
}
