//! Launches that run slice by slice: all of them for one item of a batch before any of them for the next.
//!
//! A chain of batched products, such as the Newton–Schulz steps of Muon, reads in each launch what the launch before it wrote for all
//! items, which by then has left the near caches. Where the points of every launch fall into as many slices along their first axis, and no
//! slice reads what another writes, the order of slices is free: a worker takes an item through all launches, and what only these
//! launches use lives in memory of the worker's own, one slice of it at a time, and never leaves its cache. No bit of a result changes.

mod find;
mod run;

use std::ops::Range;

use nucleus_plan::BufferId;

pub(super) use find::sliced_runs;

/// Which part of every launch a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) number: i64,
    pub(crate) count: i64,
}

impl Slice {
    /// The slice's part of `total` points, which the slices divide.
    pub(crate) fn of(self, total: i64) -> Range<i64> {
        let each = total / self.count;
        self.number * each..(self.number + 1) * each
    }
}

/// Launches that run slice by slice.
#[derive(Clone, Debug)]
pub(crate) struct SlicedRun {
    /// Launches of one stage that follow each other in the plan.
    pub(crate) launches: Range<usize>,
    /// Slices.
    count: i64,
    /// What the launches touch of buffers that lie where the table says.
    shared: Vec<SlicedBuffer>,
    /// What lives in a worker's own memory.
    local: Vec<LocalBuffer>,
    /// Bytes of a worker's memory.
    scratch: usize,
}

/// What slices touch of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlicedBuffer {
    buffer: BufferId,
    written: bool,
    /// Bytes that slice 0 touches, and from one slice to the next; `None` if slices share bytes of it, or where they lie is unknown.
    window: Option<Window>,
}

/// The bytes of a buffer that slice 0 touches, and how far those of the next slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    first: i128,
    end: i128,
    step: i128,
}

/// A buffer that no other launch uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalBuffer {
    buffer: BufferId,
    window: Window,
    /// Its place in a worker's memory.
    offset: usize,
}
