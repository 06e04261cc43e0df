//! `nucleusc run`: one run of an entry on given inputs.

use std::time::Instant;

use anyhow::Context;
use nucleus_ir::Bindings;
use nucleus_plan::Plan;
use nucleus_runtime::gpu::TileCounts;
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{Session, SessionOptions, Signature, TensorMap};
use serde_json::json;

use crate::arguments::{Backend, Processor, RunArguments, SessionArguments};
use crate::source::{self, Source};
use crate::{gpu, progress, report};

/// Runs the command.
pub fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let inputs = TensorMap::read(&arguments.inputs)?;
    let source = source::open(&arguments.session)?;
    let dtype = source.options.dtype;
    let (outputs, load_time, run_time) = match arguments.backend {
        Backend::Cpu | Backend::Cuda => {
            let start = Instant::now();
            let processor = if arguments.backend == Backend::Cuda { Processor::Cuda } else { Processor::Cpu };
            // Sizes that do not fit are reported by the run.
            let sizes = |plan: &Plan| Signature::from(plan).bind(&inputs, &arguments.session.dims).ok();
            let mut session = session(source, &arguments.session, processor, &sizes)?;
            let load_time = start.elapsed();
            let start = Instant::now();
            let outputs = session.run(&inputs, &arguments.session.dims)?;
            (outputs, load_time, start.elapsed())
        }
        Backend::Interp => {
            gpu::no_table(arguments.session.tuning.as_deref())?;
            let start = Instant::now();
            let outputs = interpret(&source, &arguments.session, &inputs)?;
            (outputs, std::time::Duration::ZERO, start.elapsed())
        }
    };
    outputs.write(&arguments.output)?;
    if arguments.json {
        let value = json!({
            "output": arguments.output,
            "dtype": dtype.name(),
            "load_s": load_time.as_secs_f64(),
            "run_s": run_time.as_secs_f64(),
            "outputs": outputs.iter().map(|(name, tensor)| json!({
                "name": name, "dtype": tensor.dtype().name(), "shape": tensor.shape(),
            })).collect::<Vec<_>>(),
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    for (name, tensor) in outputs.iter() {
        text.push_str(&format!("{name}: {}{:?}\n", tensor.dtype(), tensor.shape()));
    }
    text.push_str(&format!(
        "wrote {} (loaded in {}, ran in {})",
        arguments.output.display(),
        report::duration(load_time),
        report::duration(run_time)
    ));
    report::print(&text)
}

/// A session: the artifact's plan, or one compiled now. `sizes` says which sizes are to come, if that is known.
pub fn session(
    source: Source,
    arguments: &SessionArguments,
    processor: Processor,
    sizes: &dyn Fn(&Plan) -> Option<Bindings>,
) -> anyhow::Result<Session> {
    anyhow::ensure!(arguments.threads != Some(0), "--threads must be at least 1");
    let gpu = gpu::open(processor, source.compiled.as_ref(), arguments.tuning.as_deref())?;
    let plan = match source.compiled {
        Some(compiled) => {
            let mut plans = compiled.plans;
            let known: Vec<String> = plans.iter().map(|plan| plan.entry.clone()).collect();
            let position = match &arguments.entry {
                Some(entry) => plans.iter().position(|plan| plan.entry == *entry),
                None => Some(0),
            };
            let position = position.filter(|position| *position < plans.len()).with_context(|| {
                let entry = arguments.entry.as_deref().unwrap_or_default();
                format!("the artifact has no entry `{entry}`; its entries are {}", known.join(", "))
            })?;
            plans.swap_remove(position)
        }
        None => {
            let entry = source.model.entry(arguments.entry.as_deref())?;
            source.model.compile_with(entry, &source.options, &mut ())?
        }
    };
    let uploads = gpu.is_some();
    let options =
        SessionOptions { threads: arguments.threads, gpu, sizes: sizes(&plan), ..SessionOptions::default() };
    let bar = progress::step_bar(if uploads { "uploading" } else { "packing" });
    let session = Session::with_source(plan, source.weights, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    // A table that was made of other kernels says nothing: these run, but not as its owner thinks.
    if let (Some(table), Some(TileCounts { measured: 0, .. })) = (&arguments.tuning, session.tiles()) {
        let (table, device) = (table.display(), session.gpu().map_or("", |gpu| gpu.device().name()));
        report::note(&format!(
            "warning: no entry of `{table}` is for these kernels at these shapes on {device}"
        ));
    }
    Ok(session)
}

/// The entry run by the evaluator: for f32 as it was elaborated, for bf16 with the casts of the precision pass.
fn interpret(source: &Source, arguments: &SessionArguments, inputs: &TensorMap) -> anyhow::Result<TensorMap> {
    let entry = source.model.entry(arguments.entry.as_deref())?;
    let graph = source.model.graph_in(entry, &source.options)?;
    Ok(run_reference::<f32>(&graph, &*source.weights, inputs, &arguments.dims)?)
}
