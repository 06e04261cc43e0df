//! Matrix products, single, batched and grouped: C = A · B with f32 sums.
//!
//! Rows of A are first staged side by side (copied, gathered or computed), then jobs of one block of rows × one group
//! of columns go to the threads. A job walks k in chunks: the part of a panel of B stays in the first-level cache while
//! all rows of the block pass it, the part of A in the second-level cache while all panels of the group use it, and
//! what comes next is fetched meanwhile. The sums wait in a small buffer, and go to the epilogue when all of k is done.

use super::element::{Element, Operand, store_row};
use super::isa::Isa;
use super::pack::{PackedLayout, SendPtr};
use super::partition::{Block, blocks, part, pieces};
use super::rows::{RowSource, StagedRows};
use super::simd::{Kernels, TileArgs, TileFn, kernels};
use crate::threads::{Threads, Worker};

/// A batch of independent products with the same k, n and segments.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// Instruction set; the right operands are packed for it.
    pub isa: Isa,
    /// Type that is multiplied.
    pub operand: Operand,
    /// Columns of A, rows of B. 0 gives zeros.
    pub k: usize,
    /// Columns of one segment.
    pub n: usize,
    /// Groups of n columns whose sums the epilogue sees together, such as the two halves of a gated unit.
    pub segments: usize,
    /// Width of the column ranges that the epilogue sees, rounded up to whole panels: a range begins at a multiple of
    /// it and is cut only by n. 0 leaves the choice to the kernel.
    pub tile_cols: usize,
    /// The products. Neighbours that share B also share the work of reading it.
    pub products: &'a [Product<'a>],
}

/// One product of a batch.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Rows of A and C.
    pub rows: usize,
    /// The left operand, [rows, k].
    pub a: RowSource<'a>,
    /// The right operand: one packed [k, n] operand for each segment, one behind the other.
    pub b: *const u8,
}

/// Where finished sums go.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// C in memory: element [row, segment * n + col] of product p is at `outputs[p] + row * row_stride + …`.
    Store {
        /// Element [0, 0] for each product.
        outputs: &'a [*mut u8],
        /// Type to round to.
        element: Element,
        /// Elements from one row to the next.
        row_stride: usize,
    },
    /// A function of finished tiles, each element of C in exactly one of them, called from the worker threads.
    Call(&'a (dyn Fn(&Tile) + Sync)),
}

/// Finished sums of some rows and columns of one product.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Which product of the batch.
    pub product: usize,
    /// First row.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column within each segment.
    pub col: usize,
    /// Number of columns.
    pub cols: usize,
    /// Sum [segment 0, row, col]; 64-byte aligned. The epilogue may overwrite the sums.
    pub acc: *mut f32,
    /// f32s from one row to the next.
    pub row_stride: usize,
    /// f32s from one segment to the next.
    pub segment_stride: usize,
}

/// Staged rows of one round, in bytes: large enough that rereading B for the next round costs nothing,
/// small beside the weights of any model.
const ROUND_BYTES: usize = 16 << 20;
/// Part of a panel that shall stay in the first-level cache while all rows of a block pass it.
const CHUNK_BYTES: usize = 32 << 10;
/// Columns of all segments that a job takes when the caller does not say: staged rows come from the far cache once for
/// each group.
const GROUP_COLS: usize = 128;
/// Strips from which on a panel of bf16 is widened once for all of them.
const WIDEN_STRIPS: usize = 3;
/// Rows of a block: their part of A for one chunk of k, and their sums, fit in half a second-level cache of 1 MB.
const MAX_BLOCK_ROWS: usize = 264;
/// Rows that one staging job copies or computes.
const STAGE_ROWS: usize = 16;

const SUMS_SLOT: usize = 1;
const WIDE_SLOT: usize = 2;

// SAFETY: a `Gemm` and its epilogue are descriptions of memory; `gemm`'s caller vouches for their use on
// several threads.
unsafe impl Sync for Gemm<'_> {}
// SAFETY: as above.
unsafe impl Sync for Epilogue<'_> {}

