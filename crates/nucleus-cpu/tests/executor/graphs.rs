//! Plans as the passes make them, on the CPU: of random graphs, and of the released model.

use std::time::Instant;

use nucleus_cpu::{CpuProgram, Options};
use nucleus_ir::DType;
use nucleus_ir::testing::random_training_graph;
use nucleus_passes::fuse::fuse;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_passes::route::route;
use nucleus_passes::stage::stage;
use proptest::prelude::*;

use crate::harness::{check_plan, noise};
use crate::models::{DIMS, SMALL, plan_of, value};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_give_the_same_outputs(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        (b, h, w, t) in (1i64..4, 1i64..5, 1i64..5, 1i64..6),
        seed in 0u64..1000,
    ) {
        let graph = route(&stage(&random_training_graph(&bytes)).unwrap()).unwrap();
        let plan = fuse(&graph).unwrap();
        let integers: Vec<String> =
            graph.inputs.iter().filter(|input| input.ty.dtype == DType::I32).map(|input| input.name.clone()).collect();
        let value = |name: &str, position: usize| {
            let random = noise(seed, position);
            integers.iter().any(|integer| integer == name).then(|| (random * 7.0 - 3.0).floor())
        };
        // Low-precision values are rounded at the same places; what differs is the order of sums before a rounding to bf16.
        check_plan(&plan, &[("B", b), ("H", h), ("W", w), ("T", t)], &value, 2e-2);
    }
}

#[test]
fn the_model_with_sigmoid_routing() {
    let settings: Vec<&str> = SMALL.iter().copied().chain(["use_sigmoid=true"]).collect();
    let options = CompileOptions { verify: true, ..CompileOptions::default() };
    check_plan(&plan_of("velocity", &settings, &options), &DIMS, &value, 1e-5);
}

#[test]
fn the_released_model_compiles_in_a_moment() {
    let plan = plan_of(
        "velocity",
        &[],
        &CompileOptions { dtype: DType::Bf16, verify: true, ..CompileOptions::default() },
    );
    let kernels = plan.kernels.len();
    let start = Instant::now();
    let program = CpuProgram::compile(plan, Options { threads: 1, ..Options::default() }).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{kernels} kernels in {seconds:.3} s");
    let uses = program.weight_uses();
    // Matrices are packed; what stays plain is small: biases, norms, and nothing of an expert.
    assert!(uses.iter().all(|weight| !(weight.name.contains("experts") && weight.plain)));
}
