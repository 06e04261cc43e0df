//! Which elements accesses touch: the arithmetic of affine ones, and what the indices of others may be.

use crate::kernel::{Anchor, PartSlot};
use crate::scalar::{Access, ScalarFunction, Step};

/// The most points of an iteration space: sizes in bytes that follow from it, padded as the micro-kernels pad, fit 64 bits.
const MAX_POINTS: i64 = 1 << 48;

/// A scalar function of a kernel over the extents of one launch.
#[derive(Clone, Debug)]
pub struct Space<'a> {
    /// The slot.
    pub slot: String,
    /// The extent of every axis.
    pub extents: Vec<i64>,
    /// The function.
    pub function: &'a ScalarFunction,
}

/// Every function of an anchor with its iteration space at these size arguments.
pub fn spaces<'a>(anchor: &'a Anchor, sizes: &[i64]) -> Vec<Space<'a>> {
    let slots = anchor.slots().into_iter();
    slots
        .map(|(slot, extents, function)| {
            let mut extents: Vec<i64> = extents.iter().map(|extent| extent.value(sizes)).collect();
            if let Anchor::Matmul(c) | Anchor::GroupedMatmul(c) = anchor
                && let (Some((part, PartSlot::Right)), Some(last)) = (c.part_of(&slot), extents.last_mut())
            {
                *last = part.columns.value(sizes).saturating_mul(i64::from(part.segments));
            }
            Space { slot, extents, function }
        })
        .collect()
}

/// The number of points of a space, empty axes counted as 1; `None` if there are too many.
pub fn points(extents: &[i64]) -> Option<i64> {
    let count = |total: i64, extent: &i64| total.checked_mul((*extent).max(1));
    extents.iter().try_fold(1, count).filter(|&total| total <= MAX_POINTS)
}

/// The smallest and largest element an access touches over a space, or `None` if the space is empty.
pub fn range(access: &Access, extents: &[i64], sizes: &[i64]) -> Option<(i128, i128)> {
    if extents.iter().any(|&extent| extent <= 0) {
        return None;
    }
    let offset = i128::from(access.offset.value(sizes));
    let (mut low, mut high) = (offset, offset);
    for (stride, &extent) in access.strides.iter().zip(extents) {
        let reach = i128::from(stride.value(sizes)) * i128::from(extent - 1);
        if reach < 0 {
            low = low.saturating_add(reach);
        } else {
            high = high.saturating_add(reach);
        }
    }
    Some((low, high))
}

/// The accesses of a function: first those that are affine, index loads included, then the indirect ones.
pub fn split_accesses(function: &ScalarFunction) -> (Vec<&Access>, Vec<&Access>) {
    let (mut direct, mut indirect) = (Vec::new(), Vec::new());
    for step in &function.steps {
        let (Step::Load(access) | Step::Store { access, .. }) = step else { continue };
        match &access.indirect {
            Some(through) => {
                direct.push(&through.index);
                indirect.push(access);
            }
            None => direct.push(access),
        }
    }
    (direct, indirect)
}

/// The indices an indirect access may use: those that keep it inside a buffer of `elements` elements wherever it is in its space.
pub fn allowed_indices(
    access: &Access,
    stride: i64,
    extents: &[i64],
    sizes: &[i64],
    elements: i64,
) -> std::ops::Range<i64> {
    let Some((low, high)) = range(access, extents, sizes) else { return 0..i64::MAX };
    let last = i128::from(elements) - 1;
    if low < 0 || high > last {
        return 0..0;
    }
    if stride <= 0 {
        return if stride == 0 { 0..i64::MAX } else { 0..1 };
    }
    let largest = (last - high) / i128::from(stride);
    0..i64::try_from(largest + 1).unwrap_or(i64::MAX)
}

/// The first index that an access would load outside `allowed`.
/// `load` gives the elements of the index operand, of which it is asked for those that
/// the access touches over its space.
pub fn find_index_outside(
    index: &Access,
    extents: &[i64],
    sizes: &[i64],
    load: impl Fn(i64) -> i32,
    allowed: &std::ops::Range<i64>,
) -> Option<i64> {
    if extents.iter().any(|&extent| extent <= 0) {
        return None;
    }
    // Axes the index does not vary along would only repeat it.
    let axes: Vec<(i64, i64)> = index
        .strides
        .iter()
        .zip(extents)
        .map(|(stride, &extent)| (stride.value(sizes), extent))
        .filter(|&(stride, extent)| stride != 0 && extent > 1)
        .collect();
    let mut coordinates = vec![0i64; axes.len()];
    let mut element = index.offset.value(sizes);
    loop {
        let value = i64::from(load(element));
        if !allowed.contains(&value) {
            return Some(value);
        }
        let mut axis = axes.len();
        loop {
            if axis == 0 {
                return None;
            }
            axis -= 1;
            coordinates[axis] += 1;
            element += axes[axis].0;
            if coordinates[axis] < axes[axis].1 {
                break;
            }
            element -= axes[axis].0 * coordinates[axis];
            coordinates[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::Size;

    fn access(offset: i64, strides: &[i64]) -> Access {
        let strides = strides.iter().map(|&stride| Size::Const(stride)).collect();
        Access { operand: 0, offset: Size::Const(offset), strides, indirect: None }
    }

    #[test]
    fn the_range_covers_all_corners() {
        assert_eq!(range(&access(5, &[10, -2, 0]), &[3, 2, 9], &[]), Some((3, 25)));
        assert_eq!(range(&access(5, &[10, -2]), &[3, 0], &[]), None);
    }

    #[test]
    fn indices_are_bounded_by_the_buffer() {
        let allowed = |elements| allowed_indices(&access(0, &[0, 1]), 8, &[4, 8], &[], elements);
        assert_eq!((allowed(80), allowed(79), allowed(7)), (0..10, 0..9, 0..0));
    }

    #[test]
    fn the_first_index_outside_is_found() {
        let data = [1, 2, 3, 4, 9, 6, 7, 8];
        let find = |strides: &[i64], allowed| {
            let load = |element: i64| data[element as usize];
            find_index_outside(&access(0, strides), &[2, 4, 5], &[], load, &allowed)
        };
        assert_eq!(find(&[4, 1, 0], 0..9), Some(9));
        assert_eq!(find(&[4, 1, 0], 0..10), None);
        assert_eq!(find(&[0, 1, 0], 0..5), None);
    }
}
