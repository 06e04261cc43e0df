//! Blocked attention with an online softmax (Dao et al., arXiv 2205.14135): out = softmax(scale · q kᵀ + mask) v
//! without ever forming the scores of a whole row.
//!
//! Keys and values of all segments are packed once for each batch item and key head, and shared by the query heads
//! that use it. A job takes one block of queries of one head past all keys. Which keys form a block depends on the
//! segments alone, so that a row's bits do not depend on the other rows.

use super::element::{Element, Operand, store_row};
use super::isa::Isa;
use super::pack::{Matrix, PanelBlock, SendPtr, pack_panel, steps};
use super::partition::part;
use super::rows::{StagedRows, convert_row};
use super::simd::{Ahead, Kernels, SoftmaxBlock, TileArgs, TileFn, kernels};
use crate::threads::{Threads, Worker};

/// A strided [batch, rows, heads, head_dim] tensor with contiguous head_dim; strides are in elements.
#[derive(Clone, Copy, Debug)]
pub struct HeadView {
    /// Element [0, 0, 0, 0].
    pub data: *const u8,
    /// Type of the elements; rounded to the operand type where it is another.
    pub element: Element,
    /// From one batch item to the next.
    pub batch_stride: usize,
    /// From one token to the next.
    pub row_stride: usize,
    /// From one head to the next.
    pub head_stride: usize,
}

/// Which keys of a segment take part: [batch, len] bytes, 0 for a key that does not.
#[derive(Clone, Copy, Debug)]
pub struct KeyMask {
    /// Element [0, 0].
    pub data: *const u8,
    /// Bytes from one batch item to the next.
    pub batch_stride: usize,
}

/// Keys and values that stand one behind the other with those of the other segments.
#[derive(Clone, Copy, Debug)]
pub struct KeySegment {
    /// [batch, len, kv_heads, head_dim].
    pub keys: HeadView,
    /// [batch, len, kv_heads, head_dim].
    pub values: HeadView,
    /// Keys of each batch item.
    pub len: usize,
    /// Without it every key takes part. What a masked key and its value hold, even NaN, has no influence.
    pub mask: Option<KeyMask>,
}

/// Finished output rows of one head.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTile {
    /// Batch item.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// First query.
    pub row: usize,
    /// Number of queries.
    pub rows: usize,
    /// Element [row, 0]: head_dim f32s for each query; 64-byte aligned. May be overwritten.
    pub values: *mut f32,
    /// f32s from one query to the next.
    pub row_stride: usize,
}

/// Where output rows go.
#[derive(Clone, Copy)]
pub enum AttentionOutput<'a> {
    /// A strided [batch, q_rows, q_heads, head_dim] tensor with contiguous head_dim; strides are in elements.
    Store {
        /// Element [0, 0, 0, 0].
        data: *mut u8,
        /// Type to round to.
        element: Element,
        /// From one batch item to the next.
        batch_stride: usize,
        /// From one query to the next.
        row_stride: usize,
        /// From one head to the next.
        head_stride: usize,
    },
    /// A function of finished rows, each of them in exactly one call, from the worker threads.
    Call(&'a (dyn Fn(&AttentionTile) + Sync)),
}

/// Multi-head attention with grouped key heads: query head h uses key head `h / (q_heads / kv_heads)`.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Type of q, k, v and of the probabilities that multiply v. Sums are f32, and the probabilities' sum is that of
    /// their f32 values.
    pub operand: Operand,
    /// Batch items.
    pub batch: usize,
    /// Queries of each batch item.
    pub q_rows: usize,
    /// A multiple of `kv_heads`.
    pub q_heads: usize,
    /// Heads of every segment.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually 1/√head_dim.
    pub scale: f32,
    /// [batch, q_rows, q_heads, head_dim].
    pub q: HeadView,
    /// The keys, in any number of pieces.
    pub segments: &'a [KeySegment],
    /// Where rows go. A query all of whose keys are masked gives zeros.
    pub output: AttentionOutput<'a>,
}

// SAFETY: a description of memory; the caller of `attention` vouches for its use on several threads.
unsafe impl Sync for Attention<'_> {}

/// Keys of a block, rounded to whole panels: the scores of a block of queries stay in the second-level cache.
const BLOCK_KEYS: usize = 256;
/// Register tiles of queries in a block.
const BLOCK_STRIPS: usize = 6;
/// Keys that one packing job takes, a multiple of every panel width.
const PACK_KEYS: usize = 128;
/// Packed keys and values of one round.
const ROUND_BYTES: usize = 64 << 20;

