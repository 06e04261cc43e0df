//! `nucleusc check`: verify a model and summarise it.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Context;
use nucleus_ir::Graph;
use serde_json::json;

use crate::arguments::CheckArguments;
use crate::{report, source};

/// Runs the command.
pub fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let model = source::model(&arguments.model, &arguments.config, None)?;
    let mut entries = model.entries();
    anyhow::ensure!(!entries.is_empty(), "`{}` declares no entry", arguments.model.display());
    if !arguments.entry.is_empty() {
        entries = arguments.entry.iter().map(String::as_str).collect();
    }
    let mut graphs = Vec::new();
    for entry in entries {
        graphs.push(model.graph(entry)?);
    }
    let parameters = parameters(&graphs).context("the weights have more elements than 64 bits can count")?;
    if arguments.json {
        let entries: Vec<_> = graphs.iter().map(describe).collect();
        return report::print(&json!({ "parameters": parameters, "entries": entries }).to_string());
    }
    let mut text = format!("{}: verified\n", arguments.model.display());
    for graph in &graphs {
        summarise(&mut text, graph)?;
    }
    writeln!(text, "parameters: {parameters}")?;
    report::print(&text)
}

/// The elements of all weights of all entries, each name counted once.
pub fn parameters(graphs: &[Graph]) -> Option<i64> {
    let mut sizes = BTreeMap::new();
    for weight in graphs.iter().flat_map(|graph| &graph.weights) {
        sizes.insert(&weight.name, weight.ty.elements().ok()?.as_constant()?);
    }
    sizes.values().try_fold(0i64, |total, size| total.checked_add(*size))
}

fn summarise(text: &mut String, graph: &Graph) -> std::fmt::Result {
    let dims: Vec<&str> = graph.dims.iter().map(|dim| dim.as_str()).collect();
    writeln!(text, "entry {} over dims {}", graph.name, dims.join(", "))?;
    for input in &graph.inputs {
        let optional = if input.default.is_some() { " (optional)" } else { "" };
        writeln!(text, "  input   {}: {} {}{optional}", input.name, input.ty, input.rate)?;
    }
    for output in &graph.outputs {
        writeln!(text, "  output  {}: {}", output.name, graph.ty(output.value))?;
    }
    writeln!(text, "  {} weights, {} nodes", graph.weights.len(), graph.node_count())
}

fn describe(graph: &Graph) -> serde_json::Value {
    let inputs: Vec<_> = graph
        .inputs
        .iter()
        .map(|input| {
            json!({
                "name": input.name,
                "type": input.ty.to_string(),
                "rate": input.rate.name(),
                "optional": input.default.is_some(),
            })
        })
        .collect();
    let outputs: Vec<_> = graph
        .outputs
        .iter()
        .map(|output| json!({ "name": output.name, "type": graph.ty(output.value).to_string() }))
        .collect();
    json!({
        "name": graph.name,
        "dims": graph.dims.iter().map(|dim| dim.as_str()).collect::<Vec<_>>(),
        "inputs": inputs,
        "outputs": outputs,
        "weights": graph.weights.len(),
        "nodes": graph.node_count(),
    })
}
