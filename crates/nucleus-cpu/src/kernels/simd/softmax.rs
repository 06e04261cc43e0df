//! The online softmax of blocked attention (Milakov and Gimelshein, arXiv 1805.02867): a running maximum and a
//! running sum for each query, and the factor of what has been accumulated under an older maximum. Lanes are queries.

use super::Simd;
use super::attention::Words;
use crate::kernels::element::Operand;

/// One block of scores: `keys` keys × one panel of queries.
pub(in crate::kernels) struct SoftmaxBlock {
    /// At least 1.
    pub(in crate::kernels) keys: usize,
    /// q·k on entry, the probabilities 2^(scale · (q·k - maximum)) on return, as words of the tile that multiplies them:
    /// [keys, panel columns] f32s, or pairs of neighbouring keys in the first half of the rows.
    pub(in crate::kernels) scores: *mut f32,
    /// Factor of the scores over ln 2, not negative.
    pub(in crate::kernels) scale: f32,
    /// Whether no block of these queries came before.
    pub(in crate::kernels) first: bool,
    /// Running maxima of q·k and sums of probabilities. [panel columns]
    pub(in crate::kernels) maximum: *mut f32,
    pub(in crate::kernels) sum: *mut f32,
    /// What outputs under the older maxima must be multiplied by; not written for the first block. [panel columns]
    pub(in crate::kernels) correction: *mut f32,
    /// Whether f32 words are rounded to bf16 values, as pairs always are. The sum is that of the exact ones.
    pub(in crate::kernels) round_to_bf16: bool,
}

/// What the probabilities become.
pub(super) const EXACT: u8 = 0;
const ROUNDED: u8 = 1;
const PAIRS: u8 = 2;

// Nothing below may be a closure: one is compiled for the instruction set only if the compiler happens to inline it.

#[inline(always)]
pub(super) unsafe fn load<S: Simd>(row: *const f32) -> [S::V; 2] {
    // SAFETY: the caller owns two registers at `row`.
    unsafe { [S::load(row), S::load(row.add(S::LANES))] }
}

#[inline(always)]
pub(super) unsafe fn store<S: Simd>(row: *mut f32, values: [S::V; 2]) {
    // SAFETY: the caller owns two registers at `row`.
    unsafe {
        S::store(row, values[0]);
        S::store(row.add(S::LANES), values[1]);
    }
}

/// # Safety
/// The pointers of `block` are valid for the ranges it states.
#[inline(always)]
pub(super) unsafe fn block<W: Words>(block: &SoftmaxBlock) {
    // SAFETY: passed on; the state has one panel of columns.
    unsafe {
        // The least finite number, so that scores of -∞ alone give exp(-∞) = 0 each.
        let old = if block.first { [W::S::splat(f32::MIN); 2] } else { load::<W::S>(block.maximum) };
        let new = maxima::<W::S>(block, old);
        store::<W::S>(block.maximum, new);
        let minus = W::S::splat(-1.0);
        let less = [W::S::mul(new[0], minus), W::S::mul(new[1], minus)];
        let mut sum = match (W::OPERAND, block.round_to_bf16) {
            (Operand::Bf16, _) => probabilities::<W::S, PAIRS>(block, less),
            (Operand::F32, true) => probabilities::<W::S, ROUNDED>(block, less),
            (Operand::F32, false) => probabilities::<W::S, EXACT>(block, less),
        };
        if !block.first {
            let scale = W::S::splat(block.scale);
            let before = load::<W::S>(block.sum);
            let mut correction = before;
            for half in 0..2 {
                let exponent = W::S::mul(W::S::add(old[half], less[half]), scale);
                correction[half] = exp2::<W::S, EXACT>(exponent).0;
                sum[half] = W::S::mul_add(before[half], correction[half], sum[half]);
            }
            store::<W::S>(block.correction, correction);
        }
        store::<W::S>(block.sum, sum);
    }
}

