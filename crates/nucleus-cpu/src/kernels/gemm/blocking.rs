//! How a product is cut into jobs and chunks.

/// Sizes of the pieces. They are wishes: a product is cut into pieces of nearly equal size that are at most about as
/// large, whole register tiles each. No bit of a result depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Rows of a block: their part of A for one chunk of k, and their sums, stay in the second-level cache.
    pub rows: usize,
    /// Columns, of all segments together, that a job takes: staged rows come from the far cache once for each group.
    pub columns: usize,
    /// Extent of k in a chunk: that part of a panel of B stays near while all rows of a block pass it.
    pub depth: usize,
}

/// Jobs for each worker from which on the last ones to finish leave the others idle for a short time only.
const JOBS_PER_WORKER: usize = 4;

impl Default for Blocking {
    /// For second-level caches of 1 MB.
    fn default() -> Self {
        Self { rows: 264, columns: 256, depth: 512 }
    }
}

impl Blocking {
    /// The same for a product of `rows` × `columns`, cut further until there are jobs for all workers.
    pub(super) fn fitted(
        self,
        rows: usize,
        columns: usize,
        strip_rows: usize,
        panel_cols: usize,
        workers: usize,
    ) -> Self {
        let mut cut = self;
        let jobs = |cut: &Self| rows.div_ceil(cut.rows.max(1)) * columns.div_ceil(cut.columns.max(1));
        while workers > 1 && jobs(&cut) < JOBS_PER_WORKER * workers {
            if cut.columns > panel_cols {
                cut.columns = (cut.columns / 2).max(panel_cols);
            } else if cut.rows > strip_rows && rows > strip_rows {
                cut.rows = (cut.rows.min(rows) / 2).max(strip_rows);
            } else {
                break;
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_products_are_cut_for_all_workers_and_large_ones_are_left_alone() {
        let wish = Blocking::default();
        assert_eq!(wish.fitted(1024, 2048, 12, 32, 2), wish);
        let few = wish.fitted(64, 512, 12, 32, 2);
        assert!(few.columns < wish.columns && few.rows == wish.rows, "{few:?}");
        let many = wish.fitted(1024, 64, 12, 32, 16);
        assert!(many.rows < 64 && many.rows >= 12 && many.columns == 32, "{many:?}");
        // Nothing left to cut.
        let least = wish.fitted(1, 32, 12, 32, 64);
        assert_eq!(least.columns, 32);
    }
}
