//! Vector code: one small trait over the machine's registers, the loops written against it, and a table of the
//! loops compiled for each instruction set.

mod attention;
mod attention_grad;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod combination;
mod copy;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod softmax;
mod tile;

use super::combination::{MOST_OUTPUTS, MOST_TERMS};
use super::element::{Operand, bf16_from_f32, f32_from_bf16, round_to_bf16};
use super::isa::Isa;
pub(super) use attention::{AttentionKernels, PanelTile, Transpose};
pub(super) use attention_grad::{Factors, ScoreGradients, SlopeBlock};
pub(super) use combination::CombineFn;
pub(super) use copy::{CopyArgs, CopyFn, PairArgs};
pub(super) use softmax::SoftmaxBlock;

/// A register of f32 lanes. Every function must be inlined into one compiled for the instruction set, which is
/// what makes them unsafe to call elsewhere.
trait Simd: Copy {
    type V: Copy;
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self::V;
    /// No alignment is assumed here or in `store`.
    unsafe fn load(source: *const f32) -> Self::V;
    unsafe fn store(destination: *mut f32, value: Self::V);
    /// Loads `LANES` pairs of bf16: the lower halves and the upper halves, as f32.
    unsafe fn load_pairs(source: *const u32) -> (Self::V, Self::V);
    /// Loads `LANES` i8 as f32.
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> Self::V {
        let mut values = [0.0; 16];
        debug_assert!(Self::LANES <= values.len(), "wider registers need their own");
        // SAFETY: the caller owns `LANES` bytes; the values are as many.
        unsafe {
            for (at, value) in values.iter_mut().enumerate().take(Self::LANES) {
                *value = f32::from(source.add(at).read());
            }
            Self::load(values.as_ptr())
        }
    }
    /// Hints that the cache line at `address`, which need not be readable, will be read soon.
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
    /// The same, very soon: into the first-level cache.
    #[inline(always)]
    unsafe fn prefetch_near(_address: *const u8) {}
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, with one rounding where the machine can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// For t ≤ 0: a power for [`Simd::scale_by_power`] that stands for ⌊t⌋, and t - ⌊t⌋. What the latter is where ⌊t⌋ is
    /// below -126 does not matter.
    unsafe fn split_power(t: Self::V) -> (Self::V, Self::V);
    /// `a * 2^power` for a in 1..=2. Below -126 it may be zero, for -∞ it is, and for NaN it is NaN.
    unsafe fn scale_by_power(a: Self::V, power: Self::V) -> Self::V;
    /// Each lane a pair of bf16: the upper half of `lower`'s bits, and above it the upper half of `upper`'s.
    unsafe fn pairs(lower: Self::V, upper: Self::V) -> Self::V {
        let mut lanes = [[0u32; 16]; 2];
        // SAFETY: no register has more than 16 lanes; the rest is the caller's promise.
        unsafe {
            Self::store(lanes[0].as_mut_ptr().cast(), lower);
            Self::store(lanes[1].as_mut_ptr().cast(), upper);
            let [lower, upper] = &mut lanes;
            lower
                .iter_mut()
                .zip(upper)
                .for_each(|(lower, upper)| *lower = *lower >> 16 | *upper & 0xffff_0000);
            Self::load(lanes[0].as_ptr().cast())
        }
    }
    /// The nearest bf16 of each lane, as f32.
    unsafe fn round_to_bf16(value: Self::V) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: no register has more than 16 lanes; the rest is the caller's promise.
        unsafe {
            Self::store(lanes.as_mut_ptr(), value);
            lanes.iter_mut().for_each(|lane| *lane = round_to_bf16(*lane));
            Self::load(lanes.as_ptr())
        }
    }
    /// Loads `LANES` bf16 as f32.
    unsafe fn load_bf16(source: *const u16) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: no register has more than 16 lanes; the rest is the caller's promise.
        unsafe {
            for (at, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
                *lane = f32_from_bf16(source.add(at).read_unaligned());
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// Stores the nearest bf16 of each lane.
    unsafe fn store_bf16(destination: *mut u16, value: Self::V) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: no register has more than 16 lanes; the rest is the caller's promise.
        unsafe {
            Self::store(lanes.as_mut_ptr(), value);
            for (at, lane) in lanes.iter().enumerate().take(Self::LANES) {
                destination.add(at).write_unaligned(bf16_from_f32(*lane));
            }
        }
    }
    /// The upper halves of both registers' bits, one lane behind the other.
    unsafe fn halves(values: [Self::V; 2]) -> Self::V {
        let (mut words, mut halves) = ([0u32; 32], [0u16; 32]);
        // SAFETY: no two registers have more than 32 lanes; the rest is the caller's promise.
        unsafe {
            Self::store(words.as_mut_ptr().cast(), values[0]);
            Self::store(words.as_mut_ptr().add(Self::LANES).cast(), values[1]);
            halves.iter_mut().zip(words).for_each(|(half, word)| *half = (word >> 16) as u16);
            Self::load(halves.as_ptr().cast())
        }
    }
    /// Transposes `LANES` × `LANES` words, which need not be aligned; strides are in words. Here as in the overrides, the two sides do not overlap.
    #[inline(always)]
    unsafe fn transpose(
        source: *const u32,
        source_stride: usize,
        destination: *mut u32,
        destination_stride: usize,
    ) {
        for col in 0..Self::LANES {
            for row in 0..Self::LANES {
                // SAFETY: within the two squares, which the caller owns.
                unsafe {
                    let word = source.add(row * source_stride + col).read_unaligned();
                    destination.add(col * destination_stride + row).write_unaligned(word);
                }
            }
        }
    }
}

