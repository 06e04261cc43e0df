//! The layout of a matrix product's right operand: panels of as many columns as the register tile is wide.
//!
//! A panel holds, for each step of k, one word for each of its columns, so that the inner loop reads it front to
//! back. A word is one f32, or two bf16 of neighbouring k with the lower k in the lower half. What k and n lack to
//! a full word or panel is zero.

use super::element::{Bf16Bits, Element, F16Bits, Operand, Stored};
use super::isa::Isa;
use super::simd::kernels;
use crate::threads::Threads;

/// A strided matrix to be packed; strides are in elements.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Element [0, 0].
    pub data: *const u8,
    /// Type of the elements; they need not be aligned.
    pub element: Element,
    /// From one k to the next.
    pub row_stride: usize,
    /// From one column to the next.
    pub col_stride: usize,
}

// SAFETY: a description of memory; whoever reads it from several threads vouches for it (see `pack_b`).
unsafe impl Sync for Matrix {}
// SAFETY: as above.
unsafe impl Send for Matrix {}

/// Where panels and words of a packed [k, n] operand lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    /// Columns of a panel.
    pub panel_cols: usize,
    /// Words in a column.
    pub steps: usize,
    /// Panels; the last may be part zero.
    pub panels: usize,
}

impl PackedLayout {
    /// The layout for one instruction set.
    #[must_use]
    pub fn new(isa: Isa, operand: Operand, k: usize, n: usize) -> Self {
        let panel_cols = kernels(isa).panel_cols;
        Self { panel_cols, steps: steps(operand, k), panels: n.div_ceil(panel_cols) }
    }

    /// Words of one panel.
    #[must_use]
    pub const fn panel_words(&self) -> usize {
        self.panel_cols * self.steps
    }

    /// Bytes of the whole operand.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        4 * self.panel_words() * self.panels
    }
}

/// Words that hold `k` operands.
pub(super) const fn steps(operand: Operand, k: usize) -> usize {
    match operand {
        Operand::F32 => k,
        Operand::Bf16 => k.div_ceil(2),
    }
}

/// Bytes of a [k, n] operand once packed. `segments` of them lie one behind the other.
#[must_use]
pub fn packed_bytes(isa: Isa, operand: Operand, k: usize, n: usize) -> usize {
    PackedLayout::new(isa, operand, k, n).bytes()
}

/// Packs `segments` groups of `n` columns each, every group into [`packed_bytes`] bytes. `source` has `segments * n`
/// columns; both storage orders are read in cache-sized blocks.
///
/// # Safety
/// `source` must be readable over [k, segments·n]; `destination`, aligned to 4, must be writable over
/// `segments * packed_bytes(isa, operand, k, n)` bytes that nothing else uses meanwhile.
#[expect(clippy::too_many_arguments, reason = "sizes and the two sides of one copy")]
pub unsafe fn pack_b(
    threads: &Threads,
    isa: Isa,
    operand: Operand,
    source: Matrix,
    k: usize,
    n: usize,
    segments: usize,
    destination: *mut u8,
) {
    let layout = PackedLayout::new(isa, operand, k, n);
    let destination = SendPtr(destination.cast::<u32>());
    threads.parallel_for(layout.panels * segments, |job, _| {
        let (segment, panel) = (job / layout.panels, job % layout.panels);
        let first = panel * layout.panel_cols;
        let block = PanelBlock {
            source: source.at(0, segment * n + first),
            k,
            cols: layout.panel_cols.min(n - first),
            steps: layout.steps,
            panel_cols: layout.panel_cols,
        };
        // SAFETY: panel `job` of `destination` belongs to this job; the source range is the caller's promise.
        unsafe { pack_panel(operand, &block, destination.get().add(job * layout.panel_words())) };
    });
}

impl Matrix {
    /// The matrix that begins at element [row, col] of this one.
    pub(super) fn at(&self, row: usize, col: usize) -> Self {
        let offset = (row * self.row_stride + col * self.col_stride) * self.element.size();
        Self { data: self.data.wrapping_add(offset), ..*self }
    }
}

/// A pointer that jobs on several threads offset to disjoint places.
#[derive(Clone, Copy)]
pub(super) struct SendPtr<T>(pub(super) *mut T);

impl<T> SendPtr<T> {
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}

// SAFETY: an address; each use states why its place is not shared.
unsafe impl<T> Sync for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Send for SendPtr<T> {}

/// Part of one panel: `steps` panel rows from `k` rows and `cols` columns of the source, zero where it ends.
pub(super) struct PanelBlock {
    pub(super) source: Matrix,
    pub(super) k: usize,
    pub(super) cols: usize,
    pub(super) steps: usize,
    pub(super) panel_cols: usize,
}

/// # Safety
/// The source of `block` is readable over [k, cols], `destination` writable over `steps * panel_cols` words.
pub(super) unsafe fn pack_panel(operand: Operand, block: &PanelBlock, destination: *mut u32) {
    // SAFETY: passed on.
    unsafe {
        match (operand, block.source.element) {
            (Operand::F32, Element::F32) => pack_typed::<f32, false>(block, destination),
            (Operand::F32, Element::Bf16) => pack_typed::<Bf16Bits, false>(block, destination),
            (Operand::F32, Element::F16) => pack_typed::<F16Bits, false>(block, destination),
            (Operand::F32, Element::I8) => pack_typed::<i8, false>(block, destination),
            (Operand::Bf16, Element::F32) => pack_typed::<f32, true>(block, destination),
            (Operand::Bf16, Element::Bf16) => pack_typed::<Bf16Bits, true>(block, destination),
            (Operand::Bf16, Element::F16) => pack_typed::<F16Bits, true>(block, destination),
            (Operand::Bf16, Element::I8) => pack_typed::<i8, true>(block, destination),
        }
    }
}

