//! Progress bars on long work: on standard error, and only where a person looks.

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::interactive;

/// A bar over a number of bytes; silent when standard error is not a terminal.
pub fn byte_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg:10} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}")
}

/// A bar over a number of steps; silent when standard error is not a terminal.
pub fn step_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg:10} [{bar:32}] {pos}/{len} eta {eta}")
}

fn bar(what: &'static str, template: &str) -> ProgressBar {
    if !interactive() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_message(what);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A bar over the steps of a training run; silent when standard error is not a terminal.
pub fn training_bar() -> ProgressBar {
    bar("", "{pos}/{len} [{bar:24}] {msg} {per_sec} eta {eta}")
}