const Q_SLOT: usize = 0;
const SCORE_SLOT: usize = 1;
const PAIR_SLOT: usize = 2;
const OUTPUT_SLOT: usize = 3;
const STATE_SLOT: usize = 4;

/// Computes attention.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. All views are valid for the sizes of the problem, and the
/// output is not used by anything else meanwhile.
///
/// # Panics
/// `q_heads` is not a multiple of `kv_heads`, or a callback panics.
pub unsafe fn attention(threads: &Threads, problem: &Attention) {
    if problem.batch * problem.q_rows * problem.q_heads * problem.head_dim == 0 {
        return;
    }
    let whole_groups = problem.kv_heads > 0 && problem.q_heads.is_multiple_of(problem.kv_heads);
    assert!(whole_groups, "{} query heads do not share {} key heads", problem.q_heads, problem.kv_heads);
    let run = Run::new(problem);
    let heads = problem.batch * problem.kv_heads;
    let per_round = (ROUND_BYTES / (4 * run.head_words).max(1)).clamp(1, heads);
    let lease = threads.lease(4 * run.head_words * per_round);
    let packed = SendPtr(lease.as_ptr().cast::<u32>());
    let group = problem.q_heads / problem.kv_heads;
    let blocks = problem.q_rows.div_ceil(run.tiles.len()).div_ceil(BLOCK_STRIPS);
    for first in (0..heads).step_by(per_round) {
        let count = per_round.min(heads - first);
        threads.parallel_for(count * run.pack_jobs.len(), |job, _| {
            let (head, piece) = (job / run.pack_jobs.len(), &run.pack_jobs[job % run.pack_jobs.len()]);
            // SAFETY: each piece of each head has its own place; sources are the caller's promise.
            unsafe { run.pack(first + head, piece, packed.get().add(head * run.head_words)) };
        });
        threads.parallel_for(count * group * blocks, |job, worker| {
            let (head, query) = (job / (group * blocks), job % (group * blocks));
            let block = Queries { kv: first + head, member: query / blocks, block: query % blocks, blocks };
            // SAFETY: the head is packed; the output rows belong to this job.
            unsafe { run.queries(&block, packed.get().add(head * run.head_words), worker) };
        });
    }
}

/// Some keys of one segment, and their place among the packed keys.
struct PackJob {
    segment: usize,
    first: usize,
    keys: usize,
    place: usize,
}

/// One block of queries of one head: `member` of the group that shares key head `kv` (counted over the batch).
struct Queries {
    kv: usize,
    member: usize,
    block: usize,
    blocks: usize,
}

struct Run<'a> {
    problem: &'a Attention<'a>,
    kernels: &'static Kernels,
    tiles: &'static [TileFn],
    /// What the tile kernels read.
    words: Operand,
    q: StagedRows,
    /// Keys with each segment padded to whole panels.
    keys: usize,
    /// Head width padded to whole panels.
    dim: usize,
    /// Words of the packed keys, values and biases of one head, in this order.
    key_words: usize,
    value_words: usize,
    head_words: usize,
    pack_jobs: Vec<PackJob>,
}

impl<'a> Run<'a> {
    fn new(problem: &'a Attention<'a>) -> Self {
        let kernels = kernels(problem.isa);
        let (tiles, words) = kernels.tiles(problem.operand);
        let q = StagedRows::new(kernels, problem.operand, problem.head_dim, problem.head_dim);
        let width = kernels.panel_cols;
        let mut pack_jobs = Vec::new();
        let mut keys = 0;
        for (segment, KeySegment { len, .. }) in problem.segments.iter().enumerate() {
            for first in (0..*len).step_by(PACK_KEYS) {
                pack_jobs.push(PackJob {
                    segment,
                    first,
                    keys: PACK_KEYS.min(len - first),
                    place: keys + first,
                });
            }
            keys += len.next_multiple_of(width);
        }
        let dim = problem.head_dim.next_multiple_of(width);
        let key_words = keys * q.steps();
        let value_words = steps(words, keys) * dim;
        let head_words = (key_words + value_words + keys).next_multiple_of(16);
        Self { problem, kernels, tiles, words, q, keys, dim, key_words, value_words, head_words, pack_jobs }
    }

