//! Row reductions in parts: where sums are cut, and how the parts come together.
//!
//! Columns are cut at fixed places into chunks. The sum of a chunk is made in one order, and the sums of chunks are added in order and in
//! `f64`, so that neither threads nor the width of blocks have a say in the result, and sums of any length are as good as those of a chunk.

use std::ops::Range;

use nucleus_plan::{Reduction, ReductionOp, RowReduction};

use super::launch::{JOB_POINTS, LaunchContext};
use super::reduction_order::PartialReduction;
use crate::codegen::Region;

/// Columns of a chunk where rows are reduced together: values that are added one by one.
const CHUNK: i64 = 128;
/// Columns of a chunk of a long row, whose sum is made in sixteen lanes.
const LONG_CHUNK: i64 = 16 * CHUNK;
/// Rows of a block: with a few accumulators each they stay in the first cache.
const WIDTH: i64 = 1024;
/// Rows that are still worth a block of their own, for the sake of another thread.
const NARROW: i64 = 64;
/// Bytes of sums of chunks that wait to be added.
const WAITING: i64 = 4 << 20;

/// A launch of a reduction in parts.
struct Parts<'a> {
    context: &'a LaunchContext<'a>,
    reduction: &'a RowReduction,
    compiled: &'a PartialReduction,
    columns: i64,
    chunk: i64,
    chunks: i64,
    /// Extent of the rows' last axis, and how many blocks cut it.
    inner: i64,
    width: i64,
    blocks_per_row: i64,
    blocks: i64,
    /// Accumulators of a row.
    accumulators: usize,
}

impl LaunchContext<'_> {
    /// Runs a row reduction in parts.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn partial_reduction(&self, reduction: &RowReduction, compiled: &PartialReduction) {
        let outer = compiled.space.rows(self.sizes).max(0);
        let inner = compiled.space.inner.value(self.sizes).max(0);
        if outer == 0 || inner == 0 {
            return;
        }
        let columns = self.size(reduction.columns).max(0);
        let chunk = if compiled.across { CHUNK } else { LONG_CHUNK };
        let chunks = div_ceil(columns, chunk);
        let wanted = 4 * self.threads.count() as i64;
        // Rows of one chunk cannot be cut for the threads, blocks can.
        let shares = if chunks <= 1 { div_ceil(wanted, outer) } else { 1 };
        let width = div_ceil(inner, shares.max(div_ceil(inner, WIDTH)));
        let width = (16 * div_ceil(width, 16)).max(NARROW).min(inner);
        let blocks_per_row = div_ceil(inner, width);
        let blocks = outer.saturating_mul(blocks_per_row);
        let accumulators = reduction.phases.iter().map(|phase| phase.reductions.len()).sum();
        let parts = Parts {
            context: self,
            reduction,
            compiled,
            columns,
            chunk,
            chunks,
            inner,
            width,
            blocks_per_row,
            blocks,
            accumulators,
        };
        let points = blocks.saturating_mul(width).saturating_mul(columns);
        // SAFETY: passed on.
        unsafe {
            if chunks <= 1 || blocks >= wanted || points < 2 * JOB_POINTS {
                parts.by_blocks();
            } else {
                parts.by_chunks();
            }
        }
    }
}

