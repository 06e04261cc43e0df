use nucleus_interp::NodeError;
use nucleus_ir::{Dim, Op};

use crate::{assert_bools, assert_floats, assert_ints, b, f, i, run, try_run};

fn shape(sizes: &[i64]) -> Vec<Dim> {
    sizes.iter().map(|size| Dim::constant(*size)).collect()
}

fn slice(axis: usize, start: i64, end: i64) -> Op {
    Op::Slice { axis, start: Dim::constant(start), end: Dim::constant(end) }
}

const SIX: [i32; 6] = [0, 1, 2, 3, 4, 5];

#[test]
fn reshape_keeps_the_order() {
    let x = i(&[2, 3], &SIX);
    assert_ints(&run(&Op::Reshape { shape: shape(&[3, 2]) }, &[&x]), &[3, 2], &SIX);
    assert_ints(&run(&Op::Reshape { shape: vec![] }, &[&i(&[1, 1], &[9])]), &[], &[9]);
    let empty = run(&Op::Reshape { shape: shape(&[0, 7]) }, &[&i(&[2, 0], &[])]);
    assert_ints(&empty, &[0, 7], &[]);
    assert!(matches!(try_run(&Op::Reshape { shape: shape(&[4]) }, &[&x]), Err(NodeError::Type(_))));
}

#[test]
fn transpose_reorders_axes() {
    let x = i(&[2, 3], &SIX);
    assert_ints(&run(&Op::Transpose { permutation: vec![1, 0] }, &[&x]), &[3, 2], &[0, 3, 1, 4, 2, 5]);
    // y[i, j, k] = x[k, i, j] for x [2, 1, 3].
    let y = run(&Op::Transpose { permutation: vec![1, 2, 0] }, &[&i(&[2, 1, 3], &SIX)]);
    assert_ints(&y, &[1, 3, 2], &[0, 3, 1, 4, 2, 5]);
    let bools = run(&Op::Transpose { permutation: vec![1, 0] }, &[&b(&[1, 2], &[true, false])]);
    assert_bools(&bools, &[2, 1], &[true, false]);
    assert_floats(&run(&Op::Transpose { permutation: vec![] }, &[&f(&[], &[7.0])]), &[], &[7.0]);
    let twice = try_run(&Op::Transpose { permutation: vec![0, 0] }, &[&x]);
    assert!(matches!(twice, Err(NodeError::Type(_))));
}

#[test]
fn an_empty_tensor_with_a_huge_axis_is_moved_at_once() {
    let x = f(&[1 << 40, 0], &[]);
    assert_floats(&run(&Op::Transpose { permutation: vec![1, 0] }, &[&x]), &[0, 1 << 40], &[]);
    assert_floats(&run(&slice(0, 5, 9), &[&x]), &[4, 0], &[]);
    assert_floats(&run(&Op::Concat { axis: 1 }, &[&x, &x]), &[1 << 40, 0], &[]);
    let y = f(&[1 << 40, 1 << 40, 0], &[]);
    let sum = try_run(&Op::ReduceSum { axis: 2, keep: false }, &[&y]);
    assert!(matches!(sum, Err(NodeError::Memory { .. })));
}

#[test]
fn broadcast_repeats() {
    let x = i(&[2, 1], &[1, 2]);
    let y = run(&Op::Broadcast { shape: shape(&[2, 2, 3]) }, &[&x]);
    assert_ints(&y, &[2, 2, 3], &[1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2]);
    assert_floats(&run(&Op::Broadcast { shape: shape(&[3]) }, &[&f(&[], &[0.5])]), &[3], &[0.5; 3]);
    assert_ints(&run(&Op::Broadcast { shape: shape(&[2, 0]) }, &[&x]), &[2, 0], &[]);
    assert_ints(&run(&Op::Broadcast { shape: shape(&[1, 2]) }, &[&i(&[2], &[1, 2])]), &[1, 2], &[1, 2]);
    let narrower = try_run(&Op::Broadcast { shape: shape(&[3, 1]) }, &[&x]);
    assert!(matches!(narrower, Err(NodeError::Type(_))));
}

#[test]
fn slice_cuts_one_axis() {
    let x = i(&[2, 3], &SIX);
    assert_ints(&run(&slice(0, 1, 2), &[&x]), &[1, 3], &[3, 4, 5]);
    assert_ints(&run(&slice(1, 1, 3), &[&x]), &[2, 2], &[1, 2, 4, 5]);
    assert_ints(&run(&slice(1, 2, 2), &[&x]), &[2, 0], &[]);
    for outside in [slice(1, -1, 2), slice(1, 2, 1), slice(1, 0, 4), slice(2, 0, 1)] {
        assert!(matches!(try_run(&outside, &[&x]), Err(NodeError::Type(_))), "{outside:?}");
    }
}

#[test]
fn concat_joins_along_an_axis() {
    let (x, y) = (i(&[2, 1], &[1, 2]), i(&[2, 2], &[3, 4, 5, 6]));
    assert_ints(&run(&Op::Concat { axis: 1 }, &[&x, &y, &x]), &[2, 4], &[1, 3, 4, 1, 2, 5, 6, 2]);
    assert_ints(&run(&Op::Concat { axis: 0 }, &[&x, &x]), &[4, 1], &[1, 2, 1, 2]);
    assert_ints(&run(&Op::Concat { axis: 1 }, &[&i(&[2, 0], &[]), &x]), &[2, 1], &[1, 2]);
    assert_bools(
        &run(&Op::Concat { axis: 0 }, &[&b(&[1], &[true]), &b(&[1], &[false])]),
        &[2],
        &[true, false],
    );
    assert!(matches!(try_run(&Op::Concat { axis: 0 }, &[&x, &y]), Err(NodeError::Type(_))));
    assert!(matches!(try_run(&Op::Concat { axis: 0 }, &[]), Err(NodeError::Type(_))));
}
