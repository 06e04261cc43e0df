//! Maps and row reductions: compiled loops over chunks of rows.

use nucleus_plan::RowReduction;

use super::launch::{JOB_POINTS, LaunchContext, plain_region, product};
use super::reduction_order::{CompiledReduction, LONG_ROW};
use crate::codegen::{FunctionId, Space};

/// Rows of a tile of a transposing map: some lines of memory.
const TILE_ROWS: i64 = 32;
/// Its columns: each is a line of memory of its own, and where they lie a power of two apart the first cache holds few.
const TILE_COLUMNS: i64 = 16;

impl LaunchContext<'_> {
    /// Runs a map.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn map(&self, space: &Space, function: FunctionId) {
        let (all_rows, all_columns) = (space.rows(self.sizes), space.inner.value(self.sizes));
        // A single row is sliced along its columns.
        let rows = if all_rows == 1 { 0..1 } else { self.part(all_rows) };
        let columns = if all_rows == 1 { self.part(all_columns) } else { 0..all_columns };
        let (height, width) = (rows.end - rows.start, columns.end - columns.start);
        if height >= 2 * self.threads.count() as i64 || height.saturating_mul(width) < 2 * JOB_POINTS {
            return self.for_range(rows, width, |begin, end| {
                // SAFETY: the points of different rows store to different places.
                unsafe { self.call(function, &plain_region(begin..end, columns.clone())) }
            });
        }
        // Few long rows: cut the columns, at multiples of a vector.
        let groups = width.div_euclid(16) + 1;
        self.for_rows(groups, height.saturating_mul(16), |begin, end| {
            let columns = columns.start + 16 * begin..columns.start + (16 * end).min(width);
            // SAFETY: the points of different columns store to different places.
            unsafe { self.call(function, &plain_region(rows.clone(), columns)) }
        });
    }

    /// Runs a map whose columns lie apart where its rows lie side by side: tile by tile, so that what is read with a column is still in
    /// the first cache when the next rows need it.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn transposing_map(&self, space: &Space, function: FunctionId) {
        let sliced = self.part(space.rows(self.sizes));
        let (first, rows) = (sliced.start, sliced.end - sliced.start);
        let columns = space.inner.value(self.sizes);
        if rows <= 0 || columns <= 0 {
            return;
        }
        // Where there are few of the ones, a tile has more of the others.
        let height = TILE_ROWS * (TILE_COLUMNS / columns).max(1);
        let width = TILE_COLUMNS * (TILE_ROWS / rows).max(1);
        let [high, wide] = [rows / height + 1, columns / width + 1];
        self.for_rows(high.saturating_mul(wide), height * width, |begin, end| {
            for tile in begin..end {
                let (row, column) = (tile / wide * height, tile % wide * width);
                let rows = first + row..first + (row + height).min(rows);
                let columns = column..(column + width).min(columns);
                // SAFETY: different points store to different places.
                unsafe { self.call(function, &plain_region(rows, columns)) }
            }
        });
    }

    /// Runs a row reduction. Rows that are not in parts are never cut, so their sums do not depend on the number of threads.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn row_reduction(&self, reduction: &RowReduction, compiled: &CompiledReduction) {
        let columns = self.size(reduction.columns);
        let whole = match compiled {
            CompiledReduction::Rows { long: Some(parts), .. } if columns > LONG_ROW => Err(parts),
            CompiledReduction::Across(parts) => Err(parts),
            CompiledReduction::Rows { whole, .. } => Ok(*whole),
        };
        let function = match whole {
            Ok(function) => function,
            // SAFETY: passed on.
            Err(parts) => return unsafe { self.partial_reduction(reduction, parts) },
        };
        let rows = product(&self.values(&reduction.rows));
        let passes = reduction.phases.len() as i64 + 1;
        self.for_range(self.part(rows), columns.saturating_mul(passes), |begin, end| {
            // A row without columns still has row results: the column range is not the function's loop bound.
            // SAFETY: different rows store to different places.
            unsafe { self.call(function, &plain_region(begin..end, 0..1)) }
        });
    }
}
