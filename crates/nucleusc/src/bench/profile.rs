//! Where the time of a run goes: by kind of kernel, and launch by launch in the trace format of Chrome.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_plan::cost::{Machine, predict};
use nucleus_plan::{Anchor, Plan, Profile};
use serde_json::{Value, json};

/// The launches of one kind of kernel in one run.
pub struct Kind {
    name: String,
    launches: usize,
    seconds: f64,
    predicted: f64,
    flops: f64,
    bytes: f64,
}

impl Kind {
    /// For `--json`.
    pub fn json(&self) -> Value {
        json!({
            "kernel": self.name,
            "launches": self.launches,
            "seconds": self.seconds,
            "predicted_s": self.predicted,
            "flops": self.flops,
            "bytes": self.bytes,
        })
    }
}

/// The name of an anchor with the element type of its products.
fn kind_name(anchor: &Anchor) -> String {
    match anchor {
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => {
            format!("{} {}", anchor.name(), contraction.dtype)
        }
        Anchor::Attention(attention) => format!("{} {}", anchor.name(), attention.dtype),
        Anchor::AttentionGrad(grad) => format!("{} {}", anchor.name(), grad.dtype),
        _ => anchor.name().to_owned(),
    }
}

/// Several runs of one plan as if they were one.
pub fn repeated(kinds: &mut [Kind], times: f64) {
    for kind in kinds {
        kind.launches = (kind.launches as f64 * times).round() as usize;
        for amount in [&mut kind.seconds, &mut kind.predicted, &mut kind.flops, &mut kind.bytes] {
            *amount *= times;
        }
    }
}

/// Seconds of one run by kind of kernel, the slowest first, beside what the cost model predicts for a machine with this arithmetic limit.
pub fn kinds(plan: &Plan, profile: &Profile, runs: usize, bindings: &Bindings, limit: f64) -> Vec<Kind> {
    let machine = Machine { f32_flops: limit, bf16_flops: limit, ..Machine::cpu() };
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    for (launch, seconds) in plan.launches.iter().zip(&profile.seconds) {
        if launch.stage == Rate::Model {
            continue;
        }
        let kernel = plan.kernel(launch.kernel);
        let name = kind_name(&kernel.anchor);
        let kind = kinds.entry(name.clone()).or_insert(Kind {
            name,
            launches: 0,
            seconds: 0.0,
            predicted: 0.0,
            flops: 0.0,
            bytes: 0.0,
        });
        let value = |dim: &nucleus_ir::Dim| dim.eval(bindings).map_or(0.0, |value| value as f64);
        kind.launches += 1;
        kind.seconds += seconds / runs as f64;
        kind.predicted +=
            predict(launch, kernel, bindings, &machine).map_or(0.0, |prediction| prediction.seconds);
        kind.flops += value(&launch.flops);
        kind.bytes += value(&launch.bytes);
    }
    let mut kinds: Vec<Kind> = kinds.into_values().collect();
    kinds.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kinds
}

/// The kinds as a table.
pub fn table(kinds: &[Kind]) -> String {
    let total: f64 = kinds.iter().map(|kind| kind.seconds).sum();
    let mut text = format!(
        "{:20} {:>8} {:>10} {:>7} {:>11} {:>9} {:>8}\n",
        "kernels", "launches", "seconds", "share", "predicted s", "GFLOP/s", "GB/s"
    );
    for kind in kinds {
        let rate = |amount: f64| if kind.seconds > 0.0 { amount / kind.seconds / 1e9 } else { 0.0 };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:20} {:8} {:10.5} {:6.1}% {:11.5} {:9.1} {:8.1}",
            kind.name,
            kind.launches,
            kind.seconds,
            100.0 * kind.seconds / total,
            kind.predicted,
            rate(kind.flops),
            rate(kind.bytes)
        );
    }
    text
}

/// Writes one run, the mean of `runs`, as a trace for `chrome://tracing` or Perfetto: one event per launch, one behind the other.
pub fn write_trace(
    path: &Path,
    plan: &Plan,
    profile: &Profile,
    runs: usize,
    bindings: &Bindings,
) -> anyhow::Result<()> {
    let mut now = 0.0;
    let mut events = Vec::new();
    for (launch, seconds) in plan.launches.iter().zip(&profile.seconds) {
        if launch.stage == Rate::Model {
            continue;
        }
        let seconds = seconds / runs as f64;
        let anchor = &plan.kernel(launch.kernel).anchor;
        let dtype = launch.operands.first().map_or(DType::F32, |operand| plan.buffer(*operand).dtype);
        events.push(json!({
            "name": launch.scope.as_deref().unwrap_or("-"),
            "cat": kind_name(anchor),
            "ph": "X",
            "ts": now * 1e6,
            "dur": seconds * 1e6,
            "pid": 1,
            "tid": launch.stage.name(),
            "args": {
                "kernel": format!("k{} {}", launch.kernel.0, anchor.name()),
                "operand": dtype.name(),
                "flops": launch.flops.eval(bindings).ok(),
                "bytes": launch.bytes.eval(bindings).ok(),
            },
        }));
        now += seconds;
    }
    let text = json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string();
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
