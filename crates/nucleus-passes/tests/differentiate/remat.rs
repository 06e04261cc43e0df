//! What recomputation saves.

use nucleus_ir::source::SourceMap;
use nucleus_ir::{Bindings, DType, Op};
use nucleus_passes::differentiate::{Gradients, differentiate};
use nucleus_passes::elaborate::{Config, Program};
use nucleus_passes::pipeline::{CompileOptions, compile_entry};
use nucleus_passes::remat::{Policy, Remat, remat_reported};
use nucleus_passes::simplify::simplify;

use crate::finite::graph;

const NUCLEUS_IMAGE: &str = include_str!("../../../../ir-specs/nucleus_image.ir");

/// Two dense layers and four with experts.
const MODEL: &[&str] = &[
    "num_layers=6",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "attention_head_dim=32",
    "joint_attention_dim=64",
    "axes_dims_rope=[8, 12, 12]",
    "in_channels=16",
    "out_channels=4",
    "num_experts=8",
    "moe_intermediate_dim=96",
    "dense_moe_strategy=leave_first_block_dense",
    "capacity_factors=[0.0, 2.0, 2.0, 2.0, 2.0, 2.0]",
];

fn sizes() -> Bindings {
    Bindings::from_iter([("B", 4), ("H", 16), ("W", 16), ("T", 16)])
}

/// Bytes of the arena of a training step.
fn arena(dtype: DType, policy: Option<Policy>) -> i64 {
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", NUCLEUS_IMAGE);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let mut config = Config::new();
    MODEL.iter().for_each(|setting| config.set(setting).unwrap());
    let remat = policy.map(|policy| Remat { policy, sizes: sizes() });
    let gradients = Some(Gradients::default());
    let options = CompileOptions { dtype, gradients, remat, ..CompileOptions::default() };
    let plan = compile_entry(&program, &config, "loss", &options, &mut ()).unwrap();
    plan.arenas.unwrap()[2].eval(&sizes()).unwrap()
}

#[test]
fn the_arena_shrinks() {
    for dtype in [DType::F32, DType::Bf16] {
        let [none, cheap, full] =
            [None, Some(Policy::Cheap), Some(Policy::Full)].map(|policy| arena(dtype, policy));
        assert!(2 * cheap < none && 4 * full < none, "{dtype}: {none}, {cheap}, {full}");
        // Offsets and what is no activation come on top of the estimate.
        let budget = (full + none) / 3;
        let within = arena(dtype, Some(Policy::Memory(budget as u64)));
        assert!(full < within && within < budget + budget / 4, "{dtype}: {within} of {budget}");
    }
}

/// Experts are chosen once, whatever is recomputed: their choice hangs on the last bit of a logit.
#[test]
fn choices_are_never_made_again() {
    let loss = graph(NUCLEUS_IMAGE, MODEL, "loss");
    let gradients = simplify(&differentiate(&loss, &Gradients::default()).unwrap()).unwrap();
    let count = |graph: &nucleus_ir::Graph| {
        graph.nodes().filter(|(_, node)| matches!(node.op, Op::ExpertChoice { .. })).count()
    };
    let products = |graph: &nucleus_ir::Graph| {
        graph.nodes().filter(|(_, node)| matches!(node.op, Op::GroupedMatmul { .. })).count()
    };
    let (full, report) = remat_reported(&gradients, &Remat::new(Policy::Full)).unwrap();
    assert_eq!(report.segments, 6);
    assert_eq!((count(&gradients), count(&full)), (5, 5));
    // Both products of the experts, in each of the five layers; gates need the second one.
    assert_eq!(products(&full), products(&gradients) + 10);
}

/// A graph without layers is not touched.
#[test]
fn no_layers_no_recomputation() {
    let loss = graph(
        "entry loss() -> (loss: []) { let w = weight(\"w\", [4]); reduce_sum(exp(w) * w, axis = 0) }",
        &[],
        "loss",
    );
    let gradients = differentiate(&loss, &Gradients::default()).unwrap();
    assert_eq!(remat_reported(&gradients, &Remat::new(Policy::Full)).unwrap().0, gradients);
}
