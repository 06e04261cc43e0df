use nucleus_interp::NodeError;
use nucleus_ir::{Dim, Op};

use crate::{assert_floats, assert_ints, f, i, run_all, try_run};

fn expert_choice(capacity: i64) -> Op {
    Op::ExpertChoice { capacity: Dim::constant(capacity) }
}

#[test]
fn experts_choose_their_best_tokens() {
    // Expert 0 sees 0.1 0.9 0.5 0.7, expert 1 sees 4 3 2 1.
    let affinity = f(&[1, 4, 2], &[0.1, 4.0, 0.9, 3.0, 0.5, 2.0, 0.7, 1.0]);
    let results = run_all(&expert_choice(2), &[&affinity]);
    assert_ints(&results[0], &[1, 2, 2], &[1, 3, 0, 1]);
    assert_floats(&results[1], &[1, 2, 2], &[0.9, 0.7, 4.0, 3.0]);
}

#[test]
fn batch_items_are_apart() {
    let results = run_all(&expert_choice(1), &[&f(&[2, 2, 1], &[1.0, 2.0, 8.0, 7.0])]);
    assert_ints(&results[0], &[2, 1, 1], &[1, 0]);
    assert_floats(&results[1], &[2, 1, 1], &[2.0, 8.0]);
}

#[test]
fn ties_go_to_the_lowest_token() {
    let results = run_all(&expert_choice(3), &[&f(&[1, 5, 1], &[1.0, 0.0, 1.0, 2.0, 1.0])]);
    assert_ints(&results[0], &[1, 1, 3], &[0, 2, 3]);
    let zeros = run_all(&expert_choice(1), &[&f(&[1, 2, 1], &[-0.0, 0.0])]);
    assert_ints(&zeros[0], &[1, 1, 1], &[0]);
}

#[test]
fn nan_is_smaller_than_every_number() {
    let affinity = f(&[1, 4, 1], &[f32::NAN, f32::NEG_INFINITY, f32::NAN, 1.0]);
    let two = run_all(&expert_choice(2), &[&affinity]);
    assert_ints(&two[0], &[1, 1, 2], &[1, 3]);
    let three = run_all(&expert_choice(3), &[&affinity]);
    assert_ints(&three[0], &[1, 1, 3], &[0, 1, 3]);
    assert_floats(&three[1], &[1, 1, 3], &[f32::NAN, f32::NEG_INFINITY, 1.0]);
}

#[test]
fn full_capacity_takes_every_token_in_order() {
    let results = run_all(&expert_choice(3), &[&f(&[1, 3, 1], &[1.0, 3.0, 2.0])]);
    assert_ints(&results[0], &[1, 1, 3], &[0, 1, 2]);
    assert_floats(&results[1], &[1, 1, 3], &[1.0, 3.0, 2.0]);
}

#[test]
fn capacities_outside_one_to_tokens_are_errors() {
    let affinity = f(&[1, 2, 1], &[0.0; 2]);
    let error = try_run(&expert_choice(3), &[&affinity]).unwrap_err();
    assert_eq!(error.to_string(), "op `expert_choice`: attribute `capacity` 3 is not in 1 … 2");
    assert!(matches!(try_run(&expert_choice(0), &[&affinity]), Err(NodeError::Type(_))));
    assert!(matches!(try_run(&expert_choice(1), &[&i(&[1, 2, 1], &[0; 2])]), Err(NodeError::Type(_))));
}
