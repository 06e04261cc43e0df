//! The plans of the released model: inference in every type, training with and without recomputation, and the optimisers on matrices of its
//! shapes.

use nucleus_ir::DType;
use nucleus_passes::quantize::Quantize;
use nucleus_passes::remat::Policy;
use nucleus_passes::{CompileOptions, Gradients, Remat};
use nucleus_plan::Plan;
use nucleus_runtime::{Model, ModelText};

/// Texts of the optimisers, entry, and settings.
const OPTIMIZERS: &[(&str, &str, &[&str])] = &[
    (include_str!("../../../ir-specs/gradients.ir"), "sum_of_squares", &[]),
    (include_str!("../../../ir-specs/gradients.ir"), "accumulate", &[]),
    (include_str!("../../../ir-specs/gradients.ir"), "scale", &[]),
    (include_str!("../../../ir-specs/adamw.ir"), "update", &[]),
    // Queries and outputs of attention, keys and values, their halves of the text, up projections of dense layers and of experts.
    (MUON, "update", &["count=4", "rows=2048", "columns=2048"]),
    (MUON, "update", &["count=16", "rows=512", "columns=2048"]),
    (MUON, "update", &["count=3", "rows=10752", "columns=2048", "halves=rows"]),
    (MUON, "update", &["count=3", "rows=2048", "columns=2688", "halves=columns"]),
    (MUON, "update", &["count=4", "rows=2048", "columns=2048", "ns_dtype=bf16"]),
    (MUON, "update", &["count=3", "rows=2048", "columns=2688", "halves=columns", "ns_dtype=bf16"]),
    (
        MUON,
        "update",
        &["count=3", "rows=2048", "columns=2688", "halves=columns", "ns_form=direct", "ns_dtype=bf16"],
    ),
    (ORTHOGONALITY, "update", &["rows=64", "columns=4096"]),
];

const MUON: &str = include_str!("../../../ir-specs/muon.ir");
const ORTHOGONALITY: &str = include_str!("../../../ir-specs/orthogonality.ir");

/// Plans that are compiled for some architectures.
pub(crate) struct Group {
    /// The plans.
    pub(crate) plans: Vec<Plan>,
    /// The architectures, all that kernels are written for but the largest, whose limits are those of `sm_90`.
    pub(crate) architectures: &'static [&'static str],
    /// Products and attention alone, whose tiles depend on the architecture; the other kernels are the same text for all.
    pub(crate) tiled_alone: bool,
}

/// All plans.
pub(crate) fn groups() -> Vec<Group> {
    let model = Model::shipped("nucleus_image").unwrap().unwrap();
    let compile = |entry: &str, options: CompileOptions| {
        model.compile_with(entry, &options, &mut ()).unwrap_or_else(|error| panic!("{error}"))
    };
    let bf16 = || CompileOptions { dtype: DType::Bf16, ..CompileOptions::default() };
    let training = |remat| CompileOptions { gradients: Some(Gradients::default()), remat, ..bf16() };
    let inference = compile("velocity", bf16());
    let quantised = compile("velocity", CompileOptions { quantize: Some(Quantize::default()), ..bf16() });
    let optimizers = OPTIMIZERS.iter().map(|(text, entry, settings)| {
        let main = ("optimizer.ir".to_owned(), (*text).to_owned());
        let mut model = Model::from_text(&ModelText { main, modules: Vec::new() }).unwrap();
        settings.iter().for_each(|setting| model.set(setting).unwrap());
        // As in training: small numbers count.
        let options = CompileOptions { dtype: DType::F32, ..CompileOptions::default() };
        model.compile_with(entry, &options, &mut ()).unwrap_or_else(|error| panic!("{error}"))
    });
    let mut plans = vec![
        inference.clone(),
        quantised.clone(),
        compile("velocity", CompileOptions { dtype: DType::F32, ..CompileOptions::default() }),
        compile("loss", training(None)),
    ];
    plans.extend(optimizers);
    let recomputed =
        [Policy::Cheap, Policy::Full].map(|policy| compile("loss", training(Some(Remat::new(policy)))));
    vec![
        Group { plans, architectures: &["sm_80", "sm_90"], tiled_alone: false },
        Group { plans: recomputed.to_vec(), architectures: &["sm_90"], tiled_alone: false },
        Group { plans: vec![inference, quantised], architectures: &["sm_89", "sm_120"], tiled_alone: true },
    ]
}
