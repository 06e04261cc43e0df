//! Matrix products, single, batched and grouped, with one or several right factors: C = A · B with f32 sums.
//!
//! Rows of A are first staged side by side (copied, gathered or computed), unless they lie in memory as the inner loop reads them; then jobs of one block of rows × one group
//! of columns go to the threads. A job walks k in chunks: the part of a panel of B stays in the first-level cache while
//! all rows of the block pass it, the part of A in the second-level cache while all panels of the group use it, and
//! what comes next is fetched meanwhile. The sums wait in a small buffer, and go to the epilogue when all of k is done.
//!
//! With few rows B is read from memory faster than it can be multiplied. Such blocks walk each panel from front to
//! back in short chunks instead, so that B is one stream that the machine fetches ahead.

mod blocking;
mod job;

pub use blocking::Blocking;

use std::ops::Range;

use self::job::{Round, STREAM_BYTES, STREAM_DEPTH};
use super::element::{Element, Operand};
use super::isa::Isa;
use super::pack::{Matrix, PackedLayout, Packing, SendPtr};
use super::partition::{Block, blocks};
use super::rows::{RowSource, StagedRows};
use super::simd::{Kernels, TileFn, kernels};
use crate::threads::Threads;

/// A batch of independent products with the same k and the same parts.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// Instruction set; the right operands are packed for it.
    pub isa: Isa,
    /// Type that is multiplied.
    pub operand: Operand,
    /// Columns of A, rows of B. 0 gives zeros.
    pub k: usize,
    /// How the work is cut.
    pub blocking: Blocking,
    /// The products. Neighbours that share B also share the work of reading it.
    pub products: &'a [Product<'a>],
    /// The right factors, each with columns and an epilogue of its own; all share the staged rows of A.
    pub parts: &'a [Part<'a>],
}

/// One product of a batch.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Rows of A and C.
    pub rows: usize,
    /// The left operand, [rows, k].
    pub a: RowSource<'a>,
}

/// A right factor of all products of a batch.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Columns of one segment.
    pub n: usize,
    /// Groups of n columns whose sums the epilogue sees together, such as the two halves of a gated unit.
    pub segments: usize,
    /// Tiles have a multiple of so many columns, at least 1; n is one too.
    pub column_multiple: usize,
    /// The products equal their transposes: what lies above the diagonal is copied from below it. They have as many rows as columns, and one
    /// segment; no bit changes.
    pub symmetric: bool,
    /// How the right operands are packed.
    pub packing: Packing,
    /// For each product its right operand.
    pub b: Right<'a>,
    /// Where the sums go.
    pub epilogue: Epilogue<'a>,
}

/// The right operands of a part, one for each product.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// One packed [k, n] operand for each segment, one behind the other.
    Packed(&'a [*const u8]),
    /// Matrices as they are stored: each block of rows packs what it multiplies, while that is in the cache. For products of which few
    /// blocks share a right operand.
    Stored {
        /// The first segment of each product, [k, n].
        matrices: &'a [Matrix],
        /// Elements from a column of one segment to that of the next.
        segment_stride: usize,
    },
}

impl Right<'_> {
    fn len(&self) -> usize {
        match self {
            Right::Packed(b) => b.len(),
            Right::Stored { matrices, .. } => matrices.len(),
        }
    }

    /// What products that share their right operand have in common.
    fn address(&self, product: usize) -> *const u8 {
        match self {
            Right::Packed(b) => b[product],
            Right::Stored { matrices, .. } => matrices[product].data,
        }
    }
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
const ROUND_BYTES: usize = 32 << 20;
/// Rows that one staging job copies or computes.
const STAGE_ROWS: usize = 16;
/// The same where rows are the contiguous axis: a few cache lines of them for each k.
const STAGE_COLUMNS: usize = 128;
/// Rows from which on packing a stored factor takes a small part of a job.
const PACKING_ROWS: usize = 96;
/// f32s from one row to the next that lies in the same sets of a first-level cache.
const SET_WORDS: usize = 1024;
/// Sums of a job from which on it takes fewer rows.
const MAX_SUMS: usize = 1 << 24;

