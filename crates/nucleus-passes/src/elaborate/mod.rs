//! Elaboration: from a program and a config to the graph of one entry.
//!
//! An environment interpreter walks the syntax tree. Compile-time values (config, constants, sizes) are computed; functions are
//! inlined, loops unrolled, weights named by their scopes, and every tensor operation becomes a node. Element-wise operators get their
//! implicit conversions as explicit `constant`, `size`, `cast` and `broadcast` nodes. Nothing is simplified here, so that the text which
//! [`print_graph`](nucleus_ir::graph_printer::print_graph) writes elaborates to the same graph again.
//!
//! Any program and any config give a graph or diagnostics, within the limits of [`limits`].

mod arithmetic;
mod builtins;
mod calls;
mod config;
mod evaluator;
mod expressions;
mod globals;
pub mod limits;
mod locals;
mod op_calls;
mod patterns;
mod program;
mod statements;
mod tensors;
mod term;

use nucleus_ir::Graph;
use nucleus_ir::diagnostics::Diagnostic;

pub use config::{Config, ConfigValue, SettingError};
pub use program::{ConfigKeyInfo, Program, SourceText};

/// The graph of `entry` under `config`.
///
/// # Errors
/// Config values that do not fit their keys, requirements that do not hold, type errors, and programs that exceed the [`limits`]:
/// each with the place in the text, several per run.
pub fn elaborate(program: &Program, config: &Config, entry: &str) -> Result<Graph, Vec<Diagnostic>> {
    let run = || evaluator::Evaluator::new(program).run(config, entry);
    // The depth of evaluation is limited, but its stack is larger than what threads of tests and services usually have.
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("elaborate".to_owned());
        match builder.stack_size(limits::STACK_BYTES).spawn_scoped(scope, run) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                Err(vec![Diagnostic::error(format!("the system gives no thread to elaborate in: {error}"))])
            }
        }
    })
}
