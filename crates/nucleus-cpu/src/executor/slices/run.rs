//! Running launches slice by slice.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use nucleus_plan::{BoundPlan, Profile};

use super::{Slice, SlicedRun, Window};
use crate::executor::error::ExecuteError;
use crate::executor::launch::LaunchContext;
use crate::executor::table::BufferTable;
use crate::program::CpuProgram;

/// Scratch memory of a worker that takes slices.
const LOCAL_SLOT: usize = 0;

impl SlicedRun {
    /// Whether slices stay apart where the buffers lie now: what a slice writes may share memory with another buffer only if the bytes of
    /// no two slices meet.
    fn is_apart(&self, table: &BufferTable) -> bool {
        let mut places = Vec::with_capacity(self.shared.len());
        for shared in &self.shared {
            let Some(pointer) = table.get(shared.buffer) else { return false };
            let start = pointer.data as usize as i128;
            let window = shared.window.map(|w| Window { first: start + w.first, end: start + w.end, ..w });
            let memory = start..start + pointer.bytes as i128;
            places.push(Place { memory, written: shared.written, window });
        }
        let meets = |(at, place): (usize, &Place)| places[at + 1..].iter().any(|other| place.meets(other));
        !places.iter().enumerate().any(meets)
    }
}

/// Where a buffer lies.
struct Place {
    memory: Range<i128>,
    written: bool,
    window: Option<Window>,
}

impl Place {
    /// A slice may touch what another slice writes through the other of two buffers.
    fn meets(&self, other: &Place) -> bool {
        let overlap = self.memory.start < other.memory.end && other.memory.start < self.memory.end;
        let apart = match (self.window, other.window) {
            (Some(x), Some(y)) => x.step == y.step && x.end.max(y.end) - x.first.min(y.first) <= x.step,
            _ => false,
        };
        overlap && (self.written || other.written) && !apart
    }
}

impl CpuProgram {
    /// Runs the launches slice by slice; false if they must run one after the other, because of where buffers lie.
    ///
    /// # Errors
    /// As for [`CpuProgram::execute`].
    ///
    /// # Safety
    /// As for [`CpuProgram::execute`]; the run was found for these sizes.
    pub(in crate::executor) unsafe fn run_slices(
        &self,
        sizes: &BoundPlan,
        run: &SlicedRun,
        table: &BufferTable,
        profile: Option<&mut Profile>,
    ) -> Result<bool, ExecuteError> {
        let plan = self.plan();
        if !run.is_apart(table) {
            return Ok(false);
        }
        let Range { start, end } = run.launches.clone();
        let mut operands = Vec::with_capacity(end - start);
        for number in start..end {
            let addresses = self.operands(sizes, number, &plan.launches[number], table)?;
            // SAFETY: passed on.
            unsafe { self.check_indices(sizes, number, &addresses)? };
            operands.push(Addresses(addresses));
        }
        // Of every launch the operands that are in a worker's memory.
        let local: Vec<Vec<(usize, usize)>> = (start..end)
            .map(|number| {
                let places = plan.launches[number].operands.iter().enumerate();
                let of = |id| run.local.iter().position(|local| local.buffer == id);
                places.filter_map(|(operand, &id)| Some((operand, of(id)?))).collect()
            })
            .collect();
        let serial = self.threads().serial();
        let nanoseconds: Vec<AtomicU64> = (start..end).map(|_| AtomicU64::new(0)).collect();
        let timed = profile.is_some();
        let failed = AtomicUsize::new(usize::MAX);
        let refused: OnceLock<ExecuteError> = OnceLock::new();
        let begun = Instant::now();
        let job = |slice: usize, memory: *mut u8| {
            let slice = Slice { number: slice as i64, count: run.count };
            let mut addresses = Vec::new();
            for (position, Addresses(base)) in operands.iter().enumerate() {
                addresses.clone_from(base);
                for &(operand, local) in &local[position] {
                    let local = &run.local[local];
                    // Where the buffer would begin if this slice of it lay here.
                    let ahead = local.window.first + i128::from(slice.number) * local.window.step;
                    addresses[operand] = memory.wrapping_add(local.offset).wrapping_offset(-ahead as isize);
                }
                let number = start + position;
                let launch = &plan.launches[number];
                let context = LaunchContext {
                    kernel: plan.kernel(launch.kernel),
                    operands: &addresses,
                    sizes: sizes.launch_sizes(number),
                    code: self.code(),
                    threads: &serial,
                    isa: self.isa(),
                    slice: Some(slice),
                };
                let started = timed.then(Instant::now);
                let doubt = Doubt { number, failed: &failed };
                // SAFETY: slices of buffers in the table are apart, as was checked, and a worker's memory has room for one slice of
                // each buffer that is used by these launches alone; the rest is the caller's promise. Other anchors are not in a run.
                let outcome = unsafe { self.run_anchor(&context, number) };
                std::mem::forget(doubt);
                if let Err(error) = outcome {
                    // The first is as good as any.
                    let _ = refused.set(error);
                    return;
                }
                if let Some(started) = started {
                    nanoseconds[position].fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                }
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.threads().parallel_for(run.count as usize, |slice, worker| {
                let memory = worker.scratch(LOCAL_SLOT, run.scratch);
                job(slice, memory);
            });
        }));
        if let Err(payload) = outcome {
            let launch = failed.load(Ordering::Relaxed).clamp(start, end - 1);
            return Err(self.panicked(launch, payload));
        }
        if let Some(error) = refused.into_inner() {
            return Err(error);
        }
        if let Some(profile) = profile {
            // Workers run side by side: each launch has its share of the time that passed.
            let total: u64 = nanoseconds.iter().map(|time| time.load(Ordering::Relaxed)).sum();
            let passed = begun.elapsed().as_secs_f64() / total.max(1) as f64;
            for (number, time) in (start..end).zip(&nanoseconds) {
                profile.seconds[number] += time.load(Ordering::Relaxed) as f64 * passed;
            }
        }
        Ok(true)
    }
}

/// Addresses that workers offset to places of their own.
struct Addresses(Vec<*mut u8>);

// SAFETY: addresses; each use states why its place is not shared.
unsafe impl Sync for Addresses {}

/// Notes the launch that did not come to its end.
struct Doubt<'a> {
    number: usize,
    failed: &'a AtomicUsize,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.failed.store(self.number, Ordering::Relaxed);
    }
}
