//! AVX-512: 32 registers of 16 lanes; 12 rows × 2 registers of sums, two registers of B, one of A.

use std::arch::x86_64::*;

use super::{Simd, TileArgs, TileFn, kernel_table, tile};

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
    unsafe fn round(a: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: __m512, n: __m512) -> __m512 {
        // SAFETY: AVX-512 is on in the caller.
        unsafe { _mm512_scalef_ps(a, n) }
    }
}

kernel_table!(KERNELS, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12], None, None);

kernel_table!(WITH_BF16, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    rows: [1 2 3 4 5 6 7 8 9 10 11 12], Some(BF16_TILES), Some(peak_bf16));

static BF16_TILES: &[TileFn] = &[
    bf16_tile::<1>,
    bf16_tile::<2>,
    bf16_tile::<3>,
    bf16_tile::<4>,
    bf16_tile::<5>,
    bf16_tile::<6>,
    bf16_tile::<7>,
    bf16_tile::<8>,
    bf16_tile::<9>,
    bf16_tile::<10>,
    bf16_tile::<11>,
    bf16_tile::<12>,
];

/// [`tile::multiply`] over bf16 pairs: each step adds two products to every sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize>(args: &TileArgs) {
    const COLS: usize = 2 * Avx512::LANES;
    // SAFETY: all addresses are within the ranges that `TileArgs` describes; __m512bh is any 512 bits.
    unsafe {
        let pairs = |value: __m512i| std::mem::transmute::<__m512i, __m512bh>(value);
        let mut ahead = args.ahead;
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if args.add {
            for (row, sums) in sums.iter_mut().enumerate() {
                let c = args.c.add(row * args.c_stride);
                *sums = [_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16))];
            }
        }
        for step in 0..args.steps {
            let b = args.b.add(step * COLS);
            let left = pairs(_mm512_loadu_si512(b.cast()));
            let right = pairs(_mm512_loadu_si512(b.add(16).cast()));
            tile::fetch_ahead::<Avx512>(&mut ahead);
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = *args.a.add(row * args.a_stride + step);
                let value = pairs(_mm512_set1_epi32(value.cast_signed()));
                *sums = [_mm512_dpbf16_ps(sums[0], value, left), _mm512_dpbf16_ps(sums[1], value, right)];
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let c = args.c.add(row * args.c_stride);
            _mm512_storeu_ps(c, sums[0]);
            _mm512_storeu_ps(c.add(16), sums[1]);
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
