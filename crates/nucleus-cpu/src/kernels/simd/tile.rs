//! The inner loops of a matrix product: the register tile, and the conversions around it.

use super::Simd;
use crate::kernels::element::{bf16_from_f32, f32_from_bf16};

/// Steps between checks of the loop counter.
const UNROLL: usize = 4;

/// A tile of `ROWS` × two registers over f32 words; see [`super::TileFn`]. Each element is one chain of
/// multiply-adds in ascending k, whatever `ROWS` is.
///
/// # Safety
/// `a` holds `ROWS` rows of `steps` words, `b` `steps` rows of `2 * LANES` words, `c` `ROWS` writable rows of
/// `2 * LANES`, at the given strides.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const ROWS: usize>(
    steps: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: all addresses are within the ranges the caller vouches for.
    unsafe {
        let mut sum = [[S::splat(0.0); 2]; ROWS];
        if add {
            for row in 0..ROWS {
                sum[row] = [S::load(c.add(row * c_stride)), S::load(c.add(row * c_stride + S::LANES))];
            }
        }
        let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
        for _ in 0..steps / UNROLL {
            for step in 0..UNROLL {
                multiply_step::<S, ROWS>(&mut sum, a.add(step), a_stride, b.add(2 * S::LANES * step));
            }
            a = a.add(UNROLL);
            b = b.add(2 * S::LANES * UNROLL);
        }
        for step in 0..steps % UNROLL {
            multiply_step::<S, ROWS>(&mut sum, a.add(step), a_stride, b.add(2 * S::LANES * step));
        }
        for row in 0..ROWS {
            S::store(c.add(row * c_stride), sum[row][0]);
            S::store(c.add(row * c_stride + S::LANES), sum[row][1]);
        }
    }
}

#[inline(always)]
unsafe fn multiply_step<S: Simd, const ROWS: usize>(
    sum: &mut [[S::V; 2]; ROWS],
    a: *const f32,
    a_stride: usize,
    b: *const f32,
) {
    // SAFETY: as for `multiply`.
    unsafe {
        let (left, right) = (S::load(b), S::load(b.add(S::LANES)));
        for row in 0..ROWS {
            let value = S::splat(*a.add(row * a_stride));
            sum[row][0] = S::mul_add(value, left, sum[row][0]);
            sum[row][1] = S::mul_add(value, right, sum[row][1]);
        }
    }
}

/// Panel rows of `COLS` bf16 pairs become two panel rows of f32 each.
///
/// # Safety
/// `source` holds `words` words, a multiple of `COLS`; `destination` has room for twice as many.
#[inline(always)]
pub(super) unsafe fn widen<const COLS: usize>(source: *const u32, words: usize, destination: *mut f32) {
    for row in 0..words / COLS {
        // Whole panel rows by value: the compiler need not ask whether source and destination overlap.
        // SAFETY: `(row + 1) * COLS <= words`.
        unsafe {
            let pairs = source.cast::<[u32; COLS]>().add(row).read_unaligned();
            let lower = pairs.map(|pair| f32::from_bits(pair << 16));
            let upper = pairs.map(|pair| f32::from_bits(pair & 0xffff_0000));
            let destination = destination.cast::<[f32; COLS]>().add(2 * row);
            destination.write_unaligned(lower);
            destination.add(1).write_unaligned(upper);
        }
    }
}

/// # Safety
/// `source` and `destination` hold `count` elements each and do not overlap.
#[inline(always)]
pub(super) unsafe fn f32_to_bf16(source: *const f32, count: usize, destination: *mut u16) {
    for index in 0..count {
        // SAFETY: `index < count`.
        unsafe { destination.add(index).write_unaligned(bf16_from_f32(source.add(index).read_unaligned())) };
    }
}

/// # Safety
/// `source` and `destination` hold `count` elements each and do not overlap.
#[inline(always)]
pub(super) unsafe fn bf16_to_f32(source: *const u16, count: usize, destination: *mut f32) {
    for index in 0..count {
        // SAFETY: `index < count`.
        unsafe { destination.add(index).write_unaligned(f32_from_bf16(source.add(index).read_unaligned())) };
    }
}

/// As many independent chains as hide the latency of a multiply-add on two ports.
const CHAINS: usize = 12;

/// # Safety
/// Only the instruction set is required.
#[inline(always)]
pub(super) unsafe fn peak<S: Simd>(iterations: usize) -> usize {
    // SAFETY: registers only.
    unsafe {
        let factor = S::splat(std::hint::black_box(0.5));
        let mut sums = [factor; CHAINS];
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = S::mul_add(factor, factor, *sum);
            }
        }
        std::hint::black_box(sums);
    }
    iterations * CHAINS * S::LANES * 2
}
