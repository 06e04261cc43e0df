//! Right factors in the micro-kernels' layout.

use super::launch::{BoundAccess, product};
use crate::kernels::{Element, Isa, Matrix, PackItem, Packing, pack_all, packed_bytes};
use crate::threads::Threads;

/// A packed right factor: one packed matrix for each distinct item of the batch.
#[derive(Clone, Debug)]
pub(crate) struct RightFactor {
    data: *mut u8,
    item_bytes: usize,
    /// For each batch axis: its extent, and how many packed matrices one step along it is.
    axes: Vec<(i64, i64)>,
}

// SAFETY: an address of memory that is not written while launches run.
unsafe impl Send for RightFactor {}
// SAFETY: as above.
unsafe impl Sync for RightFactor {}

impl RightFactor {
    /// The layout for a batch along whose axes the factor has these strides; items that are the same are packed once.
    pub(crate) fn layout(strides: &[i64], batch: &[i64], item_bytes: usize) -> RightFactor {
        let mut step = 1;
        let mut axes: Vec<(i64, i64)> = strides
            .iter()
            .zip(batch)
            .rev()
            .map(|(&stride, &extent)| {
                let own = if stride == 0 { 0 } else { step };
                step *= if stride == 0 { 1 } else { extent };
                (extent, own)
            })
            .collect();
        axes.reverse();
        RightFactor { data: std::ptr::null_mut(), item_bytes, axes }
    }

    /// The number of packed matrices.
    pub(crate) fn items(&self) -> usize {
        let varying: Vec<i64> =
            self.axes.iter().filter(|(_, step)| *step != 0).map(|(extent, _)| *extent).collect();
        product(&varying) as usize
    }

    pub(crate) fn bytes(&self) -> usize {
        self.items() * self.item_bytes
    }

    pub(crate) fn with_data(mut self, data: *mut u8) -> RightFactor {
        self.data = data;
        self
    }

    /// The packed matrix of a batch item, counted row-major over the batch axes.
    pub(crate) fn item(&self, mut number: usize) -> *const u8 {
        let mut place = 0;
        for &(extent, step) in self.axes.iter().rev() {
            place += number % extent as usize * step as usize;
            number /= extent as usize;
        }
        self.data.wrapping_add(place * self.item_bytes)
    }
}

/// The sizes of a right factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FactorSizes {
    pub(crate) k: usize,
    /// Columns of a segment.
    pub(crate) n: usize,
    pub(crate) segments: usize,
    /// True if neighbouring columns belong to one segment after the other.
    pub(crate) interleaved: bool,
}

impl FactorSizes {
    /// Bytes of all segments, packed.
    pub(crate) fn packed_bytes(&self, isa: Isa, packing: Packing) -> usize {
        packed_bytes(isa, packing, self.k, self.n) * self.segments
    }

    /// Elements from a column of one segment to that of the next, and from a column to the next of the same segment.
    pub(crate) fn column_strides(&self, col_stride: usize) -> (usize, usize) {
        match self.interleaved {
            true => (col_stride, col_stride.wrapping_mul(self.segments)),
            false => (col_stride.wrapping_mul(self.n), col_stride),
        }
    }
}

/// What is packed, for [`pack_items`].
pub(crate) struct PackJob<'a> {
    pub(crate) threads: &'a Threads,
    pub(crate) isa: Isa,
    pub(crate) packing: Packing,
    /// Type of the stored elements.
    pub(crate) element: Element,
    /// Offset and strides over batch, k and column, in elements.
    pub(crate) access: &'a BoundAccess,
    pub(crate) batch: &'a [i64],
    pub(crate) sizes: FactorSizes,
}

/// Packs every distinct item of a right factor that lies in memory, one behind the other.
///
/// # Safety
/// The access stays inside `data`; `destination` has room for all items.
pub(crate) unsafe fn pack_items(job: &PackJob, data: *const u8, destination: *mut u8) {
    let PackJob { threads, isa, packing, element, access, batch, sizes } = *job;
    let item_bytes = sizes.packed_bytes(isa, packing);
    let strides = &access.strides[..batch.len()];
    let varying: Vec<(i64, i64)> =
        strides.iter().copied().zip(batch.iter().copied()).filter(|(stride, _)| *stride != 0).collect();
    let items = product(&varying.iter().map(|(_, extent)| *extent).collect::<Vec<_>>());
    let segment_bytes = packed_bytes(isa, packing, sizes.k, sizes.n);
    let mut parts = Vec::with_capacity(items as usize * sizes.segments);
    for item in 0..items {
        let (mut at, mut rest) = (access.offset, item);
        for &(stride, extent) in varying.iter().rev() {
            at += rest % extent * stride;
            rest /= extent;
        }
        let col_stride = access.strides[batch.len() + 1] as usize;
        let (segment_stride, col_stride) = sizes.column_strides(col_stride);
        for segment in 0..sizes.segments {
            let first = at as usize + segment.wrapping_mul(segment_stride);
            let source = Matrix {
                data: data.wrapping_add(first.wrapping_mul(element.size())),
                element,
                row_stride: access.strides[batch.len()] as usize,
                col_stride,
            };
            let place = item as usize * item_bytes + segment * segment_bytes;
            parts.push(PackItem { source, destination: destination.wrapping_add(place) });
        }
    }
    // SAFETY: the caller vouches for both sides.
    unsafe { pack_all(threads, isa, packing, &parts, sizes.k, sizes.n) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_are_the_same_share_their_place() {
        let factor = RightFactor::layout(&[0, 5, 7], &[2, 3, 4], 10);
        assert_eq!((factor.items(), factor.bytes()), (12, 120));
        let place = |number| factor.item(number) as usize / 10;
        assert_eq!((0..24).map(place).collect::<Vec<_>>(), (0..12).chain(0..12).collect::<Vec<_>>());
        let shared = RightFactor::layout(&[5, 0], &[2, 3], 10);
        assert_eq!((0..6).map(|n| shared.item(n) as usize / 10).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
        assert_eq!(RightFactor::layout(&[], &[], 10).items(), 1);
    }
}
