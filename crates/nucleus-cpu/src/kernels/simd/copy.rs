//! Blocks of a strided matrix brought into the order and the type that the tiles read: copied, transposed, converted, rounded.

use super::Simd;
use crate::kernels::element::{Stored, bf16_from_f32, round_to_bf16};

/// Copies a block of a stored matrix as f32.
pub(in crate::kernels) type CopyFn = unsafe fn(&CopyArgs);

/// The arguments of a [`CopyFn`]; strides are in elements.
pub(in crate::kernels) struct CopyArgs {
    /// Element [0, 0]; columns are contiguous.
    pub(in crate::kernels) source: *const u8,
    /// From one row of the source to the next.
    pub(in crate::kernels) source_stride: usize,
    /// Rows of the source.
    pub(in crate::kernels) rows: usize,
    /// Columns of the source.
    pub(in crate::kernels) cols: usize,
    /// Where element [0, 0] goes.
    pub(in crate::kernels) destination: *mut f32,
    /// From one row of the destination to the next.
    pub(in crate::kernels) destination_stride: usize,
}

impl CopyArgs {
    fn from<T>(&self, row: usize) -> *const u8 {
        self.source.wrapping_add(row.wrapping_mul(self.source_stride).wrapping_mul(size_of::<T>()))
    }

    fn to(&self, row: usize) -> *mut f32 {
        self.destination.wrapping_add(row * self.destination_stride)
    }
}

/// `destination[row][col] = source[row][col]`.
///
/// # Safety
/// Both sides hold [rows, cols] and do not overlap.
#[inline(always)]
pub(super) unsafe fn copy<S: Simd, T: Stored>(args: &CopyArgs) {
    // SAFETY: rows below `rows`, columns below `cols`.
    unsafe {
        for row in 0..args.rows {
            let (from, to) = (args.from::<T>(row), args.to(row));
            let whole = if T::IS_F32 { args.cols / S::LANES * S::LANES } else { 0 };
            for col in (0..whole).step_by(S::LANES) {
                S::store(to.add(col), S::load(from.cast::<f32>().add(col)));
            }
            for col in whole..args.cols {
                to.add(col).write(T::read(from, col).to_f32());
            }
        }
    }
}

/// Columns that a transposition converts at a time.
const STRETCH: usize = 128;
/// f32s from one converted row to the next: an odd number of cache lines.
const STRETCH_STRIDE: usize = STRETCH + 16;

/// `destination[col][row] = source[row][col]`, in squares of a register's width; stretches of [`STRETCH`] columns are read
/// one behind the other, so that whole cache lines are used while they are near.
///
/// # Safety
/// The source holds [rows, cols], the destination [cols, rows], and they do not overlap.
#[inline(always)]
pub(super) unsafe fn transpose<S: Simd, T: Stored>(args: &CopyArgs) {
    let whole_rows = args.rows / S::LANES * S::LANES;
    // SAFETY: squares and single elements lie within both sides; converted stretches within the buffer.
    unsafe {
        let mut converted = [std::mem::MaybeUninit::<f32>::uninit(); 16 * STRETCH_STRIDE];
        let converted = converted.as_mut_ptr().cast::<f32>();
        for first in (0..args.cols).step_by(STRETCH) {
            let cols = STRETCH.min(args.cols - first);
            let whole_cols = cols / S::LANES * S::LANES;
            for row in (0..whole_rows).step_by(S::LANES) {
                let (from, stride) = if T::IS_F32 {
                    (args.from::<T>(row).cast::<f32>().wrapping_add(first).cast::<u32>(), args.source_stride)
                } else {
                    for r in 0..S::LANES {
                        let from = args.from::<T>(row + r);
                        for col in 0..cols {
                            let value = T::read(from, first + col).to_f32();
                            converted.add(r * STRETCH_STRIDE + col).write(value);
                        }
                    }
                    (converted.cast_const().cast::<u32>(), STRETCH_STRIDE)
                };
                // A number that is not known beforehand: sixteen such loops in a row would take the registers of all others.
                for r in row + S::LANES..args.rows.min(row + 2 * S::LANES) {
                    let next = args.from::<T>(r).wrapping_add(first * size_of::<T>());
                    for line in (0..cols * size_of::<T>()).step_by(64) {
                        S::prefetch_near(next.wrapping_add(line));
                    }
                }
                for col in (0..whole_cols).step_by(S::LANES) {
                    let to = args.to(first + col).add(row).cast::<u32>();
                    S::transpose(from.wrapping_add(col), stride, to, args.destination_stride);
                }
                for r in row..row + S::LANES {
                    let from = args.from::<T>(r);
                    for col in first + whole_cols..first + cols {
                        args.to(col).add(r).write(T::read(from, col).to_f32());
                    }
                }
            }
            for row in whole_rows..args.rows {
                let from = args.from::<T>(row);
                for col in first..first + cols {
                    args.to(col).add(row).write(T::read(from, col).to_f32());
                }
            }
        }
    }
}

