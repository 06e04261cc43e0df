//! The table of passes, and the released model through all of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use nucleus_ir::source::SourceMap;
use nucleus_ir::{Bindings, DType, Graph, Rate};
use nucleus_passes::elaborate::{Config, Program};
use nucleus_passes::pipeline::{CompileOptions, Form, PASSES, PassTiming, compile_entry, compile_to, pass};
use nucleus_passes::stage::work;

fn model() -> Program {
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", include_str!("../../ir-specs/nucleus_image.ir"));
    Program::load(&mut sources, file, &|_| None).unwrap()
}

fn config(settings: &[&str]) -> Config {
    let mut config = Config::new();
    for setting in settings {
        config.set(setting).unwrap();
    }
    config
}

#[test]
fn every_pass_has_its_own_name_and_a_folder_of_file_tests() {
    let names: BTreeSet<&str> = PASSES.iter().map(|pass| pass.name).collect();
    assert_eq!(names.len(), PASSES.len());
    for name in names {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("files").join(name);
        let files = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        assert!(files > 0, "{} has no file tests", folder.display());
        assert!(pass(name).is_some());
    }
}

#[test]
fn every_pass_runs_once_in_order_and_is_timed() {
    let mut timings: Vec<PassTiming> = Vec::new();
    let options = CompileOptions { dtype: DType::Bf16, verify: true, ..CompileOptions::default() };
    let plan =
        compile_entry(&model(), &config(&["num_layers=4"]), "velocity", &options, &mut timings).unwrap();
    assert_eq!(plan.entry, "velocity");
    let ran: Vec<&str> = timings.iter().map(|timing| timing.pass).collect();
    assert_eq!(ran, PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>());
}

#[test]
fn an_unknown_stage_is_an_error_that_lists_the_stages() {
    let options = CompileOptions::default();
    let error = compile_to(&model(), &config(&["num_layers=1"]), "velocity", &options, &mut (), "simplfy");
    let message = error.unwrap_err().to_string();
    let stages = PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>().join(", ");
    assert_eq!(message, format!("there is no stage `simplfy`: expected {stages}"));
}

#[test]
fn an_error_of_elaboration_keeps_its_message() {
    let settings = config(&["num_attention_heads=6"]);
    let error = compile_entry(&model(), &settings, "velocity", &CompileOptions::default(), &mut ());
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("num_attention_heads (6) must be a multiple of num_key_value_heads (4)"),
        "{message}"
    );
}

#[test]
fn the_compute_dtype_must_be_a_float() {
    let options = CompileOptions { dtype: DType::I32, verify: true, ..CompileOptions::default() };
    let error = compile_to(&model(), &config(&["num_layers=1"]), "velocity", &options, &mut (), "precision");
    assert_eq!(error.unwrap_err().to_string(), "the compute dtype must be f32, bf16 or f16, not i32");
}

fn released(last: &str) -> Graph {
    let options = CompileOptions { dtype: DType::Bf16, verify: true, ..CompileOptions::default() };
    match compile_to(&model(), &Config::new(), "velocity", &options, &mut (), last).unwrap() {
        Form::Graph(graph) => graph,
        Form::Plan(_) => unreachable!("`{last}` is a pass from graph to graph"),
    }
}

/// 1024 × 1024 pixels are 64 × 64 tokens; the paper's architecture costs about 9.8 TFLOP in linear layers and 4.5 TFLOP in
/// attention there, per step.
#[test]
fn the_released_model_does_14_teraflop_per_step() {
    let [_, prompt, step] = work(&released("route")).unwrap();
    assert_eq!((prompt.rate, step.rate), (Rate::Prompt, Rate::Step));
    let at = Bindings::from_iter([("B", 1), ("H", 64), ("W", 64), ("T", 256)]);
    let teraflop = step.flops.eval(&at).unwrap() as f64 / 1e12;
    assert!((14.0..14.6).contains(&teraflop), "{teraflop} TFLOP per step");
    // Text keys and values: 32 layers of 4096 → 2048 → 2 × 512, per text token.
    let text = 2 * 32 * (4096 * 2048 + 2 * 2048 * 512) * 256;
    let prompt = prompt.flops.eval(&at).unwrap();
    assert!(
        (text..text + text / 100).contains(&prompt),
        "{prompt} FLOP per prompt, of which {text} in products"
    );
}

/// All layers share what they have in common.
#[test]
fn the_released_model_shares_rotary_tables_and_constants() {
    let graph = released("simplify");
    let count = |name: &str| graph.nodes().filter(|(_, data)| data.op.name() == name).count();
    assert_eq!((count("sin"), count("cos")), (3, 3), "image, text and timestep");
    assert!(count("constant") < 20, "{} constants", count("constant"));
}

/// What a printed graph elaborates to again.
fn reread(text: &str) -> Graph {
    let mut sources = SourceMap::new();
    let file = sources.add("stage.ir", text);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    match compile_to(&program, &Config::new(), "velocity", &CompileOptions::default(), &mut (), "elaborate") {
        Ok(Form::Graph(graph)) => graph,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_stage_of_the_released_model_reads_back() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut stages = 0;
        let mut observer =
            |pass: &'static nucleus_passes::pipeline::Pass, form: &Form, _: std::time::Duration| {
                stages += 1;
                let text = form.text();
                match form {
                    Form::Graph(graph) => assert!(reread(&text) == *graph, "{} in {dtype}", pass.name),
                    Form::Plan(plan) => {
                        let read = nucleus_plan::text::parse_plan(&text).unwrap();
                        assert!(read == *plan, "{} in {dtype}", pass.name);
                        let bytes = postcard::to_stdvec(plan).unwrap();
                        let read: nucleus_plan::Plan = postcard::from_bytes(&bytes).unwrap();
                        assert!(read == *plan, "{} in {dtype}, serialised", pass.name);
                    }
                }
            };
        let options = CompileOptions { dtype, verify: true, ..CompileOptions::default() };
        compile_entry(&model(), &Config::new(), "velocity", &options, &mut observer).unwrap();
        assert_eq!(stages, PASSES.len());
    }
}
