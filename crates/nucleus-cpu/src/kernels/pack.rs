//! The layout of a matrix product's right operand: panels of as many columns as the register tile is wide.
//!
//! A panel holds, for each step of k, one word for each of its columns, so that the inner loop reads it front to
//! back. A word is one f32, two bf16 of neighbouring k with the lower k in the lower half, or one i8, which is widened when
//! it is used. What k and n lack to a full word or panel is zero.

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

/// What a packed right operand consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// f32.
    F32,
    /// Pairs of bf16.
    Bf16,
    /// i8, for f32 and for bf16 products, both of which hold it exactly.
    I8,
}

impl Packing {
    /// How stored elements are packed for products of `operand`.
    #[must_use]
    pub const fn of(operand: Operand, element: Element) -> Self {
        match (element, operand) {
            (Element::I8, _) => Self::I8,
            (_, Operand::F32) => Self::F32,
            (_, Operand::Bf16) => Self::Bf16,
        }
    }

    /// Steps of k in a row of a panel.
    const fn row_depth(self) -> usize {
        match self {
            Self::F32 | Self::I8 => 1,
            Self::Bf16 => 2,
        }
    }

    const fn word_bytes(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 4,
            Self::I8 => 1,
        }
    }
}

/// Where panels and words of a packed [k, n] operand lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    /// Columns of a panel.
    pub panel_cols: usize,
    /// Rows of a panel, each of one word for every column.
    pub rows: usize,
    /// Steps of k in a row.
    pub row_depth: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Panels; the last may be part zero.
    pub panels: usize,
}

impl PackedLayout {
    /// The layout for one instruction set.
    #[must_use]
    pub fn new(isa: Isa, packing: Packing, k: usize, n: usize) -> Self {
        let panel_cols = kernels(isa).panel_cols;
        Self {
            panel_cols,
            rows: k.div_ceil(packing.row_depth()),
            row_depth: packing.row_depth(),
            row_bytes: packing.word_bytes() * panel_cols,
            panels: n.div_ceil(panel_cols),
        }
    }

    /// Bytes of one panel.
    #[must_use]
    pub const fn panel_bytes(&self) -> usize {
        self.row_bytes * self.rows
    }

