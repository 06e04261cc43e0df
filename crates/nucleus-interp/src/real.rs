//! The arithmetic that the evaluator runs in: `f32` or `f64`.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};
use nucleus_ir::DType;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The number type in which every float of an evaluation is held and computed; `f32` and `f64`.
///
/// `f32` is what a model means. `f64` is the truth that errors are measured against, and what finite differences need.
pub trait Real:
    sealed::Sealed
    + Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// True where results of type `bf16` and `f16` are rounded whatever the options say.
    const ALWAYS_ROUNDS: bool;

    /// The nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// The same value; every `f32` is an `f64`.
    fn to_f64(self) -> f64;
    /// The nearest value to `x`.
    fn from_i32(x: i32) -> Self;
    /// Truncates towards zero and saturates; NaN gives 0.
    fn to_i32(self) -> i32;
    /// The nearest `bf16` or `f16`, ties to even; unchanged for other types.
    fn round_to(self, dtype: DType) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The sine of an angle in radians.
    fn sin(self) -> Self;
    /// The cosine of an angle in radians.
    fn cos(self) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;

    /// The larger of two numbers; NaN if either is.
    fn max(self, other: Self) -> Self {
        if self.is_nan() || self > other { self } else { other }
    }

    /// The smaller of two numbers; NaN if either is.
    fn min(self, other: Self) -> Self {
        if self.is_nan() || self < other { self } else { other }
    }
}

macro_rules! real {
    ($ty:ident, always_rounds: $always:literal, round: $round:ident) => {
        impl Real for $ty {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $ty::NEG_INFINITY;
            const ALWAYS_ROUNDS: bool = $always;

            fn from_f64(x: f64) -> Self {
                x as $ty
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn from_i32(x: i32) -> Self {
                x as $ty
            }
            fn to_i32(self) -> i32 {
                self as i32
            }
            fn round_to(self, dtype: DType) -> Self {
                match dtype {
                    DType::Bf16 => bf16::from_f32($round(self)).to_f32().into(),
                    DType::F16 => f16::from_f32($round(self)).to_f32().into(),
                    DType::F32 | DType::I32 | DType::Bool | DType::I8 => self,
                }
            }
            fn abs(self) -> Self {
                $ty::abs(self)
            }
            fn exp(self) -> Self {
                $ty::exp(self)
            }
            fn ln(self) -> Self {
                $ty::ln(self)
            }
            fn sqrt(self) -> Self {
                $ty::sqrt(self)
            }
            fn tanh(self) -> Self {
                $ty::tanh(self)
            }
            fn sin(self) -> Self {
                $ty::sin(self)
            }
            fn cos(self) -> Self {
                $ty::cos(self)
            }
            fn is_nan(self) -> bool {
                $ty::is_nan(self)
            }
        }
    };
}

real!(f32, always_rounds: true, round: identity);
real!(f64, always_rounds: false, round: to_odd);

fn identity(x: f32) -> f32 {
    x
}

/// The `f32` beside `x` whose last bit is odd, or `x` itself where `f32` holds it. Rounding that to a type at least two bits narrower
/// gives the nearest value to `x`: rounding to the nearest `f32` on the way would not (S. Boldo and G. Melquiond, "When double
/// rounding is odd", 2005).
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    if x.is_nan() || back == x || bits & 1 == 1 {
        nearest
    } else if back.abs() > x.abs() {
        f32::from_bits(bits - 1)
    } else {
        f32::from_bits(bits + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        // bf16 has 8 significant bits: between 256 and 512 the step is 2.
        assert_eq!(257.0f32.round_to(DType::Bf16), 256.0);
        assert_eq!(259.0f32.round_to(DType::Bf16), 260.0);
        // f16 has 11 significant bits: between 2048 and 4096 the step is 2.
        assert_eq!(2049.0f32.round_to(DType::F16), 2048.0);
        assert_eq!(2051.0f64.round_to(DType::F16), 2052.0);
        assert_eq!(65520.0f32.round_to(DType::F16), f32::INFINITY);
        assert_eq!(0.1f32.round_to(DType::F32), 0.1);
    }

    #[test]
    fn f64_rounds_once() {
        // Just above the tie between 1 and 1 + 2^-7, by less than an f32 can see.
        let above = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(above as f32, 1.0 + 2f32.powi(-8));
        assert_eq!(above.round_to(DType::Bf16), 1.0 + 2f64.powi(-7));
        assert_eq!((-above).round_to(DType::Bf16), -1.0 - 2f64.powi(-7));
        let below = 1.0 + 3.0 * 2f64.powi(-8) - 2f64.powi(-40);
        assert_eq!(below.round_to(DType::Bf16), 1.0 + 2f64.powi(-7));
        assert_eq!(1e300f64.round_to(DType::Bf16), f64::INFINITY);
        assert_eq!(1e-300f64.round_to(DType::Bf16), 0.0);
        assert!(f64::NAN.round_to(DType::F16).is_nan());
    }

    #[test]
    fn max_and_min_keep_nan() {
        assert!(Real::max(f32::NAN, 1.0).is_nan() && Real::max(1.0, f32::NAN).is_nan());
        assert!(Real::min(f64::NAN, 1.0).is_nan() && Real::min(1.0, f64::NAN).is_nan());
        assert_eq!((Real::max(1.0f32, 2.0), Real::min(1.0f32, 2.0)), (2.0, 1.0));
    }

    #[test]
    fn conversion_to_i32_truncates_and_saturates() {
        let cases = [(1.9, 1), (-1.9, -1), (3e9, i32::MAX), (-3e9, i32::MIN), (f64::NAN, 0)];
        for (x, want) in cases {
            assert_eq!((Real::to_i32(x), Real::to_i32(x as f32)), (want, want), "{x}");
        }
    }
}
