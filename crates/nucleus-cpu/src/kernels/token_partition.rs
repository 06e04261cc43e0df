//! The other side of expert choice: the slots of every token, and the sums of their affinities.

use super::error::KernelError;
use super::pack::SendPtr;
use crate::threads::{Threads, Worker};

/// The slots that took each token, for a map from slots to tokens in which the tokens of an expert ascend.
#[derive(Clone, Copy)]
pub struct TokenPartition<'a> {
    /// i32 [batch, experts, capacity], values in 0..tokens, ascending for each expert.
    pub slot_token: *const i32,
    /// f32 [batch, experts, capacity]: the affinity of each slot.
    pub affinity: *const f32,
    /// Batch items.
    pub batch: usize,
    /// Tokens of a batch item.
    pub tokens: usize,
    /// Experts.
    pub experts: usize,
    /// Slots of an expert in one batch item.
    pub capacity: usize,
    /// i32 [batch, tokens + 1] and i32 [batch, experts · capacity]: the slots of token t are `positions[offsets[t]..offsets[t + 1]]`,
    /// counted through all experts of the batch item, ascending.
    pub inverse: Option<(*mut i32, *mut i32)>,
    /// f32 [batch, experts, capacity]: the sum of the affinities of all slots that took the slot's token, from 0 in ascending order.
    pub sums: Option<*mut f32>,
    /// Called once for every slot, in pieces of one expert (its number counted through the batch, then first slot and end), when the
    /// sums of these slots are complete.
    pub finish: &'a (dyn Fn(usize, usize, usize) + Sync),
}

// SAFETY: a description of memory; the caller of `partition_tokens` vouches for its use on several threads.
unsafe impl Sync for TokenPartition<'_> {}

/// Slots and tokens that are worth a job of their own. Jobs follow from sizes alone, so that pieces do not depend on the threads.
const JOB_SIZE: usize = 1 << 13;
const BOUNDS_SLOT: usize = 0;
const STARTS_SLOT: usize = 1;
const TOTALS_SLOT: usize = 2;

/// Lists the slots of every token.
///
/// A job has a range of tokens. As the tokens of an expert ascend, its slots in that range lie together and are found by bisection, and
/// how many slots come before the range is known without the other jobs.
///
/// # Errors
/// There are more slots than an i32 counts.
///
/// # Safety
/// All pointers are valid for the sizes of the problem; the outputs are not used by anything else meanwhile.
pub unsafe fn partition_tokens(threads: &Threads, problem: &TokenPartition) -> Result<(), KernelError> {
    let slots = problem.experts.saturating_mul(problem.capacity);
    if i32::try_from(slots).is_err() {
        return Err(KernelError::IndexTooLarge { kernel: "expert_choice", what: "slots", value: slots });
    }
    let ranges = ((slots + problem.tokens) / JOB_SIZE).clamp(1, problem.tokens.max(1));
    threads.parallel_for(problem.batch * ranges, |job, worker| {
        let (item, range) = (job / ranges, job % ranges);
        let bound = |range: usize| (problem.tokens as u128 * range as u128 / ranges as u128) as usize;
        // SAFETY: passed on; the tokens of this range and their slots belong to this job.
        unsafe { list(problem, item, bound(range), bound(range + 1), worker) };
    });
    Ok(())
}

