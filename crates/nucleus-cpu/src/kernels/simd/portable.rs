//! Plain loops over four lanes, which compilers turn into whatever the target has.

use super::attention::{F32Words, attention_table};
use super::{Simd, kernel_table};

#[derive(Clone, Copy)]
struct Portable;

/// Adding and subtracting it rounds to an integer: at this size the last place is worth 1.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> [f32; 4] {
        // SAFETY: the caller owns the address.
        unsafe { source.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, value: [f32; 4]) {
        // SAFETY: the caller owns the address.
        unsafe { destination.cast::<[f32; 4]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_pairs(source: *const u32) -> ([f32; 4], [f32; 4]) {
        // SAFETY: the caller owns the address.
        let pairs = unsafe { source.cast::<[u32; 4]>().read_unaligned() };
        (lanes(|i| f32::from_bits(pairs[i] << 16)), lanes(|i| f32::from_bits(pairs[i] & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Two roundings: a fused multiply-add would be a library call where the machine has none.
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn split_power(t: [f32; 4]) -> ([f32; 4], [f32; 4]) {
        let floor = lanes(|i| {
            // The rounding is right for small numbers only; below -126 the result vanishes anyway. NaN stays.
            let t = if t[i] < -200.0 { -200.0 } else { t[i] };
            let nearest = (t + ROUNDER) - ROUNDER;
            if nearest > t { nearest - 1.0 } else { nearest }
        });
        (floor, lanes(|i| t[i] - floor[i]))
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: [f32; 4], power: [f32; 4]) -> [f32; 4] {
        lanes(|i| {
            let scaled = a[i] * f32::from_bits(((power[i] as i32 + 127) << 23).cast_unsigned());
            if power[i] < -126.0 { 0.0 } else { scaled }
        })
    }
}

#[cfg(target_arch = "x86_64")]
kernel_table!(KERNELS, Portable, "sse2", rows: [1 2 3 4], None, None);
#[cfg(target_arch = "x86_64")]
attention_table!(ATTENTION, F32Words<Portable>, "sse2", rows: [1 2 3 4]);
#[cfg(target_arch = "aarch64")]
kernel_table!(KERNELS, Portable, "neon", rows: [1 2 3 4], None, None);
#[cfg(target_arch = "aarch64")]
attention_table!(ATTENTION, F32Words<Portable>, "neon", rows: [1 2 3 4]);
