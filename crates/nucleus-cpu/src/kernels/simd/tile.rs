//! The inner loops of a matrix product: the register tile, and the conversions around it.

use super::{Ahead, Simd, TileArgs};
use crate::kernels::element::{bf16_from_f32, f32_from_bf16};

/// Addresses of up to twelve rows as four bases and one stride: base + {0, 1, 2} × stride is a single operand of an x86
/// load, and five registers suffice where twelve would leave none.
struct Rows {
    bases: [*const f32; 4],
    stride: usize,
}

impl Rows {
    #[inline(always)]
    fn new(args: &TileArgs) -> Self {
        let a = args.a.cast::<f32>();
        Self { bases: [0, 3, 6, 9].map(|row| a.wrapping_add(row * args.a_stride)), stride: 4 * args.a_stride }
    }

    #[inline(always)]
    fn at(&self, row: usize, k: usize) -> *const f32 {
        self.bases[row / 3].wrapping_byte_add(row % 3 * self.stride).wrapping_add(k)
    }

    #[inline(always)]
    fn advance(&mut self, steps: usize) {
        self.bases = self.bases.map(|base| base.wrapping_add(steps));
    }
}

/// The sums of `ROWS` rows × `COLS` registers of columns.
struct Sums<S: Simd, const ROWS: usize, const COLS: usize>([[S::V; COLS]; ROWS]);

