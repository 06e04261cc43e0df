//! What the language means: each test states one rule by the graph it gives.

use nucleus_ir::graph_printer::print_graph;

use crate::support::graph;

/// The body of the printed graph of an entry over `x: [B, 4]`, `y: [B, 1, 4]`, `n: i32[B]` and `flag: bool[B]`.
fn body(value: &str, ty: &str) -> Vec<String> {
    let text = format!(
        "dim B, S;\nentry main(x: [B, 4] per step, y: [B, 1, 4] per step, n: i32[B] per step, flag: bool[B] per step) -> (r: {ty}) {{\n    {value}\n}}\n"
    );
    let printed = print_graph(&graph(&text, &[]));
    let lines = printed.lines().map(str::trim);
    lines.filter(|line| line.starts_with("let ") || line.starts_with("require ")).map(str::to_owned).collect()
}

#[test]
fn numbers_become_constants_of_the_tensors_element_type() {
    assert_eq!(
        body("x * 2", "[B, 4]"),
        [
            "let v4: f32[] = constant(value = 2.0);",
            "let v5: f32[B, 4] = broadcast(v4, shape = [B, 4]);",
            "let v6: f32[B, 4] = mul(x, v5);",
        ]
    );
    assert_eq!(
        body("1 - n", "i32[B]"),
        [
            "let v4: i32[] = constant(value = 1.0, dtype = i32);",
            "let v5: i32[B] = broadcast(v4, shape = [B]);",
            "let v6: i32[B] = sub(v5, n);",
        ]
    );
    assert_eq!(
        body("x / S", "[B, 4]"),
        [
            "let v4: i32[] = size(dim = S);",
            "let v5: f32[] = cast(v4, to = f32);",
            "let v6: f32[B, 4] = broadcast(v5, shape = [B, 4]);",
            "let v7: f32[B, 4] = div(x, v6);",
        ]
    );
}

#[test]
fn shapes_broadcast_as_in_numpy() {
    assert_eq!(
        body("x + y", "[B, B, 4]"),
        [
            "let v4: f32[B, B, 4] = broadcast(x, shape = [B, B, 4]);",
            "let v5: f32[B, B, 4] = broadcast(y, shape = [B, B, 4]);",
            "let v6: f32[B, B, 4] = add(v4, v5);",
        ]
    );
}

#[test]
fn operators_on_tensors_are_ops() {
    assert_eq!(
        body("n > 1 && !flag", "bool[B]"),
        [
            "let v4: i32[] = constant(value = 1.0, dtype = i32);",
            "let v5: i32[B] = broadcast(v4, shape = [B]);",
            "let v6: bool[B] = less(v5, n);",
            "let v7: bool[B] = not(flag);",
            "let v8: bool[B] = and(v6, v7);",
        ]
    );
    assert_eq!(body("n != n", "bool[B]"), ["let v4: bool[B] = equal(n, n);", "let v5: bool[B] = not(v4);"]);
    assert_eq!(body("-x", "[B, 4]"), ["let v4: f32[B, 4] = neg(x);"]);
}

#[test]
fn select_gives_its_condition_its_own_type() {
    assert_eq!(
        body("select(true, n, 0)", "i32[B]"),
        [
            "let v4: bool[] = constant(value = 1.0, dtype = bool);",
            "let v5: i32[] = constant(value = 0.0, dtype = i32);",
            "let v6: bool[B] = broadcast(v4, shape = [B]);",
            "let v7: i32[B] = broadcast(v5, shape = [B]);",
            "let v8: i32[B] = select(v6, n, v7);",
        ]
    );
}

#[test]
fn attributes_by_position_and_axes_from_the_end() {
    assert_eq!(
        body("transpose(reduce_sum(y, -2, true), [-1, 0, 1])", "[4, B, 1]"),
        [
            "let v4: f32[B, 1, 4] = reduce_sum(y, axis = 1, keep = true);",
            "let v5: f32[4, B, 1] = transpose(v4, permutation = [2, 0, 1]);",
        ]
    );
    assert_eq!(
        body("cast(iota([B, 4], -1), f32)", "[B, 4]")[0],
        "let v4: i32[B, 4] = iota(shape = [B, 4], axis = 1);"
    );
}

