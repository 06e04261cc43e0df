//! The model and an optimiser as the passes make them, small and whole: inference, gradients, an update.

use nucleus_ir::DType;
use nucleus_ir::source::SourceMap;
use nucleus_passes::Gradients;
use nucleus_passes::elaborate::{Config, Program};
use nucleus_passes::pipeline::{CompileOptions, Form, Pass, compile_to};
use nucleus_passes::quantize::Quantize;
use nucleus_plan::Plan;

use crate::case::noise;
use crate::harness::check_plan;

/// The plan of an entry of the model.
pub(crate) fn plan_of(entry: &str, settings: &[&str], options: &CompileOptions) -> Plan {
    let text = include_str!("../../../../ir-specs/nucleus_image.ir");
    compiled("nucleus_image.ir", text, entry, settings, options)
}

fn compiled(name: &str, text: &str, entry: &str, settings: &[&str], options: &CompileOptions) -> Plan {
    let mut sources = SourceMap::new();
    let file = sources.add(name, text);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let mut config = Config::new();
    settings.iter().for_each(|setting| config.set(setting).unwrap());
    let mut observer = |_: &'static Pass, _: &Form, _| {};
    match compile_to(&program, &config, entry, options, &mut observer, "schedule").unwrap() {
        Form::Plan(plan) => plan,
        Form::Graph(_) => panic!("the last form is a plan"),
    }
}

pub(crate) const SMALL: &[&str] = &[
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

/// Weights are small, so that no layer drowns the others.
pub(crate) fn value(name: &str, position: usize) -> Option<f64> {
    match name {
        "encoder_hidden_states_mask" | "hidden_states" | "timestep" | "encoder_hidden_states" => None,
        "latents" | "noise" => None,
        name => Some((noise(name.len() as u64, position) - 0.5) * 0.5),
    }
}

pub(crate) const DIMS: [(&str, i64); 4] = [("B", 2), ("H", 3), ("W", 5), ("T", 4)];

fn options(dtype: DType) -> CompileOptions {
    CompileOptions { dtype, verify: true, ..CompileOptions::default() }
}

#[test]
fn a_denoising_step() {
    check_plan(&plan_of("velocity", SMALL, &options(DType::F32)), &DIMS, &value, 1e-5);
}

/// Every product and every stored activation is rounded; what differs is the order of the sums before it.
#[test]
fn a_denoising_step_in_bf16() {
    check_plan(&plan_of("velocity", SMALL, &options(DType::Bf16)), &DIMS, &value, 2e-2);
}

#[test]
fn a_denoising_step_with_weights_of_bytes() {
    let quantize = Some(Quantize { least_elements: 256 });
    let plan = plan_of("velocity", SMALL, &CompileOptions { quantize, ..options(DType::F32) });
    assert!(plan.weights.iter().any(|(_, ty)| ty.dtype == DType::I8));
    let value = |name: &str, position: usize| match name.ends_with(".scale") {
        true => Some((noise(name.len() as u64, position) + 0.5) / 400.0),
        false => value(name, position).map(|value| if value.abs() < 1.0 { value } else { value.round() }),
    };
    check_plan(&plan, &DIMS, &value, 1e-5);
}

#[test]
fn the_gradients_of_all_weights() {
    let options = CompileOptions { gradients: Some(Gradients::default()), ..options(DType::F32) };
    check_plan(&plan_of("loss", SMALL, &options), &DIMS, &value, 1e-4);
}

/// Its products of a matrix and itself are symmetric.
#[test]
fn a_step_of_muon() {
    let text = include_str!("../../../../ir-specs/muon.ir");
    let forms = [
        ("ns_form=gram", "ns_dtype=f32"),
        ("ns_form=direct", "ns_dtype=f32"),
        ("ns_form=direct", "ns_dtype=bf16"),
    ];
    for (form, dtype) in forms {
        let settings = ["count=2", "rows=20", "columns=36", form, dtype];
        let plan = compiled("muon.ir", text, "update", &settings, &options(DType::F32));
        // A sum that rounds to a neighbour in bf16 differs by 2⁻⁸.
        let limit = if dtype == "ns_dtype=bf16" { 1e-2 } else { 1e-4 };
        check_plan(&plan, &[], &|_, _| None, limit);
    }
}
