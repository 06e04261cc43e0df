//! A printed graph elaborates to the same graph.

use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::source::SourceMap;
use nucleus_ir::testing::random_training_graph;
use nucleus_ir::{Graph, Rate, ValueDef};
use nucleus_passes::differentiate::{Gradients, differentiate};
use nucleus_passes::elaborate::{Program, elaborate};
use nucleus_passes::stage::stage;
use proptest::prelude::*;

use crate::support::{NUCLEUS_IMAGE, build, config, graph};

fn reads_back(graph: &Graph) -> Result<(), String> {
    let text = print_graph(graph);
    let again = build(&text, &[])?;
    if again == *graph { Ok(()) } else { Err(format!("{text}\nreads back as\n{}", print_graph(&again))) }
}

/// Rates as the stage pass sets them.
fn set_rates(graph: &mut Graph) {
    let values: Vec<_> = graph.values().map(|(value, data)| (value, data.def)).collect();
    for (value, def) in values {
        let rate = match def {
            ValueDef::Input(index) => graph.inputs[index].rate,
            ValueDef::Weight(index) => graph.weights[index].rate,
            ValueDef::Result { node, .. } => {
                let operands = graph.node(node).operands.iter();
                operands.filter_map(|operand| graph.value(*operand).rate).max().unwrap_or(Rate::Model)
            }
        };
        graph.set_rate(value, rate);
    }
}

#[test]
fn the_released_model_reads_back() {
    assert_eq!(reads_back(&graph(NUCLEUS_IMAGE, &[])), Ok(()));
}

/// Weights per step, outputs whose names are in quotes, and gradients of every kind.
#[test]
fn graphs_with_gradients_read_back() {
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", NUCLEUS_IMAGE);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let settings = ["num_layers=3", "num_experts=4", "capacity_factors=[0.0, 1.0, 2.0]"];
    let loss = elaborate(&program, &config(&settings), "loss").unwrap();
    let gradients = differentiate(&loss, &Gradients::default()).unwrap();
    assert!(gradients.weights.iter().all(|weight| weight.rate == Rate::Step));
    assert_eq!(gradients.outputs.len(), loss.outputs.len() + loss.weights.len());
    for graph in [gradients.clone(), stage(&gradients).unwrap()] {
        assert_eq!(reads_back(&graph), Ok(()));
    }
    let text = print_graph(&gradients);
    for part in ["\"grad.img_in.weight\": f32[", " per step = weight(\"img_in.weight\", "] {
        assert!(text.contains(part), "no `{part}`");
    }
}

#[test]
fn every_fixture_reads_back() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity");
    let mut count = 0;
    for case in std::fs::read_dir(folder).unwrap() {
        let path = case.unwrap().path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let settings: Vec<String> = json
            .iter()
            .filter(|(key, _)| !key.starts_with('_'))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let graph = graph(NUCLEUS_IMAGE, &settings);
        assert_eq!(reads_back(&graph), Ok(()), "{}", path.display());
        count += 1;
    }
    assert!(count >= 20, "{count} fixtures");
}

#[test]
fn unusual_constants_and_names_read_back() {
    let text = r#"
        dim v1, w2, B;
        entry main(v5: [B, v1] per step, w: [w2] per model optional = -inf) -> (a: [B, v1], b: [w2], c: i32[]) {
            scope "x\{\"y\"\}\\\n" { weight("ü", [3], bf16); }
            let low = max(v5, -inf) + nan + -nan + 1e300 + -0.0 + 5e-324;
            (low, w * w2, size(B - floor_div(B, 2) + min(B, 2 * v1) * 3))
        }
    "#;
    assert_eq!(reads_back(&graph(text, &[])), Ok(()));
}

proptest! {
    #[test]
    fn random_graphs_read_back(bytes in prop::collection::vec(any::<u8>(), 0..300), rates: bool) {
        let mut graph = random_training_graph(&bytes);
        if rates {
            set_rates(&mut graph);
        }
        prop_assert_eq!(reads_back(&graph), Ok(()));
    }
}
