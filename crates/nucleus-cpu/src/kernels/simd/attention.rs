//! The loops of attention, and their table for each instruction set.
//!
//! Lanes are queries: a panel of as many queries as two registers have lanes is the right operand of both products,
//! q·k and p·v, and keys or columns of the values are the rows of the register tile. Maxima and sums over keys are then
//! plain vector operations, and neither keys nor values have to be transposed.

use std::marker::PhantomData;

use super::{Factors, ScoreGradients, Simd, SlopeBlock, SoftmaxBlock};
use crate::kernels::element::Operand;

/// `c[r][j] = keep[j] · c[r][j] + Σ_s a(r, s) · b[s][j]` for a fixed number of rows and one panel of queries.
///
/// A word is one f32, or a pair of bf16 with the lower s in the lower half.
pub(in crate::kernels) type PanelTileFn = unsafe fn(&PanelTile);

/// The arguments of a [`PanelTileFn`].
pub(in crate::kernels) struct PanelTile {
    /// Words of each sum.
    pub(in crate::kernels) steps: usize,
    /// Where (0, 0) is. In a tile of scores (r, s) is the word at `r * a_stride + s`: rows are keys. In a tile of outputs it
    /// is at `s * a_stride + r`: rows are columns of the values.
    pub(in crate::kernels) a: *const u32,
    pub(in crate::kernels) a_stride: usize,
    /// [steps, panel columns] words.
    pub(in crate::kernels) b: *const u32,
    /// [rows, panel columns] f32s.
    pub(in crate::kernels) c: *mut f32,
    /// [panel columns]; null where `c` holds nothing yet.
    pub(in crate::kernels) keep: *const f32,
}

/// A matrix of words and where its transpose goes; strides are in words.
pub(in crate::kernels) struct Transpose {
    pub(in crate::kernels) source: *const u32,
    pub(in crate::kernels) source_stride: usize,
    pub(in crate::kernels) destination: *mut u32,
    pub(in crate::kernels) destination_stride: usize,
    /// Of the source; both are rounded up to whole registers, on either side.
    pub(in crate::kernels) rows: usize,
    pub(in crate::kernels) cols: usize,
}

/// The loops of one instruction set and operand type.
pub(in crate::kernels) struct AttentionKernels {
    /// Queries of a panel.
    pub(in crate::kernels) panel_cols: usize,
    /// Lanes of a register.
    pub(in crate::kernels) lanes: usize,
    /// What a word holds.
    pub(in crate::kernels) words: Operand,
    /// Tiles of 1, 2, … keys.
    pub(in crate::kernels) scores: &'static [PanelTileFn],
    /// Tiles of 1, 2, … columns of the values.
    pub(in crate::kernels) outputs: &'static [PanelTileFn],
    pub(in crate::kernels) softmax: unsafe fn(&SoftmaxBlock),
    pub(in crate::kernels) transpose: unsafe fn(&Transpose),
    pub(in crate::kernels) slopes: unsafe fn(&SlopeBlock),
    pub(in crate::kernels) factors: unsafe fn(&Factors),
    pub(in crate::kernels) score_gradients: unsafe fn(&ScoreGradients),
    /// Multiplies each of `rows` panel rows by the same factors: values, rows, factors.
    pub(in crate::kernels) scale_rows: unsafe fn(*mut f32, usize, *const f32),
}

/// What two words multiply to. A register of words is passed as one of f32 lanes, whatever its bits mean.
pub(super) trait Words {
    type S: Simd;
    const OPERAND: Operand;

    /// `a * b + sum`, where a word of bf16 pairs gives two products.
    unsafe fn mul_add(
        a: <Self::S as Simd>::V,
        b: <Self::S as Simd>::V,
        sum: <Self::S as Simd>::V,
    ) -> <Self::S as Simd>::V;
}

/// Words of one f32.
pub(super) struct F32Words<S>(PhantomData<S>);

impl<S: Simd> Words for F32Words<S> {
    type S = S;
    const OPERAND: Operand = Operand::F32;

