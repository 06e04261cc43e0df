//! The rule of every op under every attribute. The list is compared with the op table, so that an op without a case fails.

use std::collections::{BTreeMap, BTreeSet};

use nucleus_ir::ops::{Attribute, AttributeKind, op_table};
use nucleus_ir::{Bindings, DType, Graph};
use nucleus_passes::differentiate::gradient_name;

use crate::finite::{check, graph, with_inputs};

/// A value computed by one op from weights, and from inputs where shapes are symbolic.
struct Case {
    /// The op whose rule is at work.
    op: &'static str,
    /// Inputs of the entry.
    inputs: &'static str,
    /// The value.
    body: &'static str,
    /// Its shape.
    shape: &'static [&'static str],
}

const fn case(op: &'static str, body: &'static str, shape: &'static [&'static str]) -> Case {
    Case { op, inputs: "", body, shape }
}

const fn over(
    op: &'static str,
    inputs: &'static str,
    body: &'static str,
    shape: &'static [&'static str],
) -> Case {
    Case { op, inputs, body, shape }
}

const A: &str = "let a = weight(\"a\", [2, 3]);";
const POSITIVE: &str = "let a = weight(\"a\", [2, 3]) * weight(\"a\", [2, 3]) + 0.5;";

/// Every op that passes gradients on. `$A` is a weight [2, 3], `$P` the same made positive.
const CASES: &[Case] = &[
    case("neg", "$A -a", &["2", "3"]),
    case("abs", "$A abs(a)", &["2", "3"]),
    case("exp", "$A exp(a)", &["2", "3"]),
    case("log", "$P log(a)", &["2", "3"]),
    case("sqrt", "$P sqrt(a)", &["2", "3"]),
    case("rsqrt", "$P rsqrt(a)", &["2", "3"]),
    case("tanh", "$A tanh(a)", &["2", "3"]),
    case("sigmoid", "$A sigmoid(a)", &["2", "3"]),
    case("sin", "$A sin(a)", &["2", "3"]),
    case("cos", "$A cos(a)", &["2", "3"]),
    case("add", "$A a + weight(\"b\", [2, 3])", &["2", "3"]),
    case("add", "$A a + a", &["2", "3"]),
    case("sub", "$A a - weight(\"b\", [2, 3])", &["2", "3"]),
    case("sub", "$A 1.0 - a", &["2", "3"]),
    case("mul", "$A a * weight(\"b\", [2, 3])", &["2", "3"]),
    case("mul", "$A a * a", &["2", "3"]),
    case("mul", "$A a * 3.0", &["2", "3"]),
    case("div", "$P weight(\"b\", [2, 3]) / a", &["2", "3"]),
    case("div", "$P 1.0 / a", &["2", "3"]),
    case("div", "$A a / 3.0", &["2", "3"]),
    case("max", "$A max(a, weight(\"b\", [2, 3]))", &["2", "3"]),
    case("max", "$A max(a, 0.2)", &["2", "3"]),
    case("min", "$A min(a, weight(\"b\", [2, 3]))", &["2", "3"]),
    case("min", "$A min(0.2, a)", &["2", "3"]),
    case("select", "$A select(a < 0.1, a * a, weight(\"b\", [2, 3]))", &["2", "3"]),
    case("select", "$A select(a < 0.1, 0.0, a)", &["2", "3"]),
    case("cast", "cast(weight(\"a\", [2, 3], bf16), f32)", &["2", "3"]),
    case("cast", "$A cast(cast(a, f16), f32)", &["2", "3"]),
    case("after", "$A after(a, weight(\"b\", [4]))", &["2", "3"]),
    case("reshape", "$A reshape(a, [3, 1, 2])", &["3", "1", "2"]),
    case("transpose", "transpose(weight(\"a\", [2, 3, 4]), [2, 0, 1])", &["4", "2", "3"]),
    case("broadcast", "broadcast(weight(\"a\", []), [2, 3])", &["2", "3"]),
    case("broadcast", "broadcast(weight(\"a\", [2, 1, 1]), [1, 2, 1, 3])", &["1", "2", "1", "3"]),
    case("broadcast", "broadcast(weight(\"a\", [2, 1, 1, 3, 1]), [2, 4, 5, 3, 2])", &["2", "4", "5", "3", "2"]),
    case("broadcast", "broadcast(weight(\"a\", [3]), [4, 2, 3])", &["4", "2", "3"]),
    case("broadcast", "broadcast(weight(\"a\", [2, 1, 3]), [4, 2, 5, 3])", &["4", "2", "5", "3"]),
    case("broadcast", "broadcast(weight(\"a\", [1, 2, 1]), [4, 2, 1])", &["4", "2", "1"]),
    over("broadcast", "x: [B, 1, 2] per step", "broadcast(x, [B, S, 2])", &["B", "S", "2"]),
    case("slice", "slice(weight(\"a\", [2, 5]), axis = 1, start = 1, end = 4)", &["2", "3"]),
    case("slice", "slice(weight(\"a\", [5, 2]), axis = 0, start = 2, end = 5)", &["3", "2"]),
    over("slice", "x: [B, S, 2] per step", "slice(x, axis = 1, start = 0, end = ceil_div(S, 2))", &["B", "ceil_div(S, 2)", "2"]),
    over("slice", "x: [B, S, 2] per step", "slice(x, axis = 1, start = S - 1, end = S)", &["B", "1", "2"]),
    case("concat", "$A concat(a, weight(\"b\", [1, 3]), a * a, axis = 0)", &["5", "3"]),
    case("concat", "$A concat(a, broadcast(0.5, [2, 4]), axis = -1)", &["2", "7"]),
    over("concat", "x: [B, S, 2] per step, y: [B, 3, 2] per step", "concat(x, y, axis = 1)", &["B", "S + 3", "2"]),
    over("gather", "x: [B, S, 2] per step, index: i32[B, 3, 2] per step", "gather(x, index)", &["B", "3", "2", "2"]),
    over("gather", "x: [B, S] per step, index: i32[B, 4] per step", "gather(x, index)", &["B", "4"]),
    over(
        "scatter_add",
        "x: [B, S, 2] per step, index: i32[B, 3, 2] per step, rows: [B, 3, 2, 2] per step",
        "scatter_add(x, index, rows)",
        &["B", "S", "2"],
    ),
    over(
        "scatter_add",
        "index: i32[B, 3] per step, rows: [B, 3] per step",
        "scatter_add(broadcast(0.0, [B, S]), index, rows)",
        &["B", "S"],
    ),
    over(
        "segment_sum",
        "x: [B, S, 2] per step, index: i32[B, 3, 2] per step, rows: [B, 3, 2, 2] per step",
        "let (offsets, positions) = invert_index(index, size = S); segment_sum(x, offsets, positions, rows)",
        &["B", "S", "2"],
    ),
    // Positions that occur twice, positions before the first segment and behind the last one.
    over(
        "segment_sum",
        "x: [B, 2, 2] per step, rows: [B, 5, 2] per step",
        "let offsets = broadcast(iota([3]) * 2 + 1, [B, 3]); let positions = broadcast(iota([5]) / 2, [B, 5]);
         segment_sum(x, slice(broadcast(iota([4]) + 1, [B, 4]), axis = 1, start = 0, end = 3), positions, rows)
         + segment_sum(x, offsets - 1, positions, rows)",
        &["B", "2", "2"],
    ),
    case("reduce_sum", "reduce_sum(weight(\"a\", [2, 3, 4]), axis = 1)", &["2", "4"]),
    case("reduce_sum", "reduce_sum(weight(\"a\", [2, 3, 4]), axis = 0, keep = true)", &["1", "3", "4"]),
    over("reduce_sum", "x: [B, S, 2] per step", "reduce_sum(x, axis = -1)", &["B", "S"]),
    case("reduce_max", "reduce_max(weight(\"a\", [2, 3, 4]), axis = 1)", &["2", "4"]),
    case("reduce_max", "reduce_max(weight(\"a\", [2, 3, 4]), axis = 2, keep = true)", &["2", "3", "1"]),
    // Equal elements move together, so shares that add up to one are right.
    case("reduce_max", "$A reduce_max(concat(a, a, axis = 1), axis = 1)", &["2"]),
    case("matmul", "matmul(weight(\"a\", [2, 3]), weight(\"b\", [3, 4]))", &["2", "4"]),
    case("matmul", "matmul(weight(\"a\", [2, 3]), weight(\"b\", [4, 3]), transpose_b = true)", &["2", "4"]),
    case("matmul", "matmul(weight(\"a\", [3, 2]), weight(\"b\", [3, 4]), transpose_a = true)", &["2", "4"]),
    case(
        "matmul",
        "matmul(weight(\"a\", [3, 2]), weight(\"b\", [4, 3]), transpose_a = true, transpose_b = true)",
        &["2", "4"],
    ),
    over("matmul", "x: [B, S, 3] per step", "matmul(x, weight(\"b\", [3, 4]))", &["B", "S", "4"]),
    over("matmul", "x: [B, S, 3] per step", "matmul(x, weight(\"b\", [4, 3]), transpose_b = true)", &["B", "S", "4"]),
    over("matmul", "x: [B, S, 3] per step, y: [B, 3, 2] per step", "matmul(x, y)", &["B", "S", "2"]),
    over("matmul", "x: [B, S, 3] per step, y: [B, 2, 3] per step", "matmul(x, y, transpose_b = true)", &["B", "S", "2"]),
    over("matmul", "x: [B, S, 3] per step, y: [B, S, 2] per step", "matmul(x, y, transpose_a = true)", &["B", "3", "2"]),
    over(
        "matmul",
        "x: [B, S, 3] per step, y: [B, 2, S] per step",
        "matmul(x, y, transpose_a = true, transpose_b = true)",
        &["B", "3", "2"],
    ),
    case(
        "matmul",
        "matmul(weight(\"a\", [2, 3], bf16), weight(\"b\", [3, 4], bf16))",
        &["2", "4"],
    ),
    over(
        "grouped_matmul",
        "x: [B, 3, S, 2] per step",
        "grouped_matmul(x, weight(\"w\", [3, 2, 4]))",
        &["B", "3", "S", "4"],
    ),
    over(
        "grouped_matmul",
        "x: [B, 3, S, 2] per step",
        "grouped_matmul(x, weight(\"w\", [3, 4, 2]), transpose_b = true)",
        &["B", "3", "S", "4"],
    ),
    over(
        "attention",
        "q: [B, S, 4, 2] per step, k: [B, T, 2, 2] per step, v: [B, T, 2, 2] per step",
        "attention(q, k, v, scale = 0.7)",
        &["B", "S", "4", "2"],
    ),
    over(
        "attention",
        "q: [B, S, 2, 2] per step, k: [B, T, 1, 2] per step, v: [B, T, 1, 2] per step, mask: bool[B, T] per step",
        "attention(q, k, v, mask, scale = 1.3)",
        &["B", "S", "2", "2"],
    ),
    over("attention", "q: [B, S, 2, 2] per step", "attention(q, q, q, scale = 1.0)", &["B", "S", "2", "2"]),
    over(
        "expert_choice",
        "affinity: [B, S, 3] per step",
        "let (slot_token, gate) = expert_choice(affinity, capacity = 2); gate * cast(slot_token + 1, f32)",
        &["B", "3", "2"],
    ),
    over(
        "expert_choice",
        "affinity: [B, S, 3] per step",
        "let (_, gate) = expert_choice(affinity, capacity = ceil_div(S, 2)); gate",
        &["B", "3", "ceil_div(S, 2)"],
    ),
];

