//! Numbers at which arithmetic is least regular: every scalar op on all of them, and the ops that order or add up numbers.

use std::collections::BTreeSet;

use nucleus_cpu::kernels::Isa;
use nucleus_interp::Data;
use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::ops::op_table;
use nucleus_ir::{Bindings, DType, Float, Graph, Op};
use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::backend::{Backend, compiled};
use nucleus_tests::scalars::{operand_types, scalar_ops};
use nucleus_tests::tensors::{answer, evaluated};

use crate::builder::{Builder, Leaves, size};
use crate::support::{Subject, dims};

const FLOATS: [f32; 29] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    -2.5,
    0.5,
    1e-3,
    -88.0,
    88.7,
    89.0,
    -104.0,
    -9.5,
    710.0,
    3e38,
    -3e38,
    1e-38,
    1e-40,
    -1e-45,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    16_777_217.0,
    65_519.0,
    65_520.0,
    2_147_483_648.0,
    -2_147_483_904.0,
    99_999.0,
    3.140_625,
];
const INTEGERS: [i32; 9] = [0, 1, -1, 7, -100, 16_777_217, 65_536, i32::MAX, i32::MIN];

/// The numbers of a type, `repeat` times each, over and over.
fn numbers(dtype: DType, repeat: usize, count: usize) -> HostTensor {
    let position = |index: usize, length: usize| index / repeat % length;
    let tensor = match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => {
            let values: Vec<f32> = (0..count).map(|index| FLOATS[position(index, FLOATS.len())]).collect();
            HostTensor::from_f32(&[count], &values).and_then(|tensor| tensor.to_dtype(dtype))
        }
        DType::I32 => {
            let values: Vec<i32> =
                (0..count).map(|index| INTEGERS[position(index, INTEGERS.len())]).collect();
            HostTensor::from_i32(&[count], &values)
        }
        DType::I8 => {
            let values: Vec<i8> = (0..count).map(|index| position(index, 256) as u8 as i8).collect();
            HostTensor::from_i8(&[count], &values)
        }
        DType::Bool => {
            let values: Vec<bool> = (0..count).map(|index| position(index, 2) == 1).collect();
            HostTensor::from_bool(&[count], &values)
        }
    };
    tensor.unwrap()
}

/// How far apart two results may be, relative to the wanted one and at least: one rounding to the type, and for functions 2 · 2⁻²⁴ before.
fn tolerance(op: &Op, dtype: DType) -> (f64, f64) {
    let function = matches!(op, Op::Exp | Op::Log | Op::Rsqrt | Op::Tanh | Op::Sigmoid | Op::Sin | Op::Cos);
    match dtype {
        _ if !function => (0.0, 0.0),
        DType::Bf16 => (2f64.powi(-7), 1e-40),
        DType::F16 => (2f64.powi(-10), 2f64.powi(-24)),
        _ if matches!(op, Op::Sin | Op::Cos) => (4e-7, 1e-7),
        _ => (4e-7, 3e-45),
    }
}

fn run(graph: &Graph, dims: &Bindings, inputs: &TensorMap) -> Vec<(String, HostTensor)> {
    let (plan, _) =
        compiled(graph, DType::F32).unwrap_or_else(|error| panic!("{error}\n{}", print_graph(graph)));
    let mut backend = Backend::new(&plan, 1, Isa::supported()[0], false).unwrap();
    backend
        .run(dims, inputs, &TensorMap::new())
        .unwrap_or_else(|error| panic!("{error}\n{}", print_graph(graph)))
}

