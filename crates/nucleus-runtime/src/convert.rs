//! Conversion between the stored float formats, used when weights and inputs are bound.
//!
//! Everything goes through `f32`, which holds every `bf16` and `f16` exactly, so each conversion rounds at
//! most once: to nearest, ties to even (IEEE 754-2019, 4.3.1). NaN stays NaN and infinities stay infinite.
//! Byte slices need no alignment: tensors in a mapped file start wherever its header says.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use nucleus_ir::DType;
use thiserror::Error;

/// Why a conversion was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// One side is not a float format.
    #[error("cannot convert {from} to {to}: both must be f32, bf16 or f16")]
    NotFloat {
        /// Dtype of the source.
        from: DType,
        /// Dtype of the destination.
        to: DType,
    },
    /// The slices do not hold the same number of whole elements.
    #[error(
        "cannot convert {from_bytes} bytes of {from} into {to_bytes} bytes of {to}: the element counts differ"
    )]
    Length {
        /// Dtype of the source.
        from: DType,
        /// Bytes in the source.
        from_bytes: usize,
        /// Dtype of the destination.
        to: DType,
        /// Bytes in the destination.
        to_bytes: usize,
    },
}

/// Elements converted at a time: two such blocks stay in the first-level cache.
const BLOCK: usize = 1024;

/// Rounds `value` to the nearest `bf16`, ties to even, without a branch, so that loops over it vectorise.
#[inline(always)]
fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    // A NaN whose payload sits in the low half would round to infinity: keep the upper half, made quiet.
    let quiet = (bits >> 16) as u16 | 0x0040;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }
}

/// Widens `src` into `dst`.
///
/// # Panics
/// When the lengths differ.
pub fn bf16_to_f32(src: &[bf16], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "bf16_to_f32: lengths differ");
    for (to, from) in dst.iter_mut().zip(src) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// Rounds `src` into `dst`.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_bf16(src: &[f32], dst: &mut [bf16]) {
    assert_eq!(src.len(), dst.len(), "f32_to_bf16: lengths differ");
    for (to, from) in dst.iter_mut().zip(src) {
        *to = bf16::from_bits(round_to_bf16(*from));
    }
}

/// Widens `src` into `dst`.
///
/// # Panics
/// When the lengths differ.
pub fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    src.convert_to_f32_slice(dst);
}

/// Rounds `src` into `dst`; what `f16` cannot hold becomes infinite.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    dst.convert_from_f32_slice(src);
}

/// Reads little-endian elements of float dtype `from` as `f32`.
///
/// # Errors
/// `from` is not a float, or `src` does not hold exactly `dst.len()` elements.
pub fn load_f32(from: DType, src: &[u8], dst: &mut [f32]) -> Result<(), ConvertError> {
    check(from, src.len(), DType::F32, dst.len().saturating_mul(4))?;
    load_checked(from, src, dst);
    Ok(())
}

/// Writes `src` as little-endian elements of float dtype `to`.
///
/// # Errors
/// `to` is not a float, or `dst` does not hold exactly `src.len()` elements.
pub fn store_f32(src: &[f32], to: DType, dst: &mut [u8]) -> Result<(), ConvertError> {
    check(DType::F32, src.len().saturating_mul(4), to, dst.len())?;
    store_checked(src, to, dst);
    Ok(())
}

/// Converts little-endian elements of float dtype `from` to float dtype `to`; equal dtypes copy the bits.
///
/// # Errors
/// A dtype that is not a float, or slices of different element counts.
pub fn convert(from: DType, src: &[u8], to: DType, dst: &mut [u8]) -> Result<(), ConvertError> {
    check(from, src.len(), to, dst.len())?;
    if from == to {
        dst.copy_from_slice(src);
        return Ok(());
    }
    let mut block = [0f32; BLOCK];
    for (src, dst) in src.chunks(BLOCK * from.size()).zip(dst.chunks_mut(BLOCK * to.size())) {
        let values = &mut block[..src.len() / from.size()];
        load_checked(from, src, values);
        store_checked(values, to, dst);
    }
    Ok(())
}

fn check(from: DType, from_bytes: usize, to: DType, to_bytes: usize) -> Result<(), ConvertError> {
    if !from.is_float() || !to.is_float() {
        return Err(ConvertError::NotFloat { from, to });
    }
    let whole = from_bytes.is_multiple_of(from.size()) && to_bytes.is_multiple_of(to.size());
    if !whole || from_bytes / from.size() != to_bytes / to.size() {
        return Err(ConvertError::Length { from, from_bytes, to, to_bytes });
    }
    Ok(())
}