    /// Bytes of the whole operand.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.panel_bytes() * self.panels
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
pub fn packed_bytes(isa: Isa, packing: Packing, k: usize, n: usize) -> usize {
    PackedLayout::new(isa, packing, k, n).bytes()
}

/// Packs `segments` groups of `n` columns each, every group into [`packed_bytes`] bytes. `source` has `segments * n`
/// columns; both storage orders are read in cache-sized blocks.
///
/// # Safety
/// `source` must be readable over [k, segments·n]; `destination`, aligned to 4, must be writable over
/// `segments * packed_bytes(isa, packing, k, n)` bytes that nothing else uses meanwhile.
///
/// # Panics
/// `packing` is i8 and the source is not.
#[expect(clippy::too_many_arguments, reason = "sizes and the two sides of one copy")]
pub unsafe fn pack_b(
    threads: &Threads,
    isa: Isa,
    packing: Packing,
    source: Matrix,
    k: usize,
    n: usize,
    segments: usize,
    destination: *mut u8,
) {
    let layout = PackedLayout::new(isa, packing, k, n);
    assert!(packing != Packing::I8 || source.element == Element::I8, "only i8 is packed as i8");
    let destination = SendPtr(destination);
    threads.parallel_for(layout.panels * segments, |job, _| {
        let (segment, panel) = (job / layout.panels, job % layout.panels);
        let first = panel * layout.panel_cols;
        let block = PanelBlock {
            source: source.at(0, segment * n + first),
            k,
            cols: layout.panel_cols.min(n - first),
            steps: layout.rows,
            panel_cols: layout.panel_cols,
        };
        // SAFETY: panel `job` of `destination` belongs to this job; the source range is the caller's promise.
        unsafe {
            let panel = destination.get().add(job * layout.panel_bytes());
            match packing {
                Packing::F32 => pack_panel(Operand::F32, &block, panel.cast()),
                Packing::Bf16 => pack_panel(Operand::Bf16, &block, panel.cast()),
                Packing::I8 => pack_bytes(&block, panel),
            }
        };
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

/// A panel of bytes.
unsafe fn pack_bytes(block: &PanelBlock, destination: *mut u8) {
    let (cols, width) = (block.cols, block.panel_cols);
    let Matrix { data, row_stride, col_stride, .. } = block.source;
    // SAFETY: columns run below `cols`, k below `k`, bytes below `k * width`.
    unsafe {
        for first in (0..block.k).step_by(BLOCK) {
            let end = block.k.min(first + BLOCK);
            if col_stride == 1 {
                for k in first..end {
                    let line = destination.add(k * width);
                    std::ptr::copy_nonoverlapping(data.add(k * row_stride), line, cols);
                }
            } else {
                for col in 0..cols {
                    for k in first..end {
                        destination.add(k * width + col).write(*data.add(k * row_stride + col * col_stride));
                    }
                }
            }
            for k in first..end {
                std::ptr::write_bytes(destination.add(k * width + cols), 0, width - cols);
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

    /// Column `col` of row `row` as the layout promises it, in the low bytes.
    fn expected(packing: Packing, value: impl Fn(usize) -> f32, k: usize, row: usize) -> u32 {
        let at = |row: usize| if row < k { value(row) } else { 0.0 };
        match packing {
            Packing::F32 => at(row).to_bits(),
            Packing::Bf16 => {
                u32::from(bf16_from_f32(at(2 * row))) | u32::from(bf16_from_f32(at(2 * row + 1))) << 16
            }
            Packing::I8 => u32::from((at(row) as i8).cast_unsigned()),
        }
    }

    #[test]
    fn both_storage_orders_and_all_types_give_the_documented_layout() {
        let threads = Threads::new(2).unwrap();
        let (k, n, segments) = (37, 45, 2);
        // Every stored type holds these exactly.
        let value = |row: usize, col: usize| ((row * 31 + col * 17) % 200) as f32 - 99.0;
        for isa in Isa::supported() {
            for (operand, element) in [Operand::F32, Operand::Bf16].into_iter().flat_map(|operand| {
                [Element::F32, Element::Bf16, Element::F16, Element::I8].map(|element| (operand, element))
            }) {
                for (row_stride, col_stride) in [(segments * n + 3, 1), (1, k + 5), (2 * n * segments, 2)] {
                    let mut stored = vec![0u8; 4 * (k * row_stride + n * segments * col_stride)];
                    for row in 0..k {
                        for col in 0..n * segments {
                            let at = row * row_stride + col * col_stride;
                            // SAFETY: the vector holds every [row, col] at four bytes each.
                            unsafe { store_f32(stored.as_mut_ptr(), element, at, value(row, col)) };
                        }
                    }
                    let source = Matrix { data: stored.as_ptr(), element, row_stride, col_stride };
                    let packing = Packing::of(operand, element);
                    let layout = PackedLayout::new(isa, packing, k, n);
                    let mut packed = vec![0xdead_beefu32; (segments * layout.bytes()).div_ceil(4)];
                    let to = packed.as_mut_ptr().cast();
                    // SAFETY: both sides have the sizes that `pack_b` asks for.
                    unsafe { pack_b(&threads, isa, packing, source, k, n, segments, to) };
                    let bytes = packing.word_bytes();
                    let packed: Vec<u8> = packed.into_iter().flat_map(u32::to_le_bytes).collect();
                    for (at, word) in packed[..segments * layout.bytes()].chunks(bytes).enumerate() {
                        let col = at % layout.panel_cols;
                        let row = at / layout.panel_cols % layout.rows;
                        let panel = at / (layout.panel_cols * layout.rows);
                        let (segment, panel) = (panel / layout.panels, panel % layout.panels);
                        let inner = panel * layout.panel_cols + col;
                        let column = |row| if inner < n { value(row, segment * n + inner) } else { 0.0 };
                        let expected = expected(packing, column, k, row).to_le_bytes();
                        assert_eq!(word, &expected[..bytes], "{isa} {packing:?} {element:?} {at}");
                    }
                }
            }
        }
    }
}
