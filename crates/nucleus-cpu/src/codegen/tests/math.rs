//! Elementary functions against double precision.

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step, StepId};

use crate::codegen::{Accumulators, Destination, Extent, Jit, LoopSpec, Region, Space};

/// Applies a unary operation to floats by compiled code.
fn apply(op: ScalarOp, x: &[f32]) -> Vec<f32> {
    let operands = [OperandMode::Read, OperandMode::Write].map(|mode| Operand { dtype: DType::F32, mode });
    let access =
        |operand| Access { operand, offset: Size::Const(0), strides: vec![Size::Const(1)], indirect: None };
    let steps = vec![
        Step::Load(access(0)),
        Step::Apply { op, args: vec![StepId(0)] },
        Step::Store { access: access(1), value: StepId(1) },
    ];
    let function = ScalarFunction { steps, result: None };
    let space = Space { outer: vec![], inner: Extent(vec![Size::Arg(0)]) };
    let mut jit = Jit::new().unwrap();
    let id = jit
        .compile_loop(&LoopSpec {
            name: "unary",
            operands: &operands,
            space: &space,
            function: &function,
            accumulators: Accumulators::Zero,
            destination: Destination::None,
        })
        .unwrap();
    let code = jit.finish().unwrap();
    let mut y = vec![0.0f32; x.len()];
    let table = [x.as_ptr().cast_mut().cast::<u8>(), y.as_mut_ptr().cast()];
    let region = Region {
        outer_begin: 0,
        outer_end: 1,
        inner_begin: 0,
        inner_end: x.len() as i64,
        block: std::ptr::null_mut(),
        row_stride: 0,
        segment_stride: 0,
    };
    // SAFETY: both operands hold as many floats as the region has points.
    unsafe { code.function(id)(table.as_ptr(), [x.len() as i64].as_ptr(), &region) };
    y
}

/// The distance of `got` from `want` in units in the last place of a float near `want`.
fn units(got: f32, want: f64) -> f64 {
    if want.is_nan() {
        return if got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let nearest = want as f32;
    if nearest.is_infinite() || got.is_infinite() {
        return if nearest == got { 0.0 } else { f64::INFINITY };
    }
    let exponent = if nearest == 0.0 { -126 } else { (want.abs().log2().floor() as i32).max(-126) };
    (f64::from(got) - want).abs() / 2f64.powi(exponent - 23)
}

fn worst(op: ScalarOp, exact: fn(f64) -> f64, x: &[f32]) -> (f64, f32) {
    let y = apply(op, x);
    let errors = x.iter().zip(&y).map(|(&x, &y)| (units(y, exact(f64::from(x))), x));
    errors.fold((0.0, 0.0), |worst, error| if error.0 > worst.0 { error } else { worst })
}

/// Floats spread over all magnitudes up to `limit`, both signs, and evenly over the interval.
fn spread(limit: f32) -> Vec<f32> {
    let count = 200_003;
    let mut x: Vec<f32> = (0..count).map(|i| limit * (2.0 * i as f32 / (count - 1) as f32 - 1.0)).collect();
    let step = 997 * 13;
    x.extend((0..limit.to_bits()).step_by(step).map(f32::from_bits));
    x.extend((0..limit.to_bits()).step_by(step).map(|bits| -f32::from_bits(bits)));
    x
}

const SPECIAL: [f32; 9] =
    [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE];

fn check(op: ScalarOp, exact: fn(f64) -> f64, limit: f32, bound: f64) {
    let (error, at) = worst(op, exact, &spread(limit));
    assert!(error <= bound, "{op:?} is {error} units off at {at:e}");
    let y = apply(op, &SPECIAL);
    for (&x, &y) in SPECIAL.iter().zip(&y) {
        assert!(units(y, exact(f64::from(x))) <= bound, "{op:?}({x:e}) = {y:e}");
    }
}

#[test]
fn exp_is_within_0_65_units() {
    let normal: Vec<f32> = spread(87.0);
    let (error, at) = worst(ScalarOp::Exp, f64::exp, &normal);
    assert!(error <= 0.65, "{error} units off at {at:e}");
    check(ScalarOp::Exp, f64::exp, 110.0, 1.0);
}

#[test]
fn tanh_is_within_2_units() {
    check(ScalarOp::Tanh, f64::tanh, 20.0, 2.0);
    check(ScalarOp::Tanh, f64::tanh, 1.0, 2.0);
}

#[test]
fn sigmoid_is_within_2_units() {
    check(ScalarOp::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 110.0, 2.0);
}

#[test]
fn log_is_within_2_units() {
    check(ScalarOp::Log, f64::ln, f32::MAX, 2.0);
    check(ScalarOp::Log, f64::ln, 2.0, 2.0);
}

#[test]
fn sin_and_cos_are_within_2_units() {
    for limit in [1.0, 10.0, 1e5, 1e9] {
        check(ScalarOp::Sin, f64::sin, limit, 2.0);
        check(ScalarOp::Cos, f64::cos, limit, 2.0);
    }
}

#[test]
fn roots_are_correctly_rounded_or_nearly() {
    check(ScalarOp::Sqrt, f64::sqrt, f32::MAX, 0.5);
    check(ScalarOp::Rsqrt, |x| 1.0 / x.sqrt(), f32::MAX, 1.5);
}

#[test]
fn a_value_does_not_depend_on_its_position() {
    let x: Vec<f32> = spread(30.0).into_iter().step_by(101).collect();
    for op in [ScalarOp::Exp, ScalarOp::Tanh, ScalarOp::Sigmoid, ScalarOp::Log, ScalarOp::Sin, ScalarOp::Cos]
    {
        let together = apply(op, &x);
        for (&x, &y) in x.iter().zip(&together).step_by(7) {
            assert_eq!(
                apply(op, &[x])[0].to_bits() & 0x7fff_ffff,
                y.to_bits() & 0x7fff_ffff,
                "{op:?}({x:e})"
            );
        }
    }
}
