//! Scalar types in memory, and the one place where they are converted.

use half::{bf16, f16};

/// A floating-point type as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// The upper half of an [`Element::F32`].
    Bf16,
    /// IEEE binary16.
    F16,
    /// An 8-bit signed integer, as quantised weights are stored.
    I8,
}

impl Element {
    /// Size in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::I8 => 1,
        }
    }
}

/// The type a kernel multiplies in; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// f32 × f32.
    F32,
    /// bf16 × bf16: products are exact in f32.
    Bf16,
}

impl Operand {
    /// The stored type of the same values.
    #[must_use]
    pub const fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::Bf16 => Element::Bf16,
        }
    }
}

/// Rounds to nearest, ties to even; a NaN keeps its sign and becomes quiet. Free of branches, so that loops over
/// it become vector code.
#[inline(always)]
#[must_use]
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded }
}

/// Exact.
#[inline(always)]
#[must_use]
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Reads one element as f32.
///
/// # Safety
/// `data` must point to `index + 1` readable elements of type `element`; they need not be aligned.
#[inline(always)]
#[must_use]
pub unsafe fn load_f32(data: *const u8, element: Element, index: usize) -> f32 {
    // SAFETY: the caller vouches for `index`.
    unsafe {
        match element {
            Element::F32 => f32::read(data, index),
            Element::Bf16 => Bf16Bits::read(data, index).to_f32(),
            Element::F16 => F16Bits::read(data, index).to_f32(),
            Element::I8 => i8::read(data, index).to_f32(),
        }
    }
}

/// Writes one f32 as `element`, rounded to nearest, ties to even; bytes saturate.
///
/// # Safety
/// `data` must point to `index + 1` writable elements of type `element`; they need not be aligned.
#[inline(always)]
pub unsafe fn store_f32(data: *mut u8, element: Element, index: usize, value: f32) {
    // SAFETY: the caller vouches for `index`.
    unsafe {
        match element {
            Element::F32 => data.cast::<f32>().add(index).write_unaligned(value),
            Element::Bf16 => data.cast::<u16>().add(index).write_unaligned(bf16_from_f32(value)),
            Element::F16 => data.cast::<u16>().add(index).write_unaligned(f16::from_f32(value).to_bits()),
            Element::I8 => data.cast::<i8>().add(index).write(value.round_ties_even() as i8),
        }
    }
}

/// Writes `count` contiguous values as `element`.
///
/// # Safety
/// `source` must point to `count` readable values and `data` to `count` writable elements that do not overlap them.
pub(super) unsafe fn store_row(source: *const f32, count: usize, data: *mut u8, element: Element) {
    // SAFETY: the caller vouches for both ranges.
    unsafe {
        match element {
            Element::F32 => std::ptr::copy_nonoverlapping(source.cast::<u8>(), data, 4 * count),
            Element::Bf16 => (0..count).for_each(|i| store_f32(data, Element::Bf16, i, *source.add(i))),
            Element::F16 | Element::I8 => {
                (0..count).for_each(|i| store_f32(data, element, i, *source.add(i)))
            }
        }
    }
}

/// A stored type as a Rust type, so that conversion loops are compiled once for each.
pub(super) trait Stored: Copy {
    /// Whether [`Stored::to_f32`] changes nothing.
    const IS_F32: bool = false;

    fn to_f32(self) -> f32;

    /// Reads element `index`.
    ///
    /// # Safety
    /// `data` must point to `index + 1` readable elements of this type, aligned or not.
    #[inline(always)]
    unsafe fn read(data: *const u8, index: usize) -> Self {
        // SAFETY: the caller vouches for the range.
        unsafe { data.cast::<Self>().add(index).read_unaligned() }
    }
}

impl Stored for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16Bits(u16);

impl Stored for Bf16Bits {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32_from_bf16(self.0)
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F16Bits(u16);

impl Stored for F16Bits {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::from_bits(self.0).to_f32()
    }
}

impl Stored for i8 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

/// Rounds to the nearest bf16 and back.
#[inline(always)]
pub(super) fn round_to_bf16(value: f32) -> f32 {
    f32_from_bf16(bf16_from_f32(value))
}

const _: () = assert!(size_of::<bf16>() == 2 && size_of::<f16>() == 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_agrees_with_half_on_every_upper_half_and_around_ties() {
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(bf16_from_f32(value), bf16::from_f32(value).to_bits(), "{:#x}", value.to_bits());
            }
            let exact = f32::from_bits(u32::from(upper) << 16);
            assert_eq!(f32_from_bf16(upper).to_bits(), exact.to_bits());
        }
    }

    #[test]
    fn stored_values_come_back() {
        for element in [Element::F32, Element::Bf16, Element::F16] {
            // One byte off: nothing here may assume alignment.
            let mut bytes = [0u8; 17];
            for (index, value) in [1.0f32, -0.375, f32::INFINITY, 0.0].into_iter().enumerate() {
                // SAFETY: four elements of at most four bytes fit behind the first byte.
                unsafe {
                    store_f32(bytes.as_mut_ptr().add(1), element, index, value);
                    assert_eq!(load_f32(bytes.as_ptr().add(1), element, index), value);
                }
            }
        }
    }

    #[test]
    fn bytes_widen_exactly_and_saturate() {
        for value in i8::MIN..=i8::MAX {
            assert_eq!(f32_from_bf16(bf16_from_f32(f32::from(value))), f32::from(value));
        }
        let mut bytes = [0u8; 4];
        for (index, value) in [-300.0f32, 2.5, 3.5, 300.0].into_iter().enumerate() {
            // SAFETY: four elements of one byte.
            unsafe { store_f32(bytes.as_mut_ptr(), Element::I8, index, value) };
        }
        assert_eq!(bytes.map(|byte| byte as i8), [-128, 2, 4, 127]);
    }
}
