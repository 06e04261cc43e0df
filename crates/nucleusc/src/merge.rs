//! `nucleusc merge`: the weighted average of checkpoints.

use std::fmt::Write;

use nucleus_train::merge::{Heaviest, MergeOptions, Order, Weighting, merge};
use serde_json::{Value, json};

use crate::arguments::{HeaviestEnd, MergeArguments, MergeWeights};
use crate::progress::byte_bar;
use crate::report;

/// Runs the command.
pub fn merge_checkpoints(arguments: &MergeArguments) -> anyhow::Result<()> {
    let options = MergeOptions {
        weighting: match arguments.weights {
            MergeWeights::InverseSqrt => Weighting::InverseSqrt,
            MergeWeights::Uniform => Weighting::Uniform,
        },
        heaviest: match arguments.heaviest {
            HeaviestEnd::Newest => Heaviest::Newest,
            HeaviestEnd::Oldest => Heaviest::Oldest,
        },
        order: if arguments.newest_first { Order::NewestFirst } else { Order::ByStep },
        last: arguments.last,
        ..MergeOptions::default()
    };
    let bar = byte_bar("merging");
    let merged = merge(&arguments.checkpoints, &arguments.output, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if arguments.json {
        let shares: Vec<Value> = merged
            .shares
            .iter()
            .map(|share| json!({ "path": share.path, "step": share.step, "coefficient": share.coefficient }))
            .collect();
        let value = json!({
            "output": arguments.output,
            "checkpoints": shares,
            "weights": merged.weights,
            "bytes": merged.bytes,
            "differing_keys": merged.differing_keys,
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    for share in &merged.shares {
        let step = share.step.map_or(String::new(), |step| format!("  step {step}"));
        writeln!(text, "  {:.6}  {}{step}", share.coefficient, share.path.display())?;
    }
    let count = merged.shares.len();
    let size = report::bytes(merged.bytes);
    writeln!(
        text,
        "wrote {}: {} weights, {size}, the average of {count} checkpoint{}",
        arguments.output.display(),
        merged.weights,
        if count == 1 { "" } else { "s" }
    )?;
    for key in &merged.differing_keys {
        writeln!(
            text,
            "note: config key `{key}` differs between the checkpoints; the newest one's value is kept"
        )?;
    }
    report::print(&text)
}
