//! The two kinds of jobs of a round: staging rows of A, and multiplying a block of them with a group of columns.

use std::borrow::Cow;
use std::ops::Range;

use super::{Epilogue, PartLayout, Right, Run, Tile};
use crate::kernels::element::{Operand, store_row};
use crate::kernels::pack::{Matrix, Packing, PanelTile, SendPtr, TILE_DEPTH, pack_tile};
use crate::kernels::partition::{Block, part, pieces, strips};
use crate::kernels::rows::RowSource;
use crate::kernels::simd::{Ahead, CopyArgs, TileArgs, TileFn};
use crate::threads::Worker;

/// Strips from which on a panel is widened once for all of them, rather than by each of them.
const WIDEN_STRIPS: usize = 3;
/// The same for i8, which takes more instructions.
const WIDEN_I8_STRIPS: usize = 2;
/// Strips up to which B is a stream from memory: every byte of it is used for so few multiplications.
const STREAM_STRIPS: usize = 2;
/// Bytes and extent of k of a panel that a streaming block multiplies before its next strip does.
pub(super) const STREAM_BYTES: usize = 16 << 10;
pub(super) const STREAM_DEPTH: usize = 256;

const SUMS_SLOT: usize = 1;
const WIDE_SLOT: usize = 2;
const PACK_SLOT: usize = 3;
const MIRROR_SLOT: usize = 4;
/// f32s to which rows of a mirrored tile are filled up: a cache line.
const MIRROR_LANES: usize = 16;

/// Blocks whose rows are staged together.
pub(super) struct Round<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) blocks: &'a [Block],
    pub(super) first: &'a Block,
    pub(super) rows: usize,
    /// The rows' copy, if they are staged.
    pub(super) staged: SendPtr<u32>,
    pub(super) workers: usize,
}

/// Rows of A for a chunk of k.
#[derive(Clone, Copy)]
struct LeftChunk {
    at: *const u32,
    /// Words from one row to the next.
    stride: usize,
}

/// A block of rows and a group of columns of a part.
struct Job<'a> {
    block: &'a Block,
    /// The part's number.
    part: usize,
    first_panel: usize,
    /// Panels of each segment.
    panels: usize,
    /// Rows of the block that others compute: those above the job's columns, in a symmetric product.
    skipped: usize,
    /// Rows in each register tile, from the first row that is computed on.
    strips: Cow<'a, [usize]>,
    /// Strips of which others compute the right half of the job's panel.
    halved: usize,
}

/// What a job multiplies at a time.
#[derive(Clone, Copy)]
struct Step {
    /// Which chunk of k.
    chunk: usize,
    segment: usize,
    panel: usize,
}

/// The right operand of a step.
enum RightChunk {
    /// Whole rows of a panel.
    Packed(*const u8),
    /// What they are packed from.
    Stored(PanelTile),
}

/// The steps of a job in their order.
struct Steps<'a> {
    /// The chunks of k.
    chunks: &'a [Range<usize>],
    segments: usize,
    panels: usize,
    /// All chunks of a panel before the next panel, or all panels for a chunk before the next chunk, because they share
    /// that part of A.
    panel_by_panel: bool,
}

impl Steps<'_> {
    const FIRST: Step = Step { chunk: 0, segment: 0, panel: 0 };

    fn after(&self, step: Step) -> Option<Step> {
        let chunk = (step.chunk + 1 < self.chunks.len()).then_some(step.chunk + 1);
        let place = match (step.panel + 1 < self.panels, step.segment + 1 < self.segments) {
            (true, _) => Some((step.segment, step.panel + 1)),
            (false, true) => Some((step.segment + 1, 0)),
            (false, false) => None,
        };
        match (self.panel_by_panel, chunk, place) {
            (true, Some(chunk), _) => Some(Step { chunk, ..step }),
            (true, None, Some((segment, panel))) => Some(Step { chunk: 0, segment, panel }),
            (false, _, Some((segment, panel))) => Some(Step { segment, panel, ..step }),
            (false, Some(chunk), None) => Some(Step { chunk, segment: 0, panel: 0 }),
            (_, None, None) => None,
        }
    }
}

