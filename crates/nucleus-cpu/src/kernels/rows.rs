//! The left operand of a matrix product: where its rows come from, and their copy that the inner loops read.

use std::ops::Range;

use super::element::{Element, Operand, load_f32, store_f32};
use super::pack::{Matrix, steps};
use super::simd::{CopyArgs, Kernels};
use crate::threads::Worker;

/// Where the rows of A come from.
#[derive(Clone, Copy)]
pub enum RowSource<'a> {
    /// Rows in memory. They are converted to the operand type where they have another.
    Memory {
        /// Element [0, 0].
        data: *const u8,
        /// Type of the elements.
        element: Element,
        /// Elements from one row to the next.
        row_stride: usize,
        /// Elements from one k to the next. Where it is not 1 but `row_stride` is, blocks are transposed.
        col_stride: usize,
        /// Row r of the product is row `index[r]` of `data`; without it, row r. Not negative.
        index: Option<*const i32>,
    },
    /// A function that computes rows, called once for every row from any of the worker threads.
    Fill(&'a (dyn Fn(&RowBlock) + Sync)),
}

/// A request to compute rows `row .. row + rows` of one product's left operand.
#[derive(Clone, Copy, Debug)]
pub struct RowBlock {
    /// Which product of the batch.
    pub product: usize,
    /// First row.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Where element [row, 0] goes, in the operand's type, 64-byte aligned.
    pub destination: *mut u8,
    /// Elements from one row of the destination to the next.
    pub row_stride: usize,
}

/// How staged rows lie in memory: for each chunk of k the rows' parts one behind the other, so that a job reads what it
/// needs of a chunk as one stream.
#[derive(Clone, Copy)]
pub(super) struct StagedRows {
    /// Columns.
    pub(super) k: usize,
    /// Columns of a chunk, an even number; the last has what is left.
    depth: usize,
    /// Number of chunks, at least 1.
    pub(super) chunks: usize,
    /// What the source has, and `Fill` writes.
    pub(super) operand: Operand,
    /// What the inner loop reads: f32 words even for bf16 operands where the machine has no bf16 products.
    pub(super) words: Operand,
    /// Words from one row of a chunk to the next.
    pub(super) stride: usize,
}

const LINE_WORDS: usize = 16;
const FILL_SLOT: usize = 0;

impl StagedRows {
    /// Rows of `k` columns in chunks of about `depth`.
    pub(super) fn new(kernels: &Kernels, operand: Operand, k: usize, depth: usize) -> Self {
        let words = kernels.tiles(operand).1;
        let chunks = k.div_ceil(depth.max(1)).max(1);
        let depth = k.div_ceil(chunks).next_multiple_of(2);
        // An odd number of cache lines, so that neighbouring rows fall into different sets of the cache: the widths
        // of models are powers of two.
        let lines = steps(words, depth).div_ceil(LINE_WORDS) | 1;
        Self { k, depth, chunks: k.div_ceil(depth.max(1)).max(1), operand, words, stride: lines * LINE_WORDS }
    }

    /// Steps of the inner loop over `extent` of k from an even one on.
    pub(super) fn words_of(&self, extent: usize) -> usize {
        steps(self.words, extent)
    }

    /// The columns of a chunk.
    pub(super) fn range(&self, chunk: usize) -> Range<usize> {
        chunk * self.depth..((chunk + 1) * self.depth).min(self.k)
    }

    /// Words that a row takes in all chunks.
    pub(super) fn row_words(&self) -> usize {
        self.chunks * self.stride
    }

    /// Where column `k`, an even one, of row `row` of `rows` lies.
    pub(super) fn at(&self, base: *mut u32, (row, rows): (usize, usize), k: usize) -> *mut u32 {
        let chunk = k / self.depth.max(1);
        let place = (chunk * rows + row) * self.stride + self.words_of(k - chunk * self.depth);
        base.wrapping_add(place)
    }

    /// Where the row's part begins in the chunk behind that of column `k`, after the last the first.
    pub(super) fn next_chunk(&self, base: *mut u32, (row, rows): (usize, usize), k: usize) -> *mut u32 {
        let chunk = (k / self.depth.max(1) + 1) % self.chunks;
        base.wrapping_add((chunk * rows + row) * self.stride)
    }

    /// Copies, gathers or computes rows `row .. row + count` of a product, to row `place` on of `rows` at `base`.
    ///
    /// # Safety
    /// `source` is readable there; `base` has room for `rows` rows.
    pub(super) unsafe fn stage(
        &self,
        kernels: &Kernels,
        source: &RowSource,
        (product, row, count): (usize, usize, usize),
        base: *mut u32,
        (place, rows): (usize, usize),
        worker: &mut Worker,
    ) {
        let size = self.operand.element().size();
        // SAFETY: rows stay below `count`, elements below k; the rest is the caller's promise.
        unsafe {
            match *source {
                RowSource::Memory { data, element, row_stride, col_stride, index } if col_stride != 1 => {
                    let matrix = Matrix { data, element, row_stride, col_stride };
                    match index {
                        None => {
                            let block = matrix.at(row, 0);
                            self.stage_block(kernels, &block, count, base, (place, rows), worker);
                        }
                        Some(index) => {
                            for r in 0..count {
                                let block = matrix.at(index.add(row + r).read() as usize, 0);
                                self.stage_block(kernels, &block, 1, base, (place + r, rows), worker);
                            }
                        }
                    }
                }
                RowSource::Memory { data, element, row_stride, index, .. } => {
                    for r in 0..count {
                        let from = index.map_or(row + r, |index| index.add(row + r).read() as usize);
                        let from = data.add(from * row_stride * element.size());
                        self.stage_row(kernels, from, element, base, (place + r, rows));
                    }
                }
                RowSource::Fill(fill) if self.operand == self.words && self.chunks == 1 => {
                    let destination = self.at(base, (place, rows), 0).cast();
                    let row_stride = self.stride * 4 / size;
                    fill(&RowBlock { product, row, rows: count, destination, row_stride });
                    (0..count).for_each(|r| self.pad(base, (place + r, rows)));
                }
                RowSource::Fill(fill) => {
                    let row_stride = self.k.next_multiple_of(64);
                    let computed = worker.scratch(FILL_SLOT, count * row_stride * size);
                    fill(&RowBlock { product, row, rows: count, destination: computed, row_stride });
                    for r in 0..count {
                        let from = computed.add(r * row_stride * size);
                        self.stage_row(kernels, from, self.operand.element(), base, (place + r, rows));
                    }
                }
            }
        }
    }