/// `c[r][j] (+)= Σ_s a[r][s] · b[s][j]` over `steps` words for a fixed number of rows and one panel of columns.
///
/// A word is one f32, or a pair of bf16 with the lower k in the lower half.
pub(super) type TileFn = unsafe fn(&TileArgs);

/// The arguments of a [`TileFn`].
pub(super) struct TileArgs {
    /// Words of k in a; for widening kernels b has half as many, rounded up.
    pub(super) steps: usize,
    /// [rows, steps] words, `a_stride` from row to row.
    pub(super) a: *const u32,
    pub(super) a_stride: usize,
    /// [steps, panel columns] words.
    pub(super) b: *const u32,
    /// [rows, panel columns] f32s, `c_stride` from row to row.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Whether to add to c or to overwrite it.
    pub(super) add: bool,
    /// Memory that will be read soon. With every row of b a line of each is fetched.
    pub(super) ahead: [Ahead; 2],
}

/// A stream of memory that will be read soon; it need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) at: *const u8,
    /// Bytes to the line that is fetched next.
    pub(super) stride: usize,
}

/// The loops of one instruction set.
pub(super) struct Kernels {
    /// Columns of a panel of B.
    pub(super) panel_cols: usize,
    /// Tile kernels for 1, 2, … rows over f32 words.
    pub(super) f32_tiles: &'static [TileFn],
    /// The same for the first half of a panel's columns; the others are left alone.
    pub(super) f32_half_tiles: &'static [TileFn],
    /// Tile kernels whose a is f32 words and whose b is bf16 pairs.
    pub(super) widening_tiles: &'static [TileFn],
    /// Tile kernels whose a is f32 words and whose b is i8.
    pub(super) i8_tiles: &'static [TileFn],
    /// Tile kernels over bf16 pairs, where the machine multiplies them directly, for all of a panel's columns and for half of them.
    pub(super) bf16_tiles: Option<[&'static [TileFn]; 2]>,
    /// Turns `words` bf16 pairs, grouped by panel row, into twice as many panel rows of f32.
    pub(super) widen: unsafe fn(*const u32, usize, *mut f32),
    /// Turns `count` i8 into as many f32.
    pub(super) widen_i8: unsafe fn(*const i8, usize, *mut f32),
    /// Copies rows of f32 as they are.
    pub(super) copy_f32: CopyFn,
    /// Copies rows of bf16 as f32.
    pub(super) copy_bf16: CopyFn,
    /// Transposes f32.
    pub(super) transpose_f32: CopyFn,
    /// Transposes bf16 into f32.
    pub(super) transpose_bf16: CopyFn,
    /// Rounds `count` f32s to the nearest bf16, in place.
    pub(super) round: unsafe fn(*mut f32, usize),
    /// Turns twice `rows` panel rows of `cols` f32s into panel rows of bf16 pairs.
    pub(super) pair: unsafe fn(*const f32, usize, usize, *mut u32),
    /// Turns rows of bf16 into half as many rows of pairs.
    pub(super) pair_rows: unsafe fn(&PairArgs),
    /// Fetches `rows` stretches of `bytes` bytes, `stride` bytes apart, into the second-level cache.
    pub(super) prefetch_rows: unsafe fn(*const u8, usize, usize, usize),
    /// Turns panel rows of i8, `count` of them, into half as many panel rows of bf16 pairs, with zeros for a missing last.
    pub(super) pair_i8: unsafe fn(*const i8, usize, *mut u16),
    /// Fetches so many bytes from an address on into the second-level cache.
    pub(super) prefetch: unsafe fn(*const u8, usize),
    /// Linear combinations of 0, 1, 2 terms, to 1 or 2 outputs.
    pub(super) combine: [[CombineFn; MOST_OUTPUTS]; MOST_TERMS + 1],
    /// Row conversions: source, elements, destination.
    pub(super) f32_to_bf16: unsafe fn(*const f32, usize, *mut u16),
    pub(super) bf16_to_f32: unsafe fn(*const u16, usize, *mut f32),
    /// Independent multiply-adds in registers, `iterations` times; returns the number of floating-point operations.
    peak_f32: unsafe fn(usize) -> usize,
    peak_bf16: Option<unsafe fn(usize) -> usize>,
}

impl Kernels {
    /// The tile kernels that multiply `operand`, those for half of a panel's columns, and what one of their words holds.
    pub(super) fn tiles(&self, operand: Operand) -> ([&'static [TileFn]; 2], Operand) {
        match (operand, self.bf16_tiles) {
            (Operand::Bf16, Some(tiles)) => (tiles, Operand::Bf16),
            (Operand::Bf16, None) | (Operand::F32, _) => {
                ([self.f32_tiles, self.f32_half_tiles], Operand::F32)
            }
        }
    }
}

/// The table of `isa`. The functions in it may be called only if the machine has `isa`, which is why a value of
/// [`Isa`] is made from [`Isa::supported`] or [`Isa::named`]; one written by hand for another machine panics here.
pub(super) fn kernels(isa: Isa) -> &'static Kernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => &avx512::WITH_BF16,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::KERNELS,
        // The portable loops are right on every machine, so an instruction set of another architecture
        // needs no failure path.
        _ => &portable::KERNELS,
    }
}