impl Parts<'_> {
    /// Floats of a block's accumulators.
    fn block_len(&self) -> usize {
        self.accumulators * self.width as usize
    }

    /// The most floats that the reductions of a phase have in a block.
    fn totals_len(&self) -> usize {
        let most = self.reduction.phases.iter().map(|phase| phase.reductions.len()).max();
        most.unwrap_or(0) * self.width as usize
    }

    /// The place of a phase's reductions among the accumulators of a block.
    fn range(&self, phase: usize) -> Range<usize> {
        let count = |phase: &nucleus_plan::Phase| phase.reductions.len();
        let before: usize = self.reduction.phases[..phase].iter().map(count).sum();
        let width = self.width as usize;
        before * width..(before + count(&self.reduction.phases[phase])) * width
    }

    fn reductions(&self, phase: usize) -> &[Reduction] {
        &self.reduction.phases[phase].reductions
    }

    /// Every job takes whole blocks: all their columns, phase after phase.
    ///
    /// # Safety
    /// As for `execute`.
    unsafe fn by_blocks(&self) {
        let passes = self.reduction.phases.len() as i64 + 1;
        let points = self.columns.saturating_mul(self.width).saturating_mul(passes);
        self.context.for_rows(self.blocks, points, |begin, end| {
            let (mut totals, mut block) = (vec![0f64; self.totals_len()], vec![0f32; self.block_len()]);
            for number in begin..end {
                for phase in 0..self.reduction.phases.len() {
                    let range = self.range(phase);
                    self.neutral(phase, &mut block[range.clone()]);
                    if self.chunks > 1 {
                        widen(&mut totals, &block[range.clone()]);
                    }
                    for chunk in 0..self.chunks {
                        if chunk > 0 {
                            self.neutral(phase, &mut block[range.clone()]);
                        }
                        // SAFETY: the block has as many accumulators as the function takes; it stores nothing else.
                        unsafe { self.run_phase(phase, number, chunk, &mut block) };
                        if self.chunks > 1 {
                            self.add(phase, &mut totals, &block[range.clone()]);
                        }
                    }
                    if self.chunks > 1 {
                        narrow(&mut block[range], &totals);
                    }
                }
                // SAFETY: the points of different rows store to different places, and blocks have rows of their own.
                unsafe {
                    self.run_row(number, &block);
                    self.run_elements(number, 0..self.columns, &block);
                }
            }
        });
    }

    /// Few blocks with many columns: jobs take chunks of them, whose sums are added when a good number of them is there.
    ///
    /// # Safety
    /// As for `execute`.
    unsafe fn by_chunks(&self) {
        let (block_len, totals_len) = (self.block_len(), self.totals_len());
        let blocks = self.blocks as usize;
        let mut results = vec![0f32; blocks * block_len];
        let mut totals = vec![0f64; blocks * totals_len];
        let bytes = (blocks * block_len * size_of::<f32>()).max(1) as i64;
        let wave = (WAITING / bytes).max(4 * self.context.threads.count() as i64).min(self.chunks);
        let waiting = self.context.threads.lease(wave as usize * blocks * block_len * size_of::<f32>());
        let sums = |chunk: i64, block: usize| {
            let at = (chunk as usize * blocks + block) * block_len;
            // SAFETY: the loan has as many blocks as a wave has chunks, each chunk of each block its own, which one job at a time uses:
            // first the one that makes it, then, behind all of these, the one thread that adds.
            unsafe { std::slice::from_raw_parts_mut(waiting.as_ptr().cast::<f32>().add(at), block_len) }
        };
        let points = self.chunk.saturating_mul(self.width);
        for phase in 0..self.reduction.phases.len() {
            let range = self.range(phase);
            for block in 0..blocks {
                let block_results = &mut results[block * block_len..][..block_len];
                self.neutral(phase, &mut block_results[range.clone()]);
                widen(&mut totals[block * totals_len..][..totals_len], &block_results[range.clone()]);
            }
            let mut first = 0;
            while first < self.chunks {
                let count = wave.min(self.chunks - first);
                self.context.for_rows(count * self.blocks, points, |begin, end| {
                    for item in begin..end {
                        let (chunk, block) = (item / self.blocks, item % self.blocks);
                        let place = sums(chunk, block as usize);
                        place.copy_from_slice(&results[block as usize * block_len..][..block_len]);
                        // SAFETY: the block has as many accumulators as the function takes; it stores nothing else.
                        unsafe { self.run_phase(phase, block, first + chunk, place) };
                    }
                });
                for block in 0..blocks {
                    let totals = &mut totals[block * totals_len..][..totals_len];
                    (0..count).for_each(|chunk| self.add(phase, totals, &sums(chunk, block)[range.clone()]));
                }
                first += count;
            }
            for block in 0..blocks {
                let results = &mut results[block * block_len..][..block_len];
                narrow(&mut results[range.clone()], &totals[block * totals_len..]);
            }
        }
        for block in 0..self.blocks {
            // SAFETY: the points of different rows store to different places.
            unsafe { self.run_row(block, &results[block as usize * block_len..][..block_len]) };
        }
        if self.compiled.element.is_none() {
            return;
        }
        self.context.for_rows(self.chunks * self.blocks, points, |begin, end| {
            for item in begin..end {
                let (chunk, block) = (item / self.blocks, item % self.blocks);
                let results = &results[block as usize * block_len..][..block_len];
                // SAFETY: different points store to different places.
                unsafe { self.run_elements(block, self.columns_of(chunk), results) };
            }
        });
    }

    fn neutral(&self, phase: usize, sums: &mut [f32]) {
        let reductions = self.reductions(phase).iter().zip(sums.chunks_mut(self.width as usize));
        for (reduction, sums) in reductions {
            sums.fill(match reduction.op {
                ReductionOp::Sum => 0.0,
                ReductionOp::Max => f32::NEG_INFINITY,
            });
        }
    }

    /// Adds what a chunk gave to the totals of a phase.
    fn add(&self, phase: usize, totals: &mut [f64], sums: &[f32]) {
        let width = self.width as usize;
        for ((reduction, totals), sums) in
            self.reductions(phase).iter().zip(totals.chunks_mut(width)).zip(sums.chunks(width))
        {
            for (total, &sum) in totals.iter_mut().zip(sums) {
                let sum = f64::from(sum);
                match reduction.op {
                    ReductionOp::Sum => *total += sum,
                    // A NaN is the largest, and stays.
                    ReductionOp::Max if sum > *total || sum.is_nan() => *total = sum,
                    ReductionOp::Max => {}
                }
            }
        }
    }

    /// The point of the outer row axes that a block belongs to, and its range of the last one.
    fn rows_of(&self, block: i64) -> (i64, Range<i64>) {
        let begin = block % self.blocks_per_row * self.width;
        (block / self.blocks_per_row, begin..(begin + self.width).min(self.inner))
    }

    fn columns_of(&self, chunk: i64) -> Range<i64> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.columns)
    }

    fn region(&self, outer: Range<i64>, inner: Range<i64>, block: *mut f32) -> Region {
        Region {
            outer_begin: outer.start,
            outer_end: outer.end,
            inner_begin: inner.start,
            inner_end: inner.end,
            block: block.cast(),
            row_stride: 0,
            segment_stride: self.width,
        }
    }

    /// Combines the accumulators of a phase with a chunk of columns.
    ///
    /// # Safety
    /// As for `execute`; the block has the accumulators of all phases.
    unsafe fn run_phase(&self, phase: usize, number: i64, chunk: i64, block: &mut [f32]) {
        let (row, rows) = self.rows_of(number);
        let columns = self.columns_of(chunk);
        let region = if self.compiled.across {
            let first = row * self.columns;
            self.region(first + columns.start..first + columns.end, rows, block.as_mut_ptr())
        } else {
            self.region(row..row + 1, columns, block.as_mut_ptr())
        };
        // SAFETY: passed on.
        unsafe { self.context.call(self.compiled.phases[phase], &region) }
    }

    /// Stores the results of a block's rows.
    ///
    /// # Safety
    /// As for `execute`; the block has the accumulators of all phases.
    unsafe fn run_row(&self, number: i64, block: &[f32]) {
        let (row, rows) = self.rows_of(number);
        if let Some(function) = self.compiled.row {
            let region = self.region(row..row + 1, rows, block.as_ptr().cast_mut());
            // SAFETY: passed on; the function only reads the block.
            unsafe { self.context.call(function, &region) }
        }
    }

    /// Computes the elements of a block's rows in some columns.
    ///
    /// # Safety
    /// As for `execute`; the block has the accumulators of all phases.
    unsafe fn run_elements(&self, number: i64, columns: Range<i64>, block: &[f32]) {
        let (row, rows) = self.rows_of(number);
        if let Some(function) = self.compiled.element {
            let first = row * self.columns;
            let block = block.as_ptr().cast_mut();
            let region = self.region(first + columns.start..first + columns.end, rows, block);
            // SAFETY: passed on; the function only reads the block.
            unsafe { self.context.call(function, &region) }
        }
    }
}

/// The quotient of numbers that are not negative, rounded up.
fn div_ceil(x: i64, y: i64) -> i64 {
    x / y + i64::from(x % y != 0)
}

fn widen(totals: &mut [f64], sums: &[f32]) {
    totals.iter_mut().zip(sums).for_each(|(total, &sum)| *total = f64::from(sum));
}

fn narrow(sums: &mut [f32], totals: &[f64]) {
    sums.iter_mut().zip(totals).for_each(|(sum, &total)| *sum = total as f32);
}