    #[inline(always)]
    unsafe fn mul_add(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller is compiled for the instruction set.
        unsafe { S::mul_add(a, b, sum) }
    }
}

/// Addresses of up to twelve keys as four bases and one stride: base + {0, 1, 2} × stride is a single operand of an x86
/// load, and few registers suffice.
struct Keys {
    bases: [*const f32; 4],
    stride: usize,
}

impl Keys {
    #[inline(always)]
    fn at(&self, row: usize) -> *const f32 {
        self.bases[row / 3].wrapping_byte_add(row % 3 * self.stride)
    }
}

/// Steps between the fetch of a row of values and its use.
const AHEAD: usize = 4;

type Sums<S, const ROWS: usize> = [[<S as Simd>::V; 2]; ROWS];

/// Each sum is one chain of multiply-adds in ascending s, whatever `ROWS` is.
///
/// # Safety
/// The ranges of [`PanelTile`] are valid for `ROWS` keys.
#[inline(always)]
pub(super) unsafe fn scores<W: Words, const ROWS: usize>(tile: &PanelTile) {
    let lanes = W::S::LANES;
    let a = tile.a.cast::<f32>();
    let mut keys = Keys {
        bases: [0, 3, 6, 9].map(|row| a.wrapping_add(row * tile.a_stride)),
        stride: 4 * tile.a_stride,
    };
    let mut b = tile.b.cast::<f32>();
    // SAFETY: all accesses are within the ranges the caller vouches for.
    unsafe {
        let mut sums: Sums<W::S, ROWS> = [[W::S::splat(0.0); 2]; ROWS];
        for _ in 0..tile.steps {
            let queries = [W::S::load(b), W::S::load(b.add(lanes))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let key = W::S::splat(*keys.at(row));
                *sums = [W::mul_add(key, queries[0], sums[0]), W::mul_add(key, queries[1], sums[1])];
            }
            keys.bases = keys.bases.map(|base| base.wrapping_add(1));
            b = b.add(2 * lanes);
        }
        store::<W::S, ROWS>(&sums, tile.c);
    }
}

/// Each sum is one chain of multiply-adds in ascending s, whatever `ROWS` is.
///
/// # Safety
/// The ranges of [`PanelTile`] are valid for `ROWS` columns of the values.
#[inline(always)]
pub(super) unsafe fn outputs<W: Words, const ROWS: usize>(tile: &PanelTile) {
    let lanes = W::S::LANES;
    let (mut a, mut b) = (tile.a.cast::<f32>(), tile.b.cast::<f32>());
    // SAFETY: all accesses are within the ranges the caller vouches for.
    unsafe {
        let mut sums: Sums<W::S, ROWS> = [[W::S::splat(0.0); 2]; ROWS];
        if !tile.keep.is_null() {
            let keep = [W::S::load(tile.keep), W::S::load(tile.keep.add(lanes))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let c = tile.c.add(2 * lanes * row);
                *sums = [W::S::mul(W::S::load(c), keep[0]), W::S::mul(W::S::load(c.add(lanes)), keep[1])];
            }
        }
        for _ in 0..tile.steps {
            let p = [W::S::load(b), W::S::load(b.add(lanes))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = W::S::splat(*a.add(row));
                *sums = [W::mul_add(value, p[0], sums[0]), W::mul_add(value, p[1], sums[1])];
            }
            // Each row of values is a line or two, at a stride that the machine does not foresee.
            W::S::prefetch_near(a.wrapping_add(AHEAD * tile.a_stride).cast());
            a = a.wrapping_add(tile.a_stride);
            b = b.add(2 * lanes);
        }
        store::<W::S, ROWS>(&sums, tile.c);
    }
}

#[inline(always)]
unsafe fn store<S: Simd, const ROWS: usize>(sums: &Sums<S, ROWS>, c: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: `c` has `ROWS` rows of two registers.
        unsafe {
            let c = c.add(2 * S::LANES * row);
            S::store(c, sums[0]);
            S::store(c.add(S::LANES), sums[1]);
        }
    }
}

