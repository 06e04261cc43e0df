//! The released model and small configurations of every kind.

use std::time::{Duration, Instant};

use nucleus_ir::verify_graph::verify_graph;
use nucleus_ir::{DType, Op};

use crate::support::{NUCLEUS_IMAGE, graph};

/// A small configuration; later settings win.
const SMALL: [&str; 9] = [
    "num_layers=5",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "attention_head_dim=8",
    "axes_dims_rope=[4, 2, 2]",
    "joint_attention_dim=24",
    "num_experts=4",
    "moe_intermediate_dim=6",
    "mlp_ratio=12",
];

fn small(settings: &[&str]) -> nucleus_ir::Graph {
    let settings: Vec<&str> =
        SMALL.into_iter().chain(["capacity_factors=2.0"]).chain(settings.iter().copied()).collect();
    let graph = graph(NUCLEUS_IMAGE, &settings);
    assert_eq!(verify_graph(&graph), Ok(()));
    graph
}

/// Which of the layers have experts.
fn moe_layers(graph: &nucleus_ir::Graph) -> Vec<usize> {
    let has = |layer: &usize| {
        let name = format!("transformer_blocks.{layer}.img_mlp.gate.weight");
        graph.weights.iter().any(|weight| weight.name == name)
    };
    (0..5).filter(has).collect()
}

fn shape_of(graph: &nucleus_ir::Graph, name: &str) -> Option<String> {
    graph.weights.iter().find(|weight| weight.name == name).map(|weight| weight.ty.to_string())
}

#[test]
fn the_released_model_has_its_parameters() {
    let start = Instant::now();
    let graph = graph(NUCLEUS_IMAGE, &[]);
    // About 0.15 s in this build on two slow cores.
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(graph.parameter_count(), Some(16_922_679_296));
    assert_eq!(graph.weights.len(), 610);
    assert_eq!(verify_graph(&graph), Ok(()));
    let inputs: Vec<String> =
        graph.inputs.iter().map(|input| format!("{}: {} {}", input.name, input.ty, input.rate)).collect();
    assert_eq!(
        inputs,
        [
            "hidden_states: f32[B, H*W, 64] per step",
            "timestep: f32[B] per step",
            "encoder_hidden_states: f32[B, T, 4096] per prompt",
            "encoder_hidden_states_mask: bool[B, T] per prompt",
        ]
    );
    assert_eq!(graph.inputs[3].default.map(|default| default.0), Some(1.0));
    assert_eq!(graph.outputs[0].name, "sample");
    assert_eq!(graph.ty(graph.outputs[0].value).to_string(), "f32[B, H*W, 64]");
    let expect = [
        ("transformer_blocks.31.attn.to_out.0.weight", "f32[2048, 2048]"),
        ("transformer_blocks.0.attn.add_k_proj.weight", "f32[512, 2048]"),
        ("transformer_blocks.0.attn.norm_added_q.weight", "f32[128]"),
        ("transformer_blocks.2.img_mlp.net.0.proj.weight", "f32[10752, 2048]"),
        ("transformer_blocks.3.img_mlp.gate.weight", "f32[64, 4096]"),
        ("transformer_blocks.3.img_mlp.experts.gate_up_proj", "f32[64, 2048, 2688]"),
        ("transformer_blocks.3.img_mlp.shared_expert.net.2.weight", "f32[2048, 1344]"),
        ("norm_out.linear.bias", "f32[4096]"),
        ("proj_out.weight", "f32[64, 2048]"),
    ];
    for (name, ty) in expect {
        assert_eq!(shape_of(&graph, name).as_deref(), Some(ty), "{name}");
    }
}

#[test]
fn capacities_follow_the_layer() {
    let graph = graph(NUCLEUS_IMAGE, &[]);
    let capacities: Vec<String> = graph
        .nodes()
        .filter_map(|(_, node)| match &node.op {
            Op::ExpertChoice { capacity } => Some(capacity.to_string()),
            _ => None,
        })
        .collect();
    let mut expected = vec!["max(1, ceil_div(4*H*W, 64))".to_owned(); 2];
    expected.extend(vec!["max(1, ceil_div(2*H*W, 64))".to_owned(); 27]);
    assert_eq!(capacities, expected);
}

#[test]
fn all_five_strategies() {
    let expect: [(&str, &[usize]); 5] = [
        ("leave_first_three_and_last_block_dense", &[3]),
        ("leave_first_three_blocks_dense", &[3, 4]),
        ("leave_first_block_dense", &[1, 2, 3, 4]),
        ("all_moe", &[0, 1, 2, 3, 4]),
        ("all_dense", &[]),
    ];
    for (strategy, layers) in expect {
        let graph = small(&[&format!("dense_moe_strategy={strategy}")]);
        assert_eq!(moe_layers(&graph), layers, "{strategy}");
    }
    assert_eq!(moe_layers(&small(&["dense_moe_strategy=all_moe", "moe_enabled=false"])), [0; 0]);
}

#[test]
fn routing_options() {
    let count = |graph: &nucleus_ir::Graph, name: &str| {
        graph
            .nodes()
            .filter(|(_, node)| {
                node.op.name() == name && node.scope.as_deref() == Some("transformer_blocks.3.img_mlp")
            })
            .count()
    };
    let (softmax, sigmoid) = (small(&[]), small(&["use_sigmoid=true"]));
    // One is that of the z term, which only the loss needs.
    assert_eq!((count(&softmax, "exp"), count(&sigmoid, "exp")), (2, 1));
    // One sigmoid is that of the experts' silu.
    assert_eq!((count(&softmax, "sigmoid"), count(&sigmoid, "sigmoid")), (1, 2));
    let scale = |graph: &nucleus_ir::Graph| {
        graph
            .nodes()
            .any(|(_, node)| matches!(&node.op, Op::Constant { value, dtype: DType::F32 } if value.0 == 0.75))
    };
    assert!(!scale(&softmax) && scale(&small(&["route_scale=0.75"])));
}

#[test]
fn fractional_and_scalar_capacities() {
    let capacity = |setting: &str| {
        let graph = small(&[setting]);
        let found = graph.nodes().find_map(|(_, node)| match &node.op {
            Op::ExpertChoice { capacity } => Some(capacity.to_string()),
            _ => None,
        });
        found.unwrap()
    };
    assert_eq!(capacity("capacity_factors=1.3"), "max(1, ceil_scale(H*W, 1.3, 4.0))");
    assert_eq!(capacity("capacity_factors=3"), "max(1, ceil_div(3*H*W, 4))");
    assert_eq!(capacity("capacity_factors=4"), "max(1, H*W)");
    assert_eq!(capacity("capacity_factors=0"), "1");
    assert_eq!(capacity("capacity_factors=[0, 0, 0, 2.5, 1, 9]"), "max(1, ceil_scale(H*W, 2.5, 4.0))");
}

#[test]
fn null_means_the_other_number() {
    let graph = small(&["num_key_value_heads=null", "out_channels=null", "in_channels=8", "patch_size=3"]);
    assert_eq!(shape_of(&graph, "transformer_blocks.0.attn.to_k.weight").as_deref(), Some("f32[32, 32]"));
    assert_eq!(graph.ty(graph.outputs[0].value).to_string(), "f32[B, H*W, 72]");
}
