//! The Nucleus-Image denoiser.

use std::time::Instant;

use nucleus_ir::{Bindings, DType};
use nucleus_passes::allocate::{allocate, peak_live_bytes};
use nucleus_passes::fuse::fuse;
use nucleus_passes::group::group;
use nucleus_passes::schedule::schedule;
use nucleus_plan::cost::{Machine, predict};
use nucleus_plan::verify_plan;

use crate::support::{NUCLEUS_IMAGE, anchors, checked, launches, prepared};

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

#[test]
fn the_released_model_is_a_handful_of_kernels() {
    let graph = prepared(NUCLEUS_IMAGE, &[], DType::Bf16);
    let start = Instant::now();
    let plan = fuse(&graph).unwrap();
    println!("fuse {:?}", start.elapsed());
    let start = Instant::now();
    let plan = schedule(group(plan).unwrap()).unwrap();
    println!("group, schedule {:?}", start.elapsed());
    let start = Instant::now();
    let plan = allocate(plan).unwrap();
    println!("allocate {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(verify_plan(&plan), Ok(()));
    println!("verify {:?}", start.elapsed());
    println!("{}", launches(&plan));
    println!("{} kernels, {} launches, {:?}", plan.kernels.len(), plan.launches.len(), anchors(&plan));
    let dims = Bindings::from_iter([("B", 1), ("H", 64), ("W", 64), ("T", 256)]);
    let total: i64 = plan.launches.iter().map(|launch| launch.flops.eval(&dims).unwrap()).sum();
    println!("{:.3} TFLOP", total as f64 / 1e12);
    let arenas = plan.arenas.clone().unwrap().map(|size| (size.to_string(), size.eval(&dims).unwrap()));
    println!("{arenas:?}");
    println!("peak {}", peak_live_bytes(&plan, &dims).unwrap());
    let machine = Machine::cpu();
    let seconds: f64 = plan.launches.iter().map(|launch| predict(launch, plan.kernel(launch.kernel), &dims, &machine).unwrap().seconds).sum();
    println!("{seconds:.2} s");
}