/// The loops of attention for `isa` and `operand`, under the conditions of [`kernels`].
pub(super) fn attention_kernels(isa: Isa, operand: Operand) -> &'static AttentionKernels {
    match (isa, operand) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, Operand::Bf16) => &avx512::ATTENTION_BF16,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16 | Isa::Avx512, _) => &avx512::ATTENTION,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => &avx2::ATTENTION,
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, _) => &neon::ATTENTION,
        _ => &portable::ATTENTION,
    }
}

/// Runs multiply-adds that touch no memory, as a measure of what one thread of this machine can do in f32 (or, for
/// bf16 operands, with the instruction that its kernels use for them). Returns the floating-point operations done.
#[must_use]
pub fn peak(isa: Isa, operand: Operand, iterations: usize) -> usize {
    let table = kernels(isa);
    let run = match operand {
        Operand::F32 => table.peak_f32,
        Operand::Bf16 => table.peak_bf16.unwrap_or(table.peak_f32),
    };
    // SAFETY: the function only computes in registers, and `isa` is one that this machine has.
    unsafe { run(iterations) }
}

/// Hints that `bytes` bytes from `first` on, which need not be readable, will be read soon.
pub fn fetch(isa: Isa, first: *const u8, bytes: usize) {
    let start = first.addr() % 64;
    // SAFETY: a hint reads nothing, and `isa` is one that this machine has.
    unsafe { (kernels(isa).prefetch)(first.wrapping_sub(start), start + bytes) };
}

