use nucleus_interp::NodeError;
use nucleus_ir::{DType, Dim, Op};

use crate::{assert_bools, assert_floats, assert_ints, b, f, i, noise, run, run_all, try_run};

#[test]
fn gather_takes_rows_of_the_same_batch_item() {
    let x = f(&[2, 3, 2], &[0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 100.0, 101.0, 110.0, 111.0, 120.0, 121.0]);
    let y = run(&Op::Gather, &[&x, &i(&[2, 1, 2], &[2, 0, 1, 1])]);
    assert_floats(&y, &[2, 1, 2, 2], &[20.0, 21.0, 0.0, 1.0, 110.0, 111.0, 110.0, 111.0]);
    // Rows may be scalars, and of any type.
    assert_bools(
        &run(&Op::Gather, &[&b(&[1, 2], &[true, false]), &i(&[1, 3], &[1, 0, 1])]),
        &[1, 3],
        &[false, true, false],
    );
    // One index per batch item.
    assert_ints(&run(&Op::Gather, &[&i(&[2, 2], &[1, 2, 3, 4]), &i(&[2], &[1, 0])]), &[2], &[2, 3]);
    assert_floats(&run(&Op::Gather, &[&x, &i(&[2, 0], &[])]), &[2, 0, 2], &[]);
}

#[test]
fn an_index_outside_its_axis_is_named() {
    let x = f(&[1, 2], &[1.0, 2.0]);
    let error = try_run(&Op::Gather, &[&x, &i(&[1, 3], &[1, 0, 2])]).unwrap_err();
    assert_eq!(error.to_string(), "index[2] is 2, outside 0 .. 2");
    let error = try_run(&Op::Gather, &[&x, &i(&[1, 1], &[-1])]).unwrap_err();
    assert_eq!(error.to_string(), "index[0] is -1, outside 0 .. 2");
    // Also where no element would be moved.
    let (none, index, updates) = (f(&[1, 0, 2], &[]), i(&[1, 1], &[0]), f(&[1, 1, 2], &[1.0, 1.0]));
    assert!(matches!(try_run(&Op::Gather, &[&none, &index]), Err(NodeError::Index { .. })));
    let empty_rows = try_run(&Op::Gather, &[&f(&[1, 2, 0], &[]), &i(&[1, 1], &[5])]);
    assert!(matches!(empty_rows, Err(NodeError::Index { .. })));
    assert!(matches!(try_run(&Op::ScatterAdd, &[&none, &index, &updates]), Err(NodeError::Index { .. })));
    let invert = Op::InvertIndex { size: Dim::constant(2) };
    assert!(matches!(try_run(&invert, &[&i(&[1, 1], &[2])]), Err(NodeError::Index { .. })));
}

