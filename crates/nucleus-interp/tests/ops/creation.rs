use nucleus_interp::{NodeError, Options, evaluate_node};
use nucleus_ir::{Bindings, DType, Dim, Float, Op};

use crate::{assert_bools, assert_floats, assert_ints, run, try_run};

fn constant(value: f64, dtype: DType) -> Op {
    Op::Constant { value: Float(value), dtype }
}

#[test]
fn constants() {
    assert_floats(&run(&constant(0.5, DType::F32), &[]), &[], &[0.5]);
    assert_ints(&run(&constant(-7.0, DType::I32), &[]), &[], &[-7]);
    assert_bools(&run(&constant(1.0, DType::Bool), &[]), &[], &[true]);
    assert_eq!(run(&constant(257.0, DType::Bf16), &[]).floats(), Some(&[256.0][..]));
    assert!(matches!(try_run(&constant(0.5, DType::I32), &[]), Err(NodeError::Type(_))));
}

#[test]
fn size_is_the_bound_value() {
    let dim = Dim::symbol("H").mul(&Dim::symbol("W")).unwrap();
    let op = Op::Size { dim };
    let evaluate = |h, w| {
        let dims = Bindings::from_iter([("H", h), ("W", w)]);
        evaluate_node::<f32>(&op, &dims, &[], &Options::default())
    };
    assert_ints(&evaluate(3, 4).unwrap()[0], &[], &[12]);
    let error = evaluate(1 << 16, 1 << 16).unwrap_err();
    assert_eq!(error.to_string(), "the size is 4294967296, which an i32 does not hold");
    assert_eq!(try_run(&op, &[]).unwrap_err().to_string(), "dim `H` has no value");
}

#[test]
fn iota_counts_along_its_axis() {
    let shape = vec![Dim::constant(2), Dim::constant(3)];
    assert_ints(&run(&Op::Iota { shape: shape.clone(), axis: 0 }, &[]), &[2, 3], &[0, 0, 0, 1, 1, 1]);
    assert_ints(&run(&Op::Iota { shape, axis: 1 }, &[]), &[2, 3], &[0, 1, 2, 0, 1, 2]);
    let empty = Op::Iota { shape: vec![Dim::constant(1 << 40), Dim::constant(0)], axis: 0 };
    assert_ints(&run(&empty, &[]), &[1 << 40, 0], &[]);
    assert!(matches!(try_run(&Op::Iota { shape: vec![], axis: 0 }, &[]), Err(NodeError::Type(_))));
    let huge = Op::Iota { shape: vec![Dim::constant(1 << 40)], axis: 0 };
    let error = try_run(&huge, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the result i32[1099511627776] takes 4398046511104 bytes; 17179869184 are left of the memory limit"
    );
}
