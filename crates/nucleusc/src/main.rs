//! `nucleusc`: checks, compiles, runs and inspects models, and merges checkpoints.
//!
//! *Architecture invariant:* this binary is thin. It reads arguments, calls the runtime and prints; whatever it can do, a program that
//! embeds `nucleus-runtime` can do too. Results go to standard output, everything else to standard error; errors exit with 1.

mod arguments;
mod bench;
mod check;
mod compile;
mod cubins;
mod data;
mod gpu;
mod grad;
mod inspect;
mod merge;
mod progress;
mod report;
mod run;
mod sample;
mod source;
mod train;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // clap's own exit code for usage errors is 2; here every error is 1, and help is no error.
        Err(error) => {
            let failed = error.use_stderr();
            let printed = error.print();
            return if failed || printed.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command {
        Command::Check(arguments) => check::check(&arguments),
        Command::Compile(arguments) => compile::compile(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Grad(arguments) => grad::grad(&arguments),
        Command::Train(arguments) => train::train(&arguments),
        Command::Sample(arguments) => sample::sample(&arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::Merge(arguments) => merge::merge_checkpoints(&arguments),
        Command::Data(command) => data::data(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if report::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error);
            ExitCode::FAILURE
        }
    }
}