impl Round<'_> {
    pub(super) unsafe fn stage(&self, job: usize, worker: &mut Worker) {
        let run = self.run;
        let products = run.problem.products;
        let begin = job * run.stage_rows;
        let rows = run.stage_rows.min(self.rows - begin);
        // Find the job's first row by walking from the round's first.
        let rows_of = |product: usize| products[product].rows;
        let mut position = (self.first.product, self.first.product_row + begin);
        while position.1 >= rows_of(position.0) {
            position = (position.0 + 1, position.1 - rows_of(position.0));
        }
        for (product, row, count, offset) in pieces(rows_of, position.0, position.1, rows) {
            let place = (begin + offset, self.rows);
            // SAFETY: the rows lie within the round's buffer and the product.
            unsafe {
                let source = &products[product].a;
                run.staged.stage(
                    run.kernels,
                    source,
                    (product, row, count),
                    self.staged.get(),
                    place,
                    worker,
                );
            }
        }
    }

    fn job(&self, number: usize) -> Job<'_> {
        let (block, number) = (number / self.run.jobs_per_block, number % self.run.jobs_per_block);
        // Parts without columns have no jobs: the last one that begins here or before has this one.
        let part = self.run.parts.partition_point(|part| part.first_job <= number) - 1;
        let PartLayout { layout, group_panels, first_job, .. } = &self.run.parts[part];
        let first_panel = (number - first_job) * group_panels;
        let panels = (*group_panels).min(layout.panels - first_panel);
        let block = &self.blocks[block];
        // A block may go on in the next product, if both share a right operand.
        let alone = block.product_row + block.rows() <= self.run.problem.products[block.product].rows;
        if !(self.run.problem.parts[part].symmetric && alone) {
            let strips = Cow::Borrowed(block.strips.as_slice());
            return Job { block, part, first_panel, panels, skipped: 0, strips, halved: 0 };
        }
        // Symmetric products have jobs of one panel.
        let above = |col: usize| col.saturating_sub(block.product_row).min(block.rows());
        let col = first_panel * layout.panel_cols;
        let skipped = above(col);
        let strips = strips(block.rows() - skipped, self.run.tiles.len());
        let owned = self.owned_columns(part);
        let mut end = skipped;
        let lies_above_the_rest = |rows: &&usize| {
            end += **rows;
            owned < layout.panel_cols && end <= above(col + owned)
        };
        let halved = strips.iter().take_while(lies_above_the_rest).count();
        Job { block, part, first_panel, panels, skipped, strips: Cow::Owned(strips), halved }
    }

    /// Columns of a symmetric product whose rows begin together, where the diagonal crosses the first of them; what lies above is copied from below.
    /// Half panels where factors are bf16. Sums of f32 products that are symmetric but for rounding are copied as rarely as can be.
    fn owned_columns(&self, part: usize) -> usize {
        let cols = self.run.parts[part].layout.panel_cols;
        if self.run.problem.operand == Operand::Bf16 { cols / 2 } else { cols }
    }

    fn steps(&self, job: &Job) -> Steps<'_> {
        let panel_by_panel = job.strips.len() <= STREAM_STRIPS;
        let chunks = if panel_by_panel { &self.run.parts[job.part].stream } else { &self.run.chunks };
        let segments = self.run.problem.parts[job.part].segments;
        Steps { chunks, segments, panels: job.panels, panel_by_panel }
    }

    pub(super) unsafe fn multiply(&self, number: usize, worker: &mut Worker) {
        let run = self.run;
        let job = self.job(number);
        let part = &run.problem.parts[job.part];
        let layout = &run.parts[job.part].layout;
        let rows = job.block.rows();
        let row_stride = job.panels * layout.panel_cols;
        let segment_stride = rows * row_stride;
        let sums = worker.scratch(SUMS_SLOT, 4 * segment_stride * part.segments).cast::<f32>();
        let steps = self.steps(&job);
        let mut step = Steps::FIRST;
        // All of it lies above the diagonal.
        if job.strips.is_empty() {
            return;
        }
        loop {
            let after = steps.after(step);
            let next = match after {
                Some(step) => self.right_factor(&job, &steps, step),
                // Probably the job that this worker will do next.
                None => {
                    let next = (number + self.workers).min(self.blocks.len() * run.jobs_per_block - 1);
                    let next = self.job(next);
                    self.right_factor(&next, &self.steps(&next), Steps::FIRST)
                }
            };
            let to = sums.wrapping_add(step.segment * segment_stride + step.panel * layout.panel_cols);
            // SAFETY: the step lies within the packed operand, the sums within the scratch.
            unsafe { self.step(&job, &steps, step, (to, row_stride), &next, worker) };
            match after {
                Some(after) => step = after,
                None => break,
            }
        }
        let col = job.first_panel * layout.panel_cols;
        let cols = row_stride.min(part.n - col);
        let rows_of = |product: usize| run.problem.products[product].rows;
        for (product, row, rows, offset) in pieces(rows_of, job.block.product, job.block.product_row, rows) {
            let acc = sums.wrapping_add(offset * row_stride);
            let tile = Tile { product, row, rows, col, cols, acc, row_stride, segment_stride };
            if part.symmetric {
                // SAFETY: as below; the elements above the diagonal belong to the job of those below it.
                unsafe { self.finish_mirrored(job.part, &tile, worker) };
            } else {
                // SAFETY: the tile lies within the sums; its outputs belong to this job.
                unsafe { self.finish(job.part, &tile) };
            }
        }
    }

    /// Finishes a tile of a symmetric product, one panel wide. Columns that are owned together have the rows from their first column on, and those
    /// behind their last column once more, as columns. So every element is finished once, and which is copied from which depends on neither
    /// tiles nor blocks.
    unsafe fn finish_mirrored(&self, part: usize, tile: &Tile, worker: &mut Worker) {
        let left = self.owned_columns(part).min(tile.cols);
        let (middle, right) = (tile.col + left, tile.col + tile.cols);
        let row_at = |row: usize| tile.acc.wrapping_add((row - tile.row) * tile.row_stride);
        let within = |first: usize, end: usize| {
            let (first, end) = (first.max(tile.row), end.min(tile.row + tile.rows));
            (first < end).then_some(first..end)
        };
        // Before the epilogue, which may overwrite sums.
        for (rows, cols) in [(within(middle, right), left), (within(right, usize::MAX), tile.cols)] {
            let Some(rows) = rows else { continue };
            let stride = rows.len().next_multiple_of(MIRROR_LANES);
            let mirror = worker.scratch(MIRROR_SLOT, 4 * stride * cols).cast::<f32>();
            // SAFETY: the source lies within the tile, the destination within the scratch.
            unsafe {
                (self.run.kernels.transpose_f32)(&CopyArgs {
                    rows: rows.len(),
                    cols,
                    source: row_at(rows.start).cast_const().cast(),
                    source_stride: tile.row_stride,
                    destination: mirror,
                    destination_stride: stride,
                });
                self.finish(
                    part,
                    &Tile {
                        row: tile.col,
                        rows: cols,
                        col: rows.start,
                        cols: rows.len(),
                        acc: mirror,
                        row_stride: stride,
                        segment_stride: 0,
                        ..*tile
                    },
                );
            }
        }
        for (rows, cols) in [(within(tile.col, middle), left), (within(middle, usize::MAX), tile.cols)] {
            let Some(rows) = rows else { continue };
            let acc = row_at(rows.start);
            // SAFETY: rows of the tile.
            unsafe { self.finish(part, &Tile { row: rows.start, rows: rows.len(), cols, acc, ..*tile }) };
        }
    }

    /// The rows of a block from its row `row` on, at column `k` of A.
    fn left(&self, block: &Block, row: usize, k: usize) -> LeftChunk {
        let run = self.run;
        match run.problem.products[block.product].a {
            RowSource::Memory { data, element, row_stride, .. } if run.direct => {
                let bytes = ((block.product_row + row) * row_stride + k) * element.size();
                let at = data.wrapping_add(bytes).cast();
                LeftChunk { at, stride: row_stride * element.size() / size_of::<u32>() }
            }
            _ => {
                let row = block.first_row - self.first.first_row + row;
                let at = run.staged.at(self.staged.get(), (row, self.rows), k);
                LeftChunk { at, stride: run.staged.stride }
            }
        }
    }

    /// The right operand of a step.
    fn right_factor(&self, job: &Job, steps: &Steps, step: Step) -> RightChunk {
        let part = &self.run.problem.parts[job.part];
        let layout = &self.run.parts[job.part].layout;
        let panel = job.first_panel + step.panel;
        let range = &steps.chunks[step.chunk];
        match part.b {
            Right::Packed(b) => {
                let panel = step.segment * layout.panels + panel;
                let at = panel * layout.panel_bytes() + range.start / layout.row_depth * layout.row_bytes;
                RightChunk::Packed(b[job.block.product].wrapping_add(at))
            }
            Right::Stored { matrices, segment_stride } => {
                let Matrix { data, element, .. } = matrices[job.block.product];
                let segment = step.segment.wrapping_mul(segment_stride).wrapping_mul(element.size());
                let matrix = Matrix { data: data.wrapping_add(segment), ..matrices[job.block.product] };
                let col = panel * layout.panel_cols;
                RightChunk::Stored(PanelTile {
                    source: matrix.at(range.start, col),
                    k: range.len(),
                    cols: layout.panel_cols.min(part.n - col),
                    panel_cols: layout.panel_cols,
                })
            }
        }
    }

    /// The chunk as it is packed.
    unsafe fn packed(&self, chunk: &RightChunk, part: usize, worker: &mut Worker) -> *const u8 {
        let tile = match chunk {
            RightChunk::Packed(at) => return *at,
            RightChunk::Stored(tile) => tile,
        };
        let (kernels, layout) = (self.run.kernels, &self.run.parts[part].layout);
        let packing = self.run.problem.parts[part].packing;
        let packed = worker.scratch(PACK_SLOT, tile.k.div_ceil(layout.row_depth) * layout.row_bytes);
        for first in (0..tile.k).step_by(TILE_DEPTH) {
            let source = tile.source.at(first, 0);
            let piece = PanelTile { source, k: TILE_DEPTH.min(tile.k - first), ..*tile };
            // SAFETY: the chunk lies within the operand, the piece within the scratch.
            unsafe {
                let to = packed.add(first / layout.row_depth * layout.row_bytes);
                pack_tile(kernels, packing, &piece, to);
            }
        }
        packed
    }

    /// Fetches one strip's share of a chunk that will be packed.
    fn fetch_stored(&self, tile: &PanelTile, strips: usize, strip: usize) {
        let Matrix { element, row_stride, col_stride, .. } = tile.source;
        let size = element.size();
        let (lines, stride, bytes) = match (row_stride, col_stride) {
            (_, 1) => (part(tile.k, strips, strip), row_stride, tile.cols),
            (1, _) => (part(tile.cols, strips, strip), col_stride, tile.k),
            _ => return,
        };
        let stride = stride.wrapping_mul(size);
        let first = tile.source.data.wrapping_add(lines.start.wrapping_mul(stride));
        // SAFETY: the table fits the machine; nothing is read.
        unsafe { (self.run.kernels.prefetch_rows)(first, stride, lines.len(), bytes * size) };
    }

    /// Adds one chunk of one panel to the sums of all rows of a block, while fetching what comes next.
    unsafe fn step(
        &self,
        job: &Job,
        steps: &Steps,
        step: Step,
        (sums, row_stride): (*mut f32, usize),
        next: &RightChunk,
        worker: &mut Worker,
    ) {
        let run = self.run;
        let (staged, layout) = (&run.staged, &run.parts[job.part].layout);
        let range = steps.chunks[step.chunk].clone();
        let strips = &job.strips;
        let b_rows = range.len().div_ceil(layout.row_depth);
        let words = staged.words_of(range.len());
        let chunk = self.right_factor(job, steps, step);
        let packing = run.problem.parts[job.part].packing;
        // SAFETY: the part of b is whole, and strips lie within the staged rows and the sums. Fetching ahead reads nothing.
        unsafe {
            let b = self.packed(&chunk, job.part, worker);
            let (tiles, b) = self.right(packing, (b, b_rows, layout.panel_cols), strips.len(), worker);
            // Every strip fetches its share of B, so that the memory is asked evenly, and a share of its own rows of A for the
            // next chunk; the other steps of this chunk fetch the rest.
            let fetches =
                if std::ptr::eq(tiles, run.kernels.widening_tiles) { words / 2 } else { words }.max(1);
            let share = (b_rows * layout.row_bytes).div_ceil(strips.len() * fetches);
            let place = step.segment * steps.panels + step.panel;
            let a_share = match staged.chunks > 1 && !run.direct {
                true => part(4 * staged.stride, steps.segments * steps.panels, place),
                false => 0..0,
            };
            // Tiles for half of the columns, where others compute the rest or there is none.
            let half_tiles = if std::ptr::eq(tiles, run.tiles) { run.half_tiles } else { tiles };
            let col = (job.first_panel + step.panel) * layout.panel_cols;
            let narrow = run.problem.parts[job.part].n - col <= layout.panel_cols / 2;
            let mut row = job.skipped;
            let mut to = sums.add(row * row_stride);
            for (number, &rows) in strips.iter().enumerate() {
                let left = self.left(job.block, row, range.start);
                let next_b = match next {
                    RightChunk::Packed(next) => {
                        Ahead { at: next.wrapping_add(number * fetches * share), stride: share }
                    }
                    RightChunk::Stored(next) => {
                        self.fetch_stored(next, strips.len(), number);
                        // What is near anyway.
                        Ahead { at: to.cast_const().cast(), stride: 0 }
                    }
                };
                let second = if steps.panel_by_panel {
                    // A row of B may be two lines, and A stays in the cache.
                    Ahead { at: next_b.at.wrapping_add(next_b.stride / 2), stride: next_b.stride }
                } else if run.direct {
                    next_b
                } else {
                    let staged_row = job.block.first_row - self.first.first_row + row;
                    let next_a = staged.next_chunk(self.staged.get(), (staged_row, self.rows), range.start);
                    Ahead {
                        at: next_a.cast::<u8>().wrapping_add(rows * a_share.start),
                        stride: (rows * a_share.len()).div_ceil(fetches),
                    }
                };
                let tiles = if narrow || number < job.halved { half_tiles } else { tiles };
                tiles[rows - 1](&TileArgs {
                    steps: words,
                    a: left.at,
                    a_stride: left.stride,
                    b,
                    c: to,
                    c_stride: row_stride,
                    add: step.chunk > 0,
                    ahead: [next_b, second],
                });
                row += rows;
                to = to.add(rows * row_stride);
            }
        }
    }

    /// The tiles that multiply a chunk of a panel, and the chunk in the form that they read.
    unsafe fn right(
        &self,
        packing: Packing,
        (b, b_rows, cols): (*const u8, usize, usize),
        strips: usize,
        worker: &mut Worker,
    ) -> (&'static [TileFn], *const u32) {
        let kernels = self.run.kernels;
        // SAFETY: the scratch has room for the widened chunk, the source holds whole rows.
        unsafe {
            match (packing, self.run.staged.words) {
                (Packing::F32 | Packing::Rounded, Operand::F32) | (Packing::Bf16, Operand::Bf16) => {
                    (self.run.tiles, b.cast())
                }
                (Packing::Bf16, Operand::F32) if strips < WIDEN_STRIPS => (kernels.widening_tiles, b.cast()),
                (Packing::Bf16, Operand::F32) => {
                    let wide = worker.scratch(WIDE_SLOT, 8 * b_rows * cols);
                    (kernels.widen)(b.cast(), b_rows * cols, wide.cast());
                    (self.run.tiles, wide.cast_const().cast())
                }
                (Packing::I8, Operand::F32) if strips < WIDEN_I8_STRIPS => (kernels.i8_tiles, b.cast()),
                (Packing::I8, Operand::F32) => {
                    let wide = worker.scratch(WIDE_SLOT, 4 * b_rows * cols);
                    (kernels.widen_i8)(b.cast(), b_rows * cols, wide.cast());
                    (self.run.tiles, wide.cast_const().cast())
                }
                (Packing::I8, Operand::Bf16) => {
                    let wide = worker.scratch(WIDE_SLOT, 2 * b_rows.next_multiple_of(2) * cols);
                    (kernels.pair_i8)(b.cast(), b_rows, wide.cast());
                    (self.run.tiles, wide.cast_const().cast())
                }
                // What is multiplied as pairs is packed as pairs.
                (Packing::F32 | Packing::Rounded, Operand::Bf16) => {
                    unreachable!("an f32 panel for products of pairs")
                }
            }
        }
    }

    unsafe fn finish(&self, part: usize, tile: &Tile) {
        let part = &self.run.problem.parts[part];
        match part.epilogue {
            Epilogue::Call(call) => call(tile),
            Epilogue::Store { outputs, element, row_stride } => {
                for segment in 0..part.segments {
                    for row in 0..tile.rows {
                        let source =
                            tile.acc.wrapping_add(segment * tile.segment_stride + row * tile.row_stride);
                        let at = (tile.row + row) * row_stride + segment * part.n + tile.col;
                        let to = outputs[tile.product].wrapping_add(at * element.size());
                        // SAFETY: the columns lie within the tile and the product's output.
                        unsafe { store_row(source, tile.cols, to, element) };
                    }
                }
            }
        }
    }
}
