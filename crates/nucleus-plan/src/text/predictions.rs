//! A plan's text with what the cost model expects of each launch.

use nucleus_ir::{Bindings, Rate};

use crate::cost::{Machine, predict, stage_seconds};
use crate::plan::{Launch, Plan};

/// The text of a plan with the predicted time of every launch at these sizes and what bounds it, as comments: it reads back as the
/// same plan.
pub fn with_predictions(plan: &Plan, sizes: &Bindings, machine: &Machine) -> String {
    let mut text = String::new();
    let points: Vec<String> = sizes.iter().map(|(dim, size)| format!("{dim}={size}")).collect();
    let stages: Vec<String> = Rate::ALL
        .into_iter()
        .filter(|rate| plan.launches.iter().any(|launch| launch.stage == *rate))
        .map(|rate| format!("{} {rate}", duration(stage_seconds(plan, rate, sizes, machine))))
        .collect();
    text.push_str(&format!(
        "// Predicted for the machine `{}` of the cost model at {}: {}.\n",
        machine.name,
        if points.is_empty() { "its sizes".to_owned() } else { points.join(" ") },
        stages.join(", "),
    ));
    let note = |launch: &Launch| {
        let prediction = predict(launch, plan.kernel(launch.kernel), sizes, machine).ok();
        prediction.map(|prediction| format!("{}, {}", duration(prediction.seconds), prediction.bound.name()))
    };
    // Writing to a string cannot fail.
    let _ = plan.write(&mut text, &note);
    text
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
