//! The layout of a matrix product's right operand: panels of as many columns as the register tile is wide.
//!
//! A panel holds, for each step of k, one word for each of its columns, so that the inner loop reads it front to
//! back. A word is one f32, two bf16 of neighbouring k with the lower k in the lower half, or one i8, which is widened when
//! it is used. What k and n lack to a full word or panel is zero.

use super::element::{Element, Operand, load_f32};
use super::isa::Isa;
use super::simd::{CopyArgs, Kernels, PairArgs, kernels};
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
    /// f32 that are rounded to bf16, for machines that multiply bf16 as f32: twice as large as pairs, which have to be widened
    /// by every block of rows.
    Rounded,
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

    /// The same for a factor that is packed for one product only and need not be small.
    #[must_use]
    pub fn for_one_use(isa: Isa, operand: Operand, element: Element) -> Self {
        match (Self::of(operand, element), kernels(isa).tiles(operand).1) {
            (Self::Bf16, Operand::F32) => Self::Rounded,
            (packing, _) => packing,
        }
    }

    /// Steps of k in a row of a panel.
    const fn row_depth(self) -> usize {
        match self {
            Self::F32 | Self::Rounded | Self::I8 => 1,
            Self::Bf16 => 2,
        }
    }

    const fn word_bytes(self) -> usize {
        match self {
            Self::F32 | Self::Rounded | Self::Bf16 => 4,
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
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. `source` must be readable over [k, segments·n]; `destination`, aligned to 4,
/// must be writable over `segments * packed_bytes(isa, packing, k, n)` bytes that nothing else uses meanwhile.
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
    let bytes = packed_bytes(isa, packing, k, n);
    let items: Vec<PackItem> = (0..segments)
        .map(|segment| PackItem {
            source: source.at(0, segment * n),
            destination: destination.wrapping_add(segment * bytes),
        })
        .collect();
    // SAFETY: passed on; every segment has a place of its own.
    unsafe { pack_all(threads, isa, packing, &items, k, n) };
}

/// One [k, n] matrix and where its panels go.
#[derive(Clone, Copy, Debug)]
pub struct PackItem {
    /// What is packed.
    pub source: Matrix,
    /// As many bytes as [`packed_bytes`] says, aligned to 4.
    pub destination: *mut u8,
}

// SAFETY: a description of memory; whoever packs it vouches for it (see `pack_all`).
unsafe impl Sync for PackItem {}

/// Steps of k that one packing job takes, an even number.
const JOB_DEPTH: usize = 256;
/// Panels that one packing job takes: stretches of rows that are long enough for the machine to fetch ahead.
const JOB_PANELS: usize = 8;

/// Packs several matrices of the same size, all in one round of jobs.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. Every source is readable over [k, n], every destination is writable over
/// [`packed_bytes`] that nothing else uses meanwhile.
///
/// # Panics
/// `packing` is i8 and a source is not.
pub unsafe fn pack_all(
    threads: &Threads,
    isa: Isa,
    packing: Packing,
    items: &[PackItem],
    k: usize,
    n: usize,
) {
    let layout = PackedLayout::new(isa, packing, k, n);
    let bytes = |item: &PackItem| packing == Packing::I8 && item.source.element != Element::I8;
    assert!(!items.iter().any(bytes), "only i8 is packed as i8");
    let kernels = kernels(isa);
    let (blocks, groups) = (k.div_ceil(JOB_DEPTH), layout.panels.div_ceil(JOB_PANELS));
    threads.parallel_for(items.len() * blocks * groups, |job, _| {
        let (item, job) = (items[job / (blocks * groups)], job % (blocks * groups));
        let (group, block) = (job / blocks, job % blocks);
        let block = block * JOB_DEPTH..k.min((block + 1) * JOB_DEPTH);
        for first in block.clone().step_by(TILE_DEPTH) {
            for panel in group * JOB_PANELS..layout.panels.min((group + 1) * JOB_PANELS) {
                let col = panel * layout.panel_cols;
                let tile = PanelTile {
                    source: item.source.at(first, col),
                    k: TILE_DEPTH.min(block.end - first),
                    cols: layout.panel_cols.min(n - col),
                    panel_cols: layout.panel_cols,
                };
                let at = panel * layout.panel_bytes() + first / layout.row_depth * layout.row_bytes;
                // SAFETY: these rows of this panel belong to this job; the source range is the caller's promise.
                unsafe { pack_tile(kernels, packing, &tile, item.destination.wrapping_add(at)) };
            }
        }
    });
}

impl Matrix {
    /// The matrix that begins at element [row, col] of this one.
    pub(super) fn at(&self, row: usize, col: usize) -> Self {
        let offset = row.wrapping_mul(self.row_stride).wrapping_add(col.wrapping_mul(self.col_stride));
        let data = self.data.wrapping_add(offset.wrapping_mul(self.element.size()));
        Self { data, ..*self }
    }

    /// True for bf16 whose pairs of neighbouring rows can be moved as they are: as words of a column, or from two contiguous rows.
    pub(super) fn has_bf16_pairs(&self) -> bool {
        self.element == Element::Bf16
            && (self.col_stride == 1 || self.row_stride == 1 && self.col_stride.is_multiple_of(2))
    }

    /// Copies a block of `rows` × `cols` as pairs of neighbouring rows, `stride` words from one row of pairs to the next. Behind an odd last row is a row of
    /// zeros.
    ///
    /// # Safety
    /// [`has_bf16_pairs`](Self::has_bf16_pairs); the matrix is readable over the block, and `destination` writable; `kernels` fits the machine.
    pub(super) unsafe fn copy_pairs(
        &self,
        kernels: &Kernels,
        (rows, cols): (usize, usize),
        destination: *mut u32,
        stride: usize,
    ) {
        // SAFETY: the block is the caller's promise.
        unsafe {
            if self.col_stride == 1 {
                let (source, source_stride) = (self.data.cast(), self.row_stride);
                let args = PairArgs { source, source_stride, rows, cols, destination, stride };
                return (kernels.pair_rows)(&args);
            }
            (kernels.transpose_f32)(&CopyArgs {
                source: self.data,
                source_stride: self.col_stride / 2,
                rows: cols,
                cols: rows / 2,
                destination: destination.cast(),
                destination_stride: stride,
            });
            if rows % 2 == 1 {
                let last = destination.add(rows / 2 * stride);
                for col in 0..cols {
                    let value = self.at(rows - 1, col).data.cast::<u16>().read_unaligned();
                    last.add(col).write(u32::from(value));
                }
            }
        }
    }

    /// Copies a block of `rows` × `cols` as f32, `stride` from one row of the destination to the next.
    ///
    /// # Safety
    /// The matrix is readable and `destination` writable over the block; `kernels` fits the machine.
    pub(super) unsafe fn copy_block(
        &self,
        kernels: &Kernels,
        (rows, cols): (usize, usize),
        destination: *mut f32,
        stride: usize,
    ) {
        let args = |source_stride, rows, cols| CopyArgs {
            source: self.data,
            source_stride,
            rows,
            cols,
            destination,
            destination_stride: stride,
        };
        let (along_rows, along_cols) = (args(self.row_stride, rows, cols), args(self.col_stride, cols, rows));
        // SAFETY: the block is the caller's promise.
        unsafe {
            match (self.element, self.row_stride, self.col_stride) {
                (Element::F32, _, 1) => (kernels.copy_f32)(&along_rows),
                (Element::Bf16, _, 1) => (kernels.copy_bf16)(&along_rows),
                (Element::F32, 1, _) => (kernels.transpose_f32)(&along_cols),
                (Element::Bf16, 1, _) => (kernels.transpose_bf16)(&along_cols),
                _ => {
                    for col in 0..cols {
                        for row in 0..rows {
                            let value = load_f32(self.at(row, col).data, self.element, 0);
                            destination.add(row * stride + col).write(value);
                        }
                    }
                }
            }
        }
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

/// Steps of k that are packed at a time, an even number: their part of a panel stays in the first-level cache.
pub(super) const TILE_DEPTH: usize = 64;
/// The most columns of a panel.
const MOST_COLS: usize = 32;

/// Part of one panel: `k` steps, at most [`TILE_DEPTH`], of `cols` columns, which may be fewer than the panel has.
pub(super) struct PanelTile {
    pub(super) source: Matrix,
    pub(super) k: usize,
    pub(super) cols: usize,
    pub(super) panel_cols: usize,
}

/// Packs part of one panel.
///
/// # Safety
/// The source of `tile` is readable over [k, cols], `destination` writable over as many panel rows as k steps take.
pub(super) unsafe fn pack_tile(kernels: &Kernels, packing: Packing, tile: &PanelTile, destination: *mut u8) {
    let (k, cols, width) = (tile.k, tile.cols, tile.panel_cols);
    debug_assert!(k <= TILE_DEPTH && width <= MOST_COLS, "a tile of {k} × {width}");
    let fill = |to: *mut f32| {
        // SAFETY: `to` has room for k rows of the panel's width.
        unsafe {
            tile.source.copy_block(kernels, (k, cols), to, width);
            if cols < width {
                (0..k).for_each(|row| std::ptr::write_bytes(to.add(row * width + cols), 0, width - cols));
            }
        }
    };
    // SAFETY: the rows lie within the destination; the buffer of pairs has one row more than k may be.
    unsafe {
        match packing {
            Packing::F32 => fill(destination.cast()),
            Packing::Rounded => {
                fill(destination.cast());
                if tile.source.element != Element::Bf16 {
                    (kernels.round)(destination.cast(), k * width);
                }
            }
            Packing::Bf16 if tile.source.has_bf16_pairs() => pack_pairs(kernels, tile, destination.cast()),
            Packing::Bf16 => {
                let mut plain = [std::mem::MaybeUninit::<f32>::uninit(); TILE_DEPTH * MOST_COLS];
                let plain = plain.as_mut_ptr().cast::<f32>();
                fill(plain);
                if k % 2 == 1 {
                    std::ptr::write_bytes(plain.add(k * width), 0, width);
                }
                (kernels.pair)(plain, k.div_ceil(2), width, destination.cast());
            }
            Packing::I8 => pack_bytes(tile, destination),
        }
    }
}

/// Part of a panel of pairs, from bf16 of which the pairs lie side by side, in one column or in two rows.
unsafe fn pack_pairs(kernels: &Kernels, tile: &PanelTile, destination: *mut u32) {
    let (source, width) = (&tile.source, tile.panel_cols);
    // SAFETY: rows below `k` and columns below `cols`; an odd last row is paired with zeros.
    unsafe {
        source.copy_pairs(kernels, (tile.k, tile.cols), destination, width);
        if tile.cols < width {
            (0..tile.k.div_ceil(2)).for_each(|row| {
                std::ptr::write_bytes(destination.add(row * width + tile.cols), 0, width - tile.cols);
            });
        }
    }
}

/// Part of a panel of bytes.
unsafe fn pack_bytes(tile: &PanelTile, destination: *mut u8) {
    let (cols, width) = (tile.cols, tile.panel_cols);
    let Matrix { data, row_stride, col_stride, .. } = tile.source;
    // SAFETY: columns run below `cols`, k below `k`, bytes below `k * width`.
    unsafe {
        if col_stride == 1 {
            for k in 0..tile.k {
                let from = data.wrapping_add(k.wrapping_mul(row_stride));
                std::ptr::copy_nonoverlapping(from, destination.add(k * width), cols);
            }
        } else {
            for col in 0..cols {
                for k in 0..tile.k {
                    destination.add(k * width + col).write(*tile.source.at(k, col).data);
                }
            }
        }
        for k in 0..tile.k {
            std::ptr::write_bytes(destination.add(k * width + cols), 0, width - cols);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::element::{bf16_from_f32, round_to_bf16, store_f32};

    /// Column `col` of row `row` as the layout promises it, in the low bytes.
    fn expected(packing: Packing, value: impl Fn(usize) -> f32, k: usize, row: usize) -> u32 {
        let at = |row: usize| if row < k { value(row) } else { 0.0 };
        match packing {
            Packing::F32 => at(row).to_bits(),
            Packing::Rounded => round_to_bf16(at(row)).to_bits(),
            Packing::Bf16 => {
                u32::from(bf16_from_f32(at(2 * row))) | u32::from(bf16_from_f32(at(2 * row + 1))) << 16
            }
            Packing::I8 => u32::from((at(row) as i8).cast_unsigned()),
        }
    }

    #[test]
    fn both_storage_orders_and_all_types_give_the_documented_layout() {
        let threads = Threads::new(2).unwrap();
        let (k, n, segments) = (301, 45, 2);
        // Every stored type holds these exactly.
        let value = |row: usize, col: usize| ((row * 31 + col * 17) % 200) as f32 - 99.0;
        for isa in Isa::supported() {
            let packings = |element| {
                let packing = |operand| Packing::of(operand, element);
                [packing(Operand::F32), packing(Operand::Bf16), Packing::Rounded].map(|to| (to, element))
            };
            let elements = [Element::F32, Element::Bf16, Element::F16, Element::I8];
            for (packing, element) in elements.into_iter().flat_map(packings) {
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
