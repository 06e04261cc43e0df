//! The gradients of attention, with the probabilities computed again: nothing of the forward pass is needed, and the scores of a few
//! queries past all keys are the most that exists at a time.
//!
//! Keys and values that take part are packed as for attention. A task takes a range of the queries that share a key head past all
//! keys ([`grad_queries`](super::grad_queries)): the gradients of its queries are finished then, those of the keys are sums of its
//! own, which are added up in the order of the tasks when all have run. Which queries form a task depends on the sizes of the
//! problem alone, never on the number of threads, so neither do any bits.

use super::columns::Columns;
use super::grad_queries::{GradQueries, GradTask};
use super::pack::{Keys, PackedKeys};
use super::{AttentionTile, HeadView, KeySegment, ROUND_BYTES};
use crate::kernels::element::Operand;
use crate::kernels::isa::Isa;
use crate::kernels::pack::SendPtr;
use crate::kernels::partition::part;
use crate::kernels::simd::{attention_kernels, kernels};
use crate::threads::{Threads, Worker};

/// What a finished tile of rows is the gradient of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// The queries: rows are queries of a query head.
    Queries,
    /// The keys of that segment: rows are keys of a key head.
    Keys(usize),
    /// The values of that segment: rows are keys of a key head.
    Values(usize),
}

/// The gradients of multi-head attention with grouped key heads: of `y = softmax(scale · q kᵀ + mask) v`, given that with respect to y.
#[derive(Clone, Copy)]
pub struct AttentionGrad<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// What q, k, v and dy are rounded to. Where the machine multiplies pairs of bf16, so are the probabilities and the gradients of the
    /// scores, for the products that sum over queries or keys.
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
    /// [batch, q_rows, q_heads, head_dim].
    pub dy: HeadView,
    /// The keys, in any number of pieces.
    pub segments: &'a [KeySegment],
    /// Gets finished rows, each of them in exactly one call, from the worker threads. Masked keys, and queries all of whose keys are
    /// masked, have gradients of zero.
    pub output: &'a (dyn Fn(Gradient, &AttentionTile) + Sync),
}

// SAFETY: a description of memory; the caller of `attention_grad` vouches for its use on several threads.
unsafe impl Sync for AttentionGrad<'_> {}

/// So many tasks there are at least, if queries suffice.
const TASKS: usize = 16;
/// The fewest panels of a task: adding up the sums of keys must be little beside what is added.
const TASK_PANELS: usize = 16;
/// Keys whose gradients one job finishes.
const FINISH_KEYS: usize = 64;

const ROW_SLOT: usize = 0;

