//! The definition of Nucleus-Image under random small configs.

use nucleus_cpu::kernels::Isa;
use nucleus_ir::source::SourceMap;
use nucleus_ir::{Bindings, DType, Graph};
use nucleus_passes::elaborate::{Config, Program, elaborate};
use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::tensors::random_tensors;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::support::{Subject, dims};

const STRATEGIES: [&str; 5] = [
    "leave_first_three_and_last_block_dense",
    "leave_first_three_blocks_dense",
    "leave_first_block_dense",
    "all_moe",
    "all_dense",
];

/// Query heads, key heads, sizes of the rotary axes.
const HEADS: [(i64, Option<i64>, [i64; 3]); 6] = [
    (2, Some(1), [4, 6, 6]),
    (1, None, [0, 4, 4]),
    (4, Some(2), [2, 2, 4]),
    (3, Some(3), [8, 2, 0]),
    (4, Some(1), [4, 14, 14]),
    (6, Some(2), [0, 0, 6]),
];

fn settings() -> impl Strategy<Value = Vec<String>> {
    let layers = (0..STRATEGIES.len(), prop::collection::vec(0.0f64..6.0, 0..6), any::<bool>());
    let experts = (1i64..6, 1i64..20, any::<bool>(), 0.5f64..3.0);
    let widths = (0..HEADS.len(), 1i64..30, 1i64..3, 1i64..9, prop::option::of(1i64..5), 1.0f64..9.0);
    (layers, experts, widths).prop_map(|(layers, experts, widths)| {
        let (strategy, capacity_factors, moe_enabled) = layers;
        let (num_experts, moe_intermediate_dim, use_sigmoid, route_scale) = experts;
        let (heads, joint_attention_dim, patch_size, in_channels, out_channels, mlp_scale) = widths;
        let (num_attention_heads, key_heads, axes) = HEADS[heads];
        let width = num_attention_heads * axes.iter().sum::<i64>();
        // The inner width is rounded down to a multiple of 128: at least one.
        let mlp_ratio = mlp_scale.max(192.5 / width as f64);
        let null = |value: Option<i64>| value.map_or("null".to_owned(), |value| value.to_string());
        // A token is chosen by at most all experts, and an expert has at most all tokens.
        let factors: Vec<f64> =
            capacity_factors.iter().map(|factor| factor.min(num_experts as f64)).collect();
        vec![
            format!("num_layers={}", factors.len()),
            format!("capacity_factors={factors:?}"),
            format!("dense_moe_strategy={}", STRATEGIES[strategy]),
            format!("moe_enabled={moe_enabled}"),
            format!("num_experts={num_experts}"),
            format!("moe_intermediate_dim={moe_intermediate_dim}"),
            format!("use_sigmoid={use_sigmoid}"),
            format!("route_scale={route_scale}"),
            format!("num_attention_heads={num_attention_heads}"),
            format!("num_key_value_heads={}", null(key_heads)),
            format!("attention_head_dim={}", axes.iter().sum::<i64>()),
            format!("axes_dims_rope={axes:?}"),
            format!("joint_attention_dim={joint_attention_dim}"),
            format!("patch_size={patch_size}"),
            format!("in_channels={in_channels}"),
            format!("out_channels={}", null(out_channels)),
            format!("mlp_ratio={mlp_ratio:?}"),
        ]
    })
}

fn model(settings: &[String]) -> Graph {
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", include_str!("../../../ir-specs/nucleus_image.ir"));
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let mut config = Config::new();
    for setting in settings {
        config.set(setting).unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
    elaborate(&program, &config, "velocity")
        .unwrap_or_else(|errors| panic!("{settings:?}: {}", nucleus_ir::render(&sources, &errors, false)))
}

/// The same tensor times `factor`.
fn scaled(tensor: &HostTensor, factor: f32) -> HostTensor {
    let values: Vec<f32> = tensor.to_f32_vec().iter().map(|x| x * factor).collect();
    HostTensor::from_f32(tensor.shape(), &values).unwrap()
}

/// Inputs as a sampler gives them, and weights that keep the size of activations.
fn tensors(graph: &Graph, dims: &Bindings, masked: bool, seed: u64) -> (TensorMap, TensorMap) {
    let (mut inputs, random) = random_tensors(graph, dims, seed).unwrap();
    let timestep = inputs.get("timestep").unwrap().to_f32_vec();
    let timestep: Vec<f32> = timestep.iter().map(|x| x.abs()).collect();
    inputs.insert("timestep", HostTensor::from_f32(&[timestep.len()], &timestep).unwrap());
    if !masked {
        inputs.remove("encoder_hidden_states_mask");
    }
    let mut weights = TensorMap::new();
    for (name, tensor) in random.iter() {
        let size = tensor.shape().iter().rev().take(2).product::<usize>() as f32;
        let factor = if tensor.shape().len() > 1 { size.powf(-0.25) } else { 1.0 };
        weights.insert(name.clone(), scaled(tensor, factor));
    }
    (inputs, weights)
}

fn check(
    settings: &[String],
    dtype: DType,
    sizes: [i64; 4],
    masked: bool,
    seed: u64,
) -> Result<(), TestCaseError> {
    let graph = model(settings);
    let dims = dims(sizes);
    let (inputs, weights) = tensors(&graph, &dims, masked, seed);
    Subject::new(&graph, dtype, &Isa::supported()[..1])
        .and_then(|mut subject| subject.check_on(&dims, &inputs, &weights))
        .map_err(|error| TestCaseError::fail(format!("{error}\n{settings:?}")))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn the_model_agrees_with_the_evaluator(
        settings in settings(),
        (b, h, w, t) in (1i64..4, 1i64..6, 1i64..8, 1i64..7),
        masked in any::<bool>(),
        seed in any::<u64>(),
    ) {
        check(&settings, DType::F32, [b, h, w, t], masked, seed)?;
    }
}

proptest! {
    #![proptest_config(config(20))]

    /// Without experts: a rounding in another place may send a token elsewhere, which is a large difference and no mistake.
    #[test]
    fn the_dense_model_agrees_with_the_evaluator_in_bf16(
        mut settings in settings(),
        (b, h, w, t) in (1i64..4, 1i64..6, 1i64..8, 1i64..7),
        masked in any::<bool>(),
        seed in any::<u64>(),
    ) {
        settings.push("dense_moe_strategy=all_dense".to_owned());
        check(&settings, DType::Bf16, [b, h, w, t], masked, seed)?;
    }
}