/// Computes the products. The bits of an element of C depend on its row of A and column of B alone, given the
/// instruction set.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. All rows, indices, packed operands and outputs are valid for
/// the sizes of the problem, indices are not negative, and outputs are not used by anything else meanwhile.
///
/// # Panics
/// A callback panics, or [`Epilogue::Store`] has fewer outputs than there are products.
pub unsafe fn gemm(threads: &Threads, problem: &Gemm, epilogue: &Epilogue) {
    if let Epilogue::Store { outputs, .. } = epilogue {
        assert!(outputs.len() >= problem.products.len(), "one output for each product");
    }
    if problem.n == 0 || problem.segments == 0 {
        return;
    }
    let run = Run::new(problem, epilogue);
    let mut blocks = run.blocks.as_slice();
    while let Some(first) = blocks.first() {
        let row_bytes = 4 * run.staged.stride;
        let in_round =
            |block: &&Block| (block.first_row + block.rows() - first.first_row) * row_bytes <= ROUND_BYTES;
        let count = blocks.iter().take_while(in_round).count().max(1);
        let (round, rest) = blocks.split_at(count);
        let rows = round.last().map_or(0, |last| last.first_row + last.rows()) - first.first_row;
        let lease = threads.lease(rows * row_bytes);
        let round = Round {
            run: &run,
            blocks: round,
            first,
            rows,
            staged: SendPtr(lease.as_ptr().cast()),
            workers: threads.count(),
        };
        threads.parallel_for(rows.div_ceil(STAGE_ROWS), |job, worker| {
            // SAFETY: the rows of this job are written by it alone; the sources are the caller's promise.
            unsafe { round.stage(job, worker) };
        });
        threads.parallel_for(round.blocks.len() * run.col_groups, |job, worker| {
            // SAFETY: all rows are staged; operands and outputs are the caller's promise.
            unsafe { round.multiply(job, worker) };
        });
        blocks = rest;
    }
}

/// What all jobs of a call share.
struct Run<'a> {
    problem: &'a Gemm<'a>,
    epilogue: &'a Epilogue<'a>,
    kernels: &'static Kernels,
    tiles: &'static [TileFn],
    staged: StagedRows,
    layout: PackedLayout,
    blocks: Vec<Block>,
    group_panels: usize,
    col_groups: usize,
    /// Parts of k, the same for every job.
    chunks: usize,
}

impl<'a> Run<'a> {
    fn new(problem: &'a Gemm<'a>, epilogue: &'a Epilogue<'a>) -> Self {
        let kernels = kernels(problem.isa);
        let tiles = kernels.tiles(problem.operand).0;
        let staged = StagedRows::new(kernels, problem.operand, problem.k);
        let layout = PackedLayout::new(problem.isa, problem.operand, problem.k, problem.n);
        let products: Vec<_> = problem.products.iter().map(|product| (product.rows, product.b)).collect();
        let wish = if problem.tile_cols == 0 { GROUP_COLS / problem.segments } else { problem.tile_cols };
        let group_panels = wish.div_ceil(layout.panel_cols).clamp(1, layout.panels);
        let chunk_words = CHUNK_BYTES / 4 / layout.panel_cols;
        Self {
            problem,
            epilogue,
            kernels,
            tiles,
            staged,
            layout,
            blocks: blocks(&products, MAX_BLOCK_ROWS, tiles.len()),
            group_panels,
            col_groups: layout.panels.div_ceil(group_panels),
            chunks: staged.steps().div_ceil(chunk_words).max(1),
        }
    }

    /// The steps of the packed operand in part `index` of k, and how many steps of staged words each one is.
    fn chunk(&self, index: usize) -> (std::ops::Range<usize>, usize) {
        let words_per_step = if self.staged.words == self.problem.operand { 1 } else { 2 };
        (part(self.layout.steps, self.chunks, index), words_per_step)
    }
}

/// The parts of a job's right operand in the order in which it multiplies them: all panels for one part of k before the
/// next, because they share that part of A.
struct Parts {
    chunks: usize,
    segments: usize,
    panels: usize,
}

impl Parts {
    /// (part of k, segment, panel).
    fn iter(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (segments, panels) = (self.segments, self.panels);
        let of_chunk = move |chunk| (0..segments * panels).map(move |at| (chunk, at / panels, at % panels));
        (0..self.chunks).flat_map(of_chunk)
    }

