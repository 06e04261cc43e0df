//! Elementary functions in single precision, free of branches but for angles beyond 10⁵.
//!
//! Error bounds, in units in the last place of the result, are checked by the tests of this folder. The series are those of
//! Taylor, cut where the remainder is below a hundredth of a unit on the reduced range.

use cranelift_codegen::ir::Value;
use cranelift_codegen::ir::condcodes::FloatCC;

use super::emit::{Emit, HostFunction};

/// 1.5 · 2²³: adding it rounds to an integer and leaves that in the low bits.
const TO_INTEGER: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// π/2 in three parts of 24 bits each.
const HALF_PI: [f32; 3] = [1.570_796_4, -4.371_139e-8, -1.715_124_5e-15];
/// (eʳ − 1 − r) / r², highest power first.
const EXPONENTIAL_SERIES: [f32; 7] =
    [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
/// Beyond this the reduction by three parts loses bits.
const LARGEST_ANGLE: f32 = 1e5;

/// x = n · ln 2 + r with |r| ≤ ½ ln 2.
struct Reduced {
    /// n + bias in the low nine bits, and other things above them.
    biased: Value,
    r: Value,
    /// r before the last subtraction, and what was subtracted: −n and the constant.
    before: [Value; 3],
}

impl Emit<'_, '_> {
    /// x · constant rounded to an integer: as a float, and plus `bias` ≥ 0 in the low bits of an integer. NaN gives a NaN and anything.
    fn nearest_multiple(&mut self, x: Value, constant: f32, bias: u16) -> (Value, Value) {
        let magic = self.float(TO_INTEGER + f32::from(bias));
        let constant = self.float(constant);
        let shifted = self.fma(x, constant, magic);
        let float = self.fsub(shifted, magic);
        (float, self.bits(shifted))
    }

    /// Cody and Waite's reduction.
    fn reduce_exponential(&mut self, x: Value, bias: u16) -> Reduced {
        let (n, biased) = self.nearest_multiple(x, std::f32::consts::LOG2_E, bias);
        let negative = self.fneg(n);
        let (high, low) = (self.float(LN2_HIGH), self.float(LN2_LOW));
        let partial = self.fma(negative, high, x);
        let r = self.fma(negative, low, partial);
        Reduced { biased, r, before: [partial, negative, low] }
    }

    /// q of eʳ = 1 + r + q, where q is much smaller than r, and includes what the rounding of r lost.
    fn exponential_tail(&mut self, reduced: &Reduced) -> Value {
        let Reduced { r, before: [partial, negative, low], .. } = *reduced;
        let lost = self.fsub(partial, r);
        let lost = self.fma(negative, low, lost);
        let series = self.polynomial(r, &EXPONENTIAL_SERIES);
        let square = self.fmul(r, r);
        self.fma(square, series, lost)
    }

    /// 2 to the power of the low nine bits less 127, which is that of a normal number.
    fn power_of_biased(&mut self, biased: Value) -> Value {
        let bits = self.shift_left(biased, 23);
        self.as_float(bits)
    }

    /// x, but at most `limit`; NaN stays.
    fn at_most(&mut self, x: Value, limit: f32) -> Value {
        let limit = self.float(limit);
        let over = self.compare(FloatCC::LessThan, limit, x);
        self.select(over, limit, x)
    }

    /// x, but at least `limit`; NaN stays.
    fn at_least(&mut self, x: Value, limit: Value) -> Value {
        let under = self.compare(FloatCC::LessThan, x, limit);
        self.select(under, limit, x)
    }

    /// eˣ, within 0.65 units; a subnormal result, which is rounded twice, within 1.
    pub(super) fn exp(&mut self, x: Value) -> Value {
        let x = self.at_most(x, 89.0);
        let lowest = self.float(-104.0);
        let x = self.at_least(x, lowest);
        let reduced = self.reduce_exponential(x, 254);
        let q = self.exponential_tail(&reduced);
        let Reduced { biased, r, .. } = reduced;
        // 1 + r + q, with the error of 1 + r added back.
        let one = self.float(1.0);
        let sum = self.fadd(one, r);
        let back = self.fsub(sum, one);
        let error = self.fsub(r, back);
        let small = self.fadd(error, q);
        let mantissa = self.fadd(sum, small);
        // Two factors: the power may be below the smallest normal number or above the largest.
        let half = self.shift_right(biased, 1);
        let rest = self.isub(biased, half);
        let (half, rest) = (self.power_of_biased(half), self.power_of_biased(rest));
        let scaled = self.fmul(mantissa, half);
        self.fmul(scaled, rest)
    }

    /// eˣ for x ≤ 0 without `exp`'s care for the last bit: what a sigmoid needs.
    fn exp_of_negative(&mut self, x: Value) -> Value {
        const SHIFT: u16 = 30;
        let lowest = self.float(-104.0);
        let x = self.at_least(x, lowest);
        // The power is 2³⁰ too large, and so never below the smallest normal number.
        let Reduced { biased, r, .. } = self.reduce_exponential(x, 127 + SHIFT);
        let series = self.polynomial(r, &EXPONENTIAL_SERIES[1..]);
        let square = self.fmul(r, r);
        let small = self.fma(square, series, r);
        let one = self.float(1.0);
        let mantissa = self.fadd(one, small);
        let scale = self.power_of_biased(biased);
        let scaled = self.fmul(mantissa, scale);
        let rest = self.float(1.0 / f32::from(1u16 << (SHIFT / 2)).powi(2));
        self.fmul(scaled, rest)
    }

    /// The hyperbolic tangent, as (e²ˣ − 1) / (e²ˣ − 1 + 2), within 2 units.
    pub(super) fn tanh(&mut self, x: Value) -> Value {
        let magnitude = self.fabs(x);
        // Beyond 10 the result rounds to 1.
        let magnitude = self.at_most(magnitude, 10.0);
        let twice = self.fadd(magnitude, magnitude);
        let reduced = self.reduce_exponential(twice, 127);
        let q = self.exponential_tail(&reduced);
        let Reduced { biased, r, .. } = reduced;
        // 2ⁿ − 1 + 2ⁿ·r + 2ⁿ·q, with the error of the first sum added back; 2ⁿ·r is exact.
        let scale = self.power_of_biased(biased);
        let one = self.float(1.0);
        let whole = self.fsub(scale, one);
        let part = self.fmul(scale, r);
        let sum = self.fadd(whole, part);
        let error = self.fsub(whole, sum);
        let error = self.fadd(error, part);
        let small = self.fma(scale, q, error);
        let exp_minus_one = self.fadd(sum, small);
        let two = self.float(2.0);
        let denominator = self.fadd(exp_minus_one, two);
        let back = self.fsub(denominator, two);
        let lost = self.fsub(exp_minus_one, back);
        // Beyond 2 the sum's error matters little, and beyond 2²⁵ it is not this difference.
        let small = self.compare(FloatCC::LessThan, exp_minus_one, two);
        let lost = self.where_set(small, lost);
        let quotient = self.fdiv(exp_minus_one, denominator);
        // The reciprocal of e²ˣ + 1 is half of 1 − tanh x.
        let half = self.float(0.5);
        let complement = self.fsub(one, quotient);
        let reciprocal = self.fmul(half, complement);
        let result = self.corrected(quotient, exp_minus_one, (denominator, lost), reciprocal);
        self.with_sign_of(result, x)
    }

    /// x where the mask is set, else 0.
    fn where_set(&mut self, mask: Value, x: Value) -> Value {
        let bits = self.bits(x);
        let kept = self.band(bits, mask);
        self.as_float(kept)
    }

    /// A quotient whose denominator is d + lost, corrected by its residual; `reciprocal` is about 1/d.
    fn corrected(
        &mut self,
        quotient: Value,
        numerator: Value,
        (denominator, lost): (Value, Value),
        reciprocal: Value,
    ) -> Value {
        let negative = self.fneg(quotient);
        let residual = self.fma(negative, denominator, numerator);
        let residual = self.fma(negative, lost, residual);
        self.fma(residual, reciprocal, quotient)
    }

    fn with_sign_of(&mut self, magnitude: Value, sign: Value) -> Value {
        let sign = self.bits(sign);
        let sign = self.and_constant(sign, i32::MIN);
        let bits = self.bits(magnitude);
        let bits = self.bor(bits, sign);
        self.as_float(bits)
    }

    /// 1/(1+e⁻ˣ), within 2 units. The exponential is always of −|x|, so nothing overflows.
    pub(super) fn sigmoid(&mut self, x: Value) -> Value {
        let bits = self.bits(x);
        let sign = self.int(i32::MIN);
        let negative = self.bor(bits, sign);
        let negative = self.as_float(negative);
        let e = self.exp_of_negative(negative);
        let (zero, one) = (self.float(0.0), self.float(1.0));
        let denominator = self.fadd(one, e);
        // The numerator: 1, or e ≤ 1 where x is negative.
        let is_positive = self.compare(FloatCC::LessThanOrEqual, zero, x);
        let least = self.where_set(is_positive, one);
        let numerator = self.at_least(e, least);
        let back = self.fsub(denominator, one);
        let lost = self.fsub(e, back);
        let quotient = self.fdiv(numerator, denominator);
        // The correction is small: a line within 6 % of 1/(1 + e) is enough for it.
        let (slope, start) = (self.float(-0.4706), self.float(0.9412));
        let reciprocal = self.fma(e, slope, start);
        self.corrected(quotient, numerator, (denominator, lost), reciprocal)
    }

    /// The natural logarithm, within 2 units: for a mantissa 1 + f, log(1 + f) = f − (f²/2 − s·(f²/2 + R(s²))), s = f/(2 + f), which
    /// is the series 2·atanh(s) with its largest terms written in f.
    pub(super) fn log(&mut self, x: Value) -> Value {
        let smallest = self.float(f32::MIN_POSITIVE);
        let is_subnormal = self.compare(FloatCC::LessThan, x, smallest);
        let scale = self.float(33_554_432.0);
        let scaled = self.fmul(x, scale);
        let normal = self.select(is_subnormal, scaled, x);
        let bits = self.bits(normal);
        // Subtracting the bits of √½ makes the exponent field change where the mantissa passes √2.
        let start = self.int(0x3f35_04f3);
        let offset = self.isub(bits, start);
        let exponent = self.shift_right_signed(offset, 23);
        let fraction = self.and_constant(offset, 0x007f_ffff);
        let mantissa = self.iadd(fraction, start);
        let mantissa = self.as_float(mantissa);
        let (zero, shift) = (self.int(0), self.int(25));
        let shift = self.select(is_subnormal, shift, zero);
        let exponent = self.isub(exponent, shift);
        let exponent = self.int_to_float(exponent);
        let (one, two, half) = (self.float(1.0), self.float(2.0), self.float(0.5));
        let f = self.fsub(mantissa, one);
        let denominator = self.fadd(f, two);
        let s = self.fdiv(f, denominator);
        let z = self.fmul(s, s);
        let series = self.polynomial(z, &[2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0]);
        let remainder = self.fmul(series, z);
        let square = self.fmul(f, f);
        let half_square = self.fmul(square, half);
        let inner = self.fadd(half_square, remainder);
        let low = self.float(LN2_LOW);
        let low = self.fmul(exponent, low);
        let correction = self.fma(s, inner, low);
        let correction = self.fsub(half_square, correction);
        let small = self.fsub(f, correction);
        let high = self.float(LN2_HIGH);
        let result = self.fma(exponent, high, small);
        // log 0 = −∞, log of what is negative = NaN, log ∞ = ∞, log NaN = NaN.
        let infinity = self.float(f32::INFINITY);
        let finite = self.compare(FloatCC::LessThan, x, infinity);
        let result = self.select(finite, result, x);
        let zero = self.float(0.0);
        let is_zero = self.compare(FloatCC::Equal, x, zero);
        let negative_infinity = self.float(f32::NEG_INFINITY);
        let result = self.select(is_zero, negative_infinity, result);
        let is_negative = self.compare(FloatCC::LessThan, x, zero);
        let nan = self.float(f32::NAN);
        self.select(is_negative, nan, result)
    }

    /// The sine, within 2 units up to 10⁵ and as good as the host's beyond.
    pub(super) fn sin(&mut self, x: Value) -> Value {
        self.circular(x, 0, HostFunction::Sin)
    }

    /// The cosine, likewise.
    pub(super) fn cos(&mut self, x: Value) -> Value {
        self.circular(x, 1, HostFunction::Cos)
    }

    /// sin(x + turn · π/2).
    fn circular(&mut self, x: Value, turn: u16, host: HostFunction) -> Value {
        let (n, quadrant) = self.nearest_multiple(x, std::f32::consts::FRAC_2_PI, turn);
        let negative = self.fneg(n);
        let mut r = x;
        for part in HALF_PI {
            let part = self.float(part);
            r = self.fma(negative, part, r);
        }
        let square = self.fmul(r, r);
        let sine = self.polynomial(square, &[1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0]);
        let cube = self.fmul(square, r);
        let sine = self.fma(cube, sine, r);
        const COSINE: [f32; 5] = [-1.0 / 3_628_800.0, 1.0 / 40320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5];
        let cosine = self.polynomial(square, &COSINE);
        let one = self.float(1.0);
        let cosine = self.fma(cosine, square, one);
        // The lowest bit in all bits.
        let odd = self.shift_left(quadrant, 31);
        let swap = self.shift_right_signed(odd, 31);
        let value = self.select(swap, cosine, sine);
        let upper = self.and_constant(quadrant, 2);
        let sign = self.shift_left(upper, 30);
        let bits = self.bits(value);
        let bits = self.bxor(bits, sign);
        let near = self.as_float(bits);
        let magnitude = self.fabs(x);
        let limit = self.float(LARGEST_ANGLE);
        let far = self.compare(FloatCC::UnorderedOrGreaterThan, magnitude, limit);
        self.host_if(far, host, x, near)
    }
}