/// Computes the gradients of attention.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. All views are valid for the sizes of the problem.
///
/// # Panics
/// `q_heads` is not a multiple of `kv_heads`, or a callback panics.
pub unsafe fn attention_grad(threads: &Threads, problem: &AttentionGrad) {
    let AttentionGrad { isa, operand, batch, kv_heads, head_dim, segments, .. } = *problem;
    if batch * problem.q_heads * head_dim == 0 {
        return;
    }
    let whole_groups = kv_heads > 0 && problem.q_heads.is_multiple_of(kv_heads);
    assert!(whole_groups, "{} query heads do not share {kv_heads} key heads", problem.q_heads);
    let table = attention_kernels(isa, operand);
    let packed = PackedKeys::for_gradients(Keys { isa, operand, batch, head_dim, segments }, table);
    let columns = Columns::new(problem.q_rows, problem.q_heads / kv_heads, table.panel_cols);
    let exact = attention_kernels(isa, Operand::F32);
    let queries = GradQueries { problem, table, exact, kernels: kernels(isa), packed: &packed, columns };
    let (heads, panels) = (batch * kv_heads, columns.panels());
    let ranges = TASKS.div_ceil(heads).min(panels / TASK_PANELS).max(1).min(panels);
    let sum_words = queries.sum_words();
    let head_words = packed.head_words + ranges * sum_words;
    let per_round = (ROUND_BYTES / (4 * head_words).max(1)).clamp(1, heads);
    let key_lease = threads.lease(4 * packed.head_words * per_round);
    let sum_lease = threads.lease(4 * ranges * sum_words * per_round);
    let key_place = SendPtr(key_lease.as_ptr().cast::<u32>());
    let sum_place = SendPtr(sum_lease.as_ptr().cast::<f32>());
    for first in (0..heads).step_by(per_round) {
        let count = per_round.min(heads - first);
        // SAFETY: the leases hold the heads of a round; sources are the caller's promise.
        unsafe { packed.pack_heads(threads, kv_heads, first..first + count, key_place) };
        threads.parallel_for(count * ranges, |job, worker| {
            let (position, range) = (job / ranges, part(panels, ranges, job % ranges));
            let head = first + position;
            let keys = key_place.get().wrapping_add(position * packed.head_words);
            let sums = sum_place.get().wrapping_add(job * sum_words);
            let task =
                GradTask { batch: head / kv_heads, kv_head: head % kv_heads, panels: range, keys, sums };
            // SAFETY: the head is packed; the sums belong to this task.
            unsafe { queries.run(&task, worker) };
        });
        let finish = Finish { problem, packed: &packed, queries: &queries, ranges };
        let pieces: Vec<(usize, usize)> = segments
            .iter()
            .enumerate()
            .flat_map(|(segment, keys)| (0..keys.len).step_by(FINISH_KEYS).map(move |key| (segment, key)))
            .collect();
        threads.parallel_for(count * pieces.len(), |job, worker| {
            let (position, (segment, key)) = (job / pieces.len(), pieces[job % pieces.len()]);
            let sums = sum_place.get().wrapping_add(position * ranges * sum_words);
            // SAFETY: the tasks of the head have run.
            unsafe { finish.run(first + position, (segment, key), sums, worker) };
        });
    }
}

/// Adds up what the tasks of a head found for its keys.
struct Finish<'a> {
    problem: &'a AttentionGrad<'a>,
    packed: &'a PackedKeys<'a>,
    queries: &'a GradQueries<'a>,
    ranges: usize,
}

impl Finish<'_> {
    /// Hands over the gradients of [`FINISH_KEYS`] keys of a segment from `first` on, or what is left of them.
    ///
    /// # Safety
    /// `sums` are those of the head, one task after the other.
    unsafe fn run(
        &self,
        head: usize,
        (segment, first): (usize, usize),
        sums: *const f32,
        worker: &mut Worker,
    ) {
        let (kv_heads, dim) = (self.problem.kv_heads, self.problem.head_dim);
        let item = &self.packed.items[head / kv_heads];
        let rows = FINISH_KEYS.min(self.problem.segments[segment].len - first);
        let row_stride = dim.next_multiple_of(16);
        let values = worker.scratch(ROW_SLOT, 4 * rows * row_stride).cast::<f32>();
        for (of_values, gradient) in [(false, Gradient::Keys(segment)), (true, Gradient::Values(segment))] {
            for row in 0..rows {
                // SAFETY: the row lies in the scratch, places below the number of keys that take part.
                unsafe {
                    let total = std::slice::from_raw_parts_mut(values.add(row * row_stride), dim);
                    total.fill(0.0);
                    let Some(place) = item.place(segment, first + row) else { continue };
                    for range in 0..self.ranges {
                        let sums = sums.add(range * self.queries.sum_words());
                        let sum = sums.add(self.queries.sum_offset(item, of_values, place));
                        let sum = std::slice::from_raw_parts(sum, dim);
                        total.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum);
                    }
                }
            }
            let (batch, head) = (head / kv_heads, head % kv_heads);
            (self.problem.output)(
                gradient,
                &AttentionTile { batch, head, row: first, rows, values, row_stride },
            );
        }
    }
}

#[cfg(test)]
mod tests;