/// # Safety
/// Both sides of `matrix` are valid for its rounded sizes.
#[inline(always)]
pub(super) unsafe fn transpose<S: Simd>(matrix: &Transpose) {
    for row in (0..matrix.rows).step_by(S::LANES) {
        for col in (0..matrix.cols).step_by(S::LANES) {
            // SAFETY: the square lies within the rounded sizes.
            unsafe {
                S::transpose(
                    matrix.source.add(row * matrix.source_stride + col),
                    matrix.source_stride,
                    matrix.destination.add(col * matrix.destination_stride + row),
                    matrix.destination_stride,
                );
            }
        }
    }
}

/// # Safety
/// `values` holds `rows` panel rows, `factors` one.
#[inline(always)]
pub(super) unsafe fn scale_rows<S: Simd>(values: *mut f32, rows: usize, factors: *const f32) {
    // SAFETY: within the panel rows.
    unsafe {
        let factors = [S::load(factors), S::load(factors.add(S::LANES))];
        for row in 0..rows {
            for (half, &factor) in factors.iter().enumerate() {
                let at = values.add((2 * row + half) * S::LANES);
                S::store(at, S::mul(S::load(at), factor));
            }
        }
    }
}

/// The table of one instruction set and one kind of words: the generic loops instantiated in functions compiled for its
/// features.
macro_rules! attention_table {
    ($name:ident, $words:ty, $features:literal, rows: [$($rows:literal)*]) => {
        pub(super) static $name: $crate::kernels::simd::attention::AttentionKernels = {
            use $crate::kernels::simd::attention::{self, AttentionKernels, PanelTile, Transpose, Words};
            use $crate::kernels::simd::{Factors, ScoreGradients, SlopeBlock};
            use $crate::kernels::simd::{Simd, SoftmaxBlock, attention_grad, softmax};
            type S = <$words as Words>::S;

            #[target_feature(enable = $features)]
            unsafe fn scores<const ROWS: usize>(tile: &PanelTile) {
                // SAFETY: passed on; this function is compiled for the features that the trait needs.
                unsafe { attention::scores::<$words, ROWS>(tile) }
            }
            #[target_feature(enable = $features)]
            unsafe fn outputs<const ROWS: usize>(tile: &PanelTile) {
                // SAFETY: passed on.
                unsafe { attention::outputs::<$words, ROWS>(tile) }
            }
            #[target_feature(enable = $features)]
            unsafe fn softmax_block(block: &SoftmaxBlock) {
                // SAFETY: passed on.
                unsafe { softmax::block::<$words>(block) }
            }
            #[target_feature(enable = $features)]
            unsafe fn transpose(matrix: &Transpose) {
                // SAFETY: passed on.
                unsafe { attention::transpose::<S>(matrix) }
            }
            #[target_feature(enable = $features)]
            unsafe fn slopes(block: &SlopeBlock) {
                // SAFETY: passed on.
                unsafe { attention_grad::slopes::<S>(block) }
            }
            #[target_feature(enable = $features)]
            unsafe fn factors(block: &Factors) {
                // SAFETY: passed on.
                unsafe { attention_grad::factors::<S>(block) }
            }
            #[target_feature(enable = $features)]
            unsafe fn score_gradients(block: &ScoreGradients) {
                // SAFETY: passed on.
                unsafe { attention_grad::score_gradients::<$words>(block) }
            }
            #[target_feature(enable = $features)]
            unsafe fn scale_rows(values: *mut f32, rows: usize, factors: *const f32) {
                // SAFETY: passed on.
                unsafe { attention::scale_rows::<S>(values, rows, factors) }
            }
            AttentionKernels {
                panel_cols: 2 * <S as Simd>::LANES,
                lanes: <S as Simd>::LANES,
                words: <$words as Words>::OPERAND,
                scores: &[$(scores::<$rows>),*],
                outputs: &[$(outputs::<$rows>),*],
                softmax: softmax_block,
                transpose,
                slopes,
                factors,
                score_gradients,
                scale_rows,
            }
        };
    };
}
pub(super) use attention_table;
