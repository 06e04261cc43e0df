//! Products that share their left factor, one launch with a part for each, under epilogues of different kinds.

use nucleus_cpu::kernels::Isa;
use nucleus_ir::{DType, Op};
use nucleus_plan::{Anchor, Plan};
use nucleus_tests::backend::compiled;

use crate::builder::{Builder, Leaves, shape};
use crate::support::{Subject, dims};

const SIZES: [[i64; 4]; 3] = [[1, 1, 1, 1], [2, 3, 1, 5], [3, 2, 9, 17]];

/// For every product of a plan the number of its parts, the most first.
fn parts(plan: &Plan) -> Vec<usize> {
    let of = |launch: &nucleus_plan::Launch| match &plan.kernel(launch.kernel).anchor {
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => Some(contraction.parts.len()),
        _ => None,
    };
    let mut parts: Vec<usize> = plan.launches.iter().filter_map(of).collect();
    parts.sort_unstable_by(|x, y| y.cmp(x));
    parts
}

/// Checks a graph against the evaluator, in every compute type and with right factors that are weights and inputs.
#[track_caller]
fn check(expected: &[usize], build: impl Fn(&mut Builder, DType)) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for leaves in [Leaves::Inputs, Leaves::Weights] {
            let mut builder = Builder::new("parts", leaves);
            build(&mut builder, dtype);
            let (plan, _) = compiled(&builder.graph, dtype).unwrap();
            assert_eq!(parts(&plan), expected, "{plan}");
            let isas = [Isa::supported()[0], Isa::Portable];
            let mut subject = Subject::new(&builder.graph, dtype, &isas).unwrap();
            for (seed, sizes) in SIZES.into_iter().enumerate() {
                subject.check(&dims(sizes), seed as u64).unwrap_or_else(|error| panic!("{dtype}: {error}"));
            }
        }
    }
}

const MATMUL: Op = Op::Matmul { transpose_a: false, transpose_b: false };

#[test]
fn epilogues_of_different_kinds() {
    check(&[5], |b, _| {
        let x = b.f32("B, T, 24");
        let x = b.value(Op::Tanh, &[x]);
        // Gate and up, read as halves of one product.
        let weight = b.f32("24, 38");
        let both = b.value(MATMUL, &[x, weight]);
        let (gate, up) = (b.slice(both, 2, "0", "19"), b.slice(both, 2, "19", "38"));
        let gate = b.value(Op::Sigmoid, &[gate]);
        b.output(Op::Mul, &[gate, up]);
        // A bias; a residual; a transposed result; one that is stored as it is, and rounded.
        let (weight, bias) = (b.f32("24, 7"), b.f32("7"));
        let product = b.value(MATMUL, &[x, weight]);
        let bias = b.value(Op::Reshape { shape: shape("1, 1, 7") }, &[bias]);
        let bias = b.broadcast(bias, "B, T, 7");
        b.output(Op::Add, &[product, bias]);
        let (weight, residual) = (b.f32("24, 33"), b.f32("B, T, 33"));
        let product = b.value(MATMUL, &[x, weight]);
        b.output(Op::Sub, &[residual, product]);
        let weight = b.f32("24, 16");
        let product = b.value(MATMUL, &[x, weight]);
        let heads = b.value(Op::Reshape { shape: shape("B, T, 2, 8") }, &[product]);
        b.output(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[heads]);
        let weight = b.f32("24, 5");
        let product = b.output(MATMUL, &[x, weight]);
        b.output(Op::Cast { to: DType::Bf16 }, &product);
    });
}

#[test]
fn batches() {
    check(&[2], |b, dtype| {
        let x = b.tensor(dtype, "B, 3, T, 6");
        for columns in ["4", "35"] {
            let y = b.tensor(dtype, &format!("B, 3, 6, {columns}"));
            let product = b.value(MATMUL, &[x, y]);
            b.output(Op::Exp, &[product]);
        }
    });
}

#[test]
fn groups_that_gather_their_rows() {
    check(&[2], |b, dtype| {
        let (x, index) = (b.tensor(dtype, "B, 6, 10"), b.index("B, 4, T", "6"));
        let rows = b.value(Op::Gather, &[x, index]);
        let w = b.tensor(dtype, "4, 10, 12");
        let product = b.value(Op::GroupedMatmul { transpose_b: false }, &[rows, w]);
        b.output(Op::Tanh, &[product]);
        let w = b.tensor(dtype, "4, 9, 10");
        b.output(Op::GroupedMatmul { transpose_b: true }, &[rows, w]);
    });
}

/// What the second product's epilogue adds is computed from the first product's result.
#[test]
fn a_product_that_takes_the_result_of_another() {
    check(&[2, 1], |b, _| {
        let x = b.f32("B, T, 12");
        let [first, second, third] = ["12, 8", "12, 8", "12, 3"].map(|dims| {
            let weight = b.f32(dims);
            b.value(MATMUL, &[x, weight])
        });
        let sum = b.value(Op::ReduceSum { axis: 2, keep: true }, &[first]);
        let sum = b.broadcast(sum, "B, T, 8");
        b.output(Op::Mul, &[second, sum]);
        b.output(Op::Exp, &[third]);
    });
}