/// The table of one instruction set: the generic loops instantiated in functions compiled for its features.
macro_rules! kernel_table {
    ($name:ident, $simd:ty, $features:literal, rows: [$($rows:literal)*], $bf16:expr, $peak_bf16:expr) => {
        pub(super) static $name: $crate::kernels::simd::Kernels = {
            use $crate::kernels::element::Bf16Bits;
            use $crate::kernels::combination::Combination;
            use $crate::kernels::simd::{CopyArgs, PairArgs, Simd, TileArgs, combination, copy, tile};

            #[target_feature(enable = $features)]
            unsafe fn f32_tile<const ROWS: usize>(args: &TileArgs) {
                // SAFETY: passed on; this function is compiled for the features that the trait needs.
                unsafe { tile::multiply::<$simd, ROWS, 2>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn f32_half_tile<const ROWS: usize>(args: &TileArgs) {
                // SAFETY: passed on.
                unsafe { tile::multiply::<$simd, ROWS, 1>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn widening_tile<const ROWS: usize>(args: &TileArgs) {
                // SAFETY: passed on.
                unsafe { tile::multiply_widening::<$simd, ROWS>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn i8_tile<const ROWS: usize>(args: &TileArgs) {
                // SAFETY: passed on.
                unsafe { tile::multiply_i8::<$simd, ROWS>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn widen(source: *const u32, words: usize, destination: *mut f32) {
                // SAFETY: passed on.
                unsafe { tile::widen::<$simd>(source, words, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn widen_i8(source: *const i8, count: usize, destination: *mut f32) {
                // SAFETY: passed on.
                unsafe { tile::widen_i8(source, count, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn prefetch(first: *const u8, bytes: usize) {
                // SAFETY: passed on.
                unsafe { tile::prefetch::<$simd>(first, bytes) }
            }
            #[target_feature(enable = $features)]
            unsafe fn pair_i8(source: *const i8, rows: usize, destination: *mut u16) {
                // SAFETY: passed on.
                unsafe { tile::pair_i8::<$simd>(source, rows, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn f32_to_bf16(source: *const f32, count: usize, destination: *mut u16) {
                // SAFETY: passed on.
                unsafe { tile::f32_to_bf16(source, count, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn bf16_to_f32(source: *const u16, count: usize, destination: *mut f32) {
                // SAFETY: passed on.
                unsafe { tile::bf16_to_f32(source, count, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn copy_f32(args: &CopyArgs) {
                // SAFETY: passed on.
                unsafe { copy::copy::<$simd, f32>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn copy_bf16(args: &CopyArgs) {
                // SAFETY: passed on.
                unsafe { copy::copy::<$simd, Bf16Bits>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn transpose_f32(args: &CopyArgs) {
                // SAFETY: passed on.
                unsafe { copy::transpose::<$simd, f32>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn transpose_bf16(args: &CopyArgs) {
                // SAFETY: passed on.
                unsafe { copy::transpose::<$simd, Bf16Bits>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn round(values: *mut f32, count: usize) {
                // SAFETY: passed on.
                unsafe { copy::round(values, count) }
            }
            #[target_feature(enable = $features)]
            unsafe fn pair(source: *const f32, rows: usize, cols: usize, destination: *mut u32) {
                // SAFETY: passed on.
                unsafe { copy::pair(source, rows, cols, destination) }
            }
            #[target_feature(enable = $features)]
            unsafe fn combine<const TERMS: usize, const OUTPUTS: usize>(arguments: &Combination) {
                // SAFETY: passed on.
                unsafe { combination::combine::<$simd, TERMS, OUTPUTS>(arguments) }
            }
            #[target_feature(enable = $features)]
            unsafe fn pair_rows(args: &PairArgs) {
                // SAFETY: passed on.
                unsafe { copy::pair_rows(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn prefetch_rows(first: *const u8, stride: usize, rows: usize, bytes: usize) {
                // SAFETY: passed on.
                unsafe { copy::prefetch_rows::<$simd>(first, stride, rows, bytes) }
            }
            #[target_feature(enable = $features)]
            unsafe fn peak_f32(iterations: usize) -> usize {
                // SAFETY: passed on.
                unsafe { tile::peak::<$simd>(iterations) }
            }
            $crate::kernels::simd::Kernels {
                panel_cols: 2 * <$simd as Simd>::LANES,
                f32_tiles: &[$(f32_tile::<$rows>),*],
                f32_half_tiles: &[$(f32_half_tile::<$rows>),*],
                widening_tiles: &[$(widening_tile::<$rows>),*],
                i8_tiles: &[$(i8_tile::<$rows>),*],
                bf16_tiles: $bf16,
                widen,
                widen_i8,
                copy_f32,
                copy_bf16,
                transpose_f32,
                transpose_bf16,
                round,
                pair,
                pair_rows,
                combine: [
                    [combine::<0, 1>, combine::<0, 2>],
                    [combine::<1, 1>, combine::<1, 2>],
                    [combine::<2, 1>, combine::<2, 2>],
                ],
                prefetch_rows,
                pair_i8,
                prefetch,
                f32_to_bf16,
                bf16_to_f32,
                peak_f32,
                peak_bf16: $peak_bf16,
            }
        };
    };
}
use kernel_table;
