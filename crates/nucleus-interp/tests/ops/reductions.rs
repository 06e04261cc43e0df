use nucleus_interp::NodeError;
use nucleus_ir::{DType, Op};

use crate::{assert_floats, assert_ints, b, f, i, run, try_run};

fn sum(axis: usize, keep: bool) -> Op {
    Op::ReduceSum { axis, keep }
}

fn max(axis: usize, keep: bool) -> Op {
    Op::ReduceMax { axis, keep }
}

#[test]
fn sums() {
    let x = f(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_floats(&run(&sum(0, false), &[&x]), &[3], &[5.0, 7.0, 9.0]);
    assert_floats(&run(&sum(1, true), &[&x]), &[2, 1], &[6.0, 15.0]);
    let cube = f(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_floats(&run(&sum(1, false), &[&cube]), &[2, 2], &[4.0, 6.0, 12.0, 14.0]);
    assert_ints(&run(&sum(0, false), &[&i(&[2], &[i32::MAX, 1])]), &[], &[i32::MIN]);
}

#[test]
fn an_empty_sum_is_zero_and_an_empty_maximum_the_smallest() {
    let x = f(&[2, 0], &[]);
    assert_floats(&run(&sum(1, false), &[&x]), &[2], &[0.0, 0.0]);
    assert_floats(&run(&sum(0, false), &[&x]), &[0], &[]);
    assert_floats(&run(&max(1, true), &[&x]), &[2, 1], &[f32::NEG_INFINITY; 2]);
    assert_ints(&run(&max(0, false), &[&i(&[0], &[])]), &[], &[i32::MIN]);
}

#[test]
fn maxima_keep_nan() {
    let x = f(&[3, 2], &[1.0, -5.0, f32::NAN, -2.0, 3.0, -9.0]);
    assert_floats(&run(&max(0, false), &[&x]), &[2], &[f32::NAN, -2.0]);
    assert_floats(&run(&max(1, false), &[&x]), &[3], &[1.0, f32::NAN, 3.0]);
    assert_ints(&run(&max(0, true), &[&i(&[3], &[-4, -1, -2])]), &[1], &[-1]);
}

#[test]
fn sums_run_in_index_order_and_round_at_the_end() {
    let big = 16777216.0;
    let total = |x: &[f32]| try_run(&sum(0, false), &[&f(&[3], x)]).unwrap()[0].floats().unwrap()[0];
    assert_eq!((total(&[big, 1.0, 1.0]), total(&[1.0, 1.0, big])), (big, big + 2.0));
    let narrow = f(&[3], &[256.0, 1.0, 1.0]).cast(DType::Bf16, true);
    let result = run(&sum(0, false), &[&narrow]);
    assert_eq!((result.dtype(), result.floats()), (DType::Bf16, Some(&[258.0][..])));
}

#[test]
fn booleans_and_missing_axes_are_errors() {
    assert!(matches!(try_run(&sum(0, false), &[&b(&[1], &[true])]), Err(NodeError::Type(_))));
    assert!(matches!(try_run(&max(1, false), &[&f(&[1], &[1.0])]), Err(NodeError::Type(_))));
}
