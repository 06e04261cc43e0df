//! Passes keep the answer: on the model at small sizes, and on every scalar op at the values where arithmetic is least regular.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use nucleus_interp::{Data, Options, Tensor, evaluate};
use nucleus_ir::source::SourceMap;
use nucleus_ir::testing::random_graph;
use nucleus_ir::verify_graph::verify_graph;
use nucleus_ir::{Bindings, DType, Dim, Float, Graph, Input, Op, Output, Rate, Symbol, TensorType, Value};
use nucleus_passes::differentiate::Gradients;
use nucleus_passes::elaborate::{Config, Program};
use nucleus_passes::pipeline::{CompileOptions, Form, PASSES, PassKind, compile_to};
use nucleus_passes::quantize::Quantize;
use nucleus_passes::simplify::simplify;
use nucleus_tests::evaluation::{MadeUp, largest_difference};
use nucleus_tests::scalars::{operand_types, scalar_ops};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const SMALL: &[&str] = &[
    "num_layers=3",
    "num_attention_heads=2",
    "num_key_value_heads=1",
    "attention_head_dim=16",
    "joint_attention_dim=24",
    "axes_dims_rope=[4, 6, 6]",
    "in_channels=8",
    "out_channels=2",
    "num_experts=4",
    "moe_intermediate_dim=12",
    "mlp_ratio=6.0",
    "dense_moe_strategy=leave_first_block_dense",
    "capacity_factors=[0.0, 2.0, 1.3]",
];

/// The graphs of the model after every pass from elaboration to routing.
fn model(settings: &[&str], dtype: DType) -> Vec<(&'static str, Graph)> {
    quantised_model(settings, dtype, None)
}

fn quantised_model(
    settings: &[&str],
    dtype: DType,
    quantize: Option<Quantize>,
) -> Vec<(&'static str, Graph)> {
    let options = CompileOptions { dtype, quantize, verify: true, ..CompileOptions::default() };
    graphs("velocity", settings, &options)
}

/// The graphs of the loss with the gradient of every weight, after every pass from differentiation to routing.
fn training_model(settings: &[&str], dtype: DType) -> Vec<(&'static str, Graph)> {
    let gradients = Some(Gradients::default());
    let options = CompileOptions { dtype, gradients, verify: true, ..CompileOptions::default() };
    graphs("loss", settings, &options).split_off(1)
}

fn graphs(entry: &str, settings: &[&str], options: &CompileOptions) -> Vec<(&'static str, Graph)> {
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", include_str!("../../ir-specs/nucleus_image.ir"));
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let mut config = Config::new();
    for setting in SMALL.iter().chain(settings) {
        config.set(setting).unwrap();
    }
    let mut graphs = Vec::new();
    let mut observer = |pass: &'static nucleus_passes::pipeline::Pass, form: &Form, _| {
        if let Form::Graph(graph) = form {
            graphs.push((pass.name, graph.clone()));
        }
    };
    compile_to(&program, &config, entry, options, &mut observer, "route").unwrap();
    graphs
}

fn keeps_the_answer(settings: &[&str], dtype: DType) {
    let graphs = model(settings, dtype);
    assert_eq!(graphs.len(), 8);
    same_answers(&graphs);
}

fn same_answers(graphs: &[(&str, Graph)]) {
    let dims = Bindings::from_iter([("B", 2), ("H", 3), ("W", 5), ("T", 4)]);
    let answers: Vec<_> = graphs
        .iter()
        .map(|(pass, graph)| (*pass, MadeUp::default().outputs::<f64>(graph, &dims).unwrap()))
        .collect();
    for (pass, answer) in &answers[1..] {
        let difference = largest_difference(&answers[0].1, answer).unwrap();
        assert!(difference <= 1e-6, "{pass} changes the answer by {difference:e}");
    }
}

#[test]
fn the_model_keeps_its_answer_in_f32() {
    keeps_the_answer(&[], DType::F32);
}

#[test]
fn the_model_keeps_its_answer_with_sigmoid_routing() {
    keeps_the_answer(&["use_sigmoid=true"], DType::F32);
}

// In `f64` without rounding of stored types, casts change nothing, so the graph that precision makes must give the same answer.
#[test]
fn the_model_keeps_its_answer_in_bf16_and_f16() {
    keeps_the_answer(&[], DType::Bf16);
    keeps_the_answer(&[], DType::F16);
}