    /// Packs some keys as columns and their values as rows of right operands. Masked and missing keys become zeros
    /// with a bias of -∞.
    unsafe fn pack(&self, kv: usize, job: &PackJob, head: *mut u32) {
        let problem = self.problem;
        let segment = &problem.segments[job.segment];
        let (batch, kv_head) = (kv / problem.kv_heads, kv % problem.kv_heads);
        let width = self.kernels.panel_cols;
        let at = |view: &HeadView, row: usize| {
            let offset =
                batch * view.batch_stride + (job.first + row) * view.row_stride + kv_head * view.head_stride;
            view.data.wrapping_add(offset * view.element.size())
        };
        let padded = job.keys.next_multiple_of(width);
        // SAFETY: keys stay below the segment's length, and destinations within the head's place.
        unsafe {
            let bias = head.add(self.key_words + self.value_words + job.place).cast::<f32>();
            let taken = |key: usize| {
                key < job.keys
                    && segment
                        .mask
                        .is_none_or(|mask| *mask.data.add(batch * mask.batch_stride + job.first + key) != 0)
            };
            (0..padded).for_each(|key| bias.add(key).write(if taken(key) { 0.0 } else { f32::NEG_INFINITY }));

            let keys = &segment.keys;
            for first in (0..padded).step_by(width) {
                let (data, element) = (at(keys, first), keys.element);
                let block = PanelBlock {
                    source: Matrix { data, element, row_stride: 1, col_stride: keys.row_stride },
                    k: problem.head_dim,
                    cols: width.min(job.keys - first),
                    steps: self.q.steps(),
                    panel_cols: width,
                };
                let destination = head.add((job.place + first) * self.q.steps());
                self.pack_rounded(&block, destination);
                for key in (0..width).filter(|key| !taken(first + key)) {
                    (0..block.steps).for_each(|step| destination.add(step * width + key).write(0));
                }
            }
            let values = &segment.values;
            let panel_words = steps(self.words, self.keys) * width;
            for (panel, first) in (0..problem.head_dim).step_by(width).enumerate() {
                let data = at(values, 0).wrapping_add(first * values.element.size());
                let block = PanelBlock {
                    source: Matrix {
                        data,
                        element: values.element,
                        row_stride: values.row_stride,
                        col_stride: 1,
                    },
                    k: job.keys,
                    cols: width.min(problem.head_dim - first),
                    steps: steps(self.words, padded),
                    panel_cols: width,
                };
                let place = steps(self.words, job.place) * width;
                let destination = head.add(self.key_words + panel * panel_words + place);
                self.pack_rounded(&block, destination);
                for key in (0..job.keys).filter(|&key| !taken(key)) {
                    self.zero_value_row(destination, key);
                }
            }
        }
    }

    /// Packs into words of the tile kernels, by way of the operand type.
    unsafe fn pack_rounded(&self, block: &PanelBlock, destination: *mut u32) {
        // SAFETY: passed on; the words of a block are f32s where they are rounded again.
        unsafe {
            pack_panel(self.words, block, destination);
            let exact = block.source.element == self.problem.operand.element();
            if self.problem.operand != self.words && !exact {
                let values =
                    std::slice::from_raw_parts_mut(destination.cast::<f32>(), block.steps * block.panel_cols);
                values.iter_mut().for_each(|value| *value = super::element::round_to_bf16(*value));
            }
        }
    }

    unsafe fn zero_value_row(&self, panel: *mut u32, key: usize) {
        let width = self.kernels.panel_cols;
        // SAFETY: the row lies within the panel.
        unsafe {
            match self.words {
                Operand::F32 => std::ptr::write_bytes(panel.add(key * width), 0, width),
                Operand::Bf16 => {
                    let halves = panel.add(key / 2 * width).cast::<u16>().add(key % 2);
                    (0..width).for_each(|col| halves.add(2 * col).write(0));
                }
            }
        }
    }

