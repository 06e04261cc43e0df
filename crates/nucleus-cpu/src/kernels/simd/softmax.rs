//! The online softmax of blocked attention (Milakov and Gimelshein, arXiv 1805.02867): a running maximum and a
//! running sum for each row, and the rescaling of what has been accumulated under an older maximum.

use super::Simd;
use crate::kernels::element::round_to_bf16;

/// One block of scores: `rows` queries × `keys` keys.
pub(in crate::kernels) struct SoftmaxBlock {
    pub(in crate::kernels) rows: usize,
    /// A multiple of the panel width.
    pub(in crate::kernels) keys: usize,
    /// q·k on entry; exp(score - maximum) on return. [rows, keys] at `score_stride`.
    pub(in crate::kernels) scores: *mut f32,
    pub(in crate::kernels) score_stride: usize,
    /// Factor of the scores.
    pub(in crate::kernels) scale: f32,
    /// Added to the scaled scores: 0, or -∞ for a masked key. [keys]
    pub(in crate::kernels) bias: *const f32,
    /// Running maxima and sums. [rows]
    pub(in crate::kernels) maximum: *mut f32,
    pub(in crate::kernels) sum: *mut f32,
    /// The accumulated output, rescaled here. [rows, dim] at `output_stride`; `dim` is a multiple of the panel width.
    pub(in crate::kernels) output: *mut f32,
    pub(in crate::kernels) output_stride: usize,
    pub(in crate::kernels) dim: usize,
    /// Whether the probabilities (not their sum) are rounded to bf16 values.
    pub(in crate::kernels) round_to_bf16: bool,
}