#[test]
fn scatter_add_adds_every_update() {
    let base = f(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y =
        run(&Op::ScatterAdd, &[&base, &i(&[2, 2], &[2, 2, 0, 1]), &f(&[2, 2], &[10.0, 20.0, 30.0, 40.0])]);
    assert_floats(&y, &[2, 3], &[1.0, 2.0, 33.0, 34.0, 45.0, 6.0]);
    let rows = run(
        &Op::ScatterAdd,
        &[
            &f(&[1, 2, 2], &[0.0; 4]),
            &i(&[1, 1, 3], &[1, 0, 1]),
            &f(&[1, 1, 3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ],
    );
    assert_floats(&rows, &[1, 2, 2], &[3.0, 4.0, 6.0, 8.0]);
    assert_floats(
        &run(&Op::ScatterAdd, &[&base, &i(&[2, 0], &[]), &f(&[2, 0], &[])]),
        &[2, 3],
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    );
}

#[test]
fn scatter_add_runs_in_slot_order() {
    // In f32, (2^24 + 1) + 1 stays at 2^24 and (1 + 1) + 2^24 does not.
    let big = 16777216.0;
    let add = |updates: &[f32]| {
        let updates = f(&[1, 3], updates);
        let sum = try_run(&Op::ScatterAdd, &[&f(&[1, 1], &[0.0]), &i(&[1, 3], &[0, 0, 0]), &updates]);
        sum.unwrap()[0].floats().unwrap()[0]
    };
    assert_eq!((add(&[big, 1.0, 1.0]), add(&[1.0, 1.0, big])), (big, big + 2.0));
}

#[test]
fn scatter_add_rounds_narrow_types_at_the_end() {
    // 256 + 1 + 1 is 258, but rounding after every step would stay at 256.
    let narrow = |shape: &[usize], x: &[f32]| f(shape, x).cast(DType::Bf16, true);
    let updates = narrow(&[1, 2], &[1.0, 1.0]);
    let sum = run(&Op::ScatterAdd, &[&narrow(&[1, 1], &[256.0]), &i(&[1, 2], &[0, 0]), &updates]);
    assert_eq!(sum.floats(), Some(&[258.0][..]));
}

#[test]
fn invert_index_lists_positions_by_target() {
    let index = i(&[2, 2, 2], &[1, 3, 1, 0, 0, 0, 2, 0]);
    let results = run_all(&Op::InvertIndex { size: Dim::constant(4) }, &[&index]);
    assert_ints(&results[0], &[2, 5], &[0, 1, 3, 3, 4, 0, 3, 3, 4, 4]);
    assert_ints(&results[1], &[2, 4], &[3, 0, 2, 1, 0, 1, 3, 2]);
    let none = run_all(&Op::InvertIndex { size: Dim::constant(2) }, &[&i(&[1, 0], &[])]);
    assert_ints(&none[0], &[1, 3], &[0, 0, 0]);
    assert_ints(&none[1], &[1, 0], &[]);
    let negative = try_run(&Op::InvertIndex { size: Dim::constant(-1) }, &[&index]).unwrap_err();
    assert_eq!(negative.to_string(), "op `invert_index`: attribute `size` -1 is negative");
}

#[test]
fn segment_sum_equals_scatter_add_bit_for_bit() {
    let (base, updates) = (noise(&[2, 5, 3], 1), noise(&[2, 4, 2, 3], 2));
    let index = i(&[2, 4, 2], &[4, 0, 0, 2, 2, 0, 4, 0, 3, 1, 1, 0, 1, 1, 3, 4]);
    let scattered = run(&Op::ScatterAdd, &[&base, &index, &updates]);
    let inverse = run_all(&Op::InvertIndex { size: Dim::constant(5) }, &[&index]);
    let summed = run(&Op::SegmentSum, &[&base, &inverse[0], &inverse[1], &updates]);
    assert_eq!(scattered, summed);
    assert_ne!(summed, base);
}

#[test]
fn segments_must_lie_inside() {
    let (base, updates) = (f(&[1, 2], &[0.0; 2]), f(&[1, 2], &[1.0, 2.0]));
    let sum = |offsets: &[i32], positions: &[i32]| {
        try_run(&Op::SegmentSum, &[&base, &i(&[1, 3], offsets), &i(&[1, 2], positions), &updates])
    };
    assert_floats(&sum(&[0, 2, 2], &[1, 0]).unwrap()[0], &[1, 2], &[3.0, 0.0]);
    let error = sum(&[0, 3, 2], &[0, 1]).unwrap_err();
    assert_eq!(error.to_string(), "offsets[1] is 3, outside 0 .. 3");
    let error = sum(&[0, 2, 1], &[0, 1]).unwrap_err();
    assert_eq!(error.to_string(), "offsets[2] is 1, below 2 before it; the offsets of a batch item ascend");
    let error = sum(&[0, 1, 2], &[0, 2]).unwrap_err();
    assert_eq!(error.to_string(), "positions[1] is 2, outside 0 .. 2");
}