// SAFETY: a `Gemm` and its parts are descriptions of memory; `gemm`'s caller vouches for their use on several threads.
unsafe impl Sync for Gemm<'_> {}

/// Computes the products. The bits of an element of C depend on its row of A and column of B alone, given the
/// instruction set.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. All rows, indices, packed operands and outputs are valid for
/// the sizes of the problem, indices are not negative, and outputs are not used by anything else meanwhile.
///
/// # Panics
/// A callback panics, a part has fewer right operands or outputs than there are products, or f32 panels for bf16 products, or is symmetric and
/// no square.
pub unsafe fn gemm(threads: &Threads, problem: &Gemm) {
    for part in problem.parts {
        assert!(part.b.len() >= problem.products.len(), "one right operand for each product");
        if let Epilogue::Store { outputs, .. } = part.epilogue {
            assert!(outputs.len() >= problem.products.len(), "one output for each product");
        }
        if part.symmetric {
            let square = problem.products.iter().all(|product| product.rows == part.n);
            assert!(
                square && part.segments == 1 && part.column_multiple == 1,
                "a symmetric product is a square"
            );
        }
    }
    let run = Run::new(problem, threads.count());
    if run.jobs_per_block == 0 {
        return;
    }
    let mut blocks = run.blocks.as_slice();
    while let Some(first) = blocks.first() {
        let row_bytes = if run.direct { 0 } else { 4 * run.staged.row_words() };
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
        let staging = if run.direct { 0 } else { rows.div_ceil(run.stage_rows) };
        threads.parallel_for(staging, |job, worker| {
            // SAFETY: the rows of this job are written by it alone; the sources are the caller's promise.
            unsafe { round.stage(job, worker) };
        });
        threads.parallel_for(round.blocks.len() * run.jobs_per_block, |job, worker| {
            // SAFETY: all rows are staged; operands and outputs are the caller's promise.
            unsafe { round.multiply(job, worker) };
        });
        blocks = rest;
    }
}

/// What all jobs of a call share.
struct Run<'a> {
    problem: &'a Gemm<'a>,
    kernels: &'static Kernels,
    tiles: &'static [TileFn],
    /// The tiles for half of a panel's columns.
    half_tiles: &'static [TileFn],
    staged: StagedRows,
    /// Rows of A are read where they lie, without being staged.
    direct: bool,
    /// Rows that one staging job takes.
    stage_rows: usize,
    blocks: Vec<Block>,
    /// Ranges of k that a block multiplies at a time.
    chunks: Vec<Range<usize>>,
    parts: Vec<PartLayout>,
    jobs_per_block: usize,
}

/// How the columns of a part are cut.
struct PartLayout {
    layout: PackedLayout,
    /// Ranges of k that a block of few rows multiplies at a time.
    stream: Vec<Range<usize>>,
    /// Panels of each segment that a job takes.
    group_panels: usize,
    /// The part's first job within those of a block.
    first_job: usize,
}

