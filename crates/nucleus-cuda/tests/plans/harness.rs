//! Runs a plan on the shim and by the interpreter of plans, and compares.

use std::collections::HashMap;

use nucleus_cuda::{Architecture, Tuning};
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
type Run<'a> = Box<dyn Fn(u64) -> Result<Vec<Vec<u8>>, String> + 'a>;

/// The same for the kernels of an architecture.
pub(crate) fn check_on(architecture: Architecture, plan: &Plan, case: &Case) {
    check_tuned(architecture, &Tuning::default(), plan, case);
}

/// The same with tiles of a table, on a GPU with those for its own architecture.
pub(crate) fn check_tuned(architecture: Architecture, tuning: &Tuning, plan: &Plan, case: &Case) {
    let dims = bindings(case.dims);
    let expected = expected(case, plan, &dims);
    let mut memory = HashMap::new();
    for (number, buffer) in plan.buffers.iter().enumerate() {
        if let Some(name) = name_of(plan, &buffer.place) {
            memory.insert(number, encode(&expected.tensors[&name], buffer.dtype));
        }
    }
    // The GPU has one order of threads, its own; but the same bits every time.
    let (dims, memory) = (&dims, &memory);
    let run: Run<'_> = if device::wanted() {
        let program = device::Program::compile(plan, tuning);
        Box::new(move |_| program.run(dims, memory))
    } else {
        let program = shim::Program::compile(plan, architecture, tuning);
        Box::new(move |seed| program.run(plan, dims, memory, seed))
    };
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in [1, 2] {
        let outputs = run(seed).unwrap_or_else(|error| panic!("{error}"));
        for (position, (got, want)) in outputs.iter().zip(&expected.outputs).enumerate() {
            let dtype = plan.outputs[position].ty.dtype;
            let got = decode(got, dtype);
            let error = error(&got, want);
            assert!(
                error <= tolerance_of(dtype, case.tolerance),
                "output {position}, {:?}: error {error}\n got {:?}\nwant {:?}",
                case.dims,
                &got[..got.len().min(12)],
                &want[..want.len().min(12)]
            );
        }
        match &first {
            None => first = Some(outputs),
            Some(first) => assert!(*first == outputs, "the order of threads changes bits of {:?}", case.dims),
        }
    }
}
