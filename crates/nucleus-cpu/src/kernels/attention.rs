//! Blocked attention with an online softmax (Dao et al., arXiv 2205.14135): out = softmax(scale · q kᵀ + mask) v
//! without ever forming the scores of a whole row.
//!
//! Keys and values that take part are packed once for each batch item and key head ([`pack`]). A job takes some queries
//! of the heads that share a key head past all keys, one block of keys after the other ([`queries`]). Lanes of registers
//! are queries, in the scores as in the output, which stays transposed until it is finished. Which keys form a block
//! depends on the keys alone, so that a row's bits do not depend on the other rows.

mod columns;
mod grad;
mod grad_queries;
mod pack;
mod queries;

pub use grad::{AttentionGrad, Gradient, attention_grad};

use columns::Columns;
use pack::{Keys, PackedKeys};
use queries::{JOB_PANELS, Job, Queries};

use super::element::{Element, Operand};
use super::isa::Isa;
use super::pack::SendPtr;
use super::partition::part;
use super::simd::attention_kernels;
use crate::threads::Threads;

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

impl HeadView {
    /// The first element of a row. Sums wrap, as strides below zero do.
    fn at(&self, batch: usize, row: usize, head: usize) -> *const u8 {
        let offset = batch
            .wrapping_mul(self.batch_stride)
            .wrapping_add(row.wrapping_mul(self.row_stride))
            .wrapping_add(head.wrapping_mul(self.head_stride));
        self.data.wrapping_add(offset.wrapping_mul(self.element.size()))
    }
}

/// Which keys of a segment take part: [batch, len] bytes, 0 for a key that does not.
#[derive(Clone, Copy, Debug)]
pub struct KeyMask {
    /// Element [0, 0].
    pub data: *const u8,
    /// Bytes from one batch item to the next.
    pub batch_stride: usize,
}

impl KeyMask {
    fn place(&self, batch: usize, key: usize) -> usize {
        batch.wrapping_mul(self.batch_stride).wrapping_add(key)
    }
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

/// Packed keys and values of one round.
const ROUND_BYTES: usize = 64 << 20;

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
    let table = attention_kernels(problem.isa, problem.operand);
    let Attention { isa, operand, batch, head_dim, segments, .. } = *problem;
    let packed = PackedKeys::new(Keys { isa, operand, batch, head_dim, segments }, table);
    let columns = Columns::new(problem.q_rows, problem.q_heads / problem.kv_heads, table.panel_cols);
    let queries = Queries { problem, table, packed: &packed, columns };
    let heads = problem.batch * problem.kv_heads;
    let per_round = (ROUND_BYTES / (4 * packed.head_words).max(1)).clamp(1, heads);
    let lease = threads.lease(4 * packed.head_words * per_round);
    let place = SendPtr(lease.as_ptr().cast::<u32>());
    let at = |head: usize, first: usize| place.get().wrapping_add((head - first) * packed.head_words);
    let split = |head: usize| (head / problem.kv_heads, head % problem.kv_heads);
    let panels = columns.panels();
    for first in (0..heads).step_by(per_round) {
        let count = per_round.min(heads - first);
        // SAFETY: the lease holds the heads of a round; sources are the caller's promise.
        unsafe { packed.pack_heads(threads, problem.kv_heads, first..first + count, place) };
        // Some jobs for each thread even where queries are few.
        let blocks = panels.div_ceil(JOB_PANELS).max((4 * threads.count()).div_ceil(count)).min(panels);
        threads.parallel_for(count * blocks, |job, worker| {
            let head = first + job / blocks;
            let (batch, kv_head) = split(head);
            let range = part(panels, blocks, job % blocks);
            let job = Job { batch, kv_head, first_panel: range.start, panels: range.len() };
            // SAFETY: the head is packed; the output rows belong to this job.
            unsafe { queries.run(&job, at(head, first), worker) };
        });
    }
}

#[cfg(test)]
mod tests;
