//! Expert choice: every expert takes the tokens with the largest affinity to it (Zhou et al., arXiv 2202.09368).

use super::error::KernelError;
use super::pack::SendPtr;
use crate::threads::Threads;

/// For each batch item and expert, the `capacity` tokens of largest affinity.
///
/// Of equal affinities the lower token wins; -0 equals 0; NaN is smaller than every number. The slots of an expert
/// are in ascending order of their tokens.
#[derive(Clone, Copy, Debug)]
pub struct ExpertChoice {
    /// f32 [batch, tokens, experts] at the strides below, in elements.
    pub affinity: *const f32,
    /// From one batch item to the next.
    pub batch_stride: isize,
    /// From one token to the next.
    pub token_stride: isize,
    /// From one expert to the next.
    pub expert_stride: isize,
    /// Batch items.
    pub batch: usize,
    /// Tokens of a batch item.
    pub tokens: usize,
    /// Experts.
    pub experts: usize,
    /// Slots of an expert in one batch item.
    pub capacity: usize,
    /// i32 [batch, experts, capacity]: the token of each slot.
    pub slot_token: *mut i32,
    /// f32 [batch, experts, capacity]: the affinity of each slot.
    pub gate: *mut f32,
}

// SAFETY: a description of memory; the caller of `expert_choice` vouches for its use on several threads.
unsafe impl Sync for ExpertChoice {}

/// Experts whose columns one job reads side by side: a cache line of affinities.
const JOB_EXPERTS: usize = 16;
/// Tokens whose affinities are copied at a time, for the same reason.
const BLOCK_TOKENS: usize = 16;
const COLUMNS_SLOT: usize = 0;
const KEYS_SLOT: usize = 1;

/// Chooses tokens. Time grows with tokens × experts: a selection, not a sort.
///
/// # Errors
/// The capacity exceeds the number of tokens, or that number exceeds what an i32 holds.
///
/// # Safety
/// All pointers are valid for the sizes of the problem; the outputs are not used by anything else meanwhile.
pub unsafe fn expert_choice(threads: &Threads, problem: &ExpertChoice) -> Result<(), KernelError> {
    let ExpertChoice { tokens, capacity, batch, experts, .. } = *problem;
    if capacity > tokens {
        return Err(KernelError::CapacityExceedsTokens { capacity, tokens });
    }
    if i32::try_from(tokens).is_err() {
        return Err(KernelError::IndexTooLarge { kernel: "expert_choice", what: "tokens", value: tokens });
    }
    if capacity == 0 {
        return Ok(());
    }
    let groups = experts.div_ceil(JOB_EXPERTS);
    let outputs = (SendPtr(problem.slot_token), SendPtr(problem.gate));
    threads.parallel_for(batch * groups, |job, worker| {
        let (item, first) = (job / groups, job % groups * JOB_EXPERTS);
        let count = JOB_EXPERTS.min(experts - first);
        // Columns that lie a power of two apart would share the sets of a cache.
        let pitch = tokens + BLOCK_TOKENS;
        let columns = worker.scratch(COLUMNS_SLOT, 4 * pitch * count).cast::<f32>();
        let keys = worker.scratch(KEYS_SLOT, 4 * tokens).cast::<i32>();
        // SAFETY: the scratch has these sizes; the slots of expert [item, first + expert] belong to this job.
        unsafe {
            let corner = problem
                .affinity
                .offset(item as isize * problem.batch_stride + first as isize * problem.expert_stride);
            for block in (0..tokens).step_by(BLOCK_TOKENS) {
                for expert in 0..count {
                    let source = corner.offset(expert as isize * problem.expert_stride);
                    for token in block..tokens.min(block + BLOCK_TOKENS) {
                        let value = *source.offset(token as isize * problem.token_stride);
                        columns.add(expert * pitch + token).write(value);
                    }
                }
            }
            keys.write_bytes(0, tokens);
            for expert in 0..count {
                let slots = (item * experts + first + expert) * capacity;
                choose(
                    std::slice::from_raw_parts(columns.add(expert * pitch), tokens),
                    std::slice::from_raw_parts_mut(keys, tokens),
                    std::slice::from_raw_parts_mut(outputs.0.get().add(slots), capacity),
                    std::slice::from_raw_parts_mut(outputs.1.get().add(slots), capacity),
                );
            }
        }
    });
    Ok(())
}

/// A number whose order is that of the affinities.
fn key(affinity: f32) -> i32 {
    // Adding 0 turns -0 into 0.
    let bits = (affinity + 0.0).to_bits() as i32;
    let ordered = bits ^ ((bits >> 31) as u32 >> 1) as i32;
    if affinity.is_nan() { i32::MIN } else { ordered }
}

/// Which keys are chosen: all from `from` on, and of those equal to `tie` the first `room`.
struct Threshold {
    from: i32,
    tie: i32,
    room: usize,
}

