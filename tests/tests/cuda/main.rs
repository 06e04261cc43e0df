//! Sessions, routines and training on a GPU give what they give on the processor: with the fake driver of `tests/fake-cuda`, which runs the
//! kernels as they are emitted on this computer and ends the process where the real one would have been misused.
//!
//! The driver is found by the loader when the process starts, so the tests run in a process of their own.

#![expect(clippy::print_stderr, reason = "what went wrong is said")]

mod models;
mod routines;
mod sessions;
mod tiles;
mod training;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};
use nucleus_runtime::Gpu;
use nucleus_runtime::gpu::KernelCode;
use nucleus_tests::fake_cuda::FakeCuda;

/// Set for the process that has the driver.
const CHILD: &str = "NUCLEUS_TESTS_WITH_CUDA";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let real = std::env::var_os(REAL).is_some_and(|value| !value.is_empty() && value != "0");
    if std::env::var_os(CHILD).is_none() && !real && !arguments.list {
        let fake = FakeCuda::build(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let mut command = Command::new(std::env::current_exe().expect("a program"));
        let status = fake.give(command.args(std::env::args_os().skip(1)).env(CHILD, "1")).status();
        return match status {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            other => {
                eprintln!("the tests with the fake driver: {other:?}");
                ExitCode::FAILURE
            }
        };
    }
    let mut trials = Vec::new();
    for (group, list) in [
        ("sessions", sessions::LIST),
        ("routines", routines::LIST),
        ("models", models::LIST),
        ("tiles", tiles::LIST),
        ("training", training::LIST),
    ] {
        let trial = |(name, test): &(&'static str, fn())| {
            let test = *test;
            Trial::test(format!("{group}::{name}"), move || {
                test();
                Ok(())
            })
        };
        trials.extend(list.iter().map(trial));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Asks for the machine's driver and GPU.
const REAL: &str = "NUCLEUS_TEST_GPU";

/// Tests by name.
type List = &'static [(&'static str, fn())];

/// The fake GPU.
fn gpu() -> Gpu {
    static CODE: OnceLock<Arc<KernelCode>> = OnceLock::new();
    let code = CODE.get_or_init(|| Arc::new(KernelCode::default())).clone();
    Gpu::open(code).unwrap_or_else(|error| panic!("{error}"))
}