#[test]
fn the_gradients_of_the_model_keep_their_values() {
    for dtype in [DType::F32, DType::Bf16] {
        let graphs = training_model(&[], dtype);
        assert_eq!(graphs.len(), 7);
        same_answers(&graphs);
    }
}

/// Under training in bf16 weights stay f32 and change at every step; products take factors in bf16, but for the routers' own.
#[test]
fn training_keeps_master_weights() {
    let graphs = training_model(&[], DType::Bf16);
    let graph = &graphs[5].1;
    assert!(graph.weights.iter().all(|weight| weight.ty.dtype == DType::F32 && weight.rate == Rate::Step));
    let names: Vec<String> = graph.outputs.iter().skip(4).map(|output| output.name.clone()).collect();
    let want: Vec<String> = graph.weights.iter().map(|weight| format!("grad.{}", weight.name)).collect();
    assert_eq!(names, want);
    assert!(graph.outputs.iter().all(|output| graph.ty(output.value).dtype == DType::F32));
    let mut wide = 0;
    for (_, node) in graph.nodes() {
        if let Op::Matmul { .. }
        | Op::GroupedMatmul { .. }
        | Op::Attention { .. }
        | Op::AttentionGrad { .. } = node.op
        {
            wide += usize::from(graph.ty(node.operands[0]).dtype == DType::F32);
        }
    }
    assert_eq!(wide, 4, "two for each router");
}

#[test]
fn weights_and_inputs_keep_their_order() {
    let graphs = model(&[], DType::Bf16);
    let names = |graph: &Graph| -> Vec<String> {
        let weights = graph.weights.iter().map(|weight| weight.name.clone());
        graph.inputs.iter().map(|input| input.name.clone()).chain(weights).collect()
    };
    for (pass, graph) in &graphs {
        assert_eq!(names(graph), names(&graphs[0].1), "{pass}");
    }
    let unused = "transformer_blocks.0.attn.norm_added_q.weight".to_owned();
    assert!(names(&graphs[6].1).contains(&unused));
}

/// Made-up weights are multiples of a scale that 8-bit integers hold: quantising them changes nothing but their form.
#[test]
fn the_model_keeps_its_answer_quantised() {
    for dtype in [DType::F32, DType::Bf16] {
        let graphs = quantised_model(&[], dtype, Some(Quantize { least_elements: 64 }));
        same_answers(&graphs);
        let graph = &graphs[4].1;
        let bytes = graph.weights.iter().filter(|weight| weight.ty.dtype == DType::I8).count();
        let casts = graph.nodes().filter(|(_, data)| {
            matches!(data.op, Op::Cast { .. }) && graph.ty(data.operands[0]).dtype == DType::I8
        });
        assert!(bytes > 20 && casts.count() == bytes, "{bytes} weights");
    }
}

