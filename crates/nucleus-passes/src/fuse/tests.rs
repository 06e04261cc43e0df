//! Fusion's searches take work in proportion to the graph.

use nucleus_ir::source::SourceMap;

use super::canonical::canonical;
use super::dependence::BUDGET;
use super::state::State;
use crate::elaborate::{Config, Program, elaborate};
use crate::simplify::simplify;

/// The uses that searches follow while groups form, per value of the graph.
fn work(text: &str) -> f64 {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let entry = program.entries().first().unwrap().to_string();
    let graph = elaborate(&program, &Config::new(), &entry).unwrap();
    let mut state = State::new(canonical(&simplify(&graph).unwrap()).unwrap());
    state.form_anchors().unwrap();
    state.decide().unwrap();
    (BUDGET - state.dependence.budget) as f64 / state.graph.value_count() as f64
}

fn chain(before: &str, step: &str, after: &str) -> String {
    format!(
        "dim B; entry main(x: [B, 8] per step) -> (r: [B, 8]) {{
            let w = weight(\"w\", [8, 8]); {before} var a = x; for i in 0..4000 {{ {step} }} {after}
        }}"
    )
}

#[test]
fn searches_end_where_kernels_do() {
    let texts = [
        chain("", "a = max(matmul(a, w), x);", "a"),
        chain("", "a = exp(a) + x;", "a"),
        chain("", "a = a - reduce_sum(a, axis = -1, keep = true);", "a"),
        chain("", "a = reshape(transpose(reshape(a, [8, B]), [1, 0]), [B, 8]);", "a"),
        include_str!("../../../../ir-specs/nucleus_image.ir").to_owned(),
    ];
    for text in texts {
        let work = work(&text);
        assert!(work < 20.0, "{work} uses per value: {}", &text[..text.len().min(300)]);
    }
}
