//! The columns of attention: queries of the heads that share a key head, those of the group's first head first, in panels as
//! wide as the register tile.

/// The columns of any one key head.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// Queries of each head.
    rows: usize,
    /// Query heads that share a key head.
    group: usize,
    panel_cols: usize,
}

impl Columns {
    pub(super) fn new(rows: usize, group: usize, panel_cols: usize) -> Self {
        Self { rows, group, panel_cols }
    }

    /// Columns of one key head.
    pub(super) fn count(&self) -> usize {
        self.group * self.rows
    }

    /// Panels of one key head.
    pub(super) fn panels(&self) -> usize {
        self.count().div_ceil(self.panel_cols)
    }

    /// The query, as row and head, in a column of a panel; none behind the last.
    pub(super) fn query(&self, kv_head: usize, panel: usize, col: usize) -> Option<(usize, usize)> {
        let at = panel * self.panel_cols + col;
        (at < self.count()).then(|| (at % self.rows, kv_head * self.group + at / self.rows))
    }

    /// The runs of one head among the columns of a panel: column, head, first query, queries.
    pub(super) fn heads(
        &self,
        kv_head: usize,
        panel: usize,
    ) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let Self { rows, group, panel_cols } = *self;
        let first = panel * panel_cols;
        let end = (first + panel_cols).min(self.count());
        (first / rows..end.div_ceil(rows)).map(move |member| {
            let (begin, end) = (first.max(member * rows), end.min((member + 1) * rows));
            (begin - first, kv_head * group + member, begin - member * rows, end - begin)
        })
    }
}