/// # Safety
/// The pointers of `block` are valid for the ranges it states.
#[inline(always)]
pub(super) unsafe fn rows<S: Simd>(block: &SoftmaxBlock) {
    for row in 0..block.rows {
        // SAFETY: row < rows, and columns run below keys and dim, multiples of LANES.
        unsafe {
            let scores = block.scores.add(row * block.score_stride);
            let old = *block.maximum.add(row);
            let new = scale_and_max::<S>(scores, block, old);
            // While every key so far is masked the maximum is -∞; subtracting 0 then makes all terms exp(-∞) = 0.
            let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
            let total = exp_and_sum::<S>(scores, block.keys, shift);
            let correction = first_lane::<S>(exp::<S>(S::splat(old - shift)));
            if correction != 1.0 {
                let output = block.output.add(row * block.output_stride);
                let factor = S::splat(correction);
                for col in (0..block.dim).step_by(S::LANES) {
                    S::store(output.add(col), S::mul(S::load(output.add(col)), factor));
                }
            }
            *block.maximum.add(row) = new;
            *block.sum.add(row) = *block.sum.add(row) * correction + total;
            if block.round_to_bf16 {
                for key in 0..block.keys {
                    *scores.add(key) = round_to_bf16(*scores.add(key));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scale_and_max<S: Simd>(scores: *mut f32, block: &SoftmaxBlock, old: f32) -> f32 {
    // SAFETY: as for `rows`.
    unsafe {
        let scale = S::splat(block.scale);
        let mut largest = [S::splat(old); 2];
        for key in (0..block.keys).step_by(2 * S::LANES) {
            for (half, largest) in largest.iter_mut().enumerate() {
                let at = key + half * S::LANES;
                let score = S::mul_add(S::load(scores.add(at)), scale, S::load(block.bias.add(at)));
                S::store(scores.add(at), score);
                *largest = S::max(score, *largest);
            }
        }
        let mut lanes = [0.0f32; 64];
        S::store(lanes.as_mut_ptr(), S::max(largest[0], largest[1]));
        lanes[..S::LANES].iter().fold(old, |a, &b| if b > a { b } else { a })
    }
}

#[inline(always)]
unsafe fn exp_and_sum<S: Simd>(scores: *mut f32, keys: usize, shift: f32) -> f32 {
    // SAFETY: as for `rows`.
    unsafe {
        let shift = S::splat(-shift);
        let mut sums = [S::splat(0.0); 2];
        for key in (0..keys).step_by(2 * S::LANES) {
            for (half, sum) in sums.iter_mut().enumerate() {
                let at = scores.add(key + half * S::LANES);
                let value = exp::<S>(S::add(S::load(at), shift));
                S::store(at, value);
                *sum = S::add(*sum, value);
            }
        }
        let mut lanes = [0.0f32; 64];
        S::store(lanes.as_mut_ptr(), S::add(sums[0], sums[1]));
        lanes[..S::LANES].iter().sum()
    }
}

#[inline(always)]
unsafe fn first_lane<S: Simd>(value: S::V) -> f32 {
    let mut lanes = [0.0f32; 64];
    // SAFETY: no register has more than 64 lanes.
    unsafe { S::store(lanes.as_mut_ptr(), value) };
    lanes[0]
}

/// exp(x) for x ≤ 0, within 2 units in the last place where the result is a normal number; 0 for -∞, NaN for NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, where ln 2 is split so that n·high is exact (Cody and Waite); exp(r) is its
/// Taylor polynomial of degree 7, whose remainder (0.347^8 / 8!) is far below half a unit in the last place.
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: the caller is compiled for the instruction set.
    unsafe {
        // Below this the result is less than half the smallest subnormal number. The order of the arguments keeps NaN.
        let x = S::max(S::splat(-105.0), x);
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-HIGH), x);
        let r = S::mul_add(n, S::splat(-LOW), r);
        let mut polynomial = S::splat(1.0 / 5040.0);
        for coefficient in COEFFICIENTS {
            polynomial = S::mul_add(polynomial, r, S::splat(coefficient));
        }
        S::scale_by_power(polynomial, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::simd::kernels;

    /// One row of scores through one block from a fresh state: exp(score - max), max, sum.
    fn softmax_of(isa: Isa, values: &[f32]) -> (Vec<f32>, f32, f32) {
        let mut scores = values.to_vec();
        let width = kernels(isa).panel_cols;
        scores.resize(values.len().next_multiple_of(width), f32::NEG_INFINITY);
        let bias = vec![0.0; scores.len()];
        let (mut maximum, mut sum) = (f32::NEG_INFINITY, 0.0);
        let block = SoftmaxBlock {
            rows: 1,
            keys: scores.len(),
            scores: scores.as_mut_ptr(),
            score_stride: 0,
            scale: 1.0,
            bias: bias.as_ptr(),
            maximum: &raw mut maximum,
            sum: &raw mut sum,
            output: std::ptr::null_mut(),
            output_stride: 0,
            dim: 0,
            round_to_bf16: false,
        };
        // SAFETY: all vectors have the stated lengths, and `isa` is supported.
        unsafe { (kernels(isa).softmax)(&block) };
        scores.truncate(values.len());
        (scores, maximum, sum)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        // 0 first, so that the maximum subtracts nothing.
        let arguments: Vec<f32> = (0..=86_000).map(|i| -(i as f32) * 0.001_013).collect();
        for isa in Isa::supported() {
            let (values, _, _) = softmax_of(isa, &arguments);
            for (&x, &value) in arguments.iter().zip(&values) {
                let exact = f64::from(x).exp();
                let unit = f64::from(f32::EPSILON) * 2f64.powi(exact.log2().floor() as i32);
                let error = (f64::from(value) - exact).abs() / unit;
                assert!(error <= 2.0, "{isa}: exp({x}) = {value:e}, {error:.2} units from {exact:e}");
            }
        }
    }

    #[test]
    fn masked_scores_vanish_and_a_fully_masked_block_leaves_the_state_neutral() {
        for isa in Isa::supported() {
            let (values, maximum, sum) = softmax_of(isa, &[f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]);
            assert_eq!((values.as_slice(), maximum, sum), ([0.0, 1.0, 0.0].as_slice(), 3.0, 1.0), "{isa}");
            let (values, maximum, sum) = softmax_of(isa, &[f32::NEG_INFINITY; 5]);
            assert_eq!(
                (values.as_slice(), maximum, sum),
                ([0.0; 5].as_slice(), f32::NEG_INFINITY, 0.0),
                "{isa}"
            );
        }
    }

    #[test]
    fn a_nan_score_makes_the_sum_nan() {
        for isa in Isa::supported() {
            assert!(softmax_of(isa, &[0.0, f32::NAN, 1.0]).2.is_nan(), "{isa}");
        }
    }
}
