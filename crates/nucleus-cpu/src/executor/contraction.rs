//! Matrix products: the left factor's rows, the packed right factor, and the epilogue on finished tiles.

use nucleus_plan::{Access, Contraction};

use super::compiled::{CompiledContraction, Source};
use super::launch::{LaunchContext, product};
use super::pack::{RightFactor, pack_loaded};
use crate::codegen::Region;
use crate::kernels::{
    Blocking, Element, Epilogue, Gemm, Matrix, Packing, Part, Product, RowBlock, RowSource, Tile, gemm,
    pack_b, packed_bytes,
};

/// Rows that the micro-kernel can read by itself: for each product, where they begin and how they go on.
struct LeftRows<'a> {
    sources: Vec<RowSource<'a>>,
    /// Rows of each product.
    rows: i64,
}

impl LaunchContext<'_> {
    /// Runs a contraction. `packed` is the right factor if it was packed beforehand.
    ///
    /// # Safety
    /// As for `execute`; `packed` has the right factor's layout.
    pub(crate) unsafe fn contraction(
        &self,
        c: &Contraction,
        compiled: &CompiledContraction,
        packed: Option<&RightFactor>,
    ) {
        let (batch, rows) = (self.values(&c.batch), self.values(&c.rows));
        let (items, rows_total) = (product(&batch), product(&rows));
        let (columns, depth) = (self.size(c.columns), self.size(c.depth));
        if items == 0 || rows_total == 0 || columns == 0 {
            return;
        }
        let operand = compiled.operand;
        let (k, n, segments) = (depth as usize, columns as usize, c.segments as usize);
        let packing = Packing::of(operand, compiled.b_element());
        let item_bytes = packed_bytes(self.isa, packing, k, n) * segments;

        // The right factor: packed beforehand, or now into memory on loan.
        let lease;
        let local;
        let right = match (packed, &compiled.b) {
            (Some(packed), _) => packed,
            (None, Source::Load { access, element }) => {
                let bound = self.bind(access);
                let factor = RightFactor::layout(&bound.strides[..batch.len()], &batch, item_bytes);
                lease = self.threads.lease(factor.bytes());
                let data = self.operands[bound.operand];
                // SAFETY: the access stays inside its operand; the loan is this launch's.
                unsafe {
                    let sizes = (k, n, segments);
                    pack_loaded(self, (operand, *element), &bound, &batch, data, sizes, lease.as_ptr());
                }
                local = factor.with_data(lease.as_ptr());
                &local
            }
            (None, Source::Fill(fill)) => {
                let strides = vec![1; batch.len()];
                let factor = RightFactor::layout(&strides, &batch, item_bytes);
                lease = self.threads.lease(factor.bytes());
                let element = operand.element();
                let width = columns.saturating_mul(segments as i64);
                let plain = self.threads.lease(k * n * segments * element.size());
                for item in 0..items {
                    let base = Block { data: plain.as_ptr() };
                    self.for_rows(depth, width, |begin, end| {
                        let region = Region {
                            outer_begin: item * depth + begin,
                            outer_end: item * depth + end,
                            inner_begin: 0,
                            inner_end: width,
                            block: base.at(begin * width * element.size() as i64),
                            row_stride: width,
                            segment_stride: 0,
                        };
                        // SAFETY: rows of the loan belong to one job each.
                        unsafe { self.call(*fill, &region) }
                    });
                    let source =
                        Matrix { data: plain.as_ptr(), element, row_stride: n * segments, col_stride: 1 };
                    let to = lease.as_ptr().wrapping_add(item as usize * item_bytes);
                    // SAFETY: the plain factor is complete; the place of this item is nobody else's.
                    unsafe { pack_b(self.threads, self.isa, packing, source, k, n, segments, to) };
                }
                local = factor.with_data(lease.as_ptr());
                &local
            }
        };

        // The left factor: in memory where its rows can be found by a stride or an index, else computed.
        let fill = |block: &RowBlock| {
            let first = block.product as i64 * rows_total + block.row as i64;
            let region = Region {
                outer_begin: first,
                outer_end: first + block.rows as i64,
                inner_begin: 0,
                inner_end: depth,
                block: block.destination,
                row_stride: block.row_stride as i64,
                segment_stride: 0,
            };
            // SAFETY: the micro-kernel asks for every row once and owns the destination.
            unsafe { self.call(compiled.a_fill, &region) }
        };
        let memory = compiled
            .a
            .as_ref()
            .and_then(|(access, element)| self.left_rows(access, *element, (&batch, &rows), depth));
        let left = memory.unwrap_or_else(|| LeftRows {
            sources: vec![RowSource::Fill(&fill); items as usize],
            rows: rows_total,
        });
        let per_item = left.sources.len() / items as usize;
        let products: Vec<Product> =
            left.sources.iter().map(|&a| Product { rows: left.rows as usize, a }).collect();
        let b: Vec<*const u8> = (0..products.len()).map(|product| right.item(product / per_item)).collect();
        let finish = |tile: &Tile| {
            let first = tile.product as i64 * left.rows + tile.row as i64;
            let region = Region {
                outer_begin: first,
                outer_end: first + tile.rows as i64,
                inner_begin: tile.col as i64,
                inner_end: (tile.col + tile.cols) as i64,
                block: tile.acc.cast(),
                row_stride: tile.row_stride as i64,
                segment_stride: tile.segment_stride as i64,
            };
            // SAFETY: the micro-kernel hands every element over in one tile.
            unsafe { self.call(compiled.epilogue, &region) }
        };
        let parts = [Part { n, segments, packing, b: &b, epilogue: Epilogue::Call(&finish) }];
        let problem = Gemm {
            isa: self.isa,
            operand,
            k,
            blocking: Blocking::default(),
            products: &products,
            parts: &parts,
        };
        // SAFETY: rows and indices were checked against their buffers; packed factors have the layout of this machine.
        unsafe { gemm(self.threads, &problem) };
    }

    /// Cuts the rows of the left factor into runs with one stride or one piece of an index; `None` if that gives too many, or k is not
    /// contiguous.
    fn left_rows(
        &self,
        access: &Access,
        element: Element,
        (batch, rows): (&[i64], &[i64]),
        depth: i64,
    ) -> Option<LeftRows<'static>> {
        let direct = self.bind(access);
        let axes: Vec<i64> = batch.iter().chain(rows).copied().collect();
        let (&along_k, outer) = direct.strides.split_last()?;
        if (along_k != 1 && depth > 1) || outer.iter().any(|&stride| stride < 0) || direct.offset < 0 {
            return None;
        }
        let index =
            access.indirect.as_ref().map(|indirect| (self.bind(&indirect.index), self.size(indirect.stride)));
        // What moves from row to row of a run: the index where there is one, and then nothing else.
        let moving = match &index {
            Some((index, stride)) => {
                if index.strides.last() != Some(&0) || *stride < 0 {
                    return None;
                }
                &index.strides[..axes.len()]
            }
            None => outer,
        };
        // The longest run: the last axes that one stride walks through.
        let mut first = axes.len();
        let mut run = 1i64;
        let mut run_stride = None;
        while first > batch.len() {
            let axis = first - 1;
            if axes[axis] != 1 {
                let fits = run_stride.is_none_or(|stride: i64| moving[axis] == stride.saturating_mul(run));
                let still = index.is_none() || outer[axis] == 0;
                if !fits || !still {
                    break;
                }
                run_stride.get_or_insert(moving[axis]);
                run *= axes[axis];
            }
            first = axis;
        }
        let run_stride = run_stride.unwrap_or(0);
        if index.is_some() && run > 1 && run_stride != 1 {
            return None;
        }
        let runs = product(&axes[..first]);
        if run < 8 && runs > 64 * product(batch) {
            return None;
        }
        let mut sources = Vec::with_capacity(runs as usize);
        for number in 0..runs {
            let (mut element_at, mut index_at) =
                (direct.offset, index.as_ref().map_or(0, |(index, _)| index.offset));
            let mut rest = number;
            for axis in (0..first).rev() {
                let coordinate = rest % axes[axis];
                rest /= axes[axis];
                element_at += coordinate * outer[axis];
                index_at += index.as_ref().map_or(0, |(index, _)| coordinate * index.strides[axis]);
            }
            let row_stride = index.as_ref().map_or(run_stride, |(_, stride)| *stride) as usize;
            let index =
                index.as_ref().map(|(index, _)| self.address(index.operand, index_at).cast_const().cast());
            let data = self.address(direct.operand, element_at);
            sources.push(RowSource::Memory { data, element, row_stride, index });
        }
        Some(LeftRows { sources, rows: run })
    }
}

/// An address that jobs offset to disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) data: *mut u8,
}

impl Block {
    pub(crate) fn at(self, bytes: i64) -> *mut u8 {
        self.data.wrapping_offset(bytes as isize)
    }
}

// SAFETY: an address; each use states why its place is not shared.
unsafe impl Sync for Block {}
// SAFETY: as above.
unsafe impl Send for Block {}
