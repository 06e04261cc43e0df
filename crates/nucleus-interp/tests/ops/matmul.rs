use nucleus_interp::NodeError;
use nucleus_ir::{DType, Op};

use crate::{assert_floats, f, i, noise, run, try_run};

fn matmul(transpose_a: bool, transpose_b: bool) -> Op {
    Op::Matmul { transpose_a, transpose_b }
}

#[test]
fn every_transposition_gives_the_same_product() {
    // [1 2 3; 4 5 6] · [1 0; 2 1; 0 3]
    let (a, a_t) = (f(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), f(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
    let (b, b_t) = (f(&[3, 2], &[1.0, 0.0, 2.0, 1.0, 0.0, 3.0]), f(&[2, 3], &[1.0, 2.0, 0.0, 0.0, 1.0, 3.0]));
    let want = [5.0, 11.0, 14.0, 23.0];
    assert_floats(&run(&matmul(false, false), &[&a, &b]), &[2, 2], &want);
    assert_floats(&run(&matmul(true, false), &[&a_t, &b]), &[2, 2], &want);
    assert_floats(&run(&matmul(false, true), &[&a, &b_t]), &[2, 2], &want);
    assert_floats(&run(&matmul(true, true), &[&a_t, &b_t]), &[2, 2], &want);
}

#[test]
fn one_matrix_serves_every_batch_item_or_each_has_its_own() {
    let a = f(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let shared = f(&[2, 1], &[10.0, 1.0]);
    assert_floats(&run(&matmul(false, false), &[&a, &shared]), &[2, 1, 1], &[12.0, 34.0]);
    let own = f(&[2, 2, 1], &[10.0, 1.0, 0.0, 5.0]);
    assert_floats(&run(&matmul(false, false), &[&a, &own]), &[2, 1, 1], &[12.0, 20.0]);
    assert_floats(
        &run(&matmul(false, true), &[&a, &f(&[2, 1, 2], &[10.0, 1.0, 0.0, 5.0])]),
        &[2, 1, 1],
        &[12.0, 20.0],
    );
}

#[test]
fn nothing_to_sum_gives_zeros() {
    let (a, b) = (f(&[2, 0], &[]), f(&[0, 3], &[]));
    assert_floats(&run(&matmul(false, false), &[&a, &b]), &[2, 3], &[0.0; 6]);
    assert_floats(&run(&matmul(false, false), &[&f(&[0, 2], &[]), &f(&[2, 2], &[0.0; 4])]), &[0, 2], &[]);
}

#[test]
fn narrow_operands_give_f32() {
    let narrow = |shape: &[usize], x: &[f32]| f(shape, x).cast(DType::Bf16, true);
    let y = run(&matmul(false, false), &[&narrow(&[1, 2], &[256.0, 1.0]), &narrow(&[2, 1], &[1.0, 1.0])]);
    assert_floats(&y, &[1, 1], &[257.0]);
}

#[test]
fn long_sums_agree_with_f64() {
    // The comparison is inside `run`.
    let y = run(&matmul(false, true), &[&noise(&[7, 300], 3), &noise(&[5, 300], 4)]);
    assert_eq!(y.shape(), [7, 5]);
}

#[test]
fn grouped_matmul_is_one_product_per_group_and_batch_item() {
    let x = f(&[2, 2, 1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let w = f(&[2, 2, 1], &[1.0, 10.0, 100.0, 1000.0]);
    let y = run(&Op::GroupedMatmul { transpose_b: false }, &[&x, &w]);
    assert_floats(&y, &[2, 2, 1, 1], &[21.0, 4300.0, 65.0, 8700.0]);
    let w = f(&[2, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    let w_t = f(&[2, 3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 10.0, 8.0, 11.0, 9.0, 12.0]);
    let y = run(&Op::GroupedMatmul { transpose_b: false }, &[&x, &w]);
    assert_eq!(y, run(&Op::GroupedMatmul { transpose_b: true }, &[&x, &w_t]));
    assert_eq!(y.floats().unwrap()[..6], [9.0, 12.0, 15.0, 61.0, 68.0, 75.0]);
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let a = f(&[2, 3], &[0.0; 6]);
    let error = try_run(&matmul(false, false), &[&a, &a]).unwrap_err();
    assert_eq!(error.to_string(), "op `matmul`: contracted sizes 3 and 2 differ");
    for operands in [[&a, &i(&[3, 2], &[0; 6])], [&f(&[3], &[0.0; 3]), &a], [&f(&[1, 2, 3], &[0.0; 6]), &a]] {
        assert!(matches!(try_run(&matmul(false, false), &operands), Err(NodeError::Type(_))));
    }
    let x = f(&[1, 2, 1, 1], &[0.0; 2]);
    let groups = try_run(&Op::GroupedMatmul { transpose_b: false }, &[&x, &f(&[3, 1, 1], &[0.0; 3])]);
    assert!(matches!(groups, Err(NodeError::Type(_))));
}
