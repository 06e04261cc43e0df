//! `nucleusc inspect`: what is in an artifact, a checkpoint or a file of tensors.

use std::fmt::Write;

use nucleus_runtime::{Artifact, Checkpoint};
use serde_json::json;

use crate::arguments::InspectArguments;
use crate::report;

/// Runs the command.
pub fn inspect(arguments: &InspectArguments) -> anyhow::Result<()> {
    if Artifact::is_artifact(&arguments.path) {
        return artifact(arguments);
    }
    anyhow::ensure!(!arguments.plan, "`{}` is not an artifact and has no plan", arguments.path.display());
    let checkpoint = Checkpoint::open(&arguments.path)?;
    if arguments.json {
        return report::print(&describe(&checkpoint).to_string());
    }
    let mut text = String::new();
    summarise(&mut text, &checkpoint)?;
    report::print(&text)
}

fn artifact(arguments: &InspectArguments) -> anyhow::Result<()> {
    let artifact = Artifact::open(&arguments.path)?;
    let compiled = artifact.compiled();
    if arguments.plan {
        for plan in &compiled.plans {
            report::print(&report::plan(plan))?;
        }
        return Ok(());
    }
    if arguments.json {
        let entries: Vec<_> = compiled
            .plans
            .iter()
            .map(|plan| {
                json!({ "name": plan.entry, "kernels": plan.kernels.len(), "launches": plan.launches.len(), "weights": plan.weights.len() })
            })
            .collect();
        let value = json!({
            "model": compiled.text.main.0,
            "dtype": compiled.dtype.name(),
            "quantised": compiled.is_quantised(),
            "target": compiled.target,
            "cubins": compiled.cubins.len(),
            "tiles": compiled.tuning.len(),
            "entries": entries,
            "checkpoint": artifact.weights().map(describe),
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    writeln!(text, "artifact {}", arguments.path.display())?;
    writeln!(text, "  model   {}", compiled.text.main.0)?;
    writeln!(text, "  dtype   {}", compiled.dtype)?;
    if compiled.is_quantised() {
        writeln!(text, "  weights of large products in int8, with a scale per output channel")?;
    }
    writeln!(text, "  target  {}", compiled.target)?;
    if !compiled.cubins.is_empty() {
        let bytes = compiled.cubins.iter().map(|(_, cubin)| cubin.len() as u64).sum();
        writeln!(text, "  cubins  {}, {}", compiled.cubins.len(), report::bytes(bytes))?;
    }
    if !compiled.tuning.is_empty() {
        writeln!(text, "  tiles   {} measured", compiled.tuning.len())?;
    }
    for (key, value) in &compiled.config {
        writeln!(text, "  config  {key} = {value}")?;
    }
    for plan in &compiled.plans {
        writeln!(
            text,
            "  entry   {}: {} distinct kernels, {} launches, {} weights",
            plan.entry,
            plan.kernels.len(),
            plan.launches.len(),
            plan.weights.len()
        )?;
        for input in &plan.inputs {
            writeln!(text, "    input   {}: {} {}", input.name, input.ty, input.rate)?;
        }
        for output in &plan.outputs {
            writeln!(text, "    output  {}: {}", output.name, output.ty)?;
        }
    }
    match artifact.weights() {
        Some(weights) => summarise(&mut text, weights)?,
        None => writeln!(text, "  no weights inside: run it with --weights DIR")?,
    }
    report::print(&text)
}

fn summarise(text: &mut String, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    writeln!(
        text,
        "checkpoint {}: {} tensors, {} elements, {} in {} file(s)",
        checkpoint.path().display(),
        checkpoint.len(),
        checkpoint.total_elements(),
        report::bytes(checkpoint.total_bytes()),
        checkpoint.files().len()
    )?;
    let config = checkpoint.config().into_iter().flatten();
    for (key, value) in config {
        writeln!(text, "  config  {key} = {value}")?;
    }
    for (name, view) in checkpoint.iter() {
        writeln!(text, "  {:6} {:?}  {name}", view.stored_dtype.to_string(), view.shape)?;
    }
    Ok(())
}

fn describe(checkpoint: &Checkpoint) -> serde_json::Value {
    let tensors: Vec<_> = checkpoint
        .iter()
        .map(|(name, view)| {
            json!({ "name": name, "dtype": view.stored_dtype.to_string(), "shape": view.shape, "bytes": view.bytes.len() })
        })
        .collect();
    json!({
        "elements": checkpoint.total_elements(),
        "bytes": checkpoint.total_bytes(),
        "files": checkpoint.files().len(),
        "config": checkpoint.config(),
        "tensors": tensors,
    })
}
