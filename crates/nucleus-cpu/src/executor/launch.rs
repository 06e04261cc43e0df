//! One launch: its operands' addresses, its sizes, and calls of its compiled functions.

use std::ops::Range;

use nucleus_plan::{Access, Kernel, Size};

use super::slices::Slice;
use crate::codegen::{Code, FunctionId, Region};
use crate::kernels::Isa;
use crate::threads::Threads;

/// Everything a launch works with.
pub(crate) struct LaunchContext<'a> {
    pub(crate) kernel: &'a Kernel,
    /// One address per operand of the kernel; null for a weight that is only used packed.
    pub(crate) operands: &'a [*mut u8],
    pub(crate) sizes: &'a [i64],
    pub(crate) code: &'a Code,
    pub(crate) threads: &'a Threads,
    pub(crate) isa: Isa,
    /// The part of the launch that is run, if not all of it.
    pub(crate) slice: Option<Slice>,
}

// SAFETY: addresses are shared between workers; each use states why its place belongs to one of them.
unsafe impl Sync for LaunchContext<'_> {}

/// Points that are worth a job of their own: some microseconds of work.
pub(crate) const JOB_POINTS: i64 = 1 << 14;

/// An access with its sizes filled in.
pub(crate) struct BoundAccess {
    pub(crate) operand: usize,
    pub(crate) offset: i64,
    pub(crate) strides: Vec<i64>,
}

impl LaunchContext<'_> {
    pub(crate) fn size(&self, size: Size) -> i64 {
        size.value(self.sizes)
    }

    pub(crate) fn values(&self, sizes: &[Size]) -> Vec<i64> {
        sizes.iter().map(|&size| self.size(size)).collect()
    }

    pub(crate) fn bind(&self, access: &Access) -> BoundAccess {
        BoundAccess {
            operand: access.operand as usize,
            offset: self.size(access.offset),
            strides: self.values(&access.strides),
        }
    }

    /// The address of an element of an operand.
    pub(crate) fn address(&self, operand: usize, element: i64) -> *mut u8 {
        let bytes = element as isize * self.kernel.operands[operand].dtype.size() as isize;
        self.operands[operand].wrapping_offset(bytes)
    }

    /// Calls a compiled function over a region; nothing happens if that is empty.
    ///
    /// # Safety
    /// The function was compiled for this kernel, the region lies within its space, the block fits the region, and nothing else
    /// touches what the region's points store.
    pub(crate) unsafe fn call(&self, function: FunctionId, region: &Region) {
        // SAFETY: passed on.
        unsafe { self.call_with(function, (self.operands, self.sizes), region) }
    }

    /// The same with the operands and sizes that the function was compiled for.
    ///
    /// # Safety
    /// As for [`LaunchContext::call`]; the operands are some of the launch's.
    pub(crate) unsafe fn call_with(
        &self,
        function: FunctionId,
        (operands, sizes): (&[*mut u8], &[i64]),
        region: &Region,
    ) {
        if region.outer_begin >= region.outer_end || region.inner_begin >= region.inner_end {
            return;
        }
        let function = self.code.function(function);
        // SAFETY: the operands were checked against the plan's accesses when sizes were bound and before the launch; the rest is
        // the caller's promise.
        unsafe { function(operands.as_ptr(), sizes.as_ptr(), region) }
    }

    /// The part of `total` points along the first axis that is run.
    pub(crate) fn part(&self, total: i64) -> Range<i64> {
        self.slice.map_or(0..total, |slice| slice.of(total))
    }

    /// Calls `body(begin, end)` from the workers for consecutive parts of `0..rows`, each of which has about `JOB_POINTS` points.
    pub(crate) fn for_rows(&self, rows: i64, points_per_row: i64, body: impl Fn(i64, i64) + Sync) {
        self.for_range(0..rows, points_per_row, body);
    }

    /// The same for consecutive parts of a range.
    pub(crate) fn for_range(&self, range: Range<i64>, points_per_row: i64, body: impl Fn(i64, i64) + Sync) {
        let (first, rows) = (range.start, range.end - range.start);
        let points = rows.saturating_mul(points_per_row.max(1));
        let jobs = (points / JOB_POINTS).min(8 * self.threads.count() as i64).min(rows).max(1);
        if jobs == 1 {
            return body(range.start, range.end);
        }
        let bound = |job: i64| first + (i128::from(rows) * i128::from(job) / i128::from(jobs)) as i64;
        self.threads.parallel_for(jobs as usize, |job, _| body(bound(job as i64), bound(job as i64 + 1)));
    }
}

/// A region of whole rows without a block.
pub(crate) fn plain_region(outer: std::ops::Range<i64>, inner: std::ops::Range<i64>) -> Region {
    Region {
        outer_begin: outer.start,
        outer_end: outer.end,
        inner_begin: inner.start,
        inner_end: inner.end,
        block: std::ptr::null_mut(),
        row_stride: 0,
        segment_stride: 0,
    }
}

/// Where row `row`, counted row-major over axes of these extents, begins in a matrix: elements from its first row on.
pub(crate) fn row_offset(mut row: i64, extents: &[i64], strides: &[i64]) -> i64 {
    let mut at = 0;
    for (extent, stride) in extents.iter().zip(strides).rev() {
        at += row % extent * stride;
        row /= extent;
    }
    at
}

/// The product of non-negative sizes.
pub(crate) fn product(sizes: &[i64]) -> i64 {
    sizes.iter().fold(1i64, |product, &size| product.saturating_mul(size))
}