/// What the passes are for, counted on the model.
#[test]
fn passes_do_their_work_on_the_model() {
    let graphs = model(&[], DType::Bf16);
    let count =
        |pass: usize, op: &str| graphs[pass].1.nodes().filter(|(_, data)| data.op.name() == op).count();
    let (elaborated, routed) = (0, 7);
    // Two scatters per mixture-of-experts layer, one inverse index map for both.
    assert_eq!(count(elaborated, "scatter_add"), 4);
    assert_eq!(
        (count(routed, "scatter_add"), count(routed, "segment_sum"), count(routed, "invert_index")),
        (0, 4, 2)
    );
    // The router's product is one per image and one per token.
    assert_eq!(count(routed, "matmul"), count(elaborated, "matmul") + 2);
    let rotary_tables = |pass: usize| count(pass, "cos") + count(pass, "sin");
    // Each layer wrote its own; they are the same for all: image and text, and the timestep.
    assert_eq!((rotary_tables(elaborated), rotary_tables(routed)), (3 * 4 + 2, 4 + 2));
    let graph = &graphs[routed].1;
    assert!(graph.weights.iter().all(|weight| weight.ty.dtype == DType::Bf16));
    // The router's products alone are in f32: one per image and one per token in each mixture-of-experts layer.
    let products = graph.nodes().filter(|(_, data)| {
        matches!(data.op, Op::Matmul { .. } | Op::GroupedMatmul { .. } | Op::Attention { .. })
    });
    let single: Vec<_> =
        products.filter(|(_, data)| graph.ty(data.operands[0]).dtype == DType::F32).collect();
    assert_eq!(single.len(), 4);
    assert!(
        single.iter().all(|(_, data)| data.scope.as_deref().is_some_and(|scope| scope.ends_with("img_mlp")))
    );
    let mut casts = BTreeSet::new();
    for (_, data) in graph.nodes() {
        if let Op::Cast { to } = data.op {
            assert!(casts.insert((data.operands[0], to)), "{:?} is cast to {to} twice", data.operands[0]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Simplification alone, and the passes in a row for every compute dtype, on graphs of every op.
    #[test]
    fn random_graphs_keep_their_answers(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        sizes in proptest::array::uniform4(1i64..6),
        compute in proptest::sample::select(vec![DType::F32, DType::Bf16, DType::F16]),
        seed in any::<u64>(),
    ) {
        let graph = random_graph(&bytes);
        let dims = Bindings::from_iter(["B", "H", "W", "T"].into_iter().zip(sizes));
        let made_up = MadeUp { seed };
        let want = made_up.outputs::<f64>(&graph, &dims).unwrap();
        let mut current = graph;
        let options = CompileOptions { dtype: compute, verify: true, ..CompileOptions::default() };
        for pass in PASSES {
            let PassKind::Graph(run) = pass.kind else { continue };
            current = run(&current, &options).unwrap();
            prop_assert_eq!(verify_graph(&current), Ok(()), "after {}", pass.name);
            let got = made_up.outputs::<f64>(&current, &dims).unwrap();
            let difference = largest_difference(&want, &got).map_err(TestCaseError::fail)?;
            prop_assert!(difference <= 1e-6, "{} changes the answer by {difference:e}", pass.name);
        }
    }

    /// A second run finds nothing to do.
    #[test]
    fn simplification_reaches_a_fixed_point(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let once = simplify(&random_graph(&bytes)).unwrap();
        prop_assert_eq!(simplify(&once).unwrap(), once);
    }
}

/// Numbers at which arithmetic is least regular.
const NUMBERS: [f64; 12] =
    [0.0, -0.0, 1.0, -1.0, 0.1, -2.5, 3e38, 1e-40, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 16777217.0];
const INTEGERS: [f64; 6] = [0.0, 1.0, -1.0, 7.0, 2147483647.0, -2147483647.0];
const TRUTHS: [f64; 2] = [0.0, 1.0];

fn values(dtype: DType) -> &'static [f64] {
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => &NUMBERS,
        DType::I32 => &INTEGERS,
        DType::I8 => unreachable!("no op but a cast takes it, and only of weights"),
        DType::Bool => &TRUTHS,
    }
}

/// The same bits, any NaN for any other.
fn same_bits(want: &Tensor<f32>, got: &Tensor<f32>) -> bool {
    match (want.data(), got.data()) {
        (Data::Float(want), Data::Float(got)) => {
            want.iter().zip(got).all(|(x, y)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()))
        }
        (want, got) => want == got,
    }
}

fn outputs(graph: &Graph, inputs: &[(String, Tensor<f32>)]) -> Vec<(String, Tensor<f32>)> {
    let dims = Bindings::from_iter([("N", values(DType::F32).len() as i64)]);
    evaluate(graph, &dims, &inputs.iter().cloned().collect(), &|_| None, &Options::default()).unwrap()
}

#[test]
fn folded_constants_have_the_bits_of_the_evaluator() {
    let mut folded = 0;
    for op in scalar_ops() {
        for dtypes in operand_types(&op) {
            let mut graph = Graph::new("constants", Vec::new());
            let mut points: Vec<Vec<Value>> = vec![Vec::new()];
            for dtype in &dtypes {
                let mut longer = Vec::new();
                for point in &points {
                    for value in values(*dtype) {
                        let constant = Op::Constant { value: Float(*value), dtype: *dtype };
                        let constant = graph.add(constant, &[], None).unwrap();
                        longer.push(point.iter().copied().chain([constant]).collect());
                    }
                }
                points = longer;
            }
            for (index, point) in points.iter().enumerate() {
                let value = graph.add(op.clone(), point, None).unwrap();
                graph.outputs.push(Output { name: format!("y{index}"), value });
            }
            let simple = simplify(&graph).unwrap();
            folded += points.len() - simple.nodes().filter(|(_, data)| data.op.scalar().is_some()).count();
            for ((name, want), (_, got)) in outputs(&graph, &[]).iter().zip(&outputs(&simple, &[])) {
                assert!(same_bits(want, got), "{op:?} {dtypes:?} {name}: {want:?} became {got:?}");
            }
        }
    }
    assert!(folded > 3000, "only {folded} folded");
}

