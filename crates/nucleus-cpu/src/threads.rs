//! A fixed set of worker threads that hand out numbered jobs, and the scratch memory those jobs use.
//!
//! Jobs are taken from an atomic counter, so the assignment of jobs to threads changes from run to run.
//! Results must not: each job writes output that no other job touches, and computes it from its number alone.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::buffer::{AlignedBuffer, OutOfMemory};

/// Worker threads of a fixed number, with memory that is kept between calls. Clones share the workers and the memory.
#[derive(Clone, Debug)]
pub struct Threads {
    pool: Arc<rayon::ThreadPool>,
    count: usize,
    /// The most bytes of one loan or scratch buffer.
    limit: usize,
    idle: Arc<Mutex<Vec<AlignedBuffer>>>,
}

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {count} worker threads: {source}; ask for fewer")]
pub struct ThreadsError {
    count: usize,
    source: rayon::ThreadPoolBuildError,
}

/// The largest number of worker threads that [`Threads::new`] accepts without clamping.
pub const MAX_THREADS: usize = 1024;

impl Threads {
    /// Starts `count` threads; 0 means one per CPU that this process may use. More than [`MAX_THREADS`] is
    /// taken as [`MAX_THREADS`].
    ///
    /// # Errors
    /// The operating system refuses to start them.
    pub fn new(count: usize) -> Result<Self, ThreadsError> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        }
        .min(MAX_THREADS);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("nucleus-{index}"))
            .build()
            .map_err(|source| ThreadsError { count, source })?;
        let idle = Arc::new(Mutex::new(Vec::new()));
        Ok(Self { pool: Arc::new(pool), count, limit: usize::MAX, idle })
    }

    /// The same with at most `bytes` bytes to a loan or scratch buffer: a system may grant more than it has, and end the process
    /// when it is used.
    #[must_use]
    pub fn with_limit(self, bytes: usize) -> Self {
        Self { limit: bytes, ..self }
    }

    /// The number of worker threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// These threads' memory without the other threads: for work inside a job, which runs where the job runs.
    #[must_use]
    pub fn serial(&self) -> Self {
        Self { count: 1, ..self.clone() }
    }

    /// Runs `body` on one of the workers. Calls of [`Threads::parallel_for`] inside it avoid the hand-over from a
    /// thread outside the pool, which matters for a long sequence of short kernels.
    pub fn install<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.pool.install(body)
    }

    /// Calls `body(job, worker)` once for every `job` in `0..jobs` and returns when all have finished.
    ///
    /// Jobs start in ascending order. `body` must write only what belongs to `job`. A panic in a job reaches
    /// the caller after the other workers have stopped.
    pub fn parallel_for(&self, jobs: usize, body: impl Fn(usize, &mut Worker) + Sync) {
        if jobs <= 1 || self.count == 1 {
            return Worker::enter(self.limit, |worker| (0..jobs).for_each(|job| body(job, worker)));
        }
        let next = AtomicUsize::new(0);
        self.pool.broadcast(|context| {
            if context.index() >= jobs {
                return;
            }
            Worker::enter(self.limit, |worker| {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= jobs {
                        break;
                    }
                    body(job, worker);
                }
            });
        });
    }

    /// Lends a buffer of at least `bytes` bytes that all workers of a call may share; it goes back when dropped.
    /// Its contents are whatever the last user left.
    ///
    /// # Panics
    /// As [`AlignedBuffer::reserve`], also beyond the limit.
    #[must_use]
    pub fn lease(&self, bytes: usize) -> Lease<'_> {
        if bytes > self.limit {
            OutOfMemory { bytes }.unwind();
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, else the largest, which then grows.
        let choice = idle
            .iter()
            .enumerate()
            .min_by_key(|(_, buffer)| (buffer.len() < bytes, buffer.len().abs_diff(bytes)))
            .map(|(position, _)| position);
        let mut buffer = choice.map_or_else(AlignedBuffer::default, |position| idle.swap_remove(position));
        drop(idle);
        buffer.reserve(bytes);
        Lease { buffer, owner: self }
    }
}

/// A buffer on loan from [`Threads::lease`].
#[derive(Debug)]
pub struct Lease<'a> {
    buffer: AlignedBuffer,
    owner: &'a Threads,
}

