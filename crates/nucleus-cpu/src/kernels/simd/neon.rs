//! 64-bit Arm: 32 registers of 4 lanes; 8 rows × 2 registers of sums.

use std::arch::aarch64::*;

use super::attention::{F32Words, attention_table};
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
    unsafe fn split_power(t: float32x4_t) -> (float32x4_t, float32x4_t) {
        // SAFETY: NEON is on in the caller.
        unsafe {
            let floor = vrndmq_f32(t);
            (floor, vsubq_f32(t, floor))
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: float32x4_t, power: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is on in the caller.
        unsafe {
            let exponent = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(power), vdupq_n_s32(127)));
            let scaled = vmulq_f32(a, vreinterpretq_f32_s32(exponent));
            // Cleared only where certainly less, so that NaN stays.
            let vanishes = vcltq_f32(power, vdupq_n_f32(-126.0));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(scaled), vanishes))
        }
    }
}

kernel_table!(KERNELS, Neon, "neon", rows: [1 2 3 4 5 6 7 8], None, None);
attention_table!(ATTENTION, F32Words<Neon>, "neon", rows: [1 2 3 4 5 6 7 8]);
