//! 64-bit Arm: 32 registers of 4 lanes; 8 rows × 2 registers of sums.

use std::arch::aarch64::*;

use super::{Simd, kernel_table};

#[derive(Clone, Copy)]
struct Neon;

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> float32x4_t {
        // SAFETY: NEON is on in the caller, which owns the address.
        unsafe { vld1q_f32(source) }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, value: float32x4_t) {
        // SAFETY: NEON is on in the caller, which owns the address.
        unsafe { vst1q_f32(destination, value) }
    }
    #[inline(always)]
    unsafe fn load_pairs(source: *const u32) -> (float32x4_t, float32x4_t) {
        // SAFETY: NEON is on in the caller, which owns the address.
        unsafe {
            let pairs = vld1q_u32(source);
            let upper = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
            (vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(upper))
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // The machine's own maximum returns NaN if either is; the trait asks for `b`.
        // SAFETY: NEON is on in the caller.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: float32x4_t, n: float32x4_t) -> float32x4_t {
        // Two factors, because one power of two cannot reach the subnormal results.
        // SAFETY: NEON is on in the caller.
        unsafe {
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(a, power(half)), power(vsubq_s32(n, half)))
        }
    }
}

kernel_table!(KERNELS, Neon, "neon", rows: [1 2 3 4 5 6 7 8], None, None);
