//! The inverse of an index: for each target, the places that name it.

use std::sync::Mutex;

use super::error::KernelError;
use super::pack::SendPtr;
use crate::threads::Threads;

/// For each batch item, the places of `index` grouped by value (compressed sparse rows).
#[derive(Clone, Copy, Debug)]
pub struct InvertIndex {
    /// i32 [batch, len], values in 0..size.
    pub index: *const i32,
    /// Batch items.
    pub batch: usize,
    /// Indices of a batch item.
    pub len: usize,
    /// Targets.
    pub size: usize,
    /// i32 [batch, size + 1]: the places that name target t are `slots[offsets[t]..offsets[t + 1]]`.
    pub offsets: *mut i32,
    /// i32 [batch, len]: places within the batch item, ascending for each target.
    pub slots: *mut i32,
}

// SAFETY: a description of memory; the caller of `invert_index` vouches for its use on several threads.
unsafe impl Sync for InvertIndex {}

/// Inverts an index by counting.
///
/// # Errors
/// An index lies outside 0..size (the first one is named; the outputs then hold anything), or `len` exceeds what an
/// i32 holds.
///
/// # Safety
/// All pointers are valid for the sizes of the problem; the outputs are not used by anything else meanwhile.
pub unsafe fn invert_index(threads: &Threads, problem: &InvertIndex) -> Result<(), KernelError> {
    if i32::try_from(problem.len).is_err() {
        return Err(KernelError::IndexTooLarge { kernel: "invert_index", what: "len", value: problem.len });
    }
    let first_error = Mutex::new(None);
    let outputs = (SendPtr(problem.offsets), SendPtr(problem.slots));
    threads.parallel_for(problem.batch, |batch, _| {
        // SAFETY: the outputs of this batch item belong to this job.
        let outcome = unsafe {
            invert(
                std::slice::from_raw_parts(problem.index.add(batch * problem.len), problem.len),
                std::slice::from_raw_parts_mut(
                    outputs.0.get().add(batch * (problem.size + 1)),
                    problem.size + 1,
                ),
                std::slice::from_raw_parts_mut(outputs.1.get().add(batch * problem.len), problem.len),
            )
        };
        if let Err((position, value)) = outcome {
            let mut first = first_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if first.is_none_or(|(earlier, _, _)| batch < earlier) {
                *first = Some((batch, position, value));
            }
        }
    });
    match first_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        None => Ok(()),
        Some((batch, position, value)) => Err(KernelError::IndexOutOfRange {
            kernel: "invert_index",
            batch,
            position,
            value,
            size: problem.size,
        }),
    }
}

/// The error is the first place out of range and its value.
fn invert(index: &[i32], offsets: &mut [i32], slots: &mut [i32]) -> Result<(), (usize, i32)> {
    let size = offsets.len() - 1;
    offsets.fill(0);
    for (position, &value) in index.iter().enumerate() {
        match usize::try_from(value) {
            Ok(target) if target < size => offsets[target + 1] += 1,
            _ => return Err((position, value)),
        }
    }
    for target in 0..size {
        offsets[target + 1] += offsets[target];
    }
    // Filling from the back turns ends into beginnings: offsets[t + 1] runs down to the beginning of t.
    for (position, &value) in index.iter().enumerate().rev() {
        let end = &mut offsets[value as usize + 1];
        *end -= 1;
        slots[*end as usize] = position as i32;
    }
    // Now offsets[t + 1] is the beginning of t, so that all move down by one place.
    offsets.copy_within(1.., 0);
    offsets[size] = index.len() as i32;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(index: &[i32], batch: usize, size: usize) -> Result<(Vec<i32>, Vec<i32>), KernelError> {
        let len = index.len() / batch;
        let mut offsets = vec![-7; batch * (size + 1)];
        let mut slots = vec![-7; index.len()];
        let problem = InvertIndex {
            index: index.as_ptr(),
            batch,
            len,
            size,
            offsets: offsets.as_mut_ptr(),
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: the vectors have the stated sizes.
        unsafe { invert_index(&Threads::new(2).unwrap(), &problem)? };
        Ok((offsets, slots))
    }

    #[test]
    fn places_are_grouped_by_target_in_ascending_order() {
        let (offsets, slots) = run(&[2, 0, 2, 2, 3, 3, 0, 3], 2, 4).unwrap();
        assert_eq!(offsets, [0, 1, 1, 4, 4, 0, 1, 1, 1, 4]);
        assert_eq!(slots, [1, 0, 2, 3, 2, 0, 1, 3]);
        assert_eq!(run(&[], 1, 0).unwrap(), (vec![0], vec![]));
    }

    #[test]
    fn the_first_index_out_of_range_is_named() {
        for (bad, value) in [(4, 4), (-1, -1), (i32::MIN, i32::MIN)] {
            let error = run(&[0, 1, 2, bad, 3, -9], 2, 4).unwrap_err();
            let expected = KernelError::IndexOutOfRange {
                kernel: "invert_index",
                batch: 1,
                position: 0,
                value,
                size: 4,
            };
            assert_eq!(error, expected);
        }
    }
}
