//! How results and errors are printed.

use std::io::{self, IsTerminal, Write};

use nucleus_plan::Plan;
use nucleus_plan::cost::Machine;
use nucleus_plan::text::with_predictions;
use nucleus_plan::verify::largest_sample;

/// Prints to standard output; a closed pipe is an error that ends the program quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Prints to standard error. Nothing can be done where that fails.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
}

/// Prints an error with its causes to standard error. Diagnostics, which begin with `error`, are printed as they are.
pub fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    note(&if text.starts_with("error") { text } else { format!("error: {text}") });
}

/// True for the error of writing to a pipe that nobody reads any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The text of a plan with the cost model's predictions at the largest sizes that it is checked at.
pub fn plan(plan: &Plan) -> String {
    match largest_sample(plan) {
        Some(sizes) => with_predictions(plan, &sizes, &Machine::cpu()),
        None => plan.to_string(),
    }
}

/// True where progress and colours help: a person looks at standard error.
pub fn interactive() -> bool {
    io::stderr().is_terminal()
}

/// A count of bytes for people: `33.8 GB` (powers of ten).
pub fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.3} {}", units[unit]) }
}

/// A duration for people: `12.3 ms`.
pub fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 1.0 {
        format!("{seconds:.3} s")
    } else if seconds >= 1e-3 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.1} µs", seconds * 1e6)
    }
}
