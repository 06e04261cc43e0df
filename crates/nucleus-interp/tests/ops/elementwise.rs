use nucleus_interp::{NodeError, Options, Tensor, evaluate_node};
use nucleus_ir::{Bindings, DType, Op};

use crate::{assert_bools, assert_floats, assert_ints, b, f, i, run, try_run};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

#[test]
fn functions_of_one_number() {
    let x = f(&[2, 2], &[-1.0, 0.0, 1.0, 4.0]);
    let check = |op: Op, want: [f32; 4]| assert_floats(&run(&op, &[&x]), &[2, 2], &want);
    check(Op::Neg, [1.0, 0.0, -1.0, -4.0]);
    check(Op::Abs, [1.0, 0.0, 1.0, 4.0]);
    check(Op::Exp, [0.36787945, 1.0, std::f32::consts::E, 54.59815]);
    check(Op::Log, [NAN, -INF, 0.0, 1.3862944]);
    check(Op::Sqrt, [NAN, 0.0, 1.0, 2.0]);
    check(Op::Rsqrt, [NAN, INF, 1.0, 0.5]);
    check(Op::Tanh, [-0.7615942, 0.0, 0.7615942, 0.9993293]);
    check(Op::Sigmoid, [0.26894143, 0.5, 0.7310586, 0.98201376]);
    check(Op::Sin, [-0.84147096, 0.0, 0.84147096, -0.7568025]);
    check(Op::Cos, [0.5403023, 1.0, 0.5403023, -0.6536436]);
}

#[test]
fn sigmoid_has_its_limits() {
    assert_floats(&run(&Op::Sigmoid, &[&f(&[2], &[-200.0, 200.0])]), &[2], &[0.0, 1.0]);
}

#[test]
fn functions_of_two_numbers() {
    let (x, y) = (f(&[4], &[1.0, -2.0, NAN, 3.0]), f(&[4], &[2.0, -3.0, 1.0, NAN]));
    let check = |op: Op, want: [f32; 4]| assert_floats(&run(&op, &[&x, &y]), &[4], &want);
    check(Op::Add, [3.0, -5.0, NAN, NAN]);
    check(Op::Sub, [-1.0, 1.0, NAN, NAN]);
    check(Op::Mul, [2.0, 6.0, NAN, NAN]);
    check(Op::Div, [0.5, 2.0 / 3.0, NAN, NAN]);
    check(Op::Max, [2.0, -2.0, NAN, NAN]);
    check(Op::Min, [1.0, -3.0, NAN, NAN]);
    assert_floats(&run(&Op::Div, &[&f(&[2], &[1.0, 0.0]), &f(&[2], &[0.0, 0.0])]), &[2], &[INF, NAN]);
}

#[test]
fn whole_numbers_wrap_and_divide_towards_zero() {
    let (x, y) = (i(&[4], &[7, -7, 5, i32::MIN]), i(&[4], &[2, 2, 0, -1]));
    let check = |op: Op, want: [i32; 4]| assert_ints(&run(&op, &[&x, &y]), &[4], &want);
    check(Op::Div, [3, -3, 0, i32::MIN]);
    check(Op::Add, [9, -5, 5, i32::MAX]);
    check(Op::Sub, [5, -9, 5, i32::MIN + 1]);
    check(Op::Mul, [14, -14, 0, i32::MIN]);
    check(Op::Max, [7, 2, 5, -1]);
    check(Op::Min, [2, -7, 0, i32::MIN]);
    assert_ints(&run(&Op::Neg, &[&x]), &[4], &[-7, 7, -5, i32::MIN]);
    assert_ints(&run(&Op::Abs, &[&x]), &[4], &[7, 7, 5, i32::MIN]);
}

#[test]
fn comparisons_are_false_for_nan() {
    let (x, y) = (f(&[4], &[1.0, 2.0, 2.0, NAN]), f(&[4], &[2.0, 2.0, 1.0, NAN]));
    assert_bools(&run(&Op::Less, &[&x, &y]), &[4], &[true, false, false, false]);
    assert_bools(&run(&Op::LessEqual, &[&x, &y]), &[4], &[true, true, false, false]);
    assert_bools(&run(&Op::Equal, &[&x, &y]), &[4], &[false, true, false, false]);
    let (x, y) = (i(&[3], &[1, 2, 3]), i(&[3], &[2, 2, 2]));
    assert_bools(&run(&Op::Less, &[&x, &y]), &[3], &[true, false, false]);
    let (x, y) = (b(&[4], &[false, false, true, true]), b(&[4], &[false, true, false, true]));
    assert_bools(&run(&Op::Less, &[&x, &y]), &[4], &[false, true, false, false]);
    assert_bools(&run(&Op::Equal, &[&x, &y]), &[4], &[true, false, false, true]);
}

