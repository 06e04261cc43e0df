//! Whole models: Nucleus-Image in small configurations, beside the processor and diffusers.

use nucleus_ir::{DType, Rate};
use nucleus_runtime::{Gpu, Session, SessionOptions, TensorMap};
use nucleus_tests::parity::{Case, relative_error, rms_error};

use crate::{List, gpu};

pub(crate) const LIST: List = &[
    ("answers_in_f32_are_diffusers", answers_in_f32_are_diffusers),
    ("answers_in_bf16_are_as_close_as_the_processors", answers_in_bf16_are_as_close_as_the_processors),
    ("prepared_prompts_give_what_runs_give", prepared_prompts_give_what_runs_give),
];

fn session(case: &Case, gpu: Option<Gpu>) -> Session {
    let plan = case.model().compile("velocity", case.dtype, &mut ()).expect("the definition compiles");
    let options = SessionOptions { threads: Some(2), gpu, ..SessionOptions::default() };
    Session::new(plan, case.checkpoint(), &options).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

fn sample(case: &Case, gpu: Option<Gpu>) -> Vec<f32> {
    let outputs = session(case, gpu).run(&case.inputs(), &case.dims);
    let outputs = outputs.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    outputs.get("sample").expect("the entry has this output").to_f32_vec()
}

fn answers_in_f32_are_diffusers() {
    let gpu = gpu();
    for name in ["gqa_4_1", "odd_grid", "capacity_extremes", "mask_batch_3"] {
        let case = Case::named(name);
        let error = relative_error(&sample(&case, Some(gpu.clone())), &case.expected("sample"));
        assert!(error <= 1e-5, "{name}: {error:.1e}");
    }
}

fn answers_in_bf16_are_as_close_as_the_processors() {
    let gpu = gpu();
    for name in ["bf16_gqa_mask", "bf16_moe"] {
        let case = Case::named(name);
        assert_eq!(case.dtype, DType::Bf16);
        let truth = case.expected("sample");
        let [ours, cpu] = [Some(gpu.clone()), None].map(|gpu| rms_error(&sample(&case, gpu), &truth));
        let theirs = rms_error(&case.expected("sample_bf16"), &truth);
        assert!(
            ours <= 1.1 * theirs.max(cpu),
            "{name}: {ours:.2e}; processor {cpu:.2e}, diffusers {theirs:.2e}"
        );
    }
}

fn prepared_prompts_give_what_runs_give() {
    let case = Case::named("gqa_4_1");
    let mut session = session(&case, Some(gpu()));
    let inputs = case.inputs();
    let want = session.run(&inputs, &case.dims).expect("the inputs fit");
    let mut fixed = TensorMap::new();
    for spec in session.signature().inputs.iter().filter(|spec| spec.rate < Rate::Step) {
        if let Some(tensor) = inputs.get(&spec.name) {
            fixed.insert(spec.name.clone(), tensor.clone());
        }
    }
    let sizes = session.check_sizes(&inputs, &case.dims).expect("the inputs fit");
    let dims: Vec<(String, i64)> = sizes.iter().map(|(dim, size)| (dim.to_string(), size)).collect();
    let prompt = session.prepare(&fixed, &dims).expect("the inputs fit");
    for _ in 0..2 {
        let mut step = TensorMap::new();
        for spec in session.signature().inputs.iter().filter(|spec| spec.rate == Rate::Step) {
            step.insert(spec.name.clone(), inputs.get(&spec.name).expect("it is given").clone());
        }
        let got = session.step(&prompt, &step).expect("the inputs fit");
        for (name, tensor) in want.iter() {
            assert!(got.get(name).expect("it is there").bytes() == tensor.bytes(), "{name} differs");
        }
    }
}
