//! Programs from text.

use nucleus_ir::Graph;
use nucleus_ir::diagnostics::{Diagnostic, render};
use nucleus_ir::source::SourceMap;
use nucleus_passes::elaborate::{Config, Program, elaborate};

pub(crate) const NUCLEUS_IMAGE: &str = include_str!("../../../../ir-specs/nucleus_image.ir");

/// The config with these settings, each `key=value`.
pub(crate) fn config(settings: &[&str]) -> Config {
    let mut config = Config::new();
    for setting in settings {
        if let Err(error) = config.set(setting) {
            panic!("{error}");
        }
    }
    config
}

/// The first entry of a program, or the rendered diagnostics.
pub(crate) fn build(text: &str, settings: &[&str]) -> Result<Graph, String> {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    let shown = |sources: &SourceMap, diagnostics: Vec<Diagnostic>| render(sources, &diagnostics, false);
    let program = Program::load(&mut sources, file, &|_| None).map_err(|found| shown(&sources, found))?;
    let entry = program.entries().first().map_or(String::new(), ToString::to_string);
    elaborate(&program, &config(settings), &entry).map_err(|found| shown(&sources, found))
}

/// The graph of a correct program.
pub(crate) fn graph(text: &str, settings: &[&str]) -> Graph {
    build(text, settings).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said of a wrong program.
#[track_caller]
pub(crate) fn errors(text: &str, settings: &[&str]) -> String {
    match build(text, settings) {
        Ok(graph) => panic!("no error in {text}: {} nodes", graph.node_count()),
        Err(errors) => errors,
    }
}