    fn after(&self, chunk: usize, segment: usize, panel: usize) -> Option<(usize, usize, usize)> {
        if panel + 1 < self.panels {
            Some((chunk, segment, panel + 1))
        } else if segment + 1 < self.segments {
            Some((chunk, segment + 1, 0))
        } else {
            (chunk + 1 < self.chunks).then_some((chunk + 1, 0, 0))
        }
    }
}

/// One part of k of one panel, for all rows of a block.
struct Chunk {
    /// Which part of k.
    index: usize,
    /// The block's first staged row.
    a: *const u32,
    b: *const u32,
    sums: *mut f32,
    row_stride: usize,
    ahead: Ahead,
}

/// What to fetch into the second-level cache meanwhile: the part of B that comes next, and a share of the rows of A for
/// the part of k that comes next (part, shares, share).
struct Ahead {
    b: *const u32,
    a_part: (usize, usize, usize),
}

/// Blocks whose rows are staged together.
struct Round<'a> {
    run: &'a Run<'a>,
    blocks: &'a [Block],
    first: &'a Block,
    rows: usize,
    staged: SendPtr<u32>,
    workers: usize,
}

impl Round<'_> {
    unsafe fn stage(&self, job: usize, worker: &mut Worker) {
        let run = self.run;
        let products = run.problem.products;
        let begin = job * STAGE_ROWS;
        let rows = STAGE_ROWS.min(self.rows - begin);
        // Find the job's first row by walking from the round's first.
        let rows_of = |product: usize| products[product].rows;
        let mut position = (self.first.product, self.first.product_row + begin);
        while position.1 >= rows_of(position.0) {
            position = (position.0 + 1, position.1 - rows_of(position.0));
        }
        for (product, row, count, offset) in pieces(rows_of, position.0, position.1, rows) {
            let destination = self.staged.get().wrapping_add((begin + offset) * run.staged.stride);
            // SAFETY: the rows lie within the round's buffer and the product.
            unsafe {
                run.staged.stage(
                    run.kernels,
                    &products[product].a,
                    (product, row, count),
                    destination,
                    worker,
                );
            }
        }
    }

    unsafe fn multiply(&self, job: usize, worker: &mut Worker) {
        let run = self.run;
        let (problem, layout) = (run.problem, &run.layout);
        let block = &self.blocks[job / run.col_groups];
        let first_panel = job % run.col_groups * run.group_panels;
        let panels = run.group_panels.min(layout.panels - first_panel);
        let rows = block.rows();
        let row_stride = panels * layout.panel_cols;
        let segment_stride = rows * row_stride;
        let sums = worker.scratch(SUMS_SLOT, 4 * segment_stride * problem.segments).cast::<f32>();
        let a = self.staged.get().wrapping_add((block.first_row - self.first.first_row) * run.staged.stride);
        let parts = Parts { chunks: run.chunks, segments: problem.segments, panels };
        for (number, (chunk, segment, panel)) in parts.iter().enumerate() {
            let b = match parts.after(chunk, segment, panel) {
                Some((chunk, segment, panel)) => self.part_of_b(job, chunk, segment, panel),
                // Probably the job that this worker will do next.
                None => {
                    let next = (job + self.workers).min(self.blocks.len() * run.col_groups - 1);
                    self.part_of_b(next, 0, 0, 0)
                }
            };
            let per_chunk = problem.segments * panels;
            let a_part = ((chunk + 1) % run.chunks, per_chunk, number % per_chunk);
            let chunk = Chunk {
                index: chunk,
                a,
                b: self.part_of_b(job, chunk, segment, panel),
                sums: sums.wrapping_add(segment * segment_stride + panel * layout.panel_cols),
                row_stride,
                ahead: Ahead { b, a_part },
            };
            // SAFETY: the part lies within the packed operand, the sums within the scratch.
            unsafe { self.chunk(&chunk, block, worker) };
        }
        let col = first_panel * layout.panel_cols;
        let cols = row_stride.min(problem.n - col);
        let rows_of = |product: usize| problem.products[product].rows;
        for (product, row, rows, offset) in pieces(rows_of, block.product, block.product_row, rows) {
            let acc = sums.wrapping_add(offset * row_stride);
            // SAFETY: the tile lies within the sums; its outputs belong to this job.
            unsafe { self.finish(&Tile { product, row, rows, col, cols, acc, row_stride, segment_stride }) };
        }
    }

    /// Where one part of k of one panel of a job's right operand begins.
    fn part_of_b(&self, job: usize, chunk: usize, segment: usize, panel: usize) -> *const u32 {
        let (run, layout) = (self.run, &self.run.layout);
        let block = &self.blocks[job / run.col_groups];
        let panel = segment * layout.panels + job % run.col_groups * run.group_panels + panel;
        let step = run.chunk(chunk).0.start;
        let b = run.problem.products[block.product].b.cast::<u32>();
        b.wrapping_add(panel * layout.panel_words() + step * layout.panel_cols)
    }

    /// Adds one part of k of one panel to the sums of all rows of a block, while fetching what comes next.
    unsafe fn chunk(&self, chunk: &Chunk, block: &Block, worker: &mut Worker) {
        let run = self.run;
        let cols = run.layout.panel_cols;
        let (range, words_per_step) = run.chunk(chunk.index);
        let strips = block.strips.len();
        // SAFETY: the part of b is whole, and strips lie within the staged rows and the sums. An odd k leaves half a
        // step, so that the widened words may be one more than the staged ones. Fetching ahead reads nothing.
        unsafe {
            let begin = range.start * words_per_step;
            let steps = (range.end * words_per_step).min(run.staged.steps()) - begin;
            let (tiles, b, b_rows) = if words_per_step == 1 {
                (run.tiles, chunk.b, steps)
            } else if strips < WIDEN_STRIPS {
                (run.kernels.widening_tiles, chunk.b, steps / 2)
            } else {
                let wide = worker.scratch(WIDE_SLOT, 8 * range.len() * cols);
                (run.kernels.widen)(chunk.b, range.len() * cols, wide.cast());
                (run.tiles, wide.cast_const().cast(), steps)
            };
            // Each strip fetches its share, so that the memory is asked evenly.
            let ahead_stride = (4 * range.len() * cols).div_ceil((strips * b_rows).max(1));
            let mut row = 0;
            for (strip, &rows) in block.strips.iter().enumerate() {
                let a = chunk.a.add(row * run.staged.stride);
                self.fetch_part_of_a(a, rows, chunk.ahead.a_part);
                tiles[rows - 1](&TileArgs {
                    steps,
                    a: a.add(begin),
                    a_stride: run.staged.stride,
                    b,
                    c: chunk.sums.add(row * chunk.row_stride),
                    c_stride: chunk.row_stride,
                    add: chunk.index > 0,
                    ahead: chunk.ahead.b.wrapping_byte_add(strip * b_rows * ahead_stride),
                    ahead_stride,
                });
                row += rows;
            }
        }
    }

    /// Fetches some of a strip's rows for another part of k: share `share` of `shares`.
    unsafe fn fetch_part_of_a(
        &self,
        a: *const u32,
        rows: usize,
        (chunk, shares, share): (usize, usize, usize),
    ) {
        let run = self.run;
        if run.chunks == 1 {
            return;
        }
        let (range, words_per_step) = run.chunk(chunk);
        let rows = part(rows, shares, share);
        let first = a.wrapping_add(rows.start * run.staged.stride + range.start * words_per_step);
        let bytes = 4 * range.len() * words_per_step;
        // SAFETY: a hint reads nothing.
        unsafe { (run.kernels.prefetch_rows)(first, run.staged.stride, rows.len(), bytes) };
    }

    unsafe fn finish(&self, tile: &Tile) {
        match *self.run.epilogue {
            Epilogue::Call(call) => call(tile),
            Epilogue::Store { outputs, element, row_stride } => {
                for segment in 0..self.run.problem.segments {
                    for row in 0..tile.rows {
                        let source =
                            tile.acc.wrapping_add(segment * tile.segment_stride + row * tile.row_stride);
                        let at = (tile.row + row) * row_stride + segment * self.run.problem.n + tile.col;
                        let to = outputs[tile.product].wrapping_add(at * element.size());
                        // SAFETY: the columns lie within the tile and the product's output.
                        unsafe { store_row(source, tile.cols, to, element) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