/// Does what is to be done for tokens `first..end` of a batch item.
unsafe fn list(problem: &TokenPartition, item: usize, first: usize, end: usize, worker: &mut Worker) {
    let TokenPartition { capacity, tokens, .. } = *problem;
    // Experts without slots need no memory.
    let experts = if capacity == 0 { 0 } else { problem.experts };
    let slots = experts * capacity;
    let base = item * slots;
    let bounds = worker.scratch(BOUNDS_SLOT, 16 * experts).cast::<[usize; 2]>();
    let starts = worker.scratch(STARTS_SLOT, 4 * (end - first + 1)).cast::<i32>();
    let totals = worker.scratch(TOTALS_SLOT, 4 * (end - first)).cast::<f32>();
    // SAFETY: the scratch has these sizes and belongs to this job; the inputs are the caller's promise.
    let (chosen, bounds, starts, totals) = unsafe {
        for expert in 0..experts {
            bounds.add(expert).write([0, 0]);
        }
        starts.write_bytes(0, end - first + 1);
        totals.write_bytes(0, end - first);
        (
            std::slice::from_raw_parts(problem.slot_token.add(base), slots),
            std::slice::from_raw_parts_mut(bounds, experts),
            std::slice::from_raw_parts_mut(starts, end - first + 1),
            std::slice::from_raw_parts_mut(totals, end - first),
        )
    };
    // Where the slots of each expert that took these tokens begin and end, and how many slots took earlier tokens.
    let mut before = 0;
    for (expert, bound) in bounds.iter_mut().enumerate() {
        let row = &chosen[expert * capacity..][..capacity];
        let at = |token: usize| row.partition_point(|&taken| (taken as usize) < token);
        *bound = [at(first), at(end)];
        before += bound[0];
    }
    let pieces = || {
        bounds
            .iter()
            .enumerate()
            .map(move |(expert, &[begin, end])| (expert, expert * capacity + begin..expert * capacity + end))
    };
    if let Some((offsets, positions)) = problem.inverse {
        let (offsets, positions) = (SendPtr(offsets), SendPtr(positions));
        for &token in pieces().flat_map(|(_, piece)| &chosen[piece]) {
            starts[token as usize - first + 1] += 1;
        }
        starts[0] = before as i32;
        for token in 0..end - first {
            starts[token + 1] += starts[token];
        }
        // SAFETY: the offsets of these tokens, and that behind the last of the item, are written by this job alone; so are the positions
        // from the first token's start to the last token's end.
        unsafe {
            let offsets = offsets.get().add(item * (tokens + 1));
            let rows = end - first + usize::from(end == tokens);
            offsets.add(first).copy_from_nonoverlapping(starts.as_ptr(), rows);
            for (_, piece) in pieces() {
                for slot in piece {
                    let start = &mut starts[chosen[slot] as usize - first];
                    positions.get().add(base + *start as usize).write(slot as i32);
                    *start += 1;
                }
            }
        }
    }
    if let Some(sums) = problem.sums {
        for (_, piece) in pieces() {
            for slot in piece {
                // SAFETY: an affinity of the caller's promise.
                totals[chosen[slot] as usize - first] += unsafe { *problem.affinity.add(base + slot) };
            }
        }
        for (_, piece) in pieces() {
            for slot in piece {
                // SAFETY: the slot took a token of this job's.
                unsafe { sums.add(base + slot).write(totals[chosen[slot] as usize - first]) };
            }
        }
    }
    for (expert, piece) in pieces().filter(|(_, piece)| !piece.is_empty()) {
        let row = expert * capacity;
        (problem.finish)(item * experts + expert, piece.start - row, piece.end - row);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::*;

    /// Tokens and affinities of random slots, ascending for each expert.
    fn slots([batch, tokens, experts, capacity]: [usize; 4]) -> (Vec<i32>, Vec<f32>) {
        let hash = |i: usize| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let mut chosen = Vec::new();
        for expert in 0..batch * experts {
            let mut order: Vec<usize> = (0..tokens).collect();
            order.sort_by_key(|token| hash(expert * tokens + token));
            order.truncate(capacity);
            order.sort_unstable();
            chosen.extend(order.into_iter().map(|token| token as i32));
        }
        let affinity = (0..chosen.len()).map(|slot| (hash(slot) % 1000) as f32 / 999.0).collect();
        (chosen, affinity)
    }

    #[test]
    fn slots_and_sums_of_every_token_are_those_of_the_definition() {
        for sizes in
            [[1, 1, 1, 1], [2, 7, 3, 2], [1, 5, 4, 5], [2, 3000, 9, 700], [1, 40_000, 3, 1], [1, 9, 2, 0]]
        {
            let [batch, tokens, experts, capacity] = sizes;
            let (chosen, affinity) = slots(sizes);
            let row = experts * capacity;
            let (mut offsets, mut positions) = (Vec::new(), Vec::new());
            let mut sums = vec![0f32; chosen.len()];
            for item in 0..batch {
                let slots = item * row..(item + 1) * row;
                let mut filled = 0;
                for token in 0..tokens {
                    offsets.push(filled);
                    let taken = || slots.clone().filter(|&slot| chosen[slot] as usize == token);
                    let sum = taken().fold(0f32, |sum, slot| sum + affinity[slot]);
                    for slot in taken() {
                        positions.push((slot - slots.start) as i32);
                        sums[slot] = sum;
                        filled += 1;
                    }
                }
                offsets.push(filled);
            }
            for threads in [1, 3] {
                let mut found = (vec![-7; offsets.len()], vec![-7; positions.len()], vec![-7f32; sums.len()]);
                let visits: Vec<AtomicI32> = chosen.iter().map(|_| AtomicI32::new(0)).collect();
                let finish = |row: usize, first: usize, end: usize| {
                    for visited in &visits[row * capacity + first..row * capacity + end] {
                        visited.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let problem = TokenPartition {
                    slot_token: chosen.as_ptr(),
                    affinity: affinity.as_ptr(),
                    batch,
                    tokens,
                    experts,
                    capacity,
                    inverse: Some((found.0.as_mut_ptr(), found.1.as_mut_ptr())),
                    sums: Some(found.2.as_mut_ptr()),
                    finish: &finish,
                };
                // SAFETY: the vectors have the stated sizes.
                unsafe { partition_tokens(&Threads::new(threads).unwrap(), &problem).unwrap() };
                assert_eq!(found, (offsets.clone(), positions.clone(), sums.clone()), "{sizes:?}");
                assert!(visits.iter().all(|visits| visits.load(Ordering::Relaxed) == 1), "{sizes:?}");
            }
        }
    }
}