#[test]
fn logic() {
    let (x, y) = (b(&[4], &[false, false, true, true]), b(&[4], &[false, true, false, true]));
    assert_bools(&run(&Op::And, &[&x, &y]), &[4], &[false, false, false, true]);
    assert_bools(&run(&Op::Or, &[&x, &y]), &[4], &[false, true, true, true]);
    assert_bools(&run(&Op::Not, &[&x]), &[4], &[true, true, false, false]);
}

#[test]
fn select_takes_one_side_untouched() {
    let condition = b(&[2], &[true, false]);
    let floats = run(&Op::Select, &[&condition, &f(&[2], &[1.0, NAN]), &f(&[2], &[NAN, 4.0])]);
    assert_floats(&floats, &[2], &[1.0, 4.0]);
    assert_ints(&run(&Op::Select, &[&condition, &i(&[2], &[1, 2]), &i(&[2], &[3, 4])]), &[2], &[1, 4]);
    let bools = run(&Op::Select, &[&condition, &b(&[2], &[true; 2]), &b(&[2], &[false; 2])]);
    assert_bools(&bools, &[2], &[true, false]);
}

#[test]
fn casts() {
    let to = |to| Op::Cast { to };
    let x = f(&[5], &[1.9, -1.9, 3e9, NAN, 0.0]);
    assert_ints(&run(&to(DType::I32), &[&x]), &[5], &[1, -1, i32::MAX, 0, 0]);
    assert_bools(&run(&to(DType::Bool), &[&x]), &[5], &[true, true, true, true, false]);
    assert_floats(&run(&to(DType::F32), &[&i(&[2], &[3, -3])]), &[2], &[3.0, -3.0]);
    assert_bools(&run(&to(DType::Bool), &[&i(&[2], &[3, 0])]), &[2], &[true, false]);
    assert_floats(&run(&to(DType::F32), &[&b(&[2], &[true, false])]), &[2], &[1.0, 0.0]);
    assert_ints(&run(&to(DType::I32), &[&b(&[2], &[true, false])]), &[2], &[1, 0]);
    let half = run(&to(DType::F16), &[&f(&[2], &[2049.0, 1e6])]);
    assert_eq!((half.dtype(), half.floats()), (DType::F16, Some(&[2048.0, INF][..])));
}

#[test]
fn narrow_results_are_rounded_once() {
    // 256 + 1 is a tie between 256 and 258 in bf16; even wins.
    let narrow = |x: &[f32]| f(&[1], x).cast(DType::Bf16, true);
    let (x, y) = (narrow(&[256.0]), narrow(&[1.0]));
    let sum = run(&Op::Add, &[&x, &y]);
    assert_eq!((sum.dtype(), sum.floats()), (DType::Bf16, Some(&[256.0][..])));
    let wide: [Tensor<f64>; 2] = [x.convert(), y.convert()];
    let exact =
        evaluate_node(&Op::Add, &Bindings::new(), &[&wide[0], &wide[1]], &Options::default()).unwrap();
    assert_eq!(exact[0].floats(), Some(&[257.0][..]));
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let (floats, ints) = (f(&[2], &[1.0, 2.0]), i(&[2], &[1, 2]));
    for (op, operands) in [
        (Op::Add, vec![&floats, &ints]),
        (Op::Exp, vec![&ints]),
        (Op::And, vec![&floats, &floats]),
        (Op::Neg, vec![&floats, &floats]),
        (Op::Add, vec![]),
    ] {
        assert!(matches!(try_run(&op, &operands), Err(NodeError::Type(_))), "{op:?}");
    }
    let error = try_run(&Op::Add, &[&floats, &f(&[3], &[0.0; 3])]).unwrap_err();
    assert_eq!(error.to_string(), "op `add`: shapes [2] and [3] differ");
}
