//! AVX-512: 32 registers of 16 lanes; 12 rows × 2 registers of sums, two registers of B, one of A.

use std::arch::x86_64::*;

use super::attention::{F32Words, Words, attention_table};
use super::{Simd, TileArgs, TileFn, kernel_table, tile};
use crate::kernels::element::Operand;

#[derive(Clone, Copy)]
struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m512 {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe { _mm512_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, value: __m512) {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe { _mm512_storeu_ps(destination, value) }
    }
    #[inline(always)]
    unsafe fn load_pairs(source: *const u32) -> (__m512, __m512) {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe {
            let pairs = _mm512_loadu_si512(source.cast());
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(upper))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> __m512 {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(source.cast()))) }
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a hint, even for an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_near(address: *const u8) {
        // SAFETY: a hint, even for an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn split_power(t: __m512) -> (__m512, __m512) {
        // The scaling below takes the floor itself. The remainder of -∞ is 0.
        // SAFETY: AVX-512 is on in the caller.
        unsafe { (t, _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(t)) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: __m512, power: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_scalef_ps(a, power) }
    }
    #[inline(always)]
    unsafe fn pairs(lower: __m512, upper: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe {
            let lower = _mm512_srli_epi32::<16>(_mm512_castps_si512(lower));
            _mm512_castsi512_ps(_mm512_mask_mov_epi16(lower, 0xaaaa_aaaa, _mm512_castps_si512(upper)))
        }
    }
    #[inline(always)]
    unsafe fn round_to_bf16(value: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe {
            let bits = _mm512_castps_si512(value);
            let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
            // A NaN becomes quiet.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(rounded, upper))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> __m512 {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(destination: *mut u16, value: __m512) {
        // SAFETY: AVX-512 is on in the caller, which owns the address.
        unsafe {
            let upper = _mm512_srli_epi32::<16>(_mm512_castps_si512(Self::round_to_bf16(value)));
            _mm256_storeu_si256(destination.cast(), _mm512_cvtepi32_epi16(upper));
        }
    }
    #[inline(always)]
    unsafe fn halves(values: [__m512; 2]) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe {
            let [lower, upper] = values
                .map(|value| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(value))));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper))
        }
    }
    /// Four rows that stand four apart go into one register by quarters, so that two rounds of interleaving within quarters
    /// finish four columns.
    #[inline(always)]
    unsafe fn transpose(
        source: *const u32,
        source_stride: usize,
        destination: *mut u32,
        destination_stride: usize,
    ) {
        // SAFETY: AVX-512 is on in the caller, which owns both squares of 16 × 16 words.
        unsafe {
            for col in (0..16).step_by(4) {
                let mut rows = [_mm512_setzero_ps(); 4];
                for (row, register) in rows.iter_mut().enumerate() {
                    let quarter = source.add(row * source_stride + col).cast::<f32>();
                    let all = _mm512_castps128_ps512(_mm_loadu_ps(quarter));
                    let all = _mm512_insertf32x4::<1>(all, _mm_loadu_ps(quarter.add(4 * source_stride)));
                    let all = _mm512_insertf32x4::<2>(all, _mm_loadu_ps(quarter.add(8 * source_stride)));
                    *register = _mm512_insertf32x4::<3>(all, _mm_loadu_ps(quarter.add(12 * source_stride)));
                }
                let left = _mm512_castps_pd(_mm512_unpacklo_ps(rows[0], rows[1]));
                let left_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[0], rows[1]));
                let right = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2], rows[3]));
                let right_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2], rows[3]));
                let columns = [
                    _mm512_unpacklo_pd(left, right),
                    _mm512_unpackhi_pd(left, right),
                    _mm512_unpacklo_pd(left_high, right_high),
                    _mm512_unpackhi_pd(left_high, right_high),
                ];
                for (offset, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_pd(destination.add((col + offset) * destination_stride).cast(), column);
                }
            }
        }
    }
}

kernel_table!(KERNELS, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12], None, None);

kernel_table!(WITH_BF16, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12], Some(BF16_TILES), Some(peak_bf16));

attention_table!(ATTENTION, F32Words<Avx512>, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12]);

attention_table!(ATTENTION_BF16, PairWords, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12]);

/// Words of two bf16, multiplied directly.
struct PairWords;

impl Words for PairWords {
    type S = Avx512;
    const OPERAND: Operand = Operand::Bf16;

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: AVX-512-BF16 is on in the caller; both types are any 512 bits.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            _mm512_dpbf16_ps(sum, a, std::mem::transmute::<__m512, __m512bh>(b))
        }
    }
}

static BF16_TILES: [&[TileFn]; 2] = [
    &[
        bf16_tile::<1, 2>,
        bf16_tile::<2, 2>,
        bf16_tile::<3, 2>,
        bf16_tile::<4, 2>,
        bf16_tile::<5, 2>,
        bf16_tile::<6, 2>,
        bf16_tile::<7, 2>,
        bf16_tile::<8, 2>,
        bf16_tile::<9, 2>,
        bf16_tile::<10, 2>,
        bf16_tile::<11, 2>,
        bf16_tile::<12, 2>,
    ],
    &[
        bf16_tile::<1, 1>,
        bf16_tile::<2, 1>,
        bf16_tile::<3, 1>,
        bf16_tile::<4, 1>,
        bf16_tile::<5, 1>,
        bf16_tile::<6, 1>,
        bf16_tile::<7, 1>,
        bf16_tile::<8, 1>,
        bf16_tile::<9, 1>,
        bf16_tile::<10, 1>,
        bf16_tile::<11, 1>,
        bf16_tile::<12, 1>,
    ],
];

/// [`tile::multiply`] over bf16 pairs: each step adds two products to every sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize, const COLS: usize>(args: &TileArgs) {
    const WIDTH: usize = 2 * Avx512::LANES;
    // SAFETY: all addresses are within the ranges that `TileArgs` describes; __m512bh is any 512 bits.
    unsafe {
        let pairs = |value: __m512i| std::mem::transmute::<__m512i, __m512bh>(value);
        let mut ahead = args.ahead;
        let mut sums = [[_mm512_setzero_ps(); COLS]; ROWS];
        if args.add {
            for (row, sums) in sums.iter_mut().enumerate() {
                let c = args.c.add(row * args.c_stride);
                *sums = std::array::from_fn(|col| _mm512_loadu_ps(c.add(col * Avx512::LANES)));
            }
        }
        for step in 0..args.steps {
            let b = args.b.add(step * WIDTH);
            let b: [__m512bh; COLS] =
                std::array::from_fn(|col| pairs(_mm512_loadu_si512(b.add(col * Avx512::LANES).cast())));
            tile::fetch_ahead::<Avx512>(&mut ahead);
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = *args.a.add(row * args.a_stride + step);
                let value = pairs(_mm512_set1_epi32(value.cast_signed()));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, value, b);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let c = args.c.add(row * args.c_stride);
            for (col, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(col * Avx512::LANES), sum);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn peak_bf16(iterations: usize) -> usize {
    const CHAINS: usize = 12;
    // SAFETY: registers only; __m512bh is any 512 bits.
    unsafe {
        let factor: __m512bh = std::mem::transmute(_mm512_set1_epi32(std::hint::black_box(0x3f00_3f00)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        std::hint::black_box(sums);
    }
    iterations * CHAINS * Avx512::LANES * 4
}
