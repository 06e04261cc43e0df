//! What the graph of gradients looks like.

use nucleus_ir::{Bindings, DType, Graph, Op, Rate};
use nucleus_passes::differentiate::{Gradients, differentiate};
use nucleus_passes::pipeline::{CompileOptions, compile_graph};
use nucleus_passes::simplify::simplify;

use crate::finite::{check, graph, outputs, point, with_inputs};

fn gradients(text: &str) -> Graph {
    differentiate(&graph(text, &[], "loss"), &Gradients::default()).unwrap()
}

fn count(graph: &Graph, name: &str) -> usize {
    graph.nodes().filter(|(_, node)| node.op.name() == name).count()
}

fn error(text: &str, request: &Gradients) -> String {
    differentiate(&graph(text, &[], "loss"), request).unwrap_err().to_string()
}

/// A weight that is itself an output, is used twice, and is the loss in another entry.
#[test]
fn a_weight_may_be_used_twice_and_be_an_output() {
    let text = "entry loss() -> (loss: [], w: [3]) {
        let w = weight(\"w\", [3]);
        (reduce_sum(w * w * w, axis = 0) + reduce_sum(w, axis = 0), w)
    }";
    let (_, seen) = check(&graph(text, &[], "loss"), &Gradients::default(), &Default::default(), 1, 8);
    assert_eq!((seen.compared, seen.kinks), (3, 0));

    let itself = gradients("entry loss() -> (loss: []) { weight(\"w\", []) }");
    let got = outputs(&itself, &Default::default(), &point(&itself, &Default::default(), 1));
    assert_eq!(got["grad.w"], [1.0]);
}

/// A constant loss has gradients, and they are zeros.
#[test]
fn a_weight_that_the_loss_does_not_reach_has_zeros() {
    let graph = gradients("entry loss() -> (loss: []) { weight(\"w\", [2, 3]); constant(1.0) }");
    let got = outputs(&graph, &Default::default(), &point(&graph, &Default::default(), 1));
    assert_eq!(got["grad.w"], [0.0; 6]);
    assert_eq!(graph.weights[0].rate, Rate::Step);
}

