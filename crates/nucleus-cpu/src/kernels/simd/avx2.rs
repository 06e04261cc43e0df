//! AVX2 and FMA: 16 registers of 8 lanes; 6 rows × 2 registers of sums, two registers of B, one of A.

use std::arch::x86_64::*;

use super::attention::{F32Words, attention_table};
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
    unsafe fn prefetch_near(address: *const u8) {
        // SAFETY: a hint, even for an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
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
    unsafe fn split_power(t: __m256) -> (__m256, __m256) {
        // SAFETY: AVX2 is on in the caller.
        unsafe {
            let floor = _mm256_floor_ps(t);
            (floor, _mm256_sub_ps(t, floor))
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: __m256, power: __m256) -> __m256 {
        // SAFETY: AVX2 is on in the caller.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
            let scaled = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)));
            // Not less, so that NaN stays.
            _mm256_and_ps(scaled, _mm256_cmp_ps::<_CMP_NLT_UQ>(power, _mm256_set1_ps(-126.0)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(
        source: *const u32,
        source_stride: usize,
        destination: *mut u32,
        destination_stride: usize,
    ) {
        // SAFETY: AVX2 is on in the caller, which owns both squares of 8 × 8 words.
        unsafe {
            for col in [0, 4] {
                let mut rows = [_mm256_setzero_ps(); 4];
                for (row, register) in rows.iter_mut().enumerate() {
                    let half = source.add(row * source_stride + col).cast::<f32>();
                    *register =
                        _mm256_set_m128(_mm_loadu_ps(half.add(4 * source_stride)), _mm_loadu_ps(half));
                }
                let left = _mm256_castps_pd(_mm256_unpacklo_ps(rows[0], rows[1]));
                let left_high = _mm256_castps_pd(_mm256_unpackhi_ps(rows[0], rows[1]));
                let right = _mm256_castps_pd(_mm256_unpacklo_ps(rows[2], rows[3]));
                let right_high = _mm256_castps_pd(_mm256_unpackhi_ps(rows[2], rows[3]));
                let columns = [
                    _mm256_unpacklo_pd(left, right),
                    _mm256_unpackhi_pd(left, right),
                    _mm256_unpacklo_pd(left_high, right_high),
                    _mm256_unpackhi_pd(left_high, right_high),
                ];
                for (offset, column) in columns.into_iter().enumerate() {
                    _mm256_storeu_pd(destination.add((col + offset) * destination_stride).cast(), column);
                }
            }
        }
    }
}

kernel_table!(KERNELS, Avx2, "avx2,fma", rows: [1 2 3 4 5 6], None, None);
attention_table!(ATTENTION, F32Words<Avx2>, "avx2,fma", rows: [1 2 3 4 5 6]);
