//! The Nucleus-Image denoiser.

use std::collections::BTreeMap;

use nucleus_ir::{Bindings, DType, Rate};
use nucleus_passes::allocate::peak_live_bytes;
use nucleus_passes::fuse::fuse;
use nucleus_plan::cost::{Machine, predict};
use nucleus_plan::{Anchor, Launch, verify_plan};

use crate::support::{NUCLEUS_IMAGE, checked, launches, placed, prepared};

const SMALL: [&str; 10] = [
    "num_layers=5",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "attention_head_dim=8",
    "axes_dims_rope=[4, 2, 2]",
    "joint_attention_dim=24",
    "num_experts=4",
    "moe_intermediate_dim=6",
    "mlp_ratio=12",
    "capacity_factors=2.0",
];

#[test]
fn a_small_model_keeps_its_meaning() {
    checked(NUCLEUS_IMAGE, &SMALL, 1e-5);
    let others = ["use_sigmoid=true", "num_key_value_heads=null", "dense_moe_strategy=\"all_moe\""];
    let settings: Vec<&str> = SMALL.into_iter().chain(others).chain(["capacity_factors=1.3"]).collect();
    checked(NUCLEUS_IMAGE, &settings, 1e-5);
}

/// What the compiler makes of the released model at 1024² with 256 text tokens.
#[test]
fn the_released_model_is_a_handful_of_kernels() {
    let graph = prepared(NUCLEUS_IMAGE, &[], DType::Bf16);
    let plan = placed(fuse(&graph).unwrap()).unwrap();
    assert_eq!(verify_plan(&plan), Ok(()));
    let shown = || launches(&plan);
    assert!(plan.kernels.len() <= 50, "{} kernels\n{}", plan.kernels.len(), shown());
    // What a layer with experts launches per step.
    let in_layer = |launch: &&Launch| {
        let scope = launch.scope.as_deref().unwrap_or_default();
        launch.stage == Rate::Step
            && (scope == "transformer_blocks.9" || scope.starts_with("transformer_blocks.9."))
    };
    assert_eq!(plan.launches.iter().filter(in_layer).count(), 12, "{}", shown());

    // Launches by their number of parts, in the order of that.
    let mut parts: BTreeMap<usize, usize> = BTreeMap::new();
    for launch in &plan.launches {
        if let Anchor::Matmul(c) | Anchor::GroupedMatmul(c) = &plan.kernel(launch.kernel).anchor {
            *parts.entry(c.parts.len()).or_default() += 1;
        }
    }
    parts.remove(&1);
    // Keys and values of the text; queries, keys and values of the image; the timestep's products for the routers, and all modulation
    // vectors, those of the last norm among them. The layers' views of the text are too large to wait in the caches.
    assert_eq!(parts, BTreeMap::from([(2, 32), (3, 32), (29, 1), (33, 1)]), "{}", shown());

    let dims = Bindings::from_iter([("B", 1), ("H", 64), ("W", 64), ("T", 256)]);
    let total: i64 = plan.launches.iter().map(|launch| launch.flops.eval(&dims).unwrap()).sum();
    assert!((14.2e12..14.8e12).contains(&(total as f64)), "{total} FLOPs");
    let arenas = plan.arenas.as_ref().unwrap();
    let step = arenas[Rate::Step as usize].eval(&dims).unwrap();
    let peak = peak_live_bytes(&plan, &dims).unwrap();
    assert!(step as f64 <= 1.2 * peak as f64, "{step} bytes of arena for {peak} live");
}

#[test]
fn predictions_add_up_to_more_than_the_arithmetic() {
    let plan = placed(fuse(&prepared(NUCLEUS_IMAGE, &[], DType::Bf16)).unwrap()).unwrap();
    let dims = Bindings::from_iter([("B", 1), ("H", 64), ("W", 64), ("T", 256)]);
    let machine = Machine::cpu();
    let mut seconds = 0.0;
    let mut bounds = [0usize; 3];
    for launch in &plan.launches {
        let prediction = predict(launch, plan.kernel(launch.kernel), &dims, &machine).unwrap();
        seconds += prediction.seconds;
        bounds[prediction.bound as usize] += 1;
    }
    let limit = 14.3e12 / machine.bf16_flops;
    assert!(seconds > limit && seconds < 1.5 * limit, "{seconds} s, limit {limit} s");
    // Products and attention against norms and combination.
    assert!(bounds[0] > 350 && bounds[1] > 90, "{bounds:?}");
}