/// NaN is left out; it comes back with the probabilities.
#[inline(always)]
unsafe fn maxima<S: Simd>(block: &SoftmaxBlock, old: [S::V; 2]) -> [S::V; 2] {
    /// Independent chains for each register, to hide the latency of a maximum.
    const CHAINS: usize = 4;
    // SAFETY: reads [keys, panel columns].
    unsafe {
        let mut largest = [old; CHAINS];
        for first in (0..block.keys).step_by(CHAINS) {
            for (chain, largest) in largest.iter_mut().enumerate() {
                // The last key again where none is left.
                let key = (first + chain).min(block.keys - 1);
                let scores = load::<S>(block.scores.add(2 * S::LANES * key));
                *largest = [S::max(scores[0], largest[0]), S::max(scores[1], largest[1])];
            }
        }
        let [mut all, others @ ..] = largest;
        for other in others {
            all = [S::max(all[0], other[0]), S::max(all[1], other[1])];
        }
        all
    }
}

/// Replaces the scores by what `KIND` names; returns the sums over the keys. `less` are the maxima negated.
#[inline(always)]
unsafe fn probabilities<S: Simd, const KIND: u8>(block: &SoftmaxBlock, less: [S::V; 2]) -> [S::V; 2] {
    // SAFETY: reads and writes [keys, panel columns]. A pair of rows is read before the row of pairs, which is none
    // behind them, is written.
    unsafe {
        let scale = S::splat(block.scale);
        let mut sums = [S::splat(0.0); 2];
        for first in (0..block.keys).step_by(2) {
            let row = block.scores.add(2 * S::LANES * first);
            let mut rounded = [[S::splat(0.0); 2]; 2];
            for (key, rounded) in rounded.iter_mut().enumerate().take(block.keys - first) {
                let scores = load::<S>(row.add(2 * S::LANES * key));
                for half in 0..2 {
                    let exponent = S::mul(S::add(scores[half], less[half]), scale);
                    let exact;
                    (exact, rounded[half]) = exp2::<S, KIND>(exponent);
                    sums[half] = S::add(sums[half], exact);
                }
                if KIND != PAIRS {
                    store::<S>(row.add(2 * S::LANES * key), *rounded);
                }
            }
            if KIND == PAIRS {
                let [lower, upper] = rounded;
                let pairs = [S::pairs(lower[0], upper[0]), S::pairs(lower[1], upper[1])];
                store::<S>(block.scores.add(S::LANES * first), pairs);
            }
        }
        sums
    }
}

/// 2^t for t ≤ 0, and the same as `KIND` rounds it. Within 2 units in the last place where the result is a normal number,
/// exact for t = 0; 0 for -∞, NaN for NaN.
///
/// 2^t = 2^⌊t⌋ · 2^r with 0 ≤ r < 1, and 2^r is the polynomial of degree 6 that is 1 at 0 and has the least relative error on
/// [0, 1], 2·10⁻⁹. As it lies in 1..2, adding 2^16 (whose unit is 2^-7) rounds it to bf16.
#[inline(always)]
pub(super) unsafe fn exp2<S: Simd, const KIND: u8>(t: S::V) -> (S::V, S::V) {
    const COEFFICIENTS: [f32; 5] = [0.001_246_784_7, 0.009_675_452, 0.055_485_28, 0.240_229_3, 0.693_147_06];
    const ROUNDER: f32 = 65_536.0;
    // SAFETY: the caller is compiled for the instruction set.
    unsafe {
        let (power, r) = S::split_power(t);
        let mut polynomial = S::splat(0.000_216_129_15);
        for coefficient in COEFFICIENTS {
            polynomial = S::mul_add(polynomial, r, S::splat(coefficient));
        }
        let exact = S::scale_by_power(S::mul_add(polynomial, r, S::splat(1.0)), power);
        if KIND == EXACT {
            return (exact, exact);
        }
        let rounded = S::mul_add(polynomial, r, S::splat(1.0 + ROUNDER));
        (exact, S::scale_by_power(S::add(rounded, S::splat(-ROUNDER)), power))
    }
}

#[cfg(test)]
mod tests;
