//! The loop of linear combinations, for fixed numbers of terms and outputs.

use super::Simd;
use crate::kernels::combination::{Combination, Output, Term};
use crate::kernels::element::{Element, bf16_from_f32, f32_from_bf16};

/// Computes a combination of so many terms and outputs.
pub(in crate::kernels) type CombineFn = unsafe fn(&Combination);

/// How many rows ahead stored matrices are fetched: they may come from memory, in pieces of rows that are too short for the machine to see a pattern.
const AHEAD: usize = 8;

/// Every operation rounds, in registers as one by one, so that no bit depends on where a tile of columns ends.
///
/// # Safety
/// As for [`combine`](crate::kernels::combination::combine); there are `TERMS` terms and `OUTPUTS` outputs.
#[inline(always)]
pub(super) unsafe fn combine<S: Simd, const TERMS: usize, const OUTPUTS: usize>(combination: &Combination) {
    let Combination { rows, cols, sums, sums_stride, sum_factor, .. } = *combination;
    // SAFETY: rows below `rows`, columns below `cols`.
    unsafe {
        let whole = cols / S::LANES * S::LANES;
        let of_sums = S::splat(sum_factor);
        for row in 0..rows {
            let sums = sums.wrapping_add(row * sums_stride);
            for col in (0..whole).step_by(S::LANES) {
                let mut value = S::mul(of_sums, S::load(sums.add(col)));
                for term in combination.terms.iter().take(TERMS) {
                    let at = element_of(term, row, col);
                    S::prefetch_near(element_of(term, row + AHEAD, col));
                    let stored = match term.element {
                        Element::Bf16 => S::load_bf16(at.cast()),
                        _ => S::load(at.cast()),
                    };
                    value = S::add(value, S::mul(S::splat(term.factor), stored));
                }
                for output in combination.outputs.iter().take(OUTPUTS) {
                    let (at, scaled) = (place_of(output, row, col), S::mul(S::splat(output.factor), value));
                    match output.element {
                        Element::Bf16 => S::store_bf16(at.cast(), scaled),
                        _ => S::store(at.cast(), scaled),
                    }
                }
            }
            for col in whole..cols {
                let mut value = sum_factor * *sums.add(col);
                for term in combination.terms.iter().take(TERMS) {
                    let at = element_of(term, row, col);
                    let stored = match term.element {
                        Element::Bf16 => f32_from_bf16(at.cast::<u16>().read_unaligned()),
                        _ => at.cast::<f32>().read_unaligned(),
                    };
                    value += term.factor * stored;
                }
                for output in combination.outputs.iter().take(OUTPUTS) {
                    let (at, scaled) = (place_of(output, row, col), output.factor * value);
                    match output.element {
                        Element::Bf16 => at.cast::<u16>().write_unaligned(bf16_from_f32(scaled)),
                        _ => at.cast::<f32>().write_unaligned(scaled),
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn element_of(term: &Term, row: usize, col: usize) -> *const u8 {
    let at = (row as isize).wrapping_mul(term.row_stride).wrapping_add(col as isize);
    term.data.wrapping_offset(at.wrapping_mul(term.element.size() as isize))
}

#[inline(always)]
fn place_of(output: &Output, row: usize, col: usize) -> *mut u8 {
    let at = (row as isize).wrapping_mul(output.row_stride).wrapping_add(col as isize);
    output.data.wrapping_offset(at.wrapping_mul(output.element.size() as isize))
}