    /// Copies or transposes rows whose k are not contiguous.
    unsafe fn stage_block(
        &self,
        kernels: &Kernels,
        block: &Matrix,
        count: usize,
        base: *mut u32,
        place: (usize, usize),
        worker: &mut Worker,
    ) {
        let rounds = self.operand == Operand::Bf16 && block.element != Element::Bf16;
        // SAFETY: the chunks cover the rows' k elements; the caller vouches for both sides.
        unsafe {
            for range in (0..self.chunks).map(|chunk| self.range(chunk)) {
                let (source, to) = (block.at(0, range.start), self.at(base, place, range.start));
                if self.words == Operand::F32 {
                    source.copy_block(kernels, (count, range.len()), to.cast(), self.stride);
                    if rounds {
                        (0..count).for_each(|r| (kernels.round)(to.add(r * self.stride).cast(), range.len()));
                    }
                    continue;
                }
                // A row of the product is a column of pairs.
                let pairs = Matrix { row_stride: block.col_stride, col_stride: block.row_stride, ..source };
                if pairs.has_bf16_pairs() {
                    let stride = count.next_multiple_of(LINE_WORDS);
                    let words = range.len().div_ceil(2);
                    let paired = worker.scratch(FILL_SLOT, 4 * words * stride).cast::<u32>();
                    pairs.copy_pairs(kernels, (range.len(), count), paired, stride);
                    (kernels.transpose_f32)(&CopyArgs {
                        source: paired.cast_const().cast(),
                        source_stride: stride,
                        rows: words,
                        cols: count,
                        destination: to.cast(),
                        destination_stride: self.stride,
                    });
                    continue;
                }
                let plain_stride = range.len().next_multiple_of(LINE_WORDS);
                let plain = worker.scratch(FILL_SLOT, 4 * count * plain_stride).cast::<f32>();
                source.copy_block(kernels, (count, range.len()), plain, plain_stride);
                for r in 0..count {
                    let halves = to.add(r * self.stride).cast();
                    (kernels.f32_to_bf16)(plain.add(r * plain_stride), range.len(), halves);
                }
            }
            (0..count).for_each(|r| self.pad(base, (place.0 + r, place.1)));
        }
    }

    /// Converts one row, chunk by chunk.
    unsafe fn stage_row(
        &self,
        kernels: &Kernels,
        from: *const u8,
        element: Element,
        base: *mut u32,
        place: (usize, usize),
    ) {
        // SAFETY: the chunks cover the row's k elements; the caller vouches for both sides.
        unsafe {
            for range in (0..self.chunks).map(|chunk| self.range(chunk)) {
                let source = from.add(range.start * element.size());
                let to = self.at(base, place, range.start);
                convert_row(kernels, source, element, range.len(), to, self.operand, self.words);
            }
            self.pad(base, place);
        }
    }

    /// The half word that an odd k leaves is zero.
    unsafe fn pad(&self, base: *mut u32, place: (usize, usize)) {
        if self.words == Operand::Bf16 && self.k % 2 == 1 {
            let last = self.at(base, place, self.k - 1);
            // SAFETY: the last word of the row.
            unsafe { last.cast::<u16>().add(1).write(0) };
        }
    }
}

/// Copies one row of `count` elements into words, rounding to the operand's type.
///
/// # Safety
/// Both sides hold `count` elements.
pub(super) unsafe fn convert_row(
    kernels: &Kernels,
    source: *const u8,
    element: Element,
    count: usize,
    destination: *mut u32,
    operand: Operand,
    words: Operand,
) {
    // SAFETY: the caller vouches for both rows, and the table fits the machine.
    unsafe {
        match (element, operand, words) {
            (Element::F32, Operand::F32, _) => {
                std::ptr::copy_nonoverlapping(source, destination.cast::<u8>(), 4 * count);
            }
            (Element::Bf16, Operand::Bf16, Operand::Bf16) => {
                std::ptr::copy_nonoverlapping(source, destination.cast::<u8>(), 2 * count);
            }
            (Element::Bf16, _, Operand::F32) => {
                (kernels.bf16_to_f32)(source.cast(), count, destination.cast())
            }
            (Element::F32, Operand::Bf16, Operand::Bf16) => {
                (kernels.f32_to_bf16)(source.cast(), count, destination.cast());
            }
            _ => {
                for at in 0..count {
                    let value = load_f32(source, element, at);
                    let value =
                        if operand == Operand::Bf16 { super::element::round_to_bf16(value) } else { value };
                    store_f32(destination.cast(), words.element(), at, value);
                }
            }
        }
    }
}