impl<'a> Run<'a> {
    fn new(problem: &'a Gemm<'a>, workers: usize) -> Self {
        let kernels = kernels(problem.isa);
        let [tiles, half_tiles] = kernels.tiles(problem.operand).0;
        // All parts have the same products in common, but neighbours may share B in one part and not in another.
        let shares = |product: usize| {
            problem.parts.iter().all(|part| part.b.address(product) == part.b.address(product - 1))
        };
        let mut runs: Vec<(usize, usize)> = Vec::with_capacity(problem.products.len());
        for (number, product) in problem.products.iter().enumerate() {
            let run = match runs.last() {
                Some(&(_, run)) if shares(number) => run,
                Some(&(_, run)) => run + 1,
                None => 0,
            };
            runs.push((product.rows, run));
        }
        let rows: usize = problem.products.iter().map(|product| product.rows).sum();
        let columns: usize = problem.parts.iter().map(|part| part.n * part.segments).sum();
        // A job takes whole panels, and whole groups of columns that the epilogue wants to see together.
        let least_panels = |part: &Part| part.column_multiple / gcd(part.column_multiple, kernels.panel_cols);
        let least = |part: &Part| least_panels(part).saturating_mul(kernels.panel_cols * part.segments);
        let grouped = problem.parts.iter().filter(|part| part.column_multiple > 1);
        let least_columns = grouped.map(least).fold(kernels.panel_cols, usize::max);
        // Every block of rows packs stored factors again.
        let stored = problem.parts.iter().any(|part| matches!(part.b, Right::Stored { .. }));
        let least_rows = if stored { PACKING_ROWS.max(tiles.len()) } else { tiles.len() };
        let mut cut = problem.blocking.fitted(rows, columns, least_rows, least_columns, workers);
        cut.rows = cut.rows.min(MAX_SUMS / least_columns).max(tiles.len());
        let staged = StagedRows::new(kernels, problem.operand, problem.k, cut.depth);
        let chunks: Vec<Range<usize>> = (0..staged.chunks).map(|chunk| staged.range(chunk)).collect();
        let by_columns =
            |product: &Product| matches!(product.a, RowSource::Memory { col_stride, .. } if col_stride != 1);
        let blocks = blocks(&runs, cut.rows, tiles.len());
        // Each block must lie in one product.
        let apart = runs.windows(2).all(|pair| pair[0].1 != pair[1].1);
        let reads = |product: &Product| reads_as_it_lies(product, problem.operand, staged.words, problem.k);
        let direct = apart && problem.products.iter().all(reads);
        let mut jobs = 0;
        let parts = problem.parts.iter().map(|part| {
            let layout = PackedLayout::new(problem.isa, part.packing, problem.k, part.n);
            let wish = cut.columns / part.segments.max(1);
            let wish = wish.div_ceil(layout.panel_cols).max(1).next_multiple_of(least_panels(part));
            // Narrow jobs of a symmetric product leave little above the diagonal to be computed.
            let group_panels = if part.symmetric { 1 } else { wish.min(layout.panels.max(1)) };
            let first_job = jobs;
            jobs += if part.segments == 0 { 0 } else { layout.panels.div_ceil(group_panels) };
            let stream = stream_chunks(&chunks, &layout);
            PartLayout { layout, stream, group_panels, first_job }
        });
        let parts = parts.collect();
        Self {
            problem,
            kernels,
            tiles,
            half_tiles,
            staged,
            direct,
            stage_rows: if problem.products.iter().any(by_columns) { STAGE_COLUMNS } else { STAGE_ROWS },
            blocks,
            chunks,
            parts,
            jobs_per_block: jobs,
        }
    }
}

/// True if the left rows of a product are what the inner loop reads: its words, side by side in k, and one row behind the other so that those of a
/// tile do not all fall into one set of the first-level cache.
fn reads_as_it_lies(product: &Product, operand: Operand, words: Operand, k: usize) -> bool {
    let RowSource::Memory { data, element, row_stride, col_stride: 1, index: None } = product.a else {
        return false;
    };
    let row_words = match (element, operand, words) {
        (Element::F32, Operand::F32, _) => row_stride,
        // The last of an odd number would be paired with what lies behind it.
        (Element::Bf16, Operand::Bf16, Operand::Bf16)
            if k.is_multiple_of(2) && row_stride.is_multiple_of(2) =>
        {
            row_stride / 2
        }
        _ => return false,
    };
    data.addr().is_multiple_of(size_of::<u32>()) && (row_words % SET_WORDS != 0 || product.rows <= 1)
}

/// The greatest common divisor.
fn gcd(x: usize, y: usize) -> usize {
    if y == 0 { x } else { gcd(y, x % y) }
}

/// Cuts chunks of k further, into such as streaming blocks take.
fn stream_chunks(chunks: &[Range<usize>], layout: &PackedLayout) -> Vec<Range<usize>> {
    // In pairs of k, because two k may share a word.
    let depth = (STREAM_BYTES / layout.row_bytes * layout.row_depth).min(STREAM_DEPTH).next_multiple_of(2);
    let cut = |chunk: &Range<usize>| {
        let (start, end) = (chunk.start, chunk.end);
        let pieces = chunk.len().div_ceil(depth).max(1);
        (0..pieces).map(move |piece| start + piece * depth..(start + (piece + 1) * depth).min(end))
    };
    chunks.iter().flat_map(cut).collect()
}

#[cfg(test)]
mod tests;