    /// Takes one block of queries past all keys.
    unsafe fn queries(&self, queries: &Queries, head: *const u32, worker: &mut Worker) {
        let problem = self.problem;
        let batch = queries.kv / problem.kv_heads;
        let group = problem.q_heads / problem.kv_heads;
        let q_head = queries.kv % problem.kv_heads * group + queries.member;
        let strip_count = problem.q_rows.div_ceil(self.tiles.len());
        let strips = part(strip_count, queries.blocks, queries.block);
        let bound = |strip: usize| strip * problem.q_rows / strip_count;
        let first_row = bound(strips.start);
        let rows = bound(strips.end) - first_row;

        // One odd line more, as for staged rows: widths are powers of two.
        let score_stride = BLOCK_KEYS + 16;
        let pair_stride = BLOCK_KEYS / 2 + 16;
        let output_stride = self.dim + 16;
        let q = worker.scratch(Q_SLOT, 4 * rows * self.q.stride).cast::<u32>();
        let scores = worker.scratch(SCORE_SLOT, 4 * rows * score_stride).cast::<f32>();
        let pairs = worker.scratch(PAIR_SLOT, 4 * rows * pair_stride).cast::<u32>();
        let output = worker.scratch(OUTPUT_SLOT, 4 * rows * output_stride).cast::<f32>();
        let maximum = worker.scratch(STATE_SLOT, 8 * rows).cast::<f32>();
        let sum = maximum.wrapping_add(rows);
        // SAFETY: the scratch has the sizes asked for above; packed operands have those of `Run`.
        unsafe {
            for row in 0..rows {
                let view = &problem.q;
                let offset = batch * view.batch_stride
                    + (first_row + row) * view.row_stride
                    + q_head * view.head_stride;
                let source = view.data.add(offset * view.element.size());
                let staged = q.add(row * self.q.stride);
                let k = problem.head_dim;
                convert_row(self.kernels, source, view.element, k, staged, problem.operand, self.words);
                if self.words == Operand::Bf16 && k % 2 == 1 {
                    staged.cast::<u16>().add(k).write(0);
                }
                maximum.add(row).write(f32::NEG_INFINITY);
                sum.add(row).write(0.0);
                std::ptr::write_bytes(output.add(row * output_stride), 0, self.dim);
            }
            let width = self.kernels.panel_cols;
            let panel_words = steps(self.words, self.keys) * width;
            for first in (0..self.keys).step_by(BLOCK_KEYS) {
                let keys = BLOCK_KEYS.min(self.keys - first);
                for key in (0..keys).step_by(width) {
                    let panel = head.add((first + key) * self.q.steps());
                    for strip in strips.clone() {
                        let row = bound(strip) - first_row;
                        let tile = self.tiles[bound(strip + 1) - bound(strip) - 1];
                        let to = scores.add(row * score_stride + key);
                        tile(&TileArgs {
                            steps: self.q.steps(),
                            a: q.add(row * self.q.stride),
                            a_stride: self.q.stride,
                            b: panel,
                            c: to,
                            c_stride: score_stride,
                            add: false,
                            ahead: Ahead::nothing(panel),
                        });
                    }
                }
                let native = self.words == Operand::Bf16;
                (self.kernels.softmax)(&SoftmaxBlock {
                    rows,
                    keys,
                    scores,
                    score_stride,
                    scale: problem.scale,
                    bias: head.add(self.key_words + self.value_words + first).cast(),
                    maximum,
                    sum,
                    output,
                    output_stride,
                    dim: self.dim,
                    round_to_bf16: problem.operand == Operand::Bf16 && !native,
                });
                let (p, p_stride) =
                    if native { (pairs, pair_stride) } else { (scores.cast::<u32>(), score_stride) };
                for row in 0..if native { rows } else { 0 } {
                    (self.kernels.f32_to_bf16)(
                        scores.add(row * score_stride),
                        keys,
                        pairs.add(row * pair_stride).cast(),
                    );
                }
                for col in (0..self.dim).step_by(width) {
                    let place = steps(self.words, first) * width;
                    let panel = head.add(self.key_words + col / width * panel_words + place);
                    for strip in strips.clone() {
                        let row = bound(strip) - first_row;
                        let tile = self.tiles[bound(strip + 1) - bound(strip) - 1];
                        let to = output.add(row * output_stride + col);
                        tile(&TileArgs {
                            steps: steps(self.words, keys),
                            a: p.add(row * p_stride),
                            a_stride: p_stride,
                            b: panel,
                            c: to,
                            c_stride: output_stride,
                            add: true,
                            ahead: Ahead::nothing(panel),
                        });
                    }
                }
            }
            for row in 0..rows {
                let total = *sum.add(row);
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let values =
                    std::slice::from_raw_parts_mut(output.add(row * output_stride), problem.head_dim);
                values.iter_mut().for_each(|value| *value *= factor);
            }
            let tile = AttentionTile {
                batch,
                head: q_head,
                row: first_row,
                rows,
                values: output,
                row_stride: output_stride,
            };
            self.finish(&tile);
        }
    }

    unsafe fn finish(&self, tile: &AttentionTile) {
        match self.problem.output {
            AttentionOutput::Call(call) => call(tile),
            AttentionOutput::Store { data, element, batch_stride, row_stride, head_stride } => {
                for row in 0..tile.rows {
                    let at =
                        tile.batch * batch_stride + (tile.row + row) * row_stride + tile.head * head_stride;
                    let to = data.wrapping_add(at * element.size());
                    // SAFETY: the row lies within the tile and the output.
                    unsafe {
                        store_row(tile.values.add(row * tile.row_stride), self.problem.head_dim, to, element)
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
