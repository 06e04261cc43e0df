//! Whole graphs: order, defaults, rounding, lifetimes, and every error.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::cell::RefCell;
use std::collections::BTreeMap;

use nucleus_interp::{EvalError, Options, Tensor, evaluate, evaluate_traced};
use nucleus_ir::{
    Bindings, DType, Dim, Float, Graph, Input, Op, Output, Rate, Symbol, TensorType, Value, Weight,
};

type Inputs = BTreeMap<String, Tensor<f32>>;

fn ty(dtype: DType, shape: &[Dim]) -> TensorType {
    TensorType::new(dtype, shape.to_vec())
}

fn input(graph: &mut Graph, name: &str, ty: TensorType, default: Option<f64>) -> Value {
    graph.add_input(Input { name: name.to_owned(), ty, rate: Rate::Step, default: default.map(Float) })
}

fn output(graph: &mut Graph, name: &str, value: Value) {
    graph.outputs.push(Output { name: name.to_owned(), value });
}

/// `y = x · w + bias` for x [B, 2], w [2, 2] and an optional bias [B, 2] of 0.5.
fn affine() -> Graph {
    let mut graph = Graph::new("affine", vec![Symbol::new("B")]);
    let rows = ty(DType::F32, &[Dim::symbol("B"), Dim::constant(2)]);
    let x = input(&mut graph, "x", rows.clone(), None);
    let bias = input(&mut graph, "bias", rows, Some(0.5));
    let square = ty(DType::F32, &[Dim::constant(2), Dim::constant(2)]);
    let w = graph.add_weight(Weight::new("w".to_owned(), square));
    let matmul = Op::Matmul { transpose_a: false, transpose_b: false };
    let product = graph.add(matmul, &[x, w], Some("layer.0".into())).unwrap();
    let y = graph.add(Op::Add, &[product, bias], None).unwrap();
    output(&mut graph, "y", y);
    graph
}

fn weights(name: &str) -> Option<Tensor<f32>> {
    (name == "w").then(|| Tensor::float(&[2, 2], vec![1.0, 10.0, 100.0, 1000.0]).unwrap())
}

fn x_of(rows: usize) -> Inputs {
    let elements = (1..=2 * rows).map(|i| i as f32).collect();
    BTreeMap::from([("x".to_owned(), Tensor::float(&[rows, 2], elements).unwrap())])
}

fn run(graph: &Graph, b: i64, inputs: &Inputs) -> Result<Vec<(String, Tensor<f32>)>, EvalError> {
    evaluate(graph, &Bindings::from_iter([("B", b)]), inputs, &weights, &Options::default())
}

