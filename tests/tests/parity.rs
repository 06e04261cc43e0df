//! Both backends give diffusers' answers on every fixture.

use nucleus_ir::{DType, Rate};
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{HostTensor, Session, SessionOptions, TensorMap};
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

#[test]
fn prepared_prompts_give_the_bits_of_whole_runs() {
    let case = Case::named("mask_batch_2");
    let plan = case.model().compile("velocity", case.dtype, &mut ()).expect("the definition compiles");
    let mut session =
        Session::new(plan.clone(), case.checkpoint(), &SessionOptions::default()).expect("the weights fit");
    let whole = session.run(&case.inputs(), &case.dims).expect("the inputs fit");

    let (mut prompt_inputs, mut step_inputs) = (TensorMap::new(), TensorMap::new());
    for (name, tensor) in case.inputs().iter() {
        let spec = session.signature().inputs.iter().find(|spec| spec.name == *name).expect("an input");
        let map = if spec.rate == Rate::Step { &mut step_inputs } else { &mut prompt_inputs };
        map.insert(name.clone(), tensor.clone());
    }
    // A second prompt at other sizes shares the session: guidance with a shorter negative prompt.
    let mut other_inputs = TensorMap::new();
    let text = prompt_inputs.get("encoder_hidden_states").expect("text");
    let shape = [text.shape()[0], 1, text.shape()[2]];
    let zeros = HostTensor::zeros(text.dtype(), &shape).expect("small");
    other_inputs.insert("encoder_hidden_states", zeros);

    let prompt = session.prepare(&prompt_inputs, &case.dims).expect("the prompt fits");
    let other = session.prepare(&other_inputs, &case.dims).expect("the prompt fits");
    for _ in 0..2 {
        let stepped = session.step(&prompt, &step_inputs).expect("the step fits");
        assert_eq!(stepped, whole);
        assert_ne!(session.step(&other, &step_inputs).expect("the step fits"), whole);
    }

    let mut stranger =
        Session::new(plan, case.checkpoint(), &SessionOptions::default()).expect("the weights fit");
    let error = stranger.step(&prompt, &step_inputs).expect_err("another session's prompt");
    assert_eq!(error.to_string(), "the prompt was prepared by another session; prepare it with this one");
    let error = session.step(&prompt, &prompt_inputs).expect_err("no step inputs");
    assert!(error.to_string().starts_with("input `hidden_states`"), "{error}");
}
