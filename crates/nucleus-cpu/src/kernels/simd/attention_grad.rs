//! What the gradients of attention do between their products. Lanes are queries, as in the softmax.
//!
//! Let e be the probabilities of a block of keys under the maximum m that was known there, before they are divided by their sum, and
//! r = dy·v the slope of a key. Blocks come one after the other, each under a larger maximum: what has been summed under the older one
//! is corrected, and when the last maximum M and the sum z are known, p = e · 2^(scale · (m − M)) / z.

use super::Simd;
use super::attention::Words;
use super::softmax::{EXACT, exp2, load, store};
use crate::kernels::element::Operand;

/// `sum[j] = keep[j] · sum[j] + Σ_l e[l][j] · slope[l][j]`.
pub(in crate::kernels) struct SlopeBlock {
    pub(in crate::kernels) keys: usize,
    /// [keys, panel columns], as `slopes`.
    pub(in crate::kernels) probabilities: *const f32,
    pub(in crate::kernels) slopes: *const f32,
    /// [panel columns]; null where `sum` holds nothing yet.
    pub(in crate::kernels) keep: *const f32,
    /// [panel columns].
    pub(in crate::kernels) sum: *mut f32,
}

/// `factor[j] = 2^(scale · (block[j] − last[j])) · inverse[j]`, all [panel columns].
pub(in crate::kernels) struct Factors {
    /// The maximum under which a block was computed; the factors take its place.
    pub(in crate::kernels) block: *mut f32,
    /// The last maximum, nowhere less.
    pub(in crate::kernels) last: *const f32,
    /// The reciprocals of the sums.
    pub(in crate::kernels) inverse: *const f32,
    /// Factor of the scores over ln 2, not negative.
    pub(in crate::kernels) scale: f32,
}

/// p = e · factor and u = scale · p · (slope − mean) for one block of keys and one panel of queries, as words of the tiles that multiply them.
pub(in crate::kernels) struct ScoreGradients {
    pub(in crate::kernels) keys: usize,
    /// e: [keys, panel columns].
    pub(in crate::kernels) probabilities: *const f32,
    /// The slopes on entry: [keys, panel columns]. On return u: the same, or pairs of neighbouring keys in the first half of the rows.
    pub(in crate::kernels) slopes: *mut f32,
    /// [panel columns], as `mean`.
    pub(in crate::kernels) factor: *const f32,
    pub(in crate::kernels) mean: *const f32,
    /// Factor of the scores, of any sign.
    pub(in crate::kernels) scale: f32,
    /// Where p and once more u go: rows of keys, `stride` words apart, of f32 or pairs of neighbouring queries.
    pub(in crate::kernels) p: *mut u32,
    pub(in crate::kernels) u: *mut u32,
    pub(in crate::kernels) stride: usize,
}

/// # Safety
/// The pointers of `block` are valid for the ranges it states.
#[inline(always)]
pub(super) unsafe fn slopes<S: Simd>(block: &SlopeBlock) {
    /// Independent chains for each register; which keys each takes depends on their places alone.
    const CHAINS: usize = 4;
    // SAFETY: reads [keys, panel columns] and writes one row.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; CHAINS];
        if !block.keep.is_null() {
            let (sum, keep) = (load::<S>(block.sum), load::<S>(block.keep));
            sums[0] = [S::mul(sum[0], keep[0]), S::mul(sum[1], keep[1])];
        }
        for first in (0..block.keys).step_by(CHAINS) {
            for (chain, sums) in sums.iter_mut().enumerate().take(block.keys - first) {
                let row = 2 * S::LANES * (first + chain);
                let (e, slope) = (load::<S>(block.probabilities.add(row)), load::<S>(block.slopes.add(row)));
                *sums = [S::mul_add(e[0], slope[0], sums[0]), S::mul_add(e[1], slope[1], sums[1])];
            }
        }
        let [mut all, others @ ..] = sums;
        for other in others {
            all = [S::add(all[0], other[0]), S::add(all[1], other[1])];
        }
        store::<S>(block.sum, all);
    }
}

/// # Safety
/// The pointers of `block` are valid for the ranges it states.
#[inline(always)]
pub(super) unsafe fn factors<S: Simd>(block: &Factors) {
    // SAFETY: one row of each.
    unsafe {
        let (at, last, inverse) = (load::<S>(block.block), load::<S>(block.last), load::<S>(block.inverse));
        let (minus, scale) = (S::splat(-1.0), S::splat(block.scale));
        let mut factor = at;
        for half in 0..2 {
            let exponent = S::mul(S::mul_add(last[half], minus, at[half]), scale);
            factor[half] = S::mul(exp2::<S, EXACT>(exponent).0, inverse[half]);
        }
        store::<S>(block.block, factor);
    }
}

/// # Safety
/// The pointers of `block` are valid for the ranges it states.
#[inline(always)]
pub(super) unsafe fn score_gradients<W: Words>(block: &ScoreGradients) {
    let lanes = W::S::LANES;
    // SAFETY: rows stay below `keys`. A pair of rows is read before the row of pairs, which is none behind them, is written.
    unsafe {
        let (factor, mean) = (load::<W::S>(block.factor), load::<W::S>(block.mean));
        let (minus, scale) = (W::S::splat(-1.0), W::S::splat(block.scale));
        let less = [W::S::mul(mean[0], minus), W::S::mul(mean[1], minus)];
        for first in (0..block.keys).step_by(2) {
            let mut both = [[W::S::splat(0.0); 2]; 2];
            for (key, kept) in (first..block.keys).zip(&mut both) {
                let row = 2 * lanes * key;
                let mut p = load::<W::S>(block.probabilities.add(row));
                let mut u = load::<W::S>(block.slopes.add(row));
                for half in 0..2 {
                    p[half] = W::S::mul(p[half], factor[half]);
                    u[half] = W::S::mul(W::S::mul(p[half], scale), W::S::add(u[half], less[half]));
                }
                let (to_p, to_u) = (block.p.add(key * block.stride), block.u.add(key * block.stride));
                match W::OPERAND {
                    Operand::F32 => {
                        store::<W::S>(block.slopes.add(row), u);
                        store::<W::S>(to_p.cast(), p);
                        store::<W::S>(to_u.cast(), u);
                    }
                    Operand::Bf16 => {
                        for half in 0..2 {
                            p[half] = W::S::round_to_bf16(p[half]);
                            u[half] = W::S::round_to_bf16(u[half]);
                        }
                        W::S::store(to_p.cast(), W::S::halves(p));
                        W::S::store(to_u.cast(), W::S::halves(u));
                        *kept = u;
                    }
                }
            }
            if W::OPERAND == Operand::Bf16 {
                let [lower, upper] = both;
                let pairs = [W::S::pairs(lower[0], upper[0]), W::S::pairs(lower[1], upper[1])];
                store::<W::S>(block.slopes.add(lanes * first), pairs);
            }
        }
    }
}