#[test]
fn split_gives_equal_slices() {
    assert_eq!(
        body("let (a, b) = split(x, 2); b", "[B, 2]"),
        [
            "let v4: f32[B, 2] = slice(x, axis = 1, start = 0, end = 2);",
            "let v5: f32[B, 2] = slice(x, axis = 1, start = 2, end = 4);",
        ]
    );
}

#[test]
fn a_weight_of_one_name_is_one_value() {
    let text = r#"
        entry main(x: [4] per step) -> (r: [4]) {
            let a = scope "m.0" { scope "n" { x * weight("weight", [4]) } };
            a * weight("m.0.n.weight", [4])
        }
    "#;
    let printed = print_graph(&graph(text, &[]));
    assert!(printed.contains("let w1 = weight(\"m.0.n.weight\", [4]);\n    let v2: f32[4] = mul(x, w1) at \"m.0.n\";\n    let v3: f32[4] = mul(v2, w1);"), "{printed}");
}

#[test]
fn requirements_over_sizes_become_constraints() {
    assert_eq!(
        body("require S < B && S == 2 * B, \"S is {S}\"; x", "[B, 4]"),
        ["require S + 1 <= B, \"S is S\";", "require S <= 2*B, \"S is S\";", "require 2*B <= S, \"S is S\";",]
    );
    assert_eq!(body("require B >= B, \"never said\"; x", "[B, 4]"), [""; 0]);
}

#[test]
fn loops_conditionals_and_variables_run_at_compile_time() {
    let lines =
        body("var z = x; for i in 0..3 { if i % 2 == 0 { z = neg(z); } else { z = exp(z); } } z", "[B, 4]");
    assert_eq!(
        lines,
        ["let v4: f32[B, 4] = neg(x);", "let v5: f32[B, 4] = exp(v4);", "let v6: f32[B, 4] = neg(v5);"]
    );
}

#[test]
fn an_entry_can_be_called_and_its_optional_input_left_out() {
    let text = r#"
        dim B;
        entry main(x: [B] per step) -> (r: [B]) { score(x) }
        entry score(x: [B] per step, weight: [B] per prompt optional = 0.5) -> (r: [B]) { x * weight }
    "#;
    let printed = print_graph(&graph(text, &[]));
    let expected = "    let v1: f32[] = constant(value = 0.5);\n    let v2: f32[B] = broadcast(v1, shape = [B]);\n    let v3: f32[B] = mul(x, v2);\n";
    assert!(printed.contains(expected), "{printed}");
}

#[test]
fn compile_time_arithmetic() {
    let cases = [
        ("7 / 2", "3.5"),
        ("-7 % 4", "1"),
        ("floor(7 / 2)", "3"),
        ("ceil_div(7, 2)", "4"),
        ("floor_div(-7, 2)", "-4"),
        ("max(1, 2.5)", "2.5"),
        ("int(-2.7)", "-2"),
        ("float(3)", "3.0"),
        ("sqrt(16)", "4.0"),
        ("abs(-3)", "3"),
        ("len([1, 2, 3])", "3"),
        ("[1, 2, 3][1]", "2"),
        ("null ?? 4", "4"),
        ("2 * B - B - B", "0"),
        ("ceil(1.5 * B / 4)", "ceil_scale(B, 1.5, 4.0)"),
        ("ceil(2.0 * B / 4)", "ceil_div(2*B, 4)"),
        ("ceil(B / 4)", "ceil_div(B, 4)"),
        ("floor_div(4 * B, 2)", "2*B"),
        ("max(B, B)", "B"),
        ("B < B + 1", "true"),
        ("\"a\" == \"b\"", "false"),
        ("bf16", "bf16"),
        ("[1, \"x\", null]", "[1, \"x\", null]"),
    ];
    for (expression, value) in cases {
        let text = format!("require 1 <= B, \"{{{}}}\"; x", expression);
        let expected = format!("require 1 <= B, \"{}\";", value.replace('"', "\\\""));
        assert_eq!(body(&text, "[B, 4]"), [expected], "{expression}");
    }
}
