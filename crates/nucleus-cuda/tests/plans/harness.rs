//! Runs a plan on the shim and by the interpreter of plans, and compares.

use std::collections::HashMap;

use nucleus_cuda::{Architecture, Tuning};
use nucleus_ir::Bindings;
use nucleus_plan::Plan;

use crate::case::name_of;
pub(crate) use crate::case::{Case, DEFAULT, bindings, decode, encode, error, expected, plan, tolerance_of};
use crate::{device, shim};

/// Random functions that are compared: plans, each a program to compile, and functions of each.
pub(crate) const RANDOM_PLANS: u32 = 1;
pub(crate) const FUNCTIONS_OF_A_PLAN: usize = 10;

/// Checks outputs against the interpreter, and that the order in which threads run changes no bit.
pub(crate) fn check(case: &Case) {
    check_plan(&plan(case.text), case.dims, case.value, case.tolerance);
}

/// The same for a plan that is not a text.
pub(crate) fn check_plan(
    plan: &Plan,
    dims: &[(&str, i64)],
    value: &dyn Fn(&str, usize) -> Option<f64>,
    tolerance: f64,
) {
    check_on(Architecture::SM80, plan, &Case { text: "", dims, value, tolerance });
}

/// Runs a plan, threads in an order that depends on a seed: the bytes of every output.
type Run<'a> = Box<dyn Fn(&Bindings, &HashMap<usize, Vec<u8>>, u64) -> Result<Vec<Vec<u8>>, String> + 'a>;

fn on_device<'a>(plan: &Plan, tuning: &Tuning) -> Run<'a> {
    let program = device::Program::compile(plan, tuning);
    // The GPU has one order of threads, its own; but the same bits every time.
    Box::new(move |dims, memory, _| program.run(dims, memory))
}

fn on_shim(plan: &Plan, program: shim::Program) -> Run<'_> {
    Box::new(move |dims, memory, seed| program.run(plan, dims, memory, seed))
}

/// The same for the kernels of an architecture.
pub(crate) fn check_on(architecture: Architecture, plan: &Plan, case: &Case) {
    check_tuned(architecture, &Tuning::default(), plan, case);
}

/// The same with tiles of a table, on a GPU with those for its own architecture.
pub(crate) fn check_tuned(architecture: Architecture, tuning: &Tuning, plan: &Plan, case: &Case) {
    let run = if device::wanted() {
        on_device(plan, tuning)
    } else {
        on_shim(plan, shim::Program::compile(plan, architecture, tuning))
    };
    compare(plan, case, 0.0, &run).unwrap_or_else(|error| panic!("{error}"));
}

/// The same for many plans, whose kernels are compiled together: what is wrong with which. Errors are over values of at least 1, which is what sums
/// of random numbers may come from, however small they are.
pub(crate) fn compare_all(cases: &[(&Plan, Case)]) -> Vec<(usize, String)> {
    let runs: Vec<Run> = if device::wanted() {
        cases.iter().map(|(plan, _)| on_device(plan, &Tuning::default())).collect()
    } else {
        let plans: Vec<&Plan> = cases.iter().map(|(plan, _)| *plan).collect();
        let programs = shim::Program::compile_all(&plans, Architecture::SM80, &Tuning::default());
        plans.into_iter().zip(programs).map(|(plan, program)| on_shim(plan, program)).collect()
    };
    let results = cases.iter().zip(&runs).map(|((plan, case), run)| compare(plan, case, 1.0, run));
    results.enumerate().filter_map(|(number, result)| Some((number, result.err()?))).collect()
}

fn compare(plan: &Plan, case: &Case, least: f64, run: &Run<'_>) -> Result<(), String> {
    let dims = bindings(case.dims);
    let expected = expected(case, plan, &dims);
    let mut memory = HashMap::new();
    for (number, buffer) in plan.buffers.iter().enumerate() {
        if let Some(name) = name_of(plan, &buffer.place) {
            memory.insert(number, encode(&expected.tensors[&name], buffer.dtype));
        }
    }
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in [1, 2] {
        let outputs = run(&dims, &memory, seed)?;
        for (position, (got, want)) in outputs.iter().zip(&expected.outputs).enumerate() {
            let dtype = plan.outputs[position].ty.dtype;
            let got = decode(got, dtype);
            let error = error(&got, want, least);
            if error > tolerance_of(dtype, case.tolerance) {
                return Err(format!(
                    "output {position}, {:?}: error {error}\n got {:?}\nwant {:?}",
                    case.dims,
                    &got[..got.len().min(12)],
                    &want[..want.len().min(12)]
                ));
            }
        }
        match &first {
            None => first = Some(outputs),
            Some(first) if *first == outputs => {}
            Some(_) => return Err(format!("the order of threads changes bits of {:?}", case.dims)),
        }
    }
    Ok(())
}