#[test]
fn scalar_ops_agree_on_irregular_numbers() {
    let tested: BTreeSet<&str> = scalar_ops().iter().map(Op::name).collect();
    let scalar = |name: &str| name == "cast" || Op::new(name, &[]).is_ok_and(|op| op.scalar().is_some());
    for info in op_table() {
        assert_eq!(tested.contains(info.name), scalar(info.name), "`{}`", info.name);
    }
    // Every combination of two numbers.
    let count = FLOATS.len() * FLOATS.len();
    let mut failures = Vec::new();
    for op in scalar_ops() {
        let mut builder = Builder::new(op.name(), Leaves::Inputs);
        let mut inputs = TensorMap::new();
        let mut lists = Vec::new();
        for dtypes in operand_types(&op) {
            let repeats: &[usize] = if let Op::Select = op { &[29, 1, 3] } else { &[1, 29] };
            let operands: Vec<_> = dtypes
                .iter()
                .zip(repeats)
                .map(|(dtype, repeat)| {
                    let name = format!("x{}", builder.graph.inputs.len());
                    inputs.insert(name, numbers(*dtype, *repeat, count));
                    builder.tensor(*dtype, &count.to_string())
                })
                .collect();
            builder.output(op.clone(), &operands);
            lists.push(dtypes);
        }
        let graph = builder.graph;
        let dims = dims([1; 4]);
        let want = answer::<f32>(&graph, &dims, &inputs, &TensorMap::new()).unwrap().outputs;
        let got = run(&graph, &dims, &inputs);
        for ((dtypes, (_, want)), (_, got)) in lists.iter().zip(&want).zip(&got) {
            let (relative, least) = tolerance(&op, got.dtype());
            let got = evaluated::<f64>(got);
            let wrong = match (want.data(), got.data()) {
                (Data::Float(want), Data::Float(got)) => want.iter().zip(got).position(|(x, y)| {
                    // Which zero is the larger one, no rule says.
                    let zeros = matches!(op, Op::Max | Op::Min) && x == y;
                    let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()) || zeros;
                    let close = relative > 0.0 && (x - y).abs() <= relative.mul_add(x.abs(), least);
                    !(same || close)
                }),
                (Data::Int(want), Data::Int(got)) => want.iter().zip(got).position(|(x, y)| x != y),
                (Data::Bool(want), Data::Bool(got)) => want.iter().zip(got).position(|(x, y)| x != y),
                _ => Some(0),
            };
            if let Some(at) = wrong {
                let first = dtypes
                    .iter()
                    .zip([1, 29])
                    .map(|(dtype, repeat)| numbers(*dtype, repeat, count).to_f32_vec()[at]);
                let first: Vec<f32> = first.collect();
                let show = |data: &Data<f64>| match data {
                    Data::Float(x) => format!("{:e}", x[at]),
                    Data::Int(x) => x[at].to_string(),
                    Data::Bool(x) => x[at].to_string(),
                };
                failures.push(format!(
                    "{op:?} {dtypes:?} of {first:?}: {} instead of {}",
                    show(got.data()),
                    show(want.data())
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{} lists of types fail:\n{}", failures.len(), failures.join("\n"));
}

/// Rows of 37 numbers: ordinary ones, one or two of which are not finite, and rows of one number.
fn irregular_rows() -> HostTensor {
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let mut rows: Vec<f32> = (0..8 * 37).map(|index| (index as f32 * 0.7).sin()).collect();
    rows[37 + 4] = nan;
    rows[2 * 37 + 36] = infinity;
    rows[3 * 37] = -infinity;
    (rows[4 * 37 + 3], rows[4 * 37 + 33]) = (infinity, -infinity);
    rows[5 * 37..6 * 37].fill(-infinity);
    rows[6 * 37..7 * 37].fill(-0.0);
    rows[7 * 37..].fill(nan);
    HostTensor::from_f32(&[8, 37], &rows).unwrap()
}

#[test]
fn sums_and_orders_agree_on_rows_that_are_not_finite() {
    let mut b = Builder::new("rows", Leaves::Inputs);
    let x = b.f32("8, 37");
    for axis in [0, 1] {
        b.output(Op::ReduceMax { axis, keep: false }, &[x]);
        b.output(Op::ReduceSum { axis, keep: false }, &[x]);
    }
    let peak = b.value(Op::ReduceMax { axis: 1, keep: true }, &[x]);
    let peak = b.broadcast(peak, "8, 37");
    let shifted = b.value(Op::Sub, &[x, peak]);
    let powers = b.value(Op::Exp, &[shifted]);
    let sum = b.value(Op::ReduceSum { axis: 1, keep: true }, &[powers]);
    let sum = b.broadcast(sum, "8, 37");
    b.output(Op::Div, &[powers, sum]);
    // A factor without zeros: whether infinity is met by one must not decide.
    let (w, one) = (b.f32("37, 5"), b.constant(1.5, DType::F32));
    let one = b.broadcast(one, "37, 5");
    let w = b.value(Op::Add, &[w, one]);
    b.output(Op::Matmul { transpose_a: false, transpose_b: false }, &[x, w]);
    let turned = b.transpose(x, &[1, 0]);
    let affinity = b.value(Op::Reshape { shape: vec![size("1"), size("37"), size("8")] }, &[turned]);
    for capacity in ["1", "5", "36", "37"] {
        b.output(Op::ExpertChoice { capacity: size(capacity) }, &[affinity]);
    }
    let graph = b.graph;
    let dims = dims([1; 4]);
    let mut inputs = TensorMap::new();
    inputs.insert("x0", irregular_rows());
    let factor: Vec<f32> = (0..5 * 37).map(|index| (index as f32).cos()).collect();
    inputs.insert("x1", HostTensor::from_f32(&[37, 5], &factor).unwrap());
    let mut subject = Subject::new(&graph, DType::F32, &Isa::supported()).unwrap();
    subject.check_on(&dims, &inputs, &TensorMap::new()).unwrap();
}

/// What a masked key and its value hold has no influence; a NaN in a query makes that query's answer NaN and no other.
#[test]
fn attention_agrees_on_masked_keys_that_are_not_finite() {
    let mut b = Builder::new("masked", Leaves::Inputs);
    let (q, k, v) = (b.f32("1, 8, 1, 37"), b.f32("1, 8, 1, 37"), b.f32("1, 8, 1, 37"));
    let mask = b.tensor(DType::Bool, "1, 8");
    b.output(Op::Attention { scale: Float(0.3) }, &[q, k, v, mask]);
    let graph = b.graph;
    let rows = irregular_rows();
    let rows = HostTensor::from_bytes(DType::F32, &[1, 8, 1, 37], rows.bytes()).unwrap();
    let mut finite = rows.to_f32_vec();
    finite.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.25);
    let finite = HostTensor::from_f32(&[1, 8, 1, 37], &finite).unwrap();
    let mut subject = Subject::new(&graph, DType::F32, &Isa::supported()).unwrap();
    let seen = [true, false, false, false, false, false, true, false];
    for (q, k, v) in [(&finite, &rows, &rows), (&rows, &finite, &finite)] {
        let mut inputs = TensorMap::new();
        for (name, tensor) in [("x0", q), ("x1", k), ("x2", v)] {
            inputs.insert(name, tensor.clone());
        }
        inputs.insert("x3", HostTensor::from_bool(&[1, 8], &seen).unwrap());
        subject.check_on(&dims([1; 4]), &inputs, &TensorMap::new()).unwrap();
    }
}