/// Rounds numbers to the nearest bf16.
///
/// # Safety
/// `values` holds `count` of them.
#[inline(always)]
pub(super) unsafe fn round(values: *mut f32, count: usize) {
    for index in 0..count {
        // SAFETY: `index < count`.
        unsafe { values.add(index).write(round_to_bf16(values.add(index).read())) };
    }
}

/// Pairs of neighbouring panel rows, rounded to bf16, as one row of words.
///
/// # Safety
/// `source` holds `2 * rows` rows of `cols` f32s, `destination` has room for `rows` of as many words.
#[inline(always)]
pub(super) unsafe fn pair(source: *const f32, rows: usize, cols: usize, destination: *mut u32) {
    for row in 0..rows {
        for col in 0..cols {
            // SAFETY: within the two blocks.
            unsafe {
                let lower = bf16_from_f32(source.add(2 * row * cols + col).read());
                let upper = bf16_from_f32(source.add((2 * row + 1) * cols + col).read());
                destination.add(row * cols + col).write(u32::from(lower) | u32::from(upper) << 16);
            }
        }
    }
}

/// The arguments of [`pair_rows`]; strides are in elements.
pub(in crate::kernels) struct PairArgs {
    /// Element [0, 0], which need not be aligned; columns are contiguous.
    pub(in crate::kernels) source: *const u16,
    /// From one row of the source to the next.
    pub(in crate::kernels) source_stride: usize,
    /// Rows of the source.
    pub(in crate::kernels) rows: usize,
    /// Columns of the source.
    pub(in crate::kernels) cols: usize,
    /// Where pair [0, 0] goes.
    pub(in crate::kernels) destination: *mut u32,
    /// From one row of pairs to the next.
    pub(in crate::kernels) stride: usize,
}

/// Pairs of neighbouring rows of bf16 as one row of words; an odd last row is paired with zeros.
///
/// # Safety
/// The source holds [rows, cols], the destination [rows / 2 rounded up, cols], and they do not overlap.
#[inline(always)]
pub(super) unsafe fn pair_rows(args: &PairArgs) {
    let row = |row: usize| args.source.wrapping_add(row.wrapping_mul(args.source_stride));
    for pair in 0..args.rows.div_ceil(2) {
        let to = args.destination.wrapping_add(pair * args.stride);
        let (lower, upper) = (row(2 * pair), row(2 * pair + 1));
        // SAFETY: rows below `rows`, columns below `cols`.
        unsafe {
            if 2 * pair + 1 < args.rows {
                for col in 0..args.cols {
                    let (lower, upper) = (lower.add(col).read_unaligned(), upper.add(col).read_unaligned());
                    to.add(col).write(u32::from(lower) | u32::from(upper) << 16);
                }
            } else {
                for col in 0..args.cols {
                    to.add(col).write(u32::from(lower.add(col).read_unaligned()));
                }
            }
        }
    }
}

/// Hints that `rows` stretches of `bytes` bytes will be read soon, into the second-level cache.
///
/// # Safety
/// Only the instruction set is required.
#[inline(always)]
pub(super) unsafe fn prefetch_rows<S: Simd>(first: *const u8, stride: usize, rows: usize, bytes: usize) {
    // A stretch may begin anywhere in a line.
    let start = first.addr() % 64;
    for row in 0..rows {
        let at = first.wrapping_add(row.wrapping_mul(stride));
        for line in (0..bytes + start).step_by(64) {
            // SAFETY: a hint reads nothing.
            unsafe { S::prefetch(at.wrapping_add(line)) };
        }
    }
}