fn message(result: Result<Vec<(String, Tensor<f32>)>, EvalError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn sizes_are_bound_and_defaults_taken() {
    let outputs = run(&affine(), 2, &x_of(2)).unwrap();
    assert_eq!(outputs[0].0, "y");
    assert_eq!(outputs[0].1.floats(), Some(&[201.5, 2010.5, 403.5, 4030.5][..]));
    let mut inputs = x_of(1);
    inputs.insert("bias".to_owned(), Tensor::float(&[1, 2], vec![1.0, 2.0]).unwrap());
    assert_eq!(run(&affine(), 1, &inputs).unwrap()[0].1.floats(), Some(&[202.0, 2012.0][..]));
}

#[test]
fn f64_agrees_with_f32() {
    let wide = x_of(3).iter().map(|(name, x)| (name.clone(), x.convert::<f64>())).collect();
    let weights = |name: &str| weights(name).map(|w| w.convert());
    let dims = Bindings::from_iter([("B", 3)]);
    let truth = evaluate(&affine(), &dims, &wide, &weights, &Options::default()).unwrap();
    assert_eq!(run(&affine(), 3, &x_of(3)).unwrap()[0].1, truth[0].1.convert());
}

#[test]
fn defaults_of_every_element_type() {
    for (dtype, value, want) in
        [(DType::Bool, 1.0, 1.0), (DType::I32, 3.0, 3.0), (DType::Bf16, 257.0, 256.0), (DType::F32, 0.5, 0.5)]
    {
        let mut graph = Graph::new("defaults", vec![]);
        let x = input(&mut graph, "x", ty(dtype, &[Dim::constant(2)]), Some(value));
        let y = graph.add(Op::Cast { to: DType::F32 }, &[x], None).unwrap();
        output(&mut graph, "y", y);
        let outputs = run(&graph, 1, &Inputs::new()).unwrap();
        assert_eq!(outputs[0].1.floats(), Some(&[want, want][..]), "{dtype}");
    }
}

#[test]
fn narrow_inputs_and_weights_are_rounded() {
    let mut graph = Graph::new("narrow", vec![]);
    let narrow = ty(DType::Bf16, &[Dim::constant(1)]);
    let x = input(&mut graph, "x", narrow.clone(), None);
    let w = graph.add_weight(Weight::new("w".to_owned(), narrow));
    for (name, value) in [("x", x), ("w", w)] {
        let y = graph.add(Op::Cast { to: DType::F32 }, &[value], None).unwrap();
        output(&mut graph, name, y);
    }
    let value = Tensor::<f64>::float(&[1], vec![257.0]).unwrap().cast(DType::Bf16, false);
    let inputs = BTreeMap::from([("x".to_owned(), value.clone())]);
    let evaluate_wide = |round_storage| {
        let options = Options { round_storage, ..Options::default() };
        let outputs =
            evaluate(&graph, &Bindings::new(), &inputs, &|_| Some(value.clone()), &options).unwrap();
        [outputs[0].1.floats().unwrap()[0], outputs[1].1.floats().unwrap()[0]]
    };
    assert_eq!((evaluate_wide(false), evaluate_wide(true)), ([257.0; 2], [256.0; 2]));
    let narrow_inputs = BTreeMap::from([("x".to_owned(), value.convert::<f32>())]);
    let outputs = evaluate(
        &graph,
        &Bindings::new(),
        &narrow_inputs,
        &|_| Some(value.convert::<f32>()),
        &Options::default(),
    );
    assert!(outputs.unwrap().iter().all(|(_, y)| y.floats() == Some(&[256.0][..])));
}

#[test]
fn outputs_may_be_inputs_weights_and_each_other() {
    let mut graph = Graph::new("outputs", vec![]);
    let square = ty(DType::F32, &[Dim::constant(2), Dim::constant(2)]);
    let x = input(&mut graph, "x", square.clone(), None);
    let w = graph.add_weight(Weight::new("w".to_owned(), square.clone()));
    graph.add_weight(Weight::new("unused".to_owned(), square));
    let y = graph.add(Op::Neg, &[x], None).unwrap();
    for (name, value) in [("x", x), ("w", w), ("y", y), ("again", y)] {
        output(&mut graph, name, value);
    }
    let x = Tensor::float(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
    // `unused` is never asked for, so its absence is no error.
    let outputs = run(&graph, 1, &BTreeMap::from([("x".to_owned(), x.clone())])).unwrap();
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["x", "w", "y", "again"]);
    assert_eq!((&outputs[0].1, &outputs[1].1), (&x, &weights("w").unwrap()));
    assert_eq!(outputs[2].1, outputs[3].1);
    assert_eq!(outputs[3].1.floats(), Some(&[-1.0, -2.0, -3.0, -4.0][..]));
}

#[test]
fn a_trace_sees_every_result_in_order() {
    let mut seen = Vec::new();
    evaluate_traced(
        &affine(),
        &Bindings::from_iter([("B", 1)]),
        &x_of(1),
        &weights,
        &Options::default(),
        &mut |node, data, results| {
            seen.push((node.index(), data.op.name(), results[0].floats().unwrap().to_vec()));
        },
    )
    .unwrap();
    assert_eq!(seen, [(0, "matmul", vec![201.0, 2010.0]), (1, "add", vec![201.5, 2010.5])]);
}

/// A chain of `length` negations of x [N].
fn chain(length: usize) -> Graph {
    let mut graph = Graph::new("chain", vec![Symbol::new("N")]);
    let mut value = input(&mut graph, "x", ty(DType::F32, &[Dim::symbol("N")]), None);
    for _ in 0..length {
        value = graph.add(Op::Neg, &[value], None).unwrap();
    }
    output(&mut graph, "y", value);
    graph
}

#[test]
fn values_are_freed_after_their_last_use() {
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::float(&[100], vec![1.0f32; 100]).unwrap())]);
    let dims = Bindings::from_iter([("N", 100)]);
    // Two values of 400 bytes live at a time, however long the chain is.
    let with_limit = |memory_limit| {
        let options = Options { memory_limit, ..Options::default() };
        evaluate(&chain(50), &dims, &inputs, &weights, &options)
    };
    assert_eq!(with_limit(800).unwrap()[0].1.floats(), Some(&[1.0; 100][..]));
    assert_eq!(
        message(with_limit(799)),
        "node 1, `neg`: the result f32[100] takes 400 bytes; 399 are left of the memory limit"
    );
}

