//! Plans as the passes make them: of random graphs, and of the model.

use std::time::Instant;

use nucleus_cpu::{CpuProgram, Options};
use nucleus_ir::DType;
use nucleus_ir::source::SourceMap;
use nucleus_ir::testing::random_training_graph;
use nucleus_passes::elaborate::{Config, Program};
use nucleus_passes::fuse::fuse;
use nucleus_passes::pipeline::{CompileOptions, Form, Pass, compile_to};
use nucleus_passes::route::route;
use nucleus_passes::stage::stage;
use nucleus_plan::Plan;
use proptest::prelude::*;

use crate::harness::{check_plan, noise};

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

fn model(settings: &[&str], dtype: DType) -> Plan {
    let mut sources = SourceMap::new();
    let text = include_str!("../../../../ir-specs/nucleus_image.ir");
    let file = sources.add("nucleus_image.ir", text);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let mut config = Config::new();
    settings.iter().for_each(|setting| config.set(setting).unwrap());
    let options = CompileOptions { dtype, verify: true, ..CompileOptions::default() };
    let mut observer = |_: &'static Pass, _: &Form, _| {};
    match compile_to(&program, &config, "velocity", &options, &mut observer, "schedule").unwrap() {
        Form::Plan(plan) => plan,
        Form::Graph(_) => panic!("the last form is a plan"),
    }
}

const SMALL: &[&str] = &[
    "num_layers=3",
    "num_attention_heads=2",
    "num_key_value_heads=1",
    "attention_head_dim=16",
    "joint_attention_dim=24",
    "axes_dims_rope=[4, 6, 6]",
    "in_channels=8",
    "out_channels=2",
    "num_experts=4",
    "moe_intermediate_dim=12",
    "mlp_ratio=6.0",
    "dense_moe_strategy=leave_first_block_dense",
    "capacity_factors=[0.0, 2.0, 1.3]",
];

#[test]
fn the_model_at_a_small_size() {
    let dims = [("B", 2), ("H", 3), ("W", 5), ("T", 4)];
    let small = |name: &str, position: usize| match name {
        "encoder_hidden_states_mask" | "hidden_states" | "timestep" | "encoder_hidden_states" => None,
        name => Some((noise(name.len() as u64, position) - 0.5) * 0.5),
    };
    check_plan(&model(SMALL, DType::F32), &dims, &small, 1e-5);
    let sigmoid: Vec<&str> = SMALL.iter().copied().chain(["use_sigmoid=true"]).collect();
    check_plan(&model(&sigmoid, DType::F32), &dims, &small, 1e-5);
}

#[test]
fn the_released_model_compiles_in_a_moment() {
    let plan = model(&[], DType::Bf16);
    let kernels = plan.kernels.len();
    let start = Instant::now();
    let program = CpuProgram::compile(plan, Options { threads: 1, ..Options::default() }).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{kernels} kernels in {seconds:.3} s");
    let uses = program.weight_uses();
    // Matrices are packed; what stays plain is small: biases, norms, and nothing of an expert.
    assert!(uses.iter().all(|weight| !(weight.name.contains("experts") && weight.plain)));
}