impl Deref for Lease<'_> {
    type Target = AlignedBuffer;

    fn deref(&self) -> &AlignedBuffer {
        &self.buffer
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.owner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// What a job may use besides its own output: memory of the thread that runs it.
#[derive(Debug, Default)]
pub struct Worker {
    buffers: Vec<AlignedBuffer>,
    limit: usize,
}

thread_local! {
    /// Memory that no running job of the thread uses: more than one where jobs ran inside jobs.
    static IDLE: RefCell<Vec<Worker>> = const { RefCell::new(Vec::new()) };
}

impl Worker {
    /// Runs `body` with this thread's memory. A nested call gets memory of its own instead of its caller's.
    fn enter<R>(limit: usize, body: impl FnOnce(&mut Worker) -> R) -> R {
        let mut worker = IDLE.with_borrow_mut(Vec::pop).unwrap_or_default();
        worker.limit = limit;
        let result = body(&mut worker);
        IDLE.with_borrow_mut(|idle| idle.push(worker));
        result
    }

    /// A 64-byte aligned buffer of at least `bytes` bytes, one for each `slot`; it keeps its address and contents
    /// until a later call for the same slot asks for more.
    ///
    /// # Panics
    /// As [`AlignedBuffer::reserve`], also beyond the limit of the threads.
    pub fn scratch(&mut self, slot: usize, bytes: usize) -> *mut u8 {
        if bytes > self.limit {
            OutOfMemory { bytes }.unwind();
        }
        if self.buffers.len() <= slot {
            self.buffers.resize_with(slot + 1, AlignedBuffer::default);
        }
        let buffer = &mut self.buffers[slot];
        buffer.reserve(bytes);
        buffer.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_runs_once_whatever_the_thread_count() {
        for count in [1, 2, 4] {
            let threads = Threads::new(count).unwrap();
            for jobs in [0, 1, 2, 3, 1000] {
                let runs: Vec<AtomicUsize> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
                threads.parallel_for(jobs, |job, _| {
                    runs[job].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    runs.iter().all(|run| run.load(Ordering::Relaxed) == 1),
                    "{count} threads, {jobs} jobs"
                );
            }
        }
    }

    #[test]
    fn nested_loops_get_separate_scratch() {
        let threads = Threads::new(2).unwrap();
        let total = AtomicUsize::new(0);
        threads.parallel_for(4, |job, worker| {
            let outer = worker.scratch(0, 8).cast::<usize>();
            // SAFETY: the buffer has 8 bytes and belongs to this job alone.
            unsafe { outer.write(job + 1) };
            threads.parallel_for(1, |_, inner| {
                // SAFETY: as above, for the nested worker's own buffer.
                unsafe { inner.scratch(0, 8).cast::<usize>().write(100) };
            });
            // SAFETY: written above.
            total.fetch_add(unsafe { outer.read() }, Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), 1 + 2 + 3 + 4);
    }

    #[test]
    fn a_leased_buffer_is_reused_and_two_leases_are_distinct() {
        let threads = Threads::new(1).unwrap();
        let first = threads.lease(1000);
        let second = threads.lease(1000);
        assert_ne!(first.as_ptr(), second.as_ptr());
        let address = first.as_ptr();
        drop(first);
        assert_eq!(threads.lease(500).as_ptr(), address);
    }

    #[test]
    fn memory_beyond_the_limit_unwinds_with_what_was_asked() {
        let threads = Threads::new(2).unwrap().with_limit(1000);
        let asked = |body: &dyn Fn()| {
            let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_err();
            *payload.downcast_ref::<OutOfMemory>().unwrap()
        };
        assert_eq!(asked(&|| drop(threads.lease(1001))), OutOfMemory { bytes: 1001 });
        let scratch = || {
            threads.parallel_for(4, |_, worker| {
                worker.scratch(0, usize::MAX);
            });
        };
        assert_eq!(asked(&scratch), OutOfMemory { bytes: usize::MAX });
        assert_eq!(asked(&|| drop(AlignedBuffer::zeroed(usize::MAX))), OutOfMemory { bytes: usize::MAX });
        assert!(threads.lease(1000).len() >= 1000);
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_leaves_the_threads_usable() {
        let threads = Threads::new(2).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.parallel_for(10, |job, _| assert_ne!(job, 7));
        }));
        assert!(outcome.is_err());
        let ran = AtomicUsize::new(0);
        threads.parallel_for(10, |_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 10);
    }
}