#[test]
fn scalar_rules_keep_every_bit() {
    let mut gone = 0;
    for op in scalar_ops() {
        for dtypes in operand_types(&op) {
            // Each operand in turn is a tensor of all numbers, the others are constants; then all are the same tensor.
            for varying in 0..=dtypes.len() {
                for constant in [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1.5, 8.5e37, 3e38, f64::INFINITY, f64::NAN] {
                    let mut graph = Graph::new("rules", vec![Symbol::new("N")]);
                    let shape = vec![Dim::symbol("N")];
                    let mut inputs = Vec::new();
                    let mut operands = Vec::new();
                    for (position, dtype) in dtypes.iter().enumerate() {
                        let input = position == varying || varying == dtypes.len();
                        let fits = match dtype {
                            DType::I32 => constant.fract() == 0.0 && constant.abs() < 3.0,
                            DType::Bool => constant == 0.0 || constant == 1.0,
                            DType::I8 => false,
                            DType::F32 | DType::Bf16 | DType::F16 => true,
                        };
                        let same_as = dtypes[..position].iter().position(|other| other == dtype);
                        operands.push(match (input, same_as) {
                            (true, Some(same_as)) if varying == dtypes.len() => operands[same_as],
                            (true, _) => {
                                let name = format!("x{position}");
                                let ty = TensorType::new(*dtype, shape.clone());
                                inputs.push((name.clone(), all_numbers(*dtype)));
                                graph.add_input(Input { name, ty, rate: Rate::Step, default: None })
                            }
                            (false, _) => {
                                let value = Float(if fits { constant } else { 1.0 });
                                let value =
                                    graph.add(Op::Constant { value, dtype: *dtype }, &[], None).unwrap();
                                graph.add(Op::Broadcast { shape: shape.clone() }, &[value], None).unwrap()
                            }
                        });
                    }
                    let once = graph.add(op.clone(), &operands, None).unwrap();
                    graph.outputs.push(Output { name: "once".to_owned(), value: once });
                    if let [x] = operands[..]
                        && graph.ty(once).dtype == graph.ty(x).dtype
                    {
                        let twice = graph.add(op.clone(), &[once], None).unwrap();
                        graph.outputs.push(Output { name: "twice".to_owned(), value: twice });
                    }
                    if let Op::Cast { .. } = op {
                        for to in DType::COMPUTED {
                            let twice = graph.add(Op::Cast { to }, &[once], None).unwrap();
                            graph.outputs.push(Output { name: format!("then_{to}"), value: twice });
                        }
                    }
                    let simple = simplify(&graph).unwrap();
                    gone += usize::from(simple.node_count() < graph.node_count());
                    for ((name, want), (_, got)) in
                        outputs(&graph, &inputs).iter().zip(&outputs(&simple, &inputs))
                    {
                        assert!(
                            same_bits(want, got),
                            "{op:?} {dtypes:?} {constant} at {varying} {name}: {want:?} became {got:?}"
                        );
                    }
                }
            }
        }
    }
    assert!(gone > 200, "only {gone} became smaller");
}

fn all_numbers(dtype: DType) -> Tensor<f32> {
    let count = values(DType::F32).len();
    let numbers = values(dtype).iter().cycle().take(count);
    let data = match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => Data::Float(numbers.map(|x| *x as f32).collect()),
        DType::I32 | DType::I8 => Data::Int(numbers.map(|x| *x as i32).collect()),
        DType::Bool => Data::Bool(numbers.map(|x| *x != 0.0).collect()),
    };
    Tensor::new(dtype, vec![count], data).unwrap()
}