/// Ops through which no gradient flows: here a finite difference is not zero everywhere, or there is none.
const CONSTANTS: &[Case] = &[
    case("constant", "constant(2.0)", &[]),
    case("size", "cast(size(B * S), f32)", &[]),
    case("iota", "cast(iota([4]), f32)", &["4"]),
    case("less", "$A cast(a < 0.0, f32)", &["2", "3"]),
    case("less_equal", "$A cast(a <= 0.0, f32)", &["2", "3"]),
    case("equal", "$A cast(a == 0.0, f32)", &["2", "3"]),
    case("and", "$A cast(a < 0.0 && a < 0.5, f32)", &["2", "3"]),
    case("or", "$A cast(a < 0.0 || 0.5 < a, f32)", &["2", "3"]),
    case("not", "$A cast(!(a < 0.0), f32)", &["2", "3"]),
    case("cast", "$A cast(cast(a * 10.0, i32), f32)", &["2", "3"]),
    case("stop_gradient", "$A stop_gradient(a * a)", &["2", "3"]),
    case("after", "$A after(broadcast(1.0, [4]), a)", &["4"]),
    over(
        "invert_index",
        "index: i32[B, 3] per step",
        "let (_, positions) = invert_index(index, size = S); cast(positions, f32)",
        &["B", "3"],
    ),
];