impl<S: Simd, const ROWS: usize, const COLS: usize> Sums<S, ROWS, COLS> {
    #[inline(always)]
    unsafe fn begin(args: &TileArgs) -> Self {
        // SAFETY: `c` has `ROWS` rows of two registers, as `TileArgs` says.
        unsafe {
            let mut sums = [[S::splat(0.0); COLS]; ROWS];
            if args.add {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = Self::row(args.c.add(row * args.c_stride));
                }
            }
            Self(sums)
        }
    }

    /// `COLS` registers from `at` on.
    #[inline(always)]
    unsafe fn row(at: *const f32) -> [S::V; COLS] {
        // SAFETY: the caller's promise.
        unsafe { std::array::from_fn(|col| S::load(at.add(col * S::LANES))) }
    }

    /// Adds the products of one k: the column of A at `a`, the row of B in `b`.
    #[inline(always)]
    unsafe fn step(&mut self, a: &Rows, k: usize, b: [S::V; COLS]) {
        for (row, sums) in self.0.iter_mut().enumerate() {
            // SAFETY: `a` has `ROWS` rows.
            unsafe {
                let value = S::splat(*a.at(row, k));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = S::mul_add(value, b, *sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(self, args: &TileArgs) {
        for (row, sums) in self.0.into_iter().enumerate() {
            // SAFETY: as for `begin`.
            unsafe {
                let c = args.c.add(row * args.c_stride);
                for (col, sum) in sums.into_iter().enumerate() {
                    S::store(c.add(col * S::LANES), sum);
                }
            }
        }
    }
}

/// A tile of `ROWS` × `COLS` registers over f32 words, of a panel of two registers. Each element is one chain of multiply-adds in ascending k,
/// whatever `ROWS` and `COLS` are.
///
/// # Safety
/// The ranges of [`TileArgs`] are valid for `ROWS` rows.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const ROWS: usize, const COLS: usize>(args: &TileArgs) {
    let width = 2 * S::LANES;
    let (mut a, mut b, mut ahead) = (Rows::new(args), args.b.cast::<f32>(), args.ahead);
    // SAFETY: all reads are within the ranges the caller vouches for.
    unsafe {
        let mut sums = Sums::<S, ROWS, COLS>::begin(args);
        for _ in 0..args.steps {
            fetch_ahead::<S>(&mut ahead);
            sums.step(&a, 0, Sums::<S, ROWS, COLS>::row(b));
            a.advance(1);
            b = b.add(width);
        }
        sums.finish(args);
    }
}

/// The same sums as [`multiply`], from a `b` of bf16 pairs.
///
/// # Safety
/// The ranges of [`TileArgs`] are valid for `ROWS` rows.
#[inline(always)]
pub(super) unsafe fn multiply_widening<S: Simd, const ROWS: usize>(args: &TileArgs) {
    let width = 2 * S::LANES;
    let (mut a, mut b, mut ahead) = (Rows::new(args), args.b, args.ahead);
    // SAFETY: all reads are within the ranges the caller vouches for.
    unsafe {
        let mut sums = Sums::<S, ROWS, 2>::begin(args);
        for _ in 0..args.steps / 2 {
            let (left, right) = (S::load_pairs(b), S::load_pairs(b.add(S::LANES)));
            fetch_ahead::<S>(&mut ahead);
            sums.step(&a, 0, [left.0, right.0]);
            sums.step(&a, 1, [left.1, right.1]);
            a.advance(2);
            b = b.add(width);
        }
        if args.steps % 2 == 1 {
            let (left, right) = (S::load_pairs(b), S::load_pairs(b.add(S::LANES)));
            sums.step(&a, 0, [left.0, right.0]);
        }
        sums.finish(args);
    }
}

/// The same sums as [`multiply`], from a `b` of i8.
///
/// # Safety
/// The ranges of [`TileArgs`] are valid for `ROWS` rows.
#[inline(always)]
pub(super) unsafe fn multiply_i8<S: Simd, const ROWS: usize>(args: &TileArgs) {
    let width = 2 * S::LANES;
    let (mut a, mut b, mut ahead) = (Rows::new(args), args.b.cast::<i8>(), args.ahead);
    // SAFETY: all reads are within the ranges the caller vouches for.
    unsafe {
        let mut sums = Sums::<S, ROWS, 2>::begin(args);
        for _ in 0..args.steps {
            fetch_ahead::<S>(&mut ahead);
            sums.step(&a, 0, [S::load_i8(b), S::load_i8(b.add(S::LANES))]);
            a.advance(1);
            b = b.add(width);
        }
        sums.finish(args);
    }
}

/// One step of [`TileArgs::ahead`].
#[inline(always)]
pub(super) unsafe fn fetch_ahead<S: Simd>(ahead: &mut [Ahead; 2]) {
    for stream in ahead {
        // SAFETY: a hint reads nothing.
        unsafe { S::prefetch(stream.at) };
        stream.at = stream.at.wrapping_add(stream.stride);
    }
}

/// Fetches `bytes` bytes into the second-level cache.
#[inline(always)]
pub(super) unsafe fn prefetch<S: Simd>(first: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a hint reads nothing.
        unsafe { S::prefetch(first.wrapping_add(line)) };
    }
}

/// Panel rows of bf16 pairs become two panel rows of f32 each.
///
/// # Safety
/// `source` holds `words` words, whole panel rows; `destination` has room for twice as many.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd>(source: *const u32, words: usize, destination: *mut f32) {
    let width = 2 * S::LANES;
    for row in (0..words).step_by(width) {
        // SAFETY: `row + width <= words`.
        unsafe {
            let to = destination.add(2 * row);
            let (left, right) = (S::load_pairs(source.add(row)), S::load_pairs(source.add(row + S::LANES)));
            S::store(to, left.0);
            S::store(to.add(S::LANES), right.0);
            S::store(to.add(width), left.1);
            S::store(to.add(width + S::LANES), right.1);
        }
    }
}

/// # Safety
/// `source` and `destination` hold `count` elements each and do not overlap.
#[inline(always)]
pub(super) unsafe fn widen_i8(source: *const i8, count: usize, destination: *mut f32) {
    for index in 0..count {
        // SAFETY: `index < count`.
        unsafe { destination.add(index).write(f32::from(source.add(index).read())) };
    }
}

/// # Safety
/// `source` holds `rows` panel rows, `destination` has room for half as many, rounded up, of pairs.
#[inline(always)]
pub(super) unsafe fn pair_i8<S: Simd>(source: *const i8, rows: usize, destination: *mut u16) {
    let width = 2 * S::LANES;
    for pair in 0..rows.div_ceil(2) {
        for col in 0..width {
            // SAFETY: the rows read are below `rows`, the pairs written within the destination.
            unsafe {
                let at = |row: usize| {
                    if row < rows { f32::from(source.add(row * width + col).read()) } else { 0.0 }
                };
                let to = destination.add(2 * (pair * width + col));
                to.write(bf16_from_f32(at(2 * pair)));
                to.add(1).write(bf16_from_f32(at(2 * pair + 1)));
            }
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
