//! The left operand of a matrix product: where its rows come from, and their copy that the inner loops read.

use super::element::{Element, Operand, load_f32, store_f32};
use super::pack::steps;
use super::simd::Kernels;
use crate::threads::Worker;

/// Where the rows of A come from.
#[derive(Clone, Copy)]
pub enum RowSource<'a> {
    /// Rows in memory, k contiguous in each. They are converted to the operand type where they have another.
    Memory {
        /// Element [0, 0].
        data: *const u8,
        /// Type of the elements.
        element: Element,
        /// Elements from one row to the next.
        row_stride: usize,
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

/// How staged rows lie in memory.
#[derive(Clone, Copy)]
pub(super) struct StagedRows {
    /// Columns.
    pub(super) k: usize,
    /// What the source has, and `Fill` writes.
    pub(super) operand: Operand,
    /// What the inner loop reads: f32 words even for bf16 operands where the machine has no bf16 products.
    pub(super) words: Operand,
    /// Words from one row to the next.
    pub(super) stride: usize,
}

const LINE_WORDS: usize = 16;
const FILL_SLOT: usize = 0;

impl StagedRows {
    pub(super) fn new(kernels: &Kernels, operand: Operand, k: usize) -> Self {
        let words = kernels.tiles(operand).1;
        // An odd number of cache lines, so that neighbouring rows fall into different sets of the cache: the widths
        // of models are powers of two.
        let lines = steps(words, k).div_ceil(LINE_WORDS) | 1;
        Self { k, operand, words, stride: lines * LINE_WORDS }
    }

    /// Steps of the inner loop.
    pub(super) fn steps(&self) -> usize {
        steps(self.words, self.k)
    }

    /// Copies, gathers or computes rows `row .. row + rows` of a product.
    ///
    /// # Safety
    /// `source` is readable there; `destination` is writable over `rows * stride` words.
    pub(super) unsafe fn stage(
        &self,
        kernels: &Kernels,
        source: &RowSource,
        (product, row, rows): (usize, usize, usize),
        destination: *mut u32,
        worker: &mut Worker,
    ) {
        let at = |row: usize| destination.wrapping_add(row * self.stride);
        // SAFETY: rows stay below `rows`, elements below k; the rest is the caller's promise.
        unsafe {
            match *source {
                RowSource::Memory { data, element, row_stride, index } => {
                    for r in 0..rows {
                        let from = index.map_or(row + r, |index| index.add(row + r).read() as usize);
                        let from = data.add(from * row_stride * element.size());
                        convert_row(kernels, from, element, self.k, at(r), self.operand, self.words);
                    }
                }
                RowSource::Fill(fill) if self.operand == self.words => {
                    let row_stride = self.stride * 4 / self.operand.element().size();
                    fill(&RowBlock { product, row, rows, destination: destination.cast(), row_stride });
                }
                RowSource::Fill(fill) => {
                    let element = self.operand.element();
                    let row_stride = self.k.next_multiple_of(64);
                    let computed = worker.scratch(FILL_SLOT, rows * row_stride * element.size());
                    fill(&RowBlock { product, row, rows, destination: computed, row_stride });
                    for r in 0..rows {
                        let from = computed.add(r * row_stride * element.size());
                        convert_row(kernels, from, element, self.k, at(r), self.operand, self.words);
                    }
                }
            }
            if self.words == Operand::Bf16 && self.k % 2 == 1 {
                (0..rows).for_each(|r| at(r).cast::<u16>().add(self.k).write(0));
            }
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