/// Three slices that make up a value, in any order of use, with one used twice: two joins, no padding.
#[test]
fn slices_that_make_up_a_value_are_joined() {
    let text = "dim S;
        entry loss(x: [S, 6] per step) -> (loss: []) {
            let (a, b, c) = split(x * weight(\"w\", [6]), 3);
            let y = c * a + b * b + c * c;
            reduce_sum(reshape(y, [2 * S]), axis = 0)
        }";
    let simple = simplify(&gradients(text)).unwrap();
    assert_eq!(count(&simple, "concat"), 1);
    check(&graph(text, &[], "loss"), &with_inputs(&["x"]), &[("S", 3)].into_iter().collect(), 1, 20);
    let padded = simple.nodes().any(|(_, node)| match &node.op {
        Op::Concat { .. } => node.operands.iter().any(|operand| {
            let source = simple.defining_node(*operand).map(|(source, _)| &simple.node(source).op);
            matches!(source, Some(Op::Broadcast { .. }))
        }),
        _ => false,
    });
    assert!(!padded);
}

/// Slices that overlap or leave gaps.
#[test]
fn any_slices_have_their_gradient() {
    for (start, end) in [("0", "2"), ("1", "S"), ("S - 1", "S"), ("ceil_div(S, 2)", "S"), ("S", "S")] {
        let text = format!(
            "dim S;
            entry loss(x: [S] per step) -> (loss: []) {{
                let a = slice(x, axis = 0, start = {start}, end = {end});
                let b = slice(x, axis = 0, start = 1, end = 3);
                reduce_sum(a * a, axis = 0) + reduce_sum(sin(b), axis = 0)
            }}"
        );
        let dims = [("S", 5)].into_iter().collect();
        check(&graph(&text, &[], "loss"), &with_inputs(&["x"]), &dims, 1, 8);
    }
}

/// Where equal numbers meet, PyTorch's conventions hold.
#[test]
fn kinks_are_those_of_pytorch() {
    let slope = |body: &str| {
        let text = format!(
            "use std {{ clamp }};\nentry loss() -> (loss: []) {{ let x = weight(\"x\", []); {body} }}"
        );
        let graph = gradients(&text);
        let at = [("x".to_owned(), nucleus_interp::Tensor::float(&[], vec![2.0]).unwrap())].into();
        outputs(&graph, &Default::default(), &at)["grad.x"][0]
    };
    assert_eq!(slope("max(x, 2.0)"), 0.5);
    assert_eq!(slope("min(x, 2.0)"), 0.5);
    assert_eq!(slope("max(x, x)"), 1.0);
    assert_eq!(slope("abs(x - 2.0)"), 0.0);
    assert_eq!(slope("clamp(x, -2.0, 2.0)"), 1.0);
    assert_eq!(slope("clamp(-x, -2.0, 2.0)"), -1.0);
    assert_eq!(slope("clamp(x, -1.0, 1.0)"), 0.0);
}

/// Equal shares: three of four elements are the largest.
#[test]
fn the_largest_share_their_gradient() {
    let graph = gradients("entry loss() -> (loss: []) { reduce_max(weight(\"x\", [4]), axis = 0) }");
    let x = nucleus_interp::Tensor::float(&[4], vec![3.0, 1.0, 3.0, 3.0]).unwrap();
    let third = 1.0 / 3.0;
    let got = outputs(&graph, &Default::default(), &[("x".to_owned(), x)].into());
    assert_eq!(got["grad.x"], [third, 0.0, third, third]);
}

/// The share of a product that repeated columns have is as small as they are, in both directions.
#[test]
fn products_of_repeated_rows_have_small_gradients() {
    let text = "dim B, S;
        entry loss(x: [B, S, 16] per step, t: [B, 1, 16] per step) -> (loss: []) {
            let logits = matmul(concat(broadcast(t, [B, S, 16]), x, axis = -1), weight(\"gate\", [4, 32]), transpose_b = true);
            reduce_sum(reshape(logits * logits, [B * S * 4]), axis = 0)
        }";
    let request = with_inputs(&["x", "t"]);
    let simple = simplify(&differentiate(&graph(text, &[], "loss"), &request).unwrap()).unwrap();
    let products: Vec<String> = simple
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::Matmul { .. }))
        .map(|(_, node)| simple.ty(node.results[0]).to_string())
        .collect();
    assert_eq!(
        products,
        ["f32[B, 1, 4]", "f32[B, S, 4]", "f32[B, S, 16]", "f32[4, 16]", "f32[B, 1, 16]", "f32[4, 16]"]
    );
}

#[test]
fn what_cannot_be_differentiated_is_named() {
    let loss = "dim S; entry loss(x: [S] per step, n: i32[S] per step) -> (loss: [], \"grad.w\": [S]) {
        (reduce_sum(x * weight(\"w\", [1]), axis = 0), x * cast(n, f32))
    }";
    let all = Gradients::default;
    let named = |name: &str| vec![name.to_owned()];
    let cases = [
        (all(), "entry `loss` would have two outputs `grad.w`: rename one"),
        (
            Gradients { loss: Some("los".to_owned()), ..all() },
            "entry `loss` has no output `los` to differentiate; it has `loss`, `grad.w`",
        ),
        (Gradients { loss: Some("grad.w".to_owned()), ..all() }, "output `grad.w` of entry `loss` is f32[S]"),
        (Gradients { weights: Some(named("v")), ..all() }, "entry `loss` has no weight `v`"),
        (
            Gradients { weights: Some(Vec::new()), inputs: named("y"), ..all() },
            "entry `loss` has no input `y`",
        ),
        (
            Gradients { weights: Some(Vec::new()), inputs: named("n"), ..all() },
            "input `n` of entry `loss` is i32: only floats have gradients",
        ),
    ];
    for (request, want) in cases {
        let got = error(loss, &request);
        assert!(got.contains(want), "{got}");
    }
}

/// Attention in a narrow type of the text's own choice has gradients that compile whatever the compute type is: the op takes queries, keys,
/// values and the gradient of the result in one type.
#[test]
fn gradients_of_narrow_attention_compile() {
    for dtype in ["bf16", "f16"] {
        let text = format!(
            "dim B, N;
            entry loss(x: [B, N, 2, 4] per step, y: [B, N, 2, 4] per step) -> (loss: []) {{
                let w = weight(\"w\", [2, 4]);
                let q = cast(x * w, to = {dtype});
                let a = attention(q, q, q, scale = 0.5);
                reduce_sum(reshape(a * y, [B * N * 8]), axis = 0)
            }}"
        );
        let graph = graph(&text, &[], "loss");
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let gradients = Some(Gradients::default());
            let options = CompileOptions { dtype, gradients, verify: true, ..CompileOptions::default() };
            compile_graph(&graph, &options, &mut ()).unwrap();
        }
        let dims = Bindings::from_iter([("B", 2), ("N", 3)]);
        let (_, seen) = check(&graph, &Gradients::default(), &dims, 1, 8);
        assert_eq!((seen.compared, seen.kinks), (8, 0));
    }
}
