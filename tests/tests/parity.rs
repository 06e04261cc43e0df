//! Both backends give diffusers' answers on every fixture.

use nucleus_ir::DType;
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{Session, SessionOptions};
use nucleus_tests::parity::{Case, relative_error, rms_error};

/// In f32 arithmetic: largest error over largest value.
const F32_TOLERANCE: f64 = 1e-5;
/// In bf16: our RMS error against the f32 truth, over diffusers' own.
const BF16_RATIO: f64 = 1.1;

fn run_cpu(case: &Case, threads: usize) -> Vec<f32> {
    let plan = case.model().compile("velocity", case.dtype, &mut ()).expect("the definition compiles");
    let options = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
    let mut session = Session::new(plan, case.checkpoint(), &options).expect("the weights fit");
    let outputs = session.run(&case.inputs(), &case.dims).expect("the inputs fit");
    outputs.get("sample").expect("the entry has this output").to_f32_vec()
}

fn run_interp(case: &Case) -> Vec<f32> {
    let graph = case.model().graph("velocity").expect("the definition elaborates");
    let outputs =
        run_reference::<f32>(&graph, &case.checkpoint(), &case.inputs(), &case.dims).expect("the inputs fit");
    outputs.get("sample").expect("the entry has this output").to_f32_vec()
}

fn check_f32(backend: &str, run: impl Fn(&Case) -> Vec<f32>) {
    let mut failures = Vec::new();
    for case in Case::all().into_iter().filter(|case| case.dtype == DType::F32) {
        let error = relative_error(&run(&case), &case.expected("sample"));
        if error > F32_TOLERANCE {
            failures.push(format!("{}: {error:.2e}", case.name));
        }
    }
    assert!(
        failures.is_empty(),
        "{backend} is off by more than {F32_TOLERANCE:.0e} of the largest value: {failures:?}"
    );
}

#[test]
fn cpu_gives_diffusers_answers_in_f32() {
    check_f32("cpu", |case| run_cpu(case, 2));
}

#[test]
fn interp_gives_diffusers_answers_in_f32() {
    check_f32("interp", run_interp);
}

#[test]
fn cpu_in_bf16_is_as_close_to_the_truth_as_diffusers() {
    let mut failures = Vec::new();
    for case in Case::all().into_iter().filter(|case| case.dtype == DType::Bf16) {
        let truth = case.expected("sample");
        let ours = rms_error(&run_cpu(&case, 2), &truth);
        let theirs = rms_error(&case.expected("sample_bf16"), &truth);
        if ours > BF16_RATIO * theirs {
            failures.push(format!("{}: {:.3}", case.name, ours / theirs));
        }
    }
    assert!(failures.is_empty(), "our bf16 error over diffusers' is above {BF16_RATIO}: {failures:?}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in Case::all() {
        let one = run_cpu(&case, 1);
        for threads in [2, 4] {
            let several = run_cpu(&case, threads);
            let same = one.iter().zip(&several).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {threads} threads give other bits than one", case.name);
        }
    }
}
