use nucleus_interp::NodeError;
use nucleus_ir::{Float, Op};

use crate::{F32, assert_floats, b, f, noise, run, try_run};

fn attention(scale: f64) -> Op {
    Op::Attention { scale: Float(scale) }
}

#[test]
fn weights_are_the_softmax_of_scaled_scores() {
    // Scores 0.5 · (2 ln 3, 0): weights 3/4 and 1/4.
    let q = f(&[1, 1, 1, 1], &[2.0]);
    let k = f(&[1, 2, 1, 1], &[3f32.ln(), 0.0]);
    let v = f(&[1, 2, 1, 1], &[8.0, 4.0]);
    assert_floats(&run(&attention(0.5), &[&q, &k, &v]), &[1, 1, 1, 1], &[7.0]);
}

#[test]
fn query_heads_share_key_heads_in_blocks() {
    // 4 query heads, 2 key heads, one key: heads 0 and 1 read key head 0, heads 2 and 3 key head 1.
    let q = f(&[1, 1, 4, 1], &[1.0; 4]);
    let k = f(&[1, 1, 2, 1], &[1.0; 2]);
    let v = f(&[1, 1, 2, 1], &[10.0, 20.0]);
    assert_floats(&run(&attention(1.0), &[&q, &k, &v]), &[1, 1, 4, 1], &[10.0, 10.0, 20.0, 20.0]);
}

#[test]
fn masked_keys_do_not_exist() {
    let q = noise(&[2, 3, 2, 4], 1);
    let (k, v) = (noise(&[2, 3, 1, 4], 2), noise(&[2, 3, 1, 4], 3));
    let first_two = |x: &F32| {
        let x = x.floats().unwrap();
        f(&[2, 2, 1, 4], &[&x[0..8], &x[12..20]].concat())
    };
    let mask = b(&[2, 3], &[true, true, false, true, true, false]);
    let masked = run(&attention(0.5), &[&q, &k, &v, &mask]);
    assert_eq!(masked, run(&attention(0.5), &[&q, &first_two(&k), &first_two(&v)]));
    let all = run(&attention(0.5), &[&q, &k, &v, &b(&[2, 3], &[true; 6])]);
    assert_eq!(all, run(&attention(0.5), &[&q, &k, &v]));
    assert_ne!(masked, all);
}

#[test]
fn a_query_without_keys_gives_zeros() {
    let (q, k) = (f(&[2, 1, 1, 2], &[1.0; 4]), f(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]));
    let mask = b(&[2, 1], &[false, true]);
    assert_floats(&run(&attention(1.0), &[&q, &k, &k, &mask]), &[2, 1, 1, 2], &[0.0, 0.0, 3.0, 4.0]);
    let none = f(&[2, 0, 1, 2], &[]);
    assert_floats(&run(&attention(1.0), &[&q, &none, &none]), &[2, 1, 1, 2], &[0.0; 4]);
}

#[test]
fn large_scores_do_not_overflow() {
    let q = f(&[1, 1, 1, 1], &[1e4]);
    let (k, v) = (f(&[1, 2, 1, 1], &[1e4, -1e4]), f(&[1, 2, 1, 1], &[5.0, 7.0]));
    assert_floats(&run(&attention(1.0), &[&q, &k, &v]), &[1, 1, 1, 1], &[5.0]);
}

#[test]
fn batch_items_and_heads_stay_apart() {
    // Every value row is the number of its batch item and head, so any mixture of a head's rows is that number again.
    let (q, k) = (noise(&[2, 3, 2, 2], 5), noise(&[2, 4, 2, 2], 6));
    let v: Vec<f32> = (0..32).map(|i| (i / 16 * 10 + i / 2 % 2) as f32).collect();
    let want: Vec<f32> = (0..24).map(|i| (i / 12 * 10 + i / 2 % 2) as f32).collect();
    assert_floats(&run(&attention(0.7), &[&q, &k, &f(&[2, 4, 2, 2], &v)]), &[2, 3, 2, 2], &want);
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let x = |heads| f(&[1, 1, heads, 1], &vec![0.0; heads]);
    let short_mask = b(&[1, 2], &[true, true]);
    for operands in [
        vec![&x(3), &x(2), &x(2)],
        vec![&x(2), &x(2), &x(1)],
        vec![&x(1), &x(1), &x(1), &short_mask],
        vec![&x(1), &x(1), &x(1), &x(1)],
        vec![&x(1), &x(1)],
        vec![&x(1), &f(&[1, 1, 0, 1], &[]), &f(&[1, 1, 0, 1], &[])],
    ] {
        assert!(matches!(try_run(&attention(1.0), &operands), Err(NodeError::Type(_))));
    }
    let infinite = try_run(&attention(f64::INFINITY), &[&x(1), &x(1), &x(1)]);
    assert!(matches!(infinite, Err(NodeError::Type(_))));
}
