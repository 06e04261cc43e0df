//! Every op on small numbers worked out by hand.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod attention;
mod creation;
mod elementwise;
mod indexing;
mod matmul;
mod movement;
mod reductions;
mod routing;

use nucleus_interp::{Data, NodeError, Options, Tensor, evaluate_node};
use nucleus_ir::{Bindings, DType, Op};

type F32 = Tensor<f32>;

/// An `f32` tensor.
fn f(shape: &[usize], elements: &[f32]) -> F32 {
    Tensor::float(shape, elements.to_vec()).unwrap()
}

/// An `i32` tensor.
fn i(shape: &[usize], elements: &[i32]) -> F32 {
    Tensor::int(shape, elements.to_vec()).unwrap()
}

/// A `bool` tensor.
fn b(shape: &[usize], elements: &[bool]) -> F32 {
    Tensor::bool(shape, elements.to_vec()).unwrap()
}

/// Numbers in −0.7 … 0.7, whose sums depend on their order, that look random and are always the same (a linear congruential generator, Knuth's MMIX constants).
fn noise(shape: &[usize], seed: u64) -> F32 {
    let mut state = seed;
    let count = shape.iter().product();
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.7
    };
    Tensor::float(shape, (0..count).map(|_| next()).collect()).unwrap()
}

fn try_run(op: &Op, operands: &[&F32]) -> Result<Vec<F32>, NodeError> {
    evaluate_node(op, &Bindings::new(), operands, &Options::default())
}

/// The results in `f32`, after checking that those in `f64` agree: whole numbers and truth values exactly, floats to 1e-5 of the largest.
fn run_all(op: &Op, operands: &[&F32]) -> Vec<F32> {
    let results = try_run(op, operands).unwrap();
    let wide: Vec<Tensor<f64>> = operands.iter().map(|operand| operand.convert()).collect();
    let options = Options { round_storage: true, ..Options::default() };
    let truth = evaluate_node(op, &Bindings::new(), &wide.iter().collect::<Vec<_>>(), &options).unwrap();
    assert_eq!(results.len(), truth.len());
    for (result, truth) in results.iter().zip(&truth) {
        assert_eq!(result.ty(), truth.ty());
        match (result.data(), truth.data()) {
            (Data::Float(x), Data::Float(y)) => {
                let finite = y.iter().filter(|y| y.is_finite());
                let largest = finite.fold(1.0, |largest: f64, y| largest.max(y.abs()));
                for (x, y) in x.iter().map(|x| f64::from(*x)).zip(y) {
                    let agrees = x == *y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1e-5 * largest;
                    assert!(agrees, "{op:?}: {x} in f32, {y} in f64");
                }
            }
            (Data::Int(x), Data::Int(y)) => assert_eq!(x, y),
            (Data::Bool(x), Data::Bool(y)) => assert_eq!(x, y),
            _ => panic!("{op:?}: other kinds of elements in f64"),
        }
    }
    results
}

/// The only result of an op, checked against `f64`.
fn run(op: &Op, operands: &[&F32]) -> F32 {
    let mut results = run_all(op, operands);
    assert_eq!(results.len(), 1);
    results.remove(0)
}

#[track_caller]
fn assert_floats(tensor: &F32, shape: &[usize], want: &[f32]) {
    assert_eq!((tensor.dtype(), tensor.shape()), (DType::F32, shape));
    let got = tensor.floats().unwrap();
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let agrees =
            got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= 2e-6 * want.abs().max(1.0);
        assert!(agrees, "got {got}, want {want}");
    }
}

#[track_caller]
fn assert_ints(tensor: &F32, shape: &[usize], want: &[i32]) {
    assert_eq!((tensor.shape(), tensor.ints()), (shape, Some(want)));
}

#[track_caller]
fn assert_bools(tensor: &F32, shape: &[usize], want: &[bool]) {
    assert_eq!((tensor.shape(), tensor.bools()), (shape, Some(want)));
}