/// Steps that a blocked transposition handles at a time: 32 columns × 16 words are 2 KB of the panel.
const BLOCK: usize = 16;

unsafe fn pack_typed<T: Stored, const PAIRS: bool>(block: &PanelBlock, destination: *mut u32) {
    let (k, cols, width) = (block.k, block.cols, block.panel_cols);
    let whole_steps = if PAIRS { k / 2 } else { k };
    // SAFETY: columns run below `cols`, k below `k`, words below `steps * width`.
    unsafe {
        if block.source.col_stride == 1 {
            for step in 0..whole_steps {
                let line = destination.add(step * width);
                (0..cols).for_each(|col| line.add(col).write(word::<T, PAIRS>(block, step, col, 1)));
            }
        } else {
            for first in (0..whole_steps).step_by(BLOCK) {
                for col in 0..cols {
                    for step in first..whole_steps.min(first + BLOCK) {
                        let word = word::<T, PAIRS>(block, step, col, block.source.col_stride);
                        destination.add(step * width + col).write(word);
                    }
                }
            }
        }
        if whole_steps < block.steps || cols < width {
            zero_padding(block, whole_steps, destination);
        }
        if PAIRS && k % 2 == 1 {
            for col in 0..cols {
                let at = (k - 1) * block.source.row_stride + col * block.source.col_stride;
                let last = T::read(block.source.data, at).to_bf16();
                destination.add(whole_steps * width + col).write(u32::from(last));
            }
        }
    }
}

#[inline(always)]
unsafe fn word<T: Stored, const PAIRS: bool>(
    block: &PanelBlock,
    step: usize,
    col: usize,
    col_stride: usize,
) -> u32 {
    let row_stride = block.source.row_stride;
    // SAFETY: the caller stays within [k, cols].
    unsafe {
        let read = |row: usize| T::read(block.source.data, row * row_stride + col * col_stride);
        if PAIRS {
            u32::from(read(2 * step).to_bf16()) | u32::from(read(2 * step + 1).to_bf16()) << 16
        } else {
            read(step).to_f32().to_bits()
        }
    }
}

unsafe fn zero_padding(block: &PanelBlock, whole_steps: usize, destination: *mut u32) {
    for step in 0..block.steps {
        let first = if step < whole_steps { block.cols } else { 0 };
        for col in first..block.panel_cols {
            // SAFETY: within the panel.
            unsafe { destination.add(step * block.panel_cols + col).write(0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::element::{bf16_from_f32, store_f32};

    /// The word that the layout promises at one place.
    fn expected(operand: Operand, value: impl Fn(usize) -> f32, k: usize, step: usize) -> u32 {
        let at = |row: usize| if row < k { value(row) } else { 0.0 };
        match operand {
            Operand::F32 => at(step).to_bits(),
            Operand::Bf16 => {
                u32::from(bf16_from_f32(at(2 * step))) | u32::from(bf16_from_f32(at(2 * step + 1))) << 16
            }
        }
    }

    #[test]
    fn both_storage_orders_and_all_types_give_the_documented_layout() {
        let threads = Threads::new(2).unwrap();
        let (k, n, segments) = (37, 45, 2);
        // Every stored type holds these exactly.
        let value = |row: usize, col: usize| ((row * 31 + col * 17) % 200) as f32 - 99.0;
        for isa in Isa::supported() {
            for operand in [Operand::F32, Operand::Bf16] {
                for element in [Element::F32, Element::Bf16, Element::F16, Element::I8] {
                    for (row_stride, col_stride) in [(segments * n + 3, 1), (1, k + 5), (2 * n * segments, 2)]
                    {
                        let mut stored = vec![0u8; 4 * (k * row_stride + n * segments * col_stride)];
                        for row in 0..k {
                            for col in 0..n * segments {
                                let at = row * row_stride + col * col_stride;
                                // SAFETY: the vector holds every [row, col] at four bytes each.
                                unsafe { store_f32(stored.as_mut_ptr(), element, at, value(row, col)) };
                            }
                        }
                        let source = Matrix { data: stored.as_ptr(), element, row_stride, col_stride };
                        let layout = PackedLayout::new(isa, operand, k, n);
                        let mut packed = vec![0xdead_beefu32; segments * layout.bytes() / 4];
                        // SAFETY: both sides have the sizes that `pack_b` asks for.
                        unsafe {
                            pack_b(
                                &threads,
                                isa,
                                operand,
                                source,
                                k,
                                n,
                                segments,
                                packed.as_mut_ptr().cast(),
                            );
                        }
                        for (at, &word) in packed.iter().enumerate() {
                            let col = at % layout.panel_cols;
                            let step = at / layout.panel_cols % layout.steps;
                            let panel = at / layout.panel_words();
                            let (segment, panel) = (panel / layout.panels, panel % layout.panels);
                            let inner = panel * layout.panel_cols + col;
                            let column = |row| if inner < n { value(row, segment * n + inner) } else { 0.0 };
                            assert_eq!(
                                word,
                                expected(operand, column, k, step),
                                "{isa} {operand:?} {element:?} {at}"
                            );
                        }
                    }
                }
            }
        }
    }
}
