//! Fetching what a compiled epilogue reads, some rows before it does: it reads pieces of rows that are too short for the machine to see where they
//! go on, and computes too little in between to wait for several at once.

use nucleus_plan::{ScalarFunction, Size, Step};

use super::launch::{BoundAccess, LaunchContext, row_offset};
use super::shared::BoundFunction;
use crate::codegen::Region;
use crate::kernels::fetch;

/// Rows that are computed at a time, and fetched before.
const ROWS: i64 = 8;

/// Matrices that a function over rows and contiguous columns reads.
pub(crate) struct Ahead {
    /// Extents of the rows.
    extents: Vec<i64>,
    matrices: Vec<Matrix>,
}

struct Matrix {
    data: *const u8,
    element_bytes: i64,
    /// Elements from one row to the next along every axis.
    strides: Vec<i64>,
}

// SAFETY: addresses that are not read from.
unsafe impl Sync for Ahead {}

impl LaunchContext<'_> {
    /// What an epilogue over rows of these extents, and columns, reads anew in each row.
    pub(crate) fn bind_ahead(&self, epilogue: &ScalarFunction, extents: &[i64]) -> Ahead {
        let matrix = |step: &Step| {
            let Step::Load(access) = step else { return None };
            let contiguous = access.strides.last().is_some_and(|stride| matches!(stride, Size::Const(1)));
            if !contiguous || access.indirect.is_some() || access.strides.len() != extents.len() + 1 {
                return None;
            }
            let BoundAccess { operand, offset, mut strides } = self.bind(access);
            strides.truncate(extents.len());
            let changes = strides.last().is_some_and(|stride| *stride != 0);
            let element_bytes = self.kernel.operands[operand].dtype.size() as i64;
            let data = self.address(operand, offset).cast_const();
            changes.then_some(Matrix { data, element_bytes, strides })
        };
        Ahead { extents: extents.to_vec(), matrices: epilogue.steps.iter().filter_map(matrix).collect() }
    }

    /// Calls an epilogue over a region, a few rows at a time.
    ///
    /// # Safety
    /// As for [`LaunchContext::call_bound`]; the region's block holds sums.
    pub(crate) unsafe fn call_ahead(&self, bound: &BoundFunction, ahead: &Ahead, region: &Region) {
        let Region { outer_begin, outer_end, .. } = *region;
        if ahead.matrices.is_empty() || outer_end - outer_begin <= ROWS {
            // SAFETY: passed on.
            return unsafe { self.call_bound(bound, region) };
        }
        let fetch_rows = |first: i64| {
            let columns = region.inner_begin..region.inner_end;
            for row in first..(first + ROWS).min(outer_end) {
                for matrix in &ahead.matrices {
                    let first = row_offset(row, &ahead.extents, &matrix.strides) + columns.start;
                    let bytes = (columns.end - columns.start) * matrix.element_bytes;
                    let at = matrix.data.wrapping_offset((first * matrix.element_bytes) as isize);
                    fetch(self.isa, at, bytes as usize);
                }
            }
        };
        fetch_rows(outer_begin);
        for first in (outer_begin..outer_end).step_by(ROWS as usize) {
            fetch_rows(first + ROWS);
            let sums = region.block.wrapping_offset((4 * (first - outer_begin) * region.row_stride) as isize);
            let rows = Region {
                outer_begin: first,
                outer_end: (first + ROWS).min(outer_end),
                block: sums,
                ..*region
            };
            // SAFETY: rows of the region, and their sums.
            unsafe { self.call_bound(bound, &rows) };
        }
    }
}