/// `from` is a float and the lengths agree.
fn load_checked(from: DType, src: &[u8], dst: &mut [f32]) {
    match from {
        DType::F32 => bytemuck::cast_slice_mut(dst).copy_from_slice(src),
        DType::Bf16 => {
            for (to, from) in dst.iter_mut().zip(src.chunks_exact(2)) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes([from[0], from[1]])) << 16);
            }
        }
        DType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for (dst, src) in dst.chunks_mut(BLOCK).zip(src.chunks(BLOCK * 2)) {
                let aligned = &mut block[..dst.len()];
                bytemuck::cast_slice_mut(aligned).copy_from_slice(src);
                aligned.convert_to_f32_slice(dst);
            }
        }
        DType::I32 | DType::Bool | DType::I8 => unreachable!("checked by the caller: a float"),
    }
}

/// `to` is a float and the lengths agree.
fn store_checked(src: &[f32], to: DType, dst: &mut [u8]) {
    match to {
        DType::F32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
        DType::Bf16 => {
            for (to, from) in dst.chunks_exact_mut(2).zip(src) {
                to.copy_from_slice(&round_to_bf16(*from).to_le_bytes());
            }
        }
        DType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for (dst, src) in dst.chunks_mut(BLOCK * 2).zip(src.chunks(BLOCK)) {
                let aligned = &mut block[..src.len()];
                aligned.convert_from_f32_slice(src);
                dst.copy_from_slice(bytemuck::cast_slice(aligned));
            }
        }
        DType::I32 | DType::Bool | DType::I8 => unreachable!("checked by the caller: a float"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_survives_the_way_through_f32() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0f32; all.len()];
        bf16_to_f32(&all, &mut wide);
        let mut back = vec![bf16::ZERO; all.len()];
        f32_to_bf16(&wide, &mut back);
        for (a, b) in all.iter().zip(&back) {
            if a.is_nan() {
                assert!(b.is_nan(), "{:04x}", a.to_bits());
            } else {
                assert_eq!(a.to_bits(), b.to_bits());
            }
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        // Every upper half with the low halves around the tie, and NaN payloads that live in the low half only.
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(round_to_bf16(value), bf16::from_f32(value).to_bits(), "{:08x}", value.to_bits());
            }
        }
    }

    #[test]
    fn every_f16_survives_the_way_through_f32() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut wide = vec![0f32; all.len() / 2];
        load_f32(DType::F16, &all, &mut wide).unwrap();
        let mut back = vec![0u8; all.len()];
        store_f32(&wide, DType::F16, &mut back).unwrap();
        for (a, b) in all.chunks(2).zip(back.chunks(2)) {
            let (a, b) = (u16::from_le_bytes([a[0], a[1]]), u16::from_le_bytes([b[0], b[1]]));
            if f16::from_bits(a).is_nan() {
                assert!(f16::from_bits(b).is_nan(), "{a:04x}");
            } else {
                assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn f16_rounds_to_nearest_even() {
        // 2048 is the first value at which f16 has a spacing of 2.
        let values = [2049.0, 2051.0, 65519.9, 65520.0, 1e-8];
        let mut out = [f16::ZERO; 5];
        f32_to_f16(&values, &mut out);
        assert_eq!(out.map(f16::to_f32), [2048.0, 2052.0, 65504.0, f32::INFINITY, 0.0]);
    }

    #[test]
    fn all_pairs_convert_from_unaligned_bytes() {
        let values: Vec<f32> = (0..3000).map(|i| (i as f32 - 1500.0) * 0.25).collect();
        let floats = [DType::F32, DType::Bf16, DType::F16];
        for from in floats {
            let mut src = vec![0u8; 1 + values.len() * from.size()];
            store_f32(&values, from, &mut src[1..]).unwrap();
            for to in floats {
                let mut dst = vec![0u8; 1 + values.len() * to.size()];
                convert(from, &src[1..], to, &mut dst[1..]).unwrap();
                for (i, value) in values.iter().enumerate() {
                    let through = |x: f32, d: DType| match d {
                        DType::Bf16 => bf16::from_f32(x).to_f32(),
                        DType::F16 => f16::from_f32(x).to_f32(),
                        _ => x,
                    };
                    let mut got = [0f32];
                    load_f32(to, &dst[1 + i * to.size()..][..to.size()], &mut got).unwrap();
                    assert_eq!(got[0], through(through(*value, from), to), "{from} to {to}, element {i}");
                }
            }
        }
    }

    #[test]
    fn refusals_name_the_sides() {
        let error = convert(DType::I32, &[0; 4], DType::F32, &mut [0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "cannot convert i32 to f32: both must be f32, bf16 or f16");
        let error = convert(DType::Bf16, &[0; 3], DType::F32, &mut [0; 4]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot convert 3 bytes of bf16 into 4 bytes of f32: the element counts differ"
        );
    }
}
