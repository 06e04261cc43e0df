//! Expert choice, the inverse of an index map, and sums over it.

use std::sync::atomic::{AtomicBool, Ordering};

use nucleus_plan::{ExpertChoice, InvertIndex, SegmentSum};

use super::compiled::{CompiledChoice, Source};
use super::contraction::Block;
use super::launch::{JOB_POINTS, LaunchContext, product};
use crate::codegen::{FunctionId, Region};
use crate::kernels::{self, KernelError, expert_choice, invert_index, partition_tokens};

/// A routing launch that failed.
pub(crate) enum RoutingError {
    /// The micro-kernel refused its operands.
    Kernel(KernelError),
    /// The rows of an inverted index map are out of order or out of range.
    BadRows,
}

impl LaunchContext<'_> {
    /// Runs expert choice, then inverts it and calls the epilogue, as far as either is wanted.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn expert_choice(
        &self,
        choice: &ExpertChoice,
        compiled: &CompiledChoice,
    ) -> Result<(), RoutingError> {
        let [batch, tokens, experts, capacity] =
            [choice.batch, choice.tokens, choice.experts, choice.capacity].map(|size| self.size(size));
        let mut leases = Vec::new();
        let (data, strides): (*mut u8, [isize; 3]) = match &compiled.affinity {
            Source::Load { access, .. } => {
                let bound = self.bind(access);
                let strides = [0, 1, 2].map(|axis| bound.strides[axis] as isize);
                (self.address(bound.operand, bound.offset), strides)
            }
            Source::Fill(fill) => {
                // SAFETY: affinities are f32s over (batch, token) rows of experts.
                let data = unsafe { self.fill_block(*fill, (batch * tokens, experts), 4, &mut leases) };
                (data, [(tokens * experts) as isize, experts as isize, 1])
            }
        };
        // The accumulators of every slot, affinity and sum.
        let slots = product(&[batch, experts, capacity]);
        let sums_at = slots.saturating_mul(4);
        let lease = self.threads.lease(sums_at.saturating_mul(2) as usize);
        let accumulators = Block { data: lease.as_ptr() };
        let [batch_count, token_count, expert_count, slot_count] =
            [batch, tokens, experts, capacity].map(|extent| extent as usize);
        let slot_token = self.operands[choice.slot_token as usize].cast::<i32>();
        let problem = kernels::ExpertChoice {
            affinity: data.cast(),
            batch_stride: strides[0],
            token_stride: strides[1],
            expert_stride: strides[2],
            batch: batch_count,
            tokens: token_count,
            experts: expert_count,
            capacity: slot_count,
            slot_token,
            gate: accumulators.data.cast(),
        };
        // SAFETY: views and outputs were checked against their buffers when sizes were bound; the loan holds two numbers per slot.
        unsafe { expert_choice(self.threads, &problem) }.map_err(RoutingError::Kernel)?;
        if choice.inverse.is_none() && compiled.epilogue.is_none() {
            return Ok(());
        }
        let finish = |row: usize, first: usize, end: usize| {
            let Some(epilogue) = compiled.epilogue else { return };
            let row = row as i64;
            let region = Region {
                outer_begin: row,
                outer_end: row + 1,
                inner_begin: first as i64,
                inner_end: end as i64,
                block: accumulators.at(4 * (row * capacity + first as i64)),
                row_stride: capacity,
                segment_stride: slots,
            };
            // SAFETY: slots are handed over once, with their accumulators complete; different slots store to different places.
            unsafe { self.call(epilogue, &region) };
        };
        let inverse = choice.inverse.map(|inverse| {
            let operand = |position: u32| self.operands[position as usize].cast::<i32>();
            (operand(inverse.offsets), operand(inverse.positions))
        });
        let problem = kernels::TokenPartition {
            slot_token,
            affinity: accumulators.data.cast_const().cast(),
            batch: batch_count,
            tokens: token_count,
            experts: expert_count,
            capacity: slot_count,
            inverse,
            sums: compiled.sums.then(|| accumulators.at(sums_at).cast()),
            finish: &finish,
        };
        // SAFETY: as above; the choice has filled tokens, ascending for each expert, and affinities.
        unsafe { partition_tokens(self.threads, &problem) }.map_err(RoutingError::Kernel)
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
