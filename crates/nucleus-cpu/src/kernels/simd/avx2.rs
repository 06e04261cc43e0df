//! AVX2 and FMA: 16 registers of 8 lanes; 6 rows × 2 registers of sums, two registers of B, one of A.

use std::arch::x86_64::*;

use super::{Simd, kernel_table};

#[derive(Clone, Copy)]
struct Avx2;

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m256 {
        // SAFETY: AVX2 is on in the caller, which owns the address.
        unsafe { _mm256_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, value: __m256) {
        // SAFETY: AVX2 is on in the caller, which owns the address.
        unsafe { _mm256_storeu_ps(destination, value) }
    }
    #[inline(always)]
    unsafe fn load_pairs(source: *const u32) -> (__m256, __m256) {
        // SAFETY: AVX2 is on in the caller, which owns the address.
        unsafe {
            let pairs = _mm256_loadu_si256(source.cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(upper))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> __m256 {
        // SAFETY: AVX2 is on in the caller, which owns the address.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(source.cast()))) }
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a hint, even for an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: FMA is on in the caller.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: __m256, n: __m256) -> __m256 {
        // Two factors, because one power of two cannot reach the subnormal results.
        // SAFETY: AVX2 is on in the caller.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power =
                |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
            _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }
}

kernel_table!(KERNELS, Avx2, "avx2,fma", rows: [1 2 3 4 5 6], None, None);
