//! Programs of several modules.

use nucleus_ir::diagnostics::render;
use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::source::SourceMap;
use nucleus_passes::elaborate::{Program, SourceText, elaborate};

use crate::support::config;

/// The first entry of the module `main` among `files`, printed; or the rendered diagnostics.
fn build(files: &[(&str, &str)], settings: &[&str]) -> Result<String, String> {
    let text = |name: &str| {
        files.iter().find(|(known, _)| *known == name).map(|(_, text)| text.trim_start().to_owned())
    };
    let mut sources = SourceMap::new();
    let file = sources.add("main.ir", text("main").unwrap_or_default());
    let loader = |name: &str| Some(SourceText { name: format!("{name}.ir"), text: text(name)? });
    let program =
        Program::load(&mut sources, file, &loader).map_err(|errors| render(&sources, &errors, false))?;
    let graph = elaborate(&program, &config(settings), program.entries()[0]);
    graph.map(|graph| print_graph(&graph)).map_err(|errors| render(&sources, &errors, false))
}

const LAYERS: &str = r#"
use std { linear };
config { width: int = 6; }
const HALF = floor_div(width, 2);
dim N;
fn shrink(x: [N, width]) -> [N, HALF] { linear(x, "shrink", out = HALF, bias = false) }
"#;

#[test]
fn functions_constants_and_config_keys_come_from_other_modules() {
    let main = r#"
use layers { shrink, HALF };
dim B, N;
entry main(x: [N, 2 * HALF] per step) -> (r: [N, HALF]) { shrink(x) }
"#;
    let printed = build(&[("main", main), ("layers", LAYERS)], &["width=8"]).unwrap();
    assert_eq!(
        printed,
        r#"dim B, N;

entry main(
    x: f32[N, 8] per step,
) -> (r: f32[N, 4]) {
    let w1 = weight("shrink.weight", [4, 8]);
    let v2: f32[N, 4] = matmul(x, w1, transpose_b = true);
    v2
}
"#
    );
}

/// A model on top of another: names of weights, dims and keys are shared, entries keep to themselves.
#[test]
fn a_model_may_be_built_on_another() {
    let base = r#"
config { width: int = 4; }
dim N;
const DOUBLE = 2 * width;
require width % 2 == 0, "width ({width}) must be even";
fn double(x: [N, width]) -> [N, DOUBLE] { matmul(x, weight("up.weight", [width, DOUBLE])) }
entry main(x: [N, width] per step) -> (r: [N, DOUBLE]) { double(x) }
"#;
    let main = r#"
use base { DOUBLE, N, double, width };
config { words: int = 9; }
entry main(token: i32[N] per step) -> (r: [N, DOUBLE]) {
    let table = weight("words.weight", [1, words, width]);
    double(reshape(gather(table, reshape(token, [1, N])), [N, width]))
}
"#;
    let files = [("main", main), ("base", base)];
    assert_eq!(
        build(&files, &["width=6", "words=3"]).unwrap(),
        r#"dim N;

entry main(
    token: i32[N] per step,
) -> (r: f32[N, 12]) {
    let w1 = weight("words.weight", [1, 3, 6]);
    let v2: i32[1, N] = reshape(token, shape = [1, N]);
    let v3: f32[1, N, 6] = gather(w1, v2);
    let v4: f32[N, 6] = reshape(v3, shape = [N, 6]);
    let w5 = weight("up.weight", [6, 12]);
    let v6: f32[N, 12] = matmul(v4, w5);
    v6
}
"#
    );
    let error = build(&files, &["width=3"]).unwrap_err();
    assert!(error.starts_with("error: width (3) must be even") && error.contains("base.ir"), "{error}");
}

#[test]
fn a_module_that_is_not_there() {
    let main = "use layer { shrink };\nentry main(x: [6] per step) -> (r: [3]) { shrink(x) }";
    assert_eq!(
        build(&[("main", main)], &[]).unwrap_err().trim_end(),
        r#"error: there is no module `layer`
 --> main.ir:1:5
  |
1 | use layer { shrink };
  |     ^^^^^ used here
  |
  = help: a module is `std` or a file `layer.ir` beside the one that uses it"#
    );
}

#[test]
fn modules_in_a_circle() {
    let main = "use a { f };\nentry main(x: [6] per step) -> (r: [6]) { f(x) }";
    let a = "use b { g };\nfn f(x: tensor) -> tensor { g(x) }";
    let b = "use a { f };\nfn g(x: tensor) -> tensor { f(x) }";
    assert_eq!(
        build(&[("main", main), ("a", a), ("b", b)], &[]).unwrap_err().trim_end(),
        r#"error: modules use one another in a circle: a → b → a
 --> b.ir:1:5
  |
1 | use a { f };
  |     ^ the circle closes here"#
    );
}

#[test]
fn errors_of_all_modules_are_reported() {
    let main = "use a { f };\nentry main(x: [6] per step) -> (r: [6]) { f(y) }";
    let a = "fn f(x: tensor) -> tensor { z }";
    let errors = build(&[("main", main), ("a", a)], &[]).unwrap_err();
    let lines: Vec<&str> =
        errors.lines().filter(|line| line.starts_with("error") || line.contains("-->")).collect();
    assert_eq!(lines.len(), 4, "{errors}");
    assert!(lines[1].contains("a.ir:1:29") && lines[3].contains("main.ir:2:45"), "{errors}");
}

#[test]
fn a_config_key_belongs_to_one_module() {
    let main = "use layers { shrink };\nconfig { width: int = 6; }\nentry main(x: [2, width] per step) -> (r: [2, 3]) { shrink(x) }";
    let errors = build(&[("main", main), ("layers", LAYERS)], &[]).unwrap_err();
    assert!(errors.starts_with("error: config key `width` is declared in two modules\n"), "{errors}");
}