/// The threshold above which `count` keys lie, 1 … as many as there are.
///
/// It is bisected: every step counts the keys from the middle on, which is a comparison and an addition per key on whole vectors and
/// has no branch to mispredict. 32 steps settle all bits of a key; mostly a number between two keys is found much earlier.
fn threshold(keys: &[i32], count: usize) -> Threshold {
    let from_on = |least: i32| keys.iter().map(|&key| u32::from(key >= least)).sum::<u32>() as usize;
    let (mut low, mut high) =
        keys.iter().fold((i32::MAX, i32::MIN), |(low, high), &key| (low.min(key), high.max(key)));
    if count == keys.len() {
        return Threshold { from: low, tie: low, room: 0 };
    }
    // At least `count` keys lie from `low` on, and fewer than that above `high`.
    let mut above = 0;
    while low < high {
        // The middle, rounded up: never `low`.
        let middle = (i64::from(low) + i64::from(high) + 1).div_euclid(2) as i32;
        let found = from_on(middle);
        if found == count {
            return Threshold { from: middle, tie: middle, room: 0 };
        }
        if found > count {
            low = middle;
        } else {
            (high, above) = (middle - 1, found);
        }
    }
    Threshold { from: low.saturating_add(1), tie: low, room: count - above }
}

fn choose(affinity: &[f32], keys: &mut [i32], slot_token: &mut [i32], gate: &mut [f32]) {
    for (key_of, &value) in keys.iter_mut().zip(affinity) {
        *key_of = key(value);
    }
    let Threshold { from, tie, mut room } = threshold(keys, slot_token.len());
    // Of equal ones the lowest token first.
    let mut slot = 0;
    for (token, &key) in keys.iter().enumerate() {
        let tied = key == tie && room > 0;
        if key >= from || tied {
            room -= usize::from(tied);
            slot_token[slot] = token as i32;
            gate[slot] = affinity[token];
            slot += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by sorting.
    fn reference(column: &[f32], capacity: usize) -> Vec<i32> {
        let mut tokens: Vec<usize> = (0..column.len()).collect();
        tokens.sort_by(|&a, &b| match (column[a].is_nan(), column[b].is_nan()) {
            (false, false) => column[b].partial_cmp(&column[a]).unwrap(),
            (a, b) => a.cmp(&b),
        });
        tokens.truncate(capacity);
        tokens.sort_unstable();
        tokens.into_iter().map(|token| token as i32).collect()
    }

    fn check(
        threads: &Threads,
        [batch, tokens, experts, capacity]: [usize; 4],
        value: impl Fn(usize) -> f32,
    ) {
        let stored: Vec<f32> = (0..batch * tokens * experts).map(value).collect();
        let mut slot_token = vec![-1; batch * experts * capacity];
        let mut gate = vec![f32::MIN; slot_token.len()];
        let problem = ExpertChoice {
            affinity: stored.as_ptr(),
            batch_stride: (tokens * experts) as isize,
            token_stride: experts as isize,
            expert_stride: 1,
            batch,
            tokens,
            experts,
            capacity,
            slot_token: slot_token.as_mut_ptr(),
            gate: gate.as_mut_ptr(),
        };
        // SAFETY: the vectors have the stated sizes.
        unsafe { expert_choice(threads, &problem).unwrap() };
        for item in 0..batch {
            for expert in 0..experts {
                let column: Vec<f32> =
                    (0..tokens).map(|token| stored[(item * tokens + token) * experts + expert]).collect();
                let slots = (item * experts + expert) * capacity..(item * experts + expert + 1) * capacity;
                assert_eq!(slot_token[slots.clone()], reference(&column, capacity), "[{item}, {expert}]");
                for slot in slots {
                    assert_eq!(gate[slot].to_bits(), column[slot_token[slot] as usize].to_bits());
                }
            }
        }
    }

    #[test]
    fn choices_agree_with_a_sort_whatever_the_ties() {
        let threads = Threads::new(2).unwrap();
        for capacity in [1, 2, 17, 63, 64] {
            for distinct in [1, 2, 5, 1000] {
                let hash = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 7) % distinct;
                check(&threads, [2, 64, 19, capacity], |i| hash(i) as f32 - 3.0);
            }
        }
    }

    #[test]
    fn nan_is_last_and_both_zeros_are_equal() {
        let threads = Threads::new(1).unwrap();
        let values = [-0.0, f32::NAN, 0.0, -f32::NAN, f32::NEG_INFINITY, -1.0, f32::INFINITY, 0.0];
        for capacity in 1..=8 {
            check(&threads, [1, 8, 1, capacity], |i| values[i]);
            check(&threads, [1, 8, 1, capacity], |i| values[7 - i]);
        }
    }

    #[test]
    fn more_slots_than_tokens_is_an_error() {
        let problem = ExpertChoice {
            affinity: std::ptr::null(),
            batch_stride: 0,
            token_stride: 0,
            expert_stride: 0,
            batch: 1,
            tokens: 3,
            experts: 1,
            capacity: 4,
            slot_token: std::ptr::null_mut(),
            gate: std::ptr::null_mut(),
        };
        // SAFETY: the sizes are refused before any pointer is used.
        let outcome = unsafe { expert_choice(&Threads::new(1).unwrap(), &problem) };
        assert_eq!(outcome, Err(KernelError::CapacityExceedsTokens { capacity: 4, tokens: 3 }));
    }
}