#[test]
fn a_weight_is_asked_for_once_and_only_if_it_fits() {
    let asked = RefCell::new(0);
    let counting = |name: &str| {
        *asked.borrow_mut() += 1;
        weights(name)
    };
    let mut graph = affine();
    let w = graph.values().nth(2).unwrap().0;
    let more = graph.add(Op::Neg, &[w], None).unwrap();
    output(&mut graph, "more", more);
    let with_limit = |memory_limit| {
        let options = Options { memory_limit, ..Options::default() };
        evaluate(&graph, &Bindings::from_iter([("B", 1)]), &x_of(1), &counting, &options)
    };
    with_limit(1000).unwrap();
    assert_eq!(*asked.borrow(), 1);
    // The default of `bias` takes 8 bytes.
    assert_eq!(
        message(with_limit(20)),
        "weight `w` of `affine`, f32[2, 2], takes 16 bytes; 12 are left of the memory limit"
    );
    assert_eq!(*asked.borrow(), 1);
}

#[test]
fn an_absurd_default_is_refused_before_it_is_made() {
    let mut graph = Graph::new("absurd", vec![Symbol::new("N")]);
    let n = Dim::symbol("N");
    let x = input(&mut graph, "mask", ty(DType::Bool, &[n.clone(), n]), Some(1.0));
    output(&mut graph, "y", x);
    let with_size = |n| {
        let dims = Bindings::from_iter([("N", n)]);
        message(evaluate(&graph, &dims, &Inputs::new(), &weights, &Options::default()))
    };
    assert_eq!(
        with_size(1 << 40),
        "input `mask` of `absurd`, bool[N, N], takes 1208925819614629174706176 bytes; 17179869184 are left of the memory limit"
    );
    assert_eq!(
        with_size(1 << 41),
        "input `mask` of `absurd`: size `N` is 2199023255552; a size lies in 0 ..= 2^40"
    );
}

#[test]
fn dims_must_be_bound_and_positive() {
    let graph = affine();
    let with = |dims: &Bindings| message(evaluate(&graph, dims, &x_of(1), &weights, &Options::default()));
    assert_eq!(with(&Bindings::new()), "dim `B` of `affine` has no value");
    for b in [0, -3] {
        let want = format!("dim `B` of `affine` is {b}; a dim is at least 1");
        assert_eq!(with(&Bindings::from_iter([("B", b)])), want);
    }
}

#[test]
fn constraints_are_named_with_both_sides() {
    let mut graph = Graph::new("routing", vec![Symbol::new("S")]);
    let affinity = ty(DType::F32, &[Dim::constant(1), Dim::symbol("S"), Dim::constant(2)]);
    let x = input(&mut graph, "x", affinity, Some(0.0));
    let capacity = Dim::symbol("S").sub(&Dim::constant(3)).unwrap();
    let node = graph.add_node(Op::ExpertChoice { capacity }, &[x], None).unwrap();
    let slot_token = graph.node(node).results[0];
    output(&mut graph, "slot_token", slot_token);
    let with_size = |s| {
        let dims = Bindings::from_iter([("S", s)]);
        evaluate(&graph, &dims, &Inputs::new(), &weights, &Options::default())
    };
    assert_eq!(with_size(4).unwrap()[0].1.ints(), Some(&[0, 0][..]));
    assert_eq!(
        message(with_size(3)),
        "the capacity of expert_choice is at least 1: `1` = 1 is not at most `S - 3` = 0"
    );
}

