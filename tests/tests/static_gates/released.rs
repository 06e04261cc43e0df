//! The plans of the released model: inference, training, and the optimisers on matrices of its shapes.

use nucleus_ir::DType;
use nucleus_passes::{CompileOptions, Gradients};
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
    (ORTHOGONALITY, "update", &["rows=64", "columns=4096"]),
];

const MUON: &str = include_str!("../../../ir-specs/muon.ir");
const ORTHOGONALITY: &str = include_str!("../../../ir-specs/orthogonality.ir");

/// All plans.
pub(crate) fn plans() -> Vec<Plan> {
    let model = Model::shipped("nucleus_image").unwrap().unwrap();
    let compile = |entry: &str, gradients: Option<Gradients>| {
        let options = CompileOptions { dtype: DType::Bf16, gradients, ..CompileOptions::default() };
        model.compile_with(entry, &options, &mut ()).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut plans = vec![compile("velocity", None), compile("loss", Some(Gradients::default()))];
    plans.extend(OPTIMIZERS.iter().map(|(text, entry, settings)| {
        let main = ("optimizer.ir".to_owned(), (*text).to_owned());
        let mut model = Model::from_text(&ModelText { main, modules: Vec::new() }).unwrap();
        settings.iter().for_each(|setting| model.set(setting).unwrap());
        // As in training: small numbers count.
        let options = CompileOptions { dtype: DType::F32, ..CompileOptions::default() };
        model.compile_with(entry, &options, &mut ()).unwrap_or_else(|error| panic!("{error}"))
    }));
    plans
}
