//! Expert choice, the inverse of an index map, and sums over it.

use std::sync::atomic::{AtomicBool, Ordering};

use nucleus_plan::{ExpertChoice, InvertIndex, SegmentSum};

use super::compiled::Source;
use super::contraction::Block;
use super::launch::{JOB_POINTS, LaunchContext, product};
use crate::codegen::{FunctionId, Region};
use crate::kernels::{self, KernelError, expert_choice, invert_index};

/// A routing launch that failed.
pub(crate) enum RoutingError {
    /// The micro-kernel refused its operands.
    Kernel(KernelError),
    /// The rows of an inverted index map are out of order or out of range.
    BadRows,
}

impl LaunchContext<'_> {
    /// Runs expert choice.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn expert_choice(
        &self,
        choice: &ExpertChoice,
        affinity: &Source,
    ) -> Result<(), RoutingError> {
        let [batch, tokens, experts, capacity] =
            [choice.batch, choice.tokens, choice.experts, choice.capacity].map(|size| self.size(size));
        let mut leases = Vec::new();
        let (data, strides): (*mut u8, [usize; 3]) = match affinity {
            Source::Load { access, .. } => {
                let bound = self.bind(access);
                let strides = [0, 1, 2].map(|axis| bound.strides[axis] as usize);
                (self.address(bound.operand, bound.offset), strides)
            }
            Source::Fill(fill) => {
                // SAFETY: affinities are f32s over (batch, token) rows of experts.
                let data = unsafe { self.fill_block(*fill, (batch * tokens, experts), 4, &mut leases) };
                (data, [(tokens * experts) as usize, experts as usize, 1])
            }
        };
        let problem = kernels::ExpertChoice {
            affinity: data.cast(),
            batch_stride: strides[0],
            token_stride: strides[1],
            expert_stride: strides[2],
            batch: batch as usize,
            tokens: tokens as usize,
            experts: experts as usize,
            capacity: capacity as usize,
            slot_token: self.operands[choice.slot_token as usize].cast(),
            gate: self.operands[choice.gate as usize].cast(),
        };
        // SAFETY: views and outputs were checked against their buffers when sizes were bound.
        unsafe { expert_choice(self.threads, &problem) }.map_err(RoutingError::Kernel)
    }

    /// Inverts an index map.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn invert_index(&self, invert: &InvertIndex) -> Result<(), RoutingError> {
        let problem = kernels::InvertIndex {
            index: self.operands[invert.index as usize].cast_const().cast(),
            batch: self.size(invert.batch) as usize,
            len: self.size(invert.positions) as usize,
            size: self.size(invert.targets) as usize,
            offsets: self.operands[invert.offsets_out as usize].cast(),
            slots: self.operands[invert.positions_out as usize].cast(),
        };
        // SAFETY: the dense operands were checked against their buffers when sizes were bound.
        unsafe { invert_index(self.threads, &problem) }.map_err(RoutingError::Kernel)
    }

    /// Sums rows over an inverted index map, each target's in one job and in ascending order.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn segment_sum(
        &self,
        sum: &SegmentSum,
        [base, update, epilogue]: [FunctionId; 3],
    ) -> Result<(), RoutingError> {
        let rest = self.values(&sum.rest);
        let (batch, targets, count) =
            (self.size(sum.batch), self.size(sum.targets), self.size(sum.position_count));
        let width = rest.last().copied().unwrap_or(1);
        let rows = product(&rest[..rest.len().saturating_sub(1)]);
        let points = rows.saturating_mul(width);
        if points == 0 || batch == 0 || targets == 0 {
            return Ok(());
        }
        let offsets = Block { data: self.operands[sum.offsets as usize] };
        let positions = Block { data: self.operands[sum.positions as usize] };
        let bad = AtomicBool::new(false);
        // SAFETY: both operands were checked to hold every element when sizes were bound.
        let offset_at = |at: i64| i64::from(unsafe { offsets.at(4 * at).cast::<i32>().read_unaligned() });
        // SAFETY: as above.
        let position_at = |at: i64| i64::from(unsafe { positions.at(4 * at).cast::<i32>().read_unaligned() });
        let average = 2 + count / targets;
        let per_job = (JOB_POINTS / points.saturating_mul(average)).clamp(1, batch * targets);
        let jobs = (batch * targets - 1) / per_job + 1;
        self.threads.parallel_for(jobs as usize, |job, worker| {
            let scratch = worker.scratch(0, 4 * points as usize);
            let first = job as i64 * per_job;
            for target in first..(first + per_job).min(batch * targets) {
                let item = target / targets;
                let at = item * (targets + 1) + target % targets;
                let (begin, end) = (offset_at(at), offset_at(at + 1));
                if begin < 0 || end < begin || end > count {
                    bad.store(true, Ordering::Relaxed);
                    continue;
                }
                let region = |row: i64| Region {
                    outer_begin: row * rows,
                    outer_end: (row + 1) * rows,
                    inner_begin: 0,
                    inner_end: width,
                    block: scratch,
                    row_stride: width,
                    segment_stride: 0,
                };
                // SAFETY: the scratch is this worker's and holds a target's sums; targets store to different places.
                unsafe { self.call(base, &region(target)) };
                for place in begin..end {
                    let position = position_at(item * count + place);
                    if (0..count).contains(&position) {
                        // SAFETY: as above; the position lies within the updates.
                        unsafe { self.call(update, &region(item * count + position)) };
                    } else {
                        bad.store(true, Ordering::Relaxed);
                    }
                }
                // SAFETY: as above.
                unsafe { self.call(epilogue, &region(target)) };
            }
        });
        if bad.into_inner() { Err(RoutingError::BadRows) } else { Ok(()) }
    }
}