#[test]
fn inputs_must_be_known_given_and_of_their_type() {
    let graph = affine();
    let mut inputs = x_of(1);
    inputs.insert("timestep".to_owned(), Tensor::float(&[1], vec![1.0]).unwrap());
    assert_eq!(
        message(run(&graph, 1, &inputs)),
        "`affine` has no input `timestep`; its inputs are `x`, `bias`"
    );
    assert_eq!(
        message(run(&graph, 1, &Inputs::new())),
        "input `x` of `affine` is not given: it needs f32[B, 2]"
    );
    assert_eq!(
        message(run(&graph, 3, &x_of(2))),
        "input `x` of `affine` has type f32[2, 2], the graph needs f32[B, 2] = f32[3, 2]"
    );
    let ints = BTreeMap::from([("x".to_owned(), Tensor::int(&[1, 2], vec![1, 2]).unwrap())]);
    assert_eq!(
        message(run(&graph, 1, &ints)),
        "input `x` of `affine` has type i32[1, 2], the graph needs f32[B, 2] = f32[1, 2]"
    );
}

#[test]
fn weights_must_be_given_and_of_their_type() {
    let dims = Bindings::from_iter([("B", 1)]);
    let with = |weights: &dyn Fn(&str) -> Option<Tensor<f32>>| {
        message(evaluate(&affine(), &dims, &x_of(1), weights, &Options::default()))
    };
    assert_eq!(with(&|_| None), "weight `w` of `affine` is not given: it needs f32[2, 2]");
    assert_eq!(
        with(&|_| Tensor::float(&[2, 1], vec![0.0; 2]).ok()),
        "weight `w` of `affine` has type f32[2, 1], the graph needs f32[2, 2]"
    );
    assert_eq!(
        with(&|_| weights("w").map(|w| w.cast(DType::Bf16, true))),
        "weight `w` of `affine` has type bf16[2, 2], the graph needs f32[2, 2]"
    );
}

#[test]
fn a_failing_node_is_named_with_its_scope() {
    let mut graph = Graph::new("lookup", vec![]);
    let table = input(&mut graph, "table", ty(DType::F32, &[Dim::constant(1), Dim::constant(2)]), Some(0.0));
    let index = input(&mut graph, "index", ty(DType::I32, &[Dim::constant(1), Dim::constant(1)]), Some(7.0));
    let y = graph.add(Op::Gather, &[table, index], Some("blocks.3.moe".into())).unwrap();
    output(&mut graph, "y", y);
    assert_eq!(
        message(run(&graph, 1, &Inputs::new())),
        "node 0, `gather` in `blocks.3.moe`: index[0] is 7, outside 0 .. 2"
    );
}

#[test]
fn malformed_graphs_are_errors() {
    let sound = serde_json::to_value(affine()).unwrap();
    let broken: [(&str, serde_json::Value, &str); 8] = [
        ("/nodes/0/operands/0", 99.into(), "node 0 uses value 99, not known there"),
        ("/nodes/0/operands/0", 4.into(), "node 0 uses value 4, not known there"),
        ("/nodes/0/results", serde_json::json!([]), "value 3 is not where it says it comes from"),
        ("/nodes/0/results", serde_json::json!([3, 3]), "result 1 of node 0 is not its own"),
        ("/outputs/0/value", 99.into(), "output `y` is not a value"),
        ("/values/0/def", serde_json::json!({ "Input": 5 }), "value 0 is not where it says it comes from"),
        ("/values/3/def/Result/node", 17.into(), "value 3 is not where it says it comes from"),
        ("/values/3/ty/dtype", "F16".into(), "node 0, `matmul`, has results of other types than its values"),
    ];
    for (place, replacement, what) in broken {
        let mut json = sound.clone();
        *json.pointer_mut(place).unwrap() = replacement;
        let graph: Graph = serde_json::from_value(json).unwrap();
        let want = EvalError::Malformed { graph: "affine".to_owned(), what: what.to_owned() };
        assert_eq!(run(&graph, 1, &x_of(1)), Err(want), "{place}");
    }
}

#[test]
fn operands_that_a_file_made_wrong_are_errors() {
    let mut json = serde_json::to_value(affine()).unwrap();
    *json.pointer_mut("/nodes/0/operands").unwrap() = serde_json::json!([0]);
    let graph: Graph = serde_json::from_value(json).unwrap();
    assert_eq!(
        message(run(&graph, 1, &x_of(1))),
        "node 0, `matmul` in `layer.0`: op `matmul` takes 2 operands, given 1"
    );
}