/// Ops that the rules write and that have no derivative themselves.
const WITHOUT_DERIVATIVE: &[&str] = &["attention_grad"];

/// Σ cotangent · value: the gradient of the value is the cotangent, another number for every element.
fn program(case: &Case) -> String {
    let shape = case.shape.join(", ");
    let count = if case.shape.is_empty() {
        "1".to_owned()
    } else {
        case.shape.iter().map(|size| format!("({size})")).collect::<Vec<_>>().join(" * ")
    };
    let comma = if case.inputs.is_empty() { "" } else { ", " };
    let body = case.body.replace("$A", A).replace("$P", POSITIVE);
    format!(
        "dim B, S, T;
        entry loss({}{comma}cotangent: [{shape}] per step) -> (loss: []) {{
            let value = {{ {body} }};
            weight(\"unused\", [2]);
            reduce_sum(reshape(value * cotangent, [{count}]), axis = 0)
        }}",
        case.inputs
    )
}

fn float_inputs(graph: &Graph) -> Vec<&str> {
    let floats = graph.inputs.iter().filter(|input| input.ty.dtype.is_float());
    floats.map(|input| input.name.as_str()).filter(|name| *name != "cotangent").collect()
}

fn dims() -> Bindings {
    Bindings::from_iter([("B", 2), ("S", 3), ("T", 4)])
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for case in CASES {
        let graph = graph(&program(case), &[], "loss");
        let (gradients, seen) = check(&graph, &with_inputs(&float_inputs(&graph)), &dims(), 7, usize::MAX);
        assert!(seen.nonzero > 0 && seen.kinks == 0, "{}: {} gives {seen:?}", case.op, case.body);
        // Simplification before has left the op in its place, so that its rule was at work.
        let occurs = gradients.nodes().any(|(_, node)| node.op.name() == case.op);
        assert!(occurs, "{}: {} has no such op", case.op, case.body);
        assert!(gradients.outputs.iter().all(|output| gradients.ty(output.value).dtype == DType::F32));
    }
}

#[test]
fn nothing_flows_through_constants() {
    for case in CONSTANTS {
        let graph = graph(&program(case), &[], "loss");
        let gradients =
            nucleus_passes::differentiate::differentiate(&graph, &with_inputs(&float_inputs(&graph)))
                .unwrap();
        let got = crate::finite::outputs(&gradients, &dims(), &crate::finite::point(&graph, &dims(), 7));
        assert!(got.len() > 1, "{}: {} has no gradient", case.op, case.body);
        for (name, gradient) in got.iter().filter(|(name, _)| *name != "loss") {
            assert!(gradient.iter().all(|x| *x == 0.0), "{}: `{name}` is {gradient:?}", case.op);
        }
    }
}

#[test]
fn every_op_and_every_flag_has_a_case() {
    let covered: BTreeSet<&str> =
        CASES.iter().chain(CONSTANTS).map(|case| case.op).chain(WITHOUT_DERIVATIVE.iter().copied()).collect();
    let missing: Vec<&str> =
        op_table().iter().map(|op| op.name).filter(|name| !covered.contains(name)).collect();
    assert_eq!(missing, [""; 0]);

    // Attributes that are flags take both values.
    let mut flags: BTreeMap<(&str, &str), BTreeSet<bool>> = BTreeMap::new();
    for case in CASES {
        for (_, node) in graph(&program(case), &[], "loss").nodes() {
            for (name, attribute) in node.op.attributes() {
                if let Attribute::Bool(value) = attribute {
                    flags.entry((node.op.name(), name)).or_default().insert(value);
                }
            }
        }
    }
    for op in op_table() {
        for attribute in op.attributes.iter().filter(|attribute| attribute.kind == AttributeKind::Bool) {
            let seen = flags.get(&(op.name, attribute.name)).map_or(0, BTreeSet::len);
            assert_eq!(seen, 2, "{} of {}", attribute.name, op.name);
        }
    }
}

#[test]
fn gradient_of_attention_has_no_derivative() {
    let text = "dim B, S;
        entry loss(q: [B, S, 2, 2] per step) -> (loss: []) {
            let (dq, dk, dv) = attention_grad(q, q, q, q, scale = 1.0);
            reduce_sum(reshape(dq + dk + dv, [B * S * 4]), axis = 0)
        }";
    let graph = graph(text, &[], "loss");
    let error = nucleus_passes::differentiate::differentiate(&graph, &with_inputs(&["q"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pass differentiate: the loss depends on `attention_grad`, which has no derivative: put a stop_gradient behind it"
    );
    assert_eq!(gradient_name("q"), "grad.q");
}
