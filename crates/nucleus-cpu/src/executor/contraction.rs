//! Matrix products: the rows of the left factor, and for every part the packed right factor and the epilogue on finished tiles.

use nucleus_plan::{Access, Contraction};

use super::compiled::{CompiledContraction, Source};
use super::launch::{LaunchContext, product};
use super::pack::{FactorSizes, RightFactor, pack_loaded, pack_segments};
use super::shared::BoundFunction;
use crate::codegen::Region;
use crate::kernels::{
    Blocking, Element, Epilogue, Gemm, Matrix, Operand, Packing, Part, Product, RowBlock, RowSource, Tile,
    gemm,
};

/// Rows that the micro-kernel can read by itself: for each product, where they begin and how they go on.
struct LeftRows<'a> {
    sources: Vec<RowSource<'a>>,
    /// Rows of each product.
    rows: i64,
}

/// One part of a contraction in a launch.
struct PartRun<'a> {
    sizes: FactorSizes,
    /// Columns of a segment that no job cuts.
    group: usize,
    packing: Packing,
    right: RightFactor,
    /// What the right factor is packed from, if it was not packed beforehand.
    source: Option<&'a Source>,
    epilogue: BoundFunction,
}

impl LaunchContext<'_> {
    /// Runs a contraction. `packed` has, part by part, the right factors that were packed beforehand.
    ///
    /// # Safety
    /// As for `execute`; packed factors have the layout of their part's right factor.
    pub(crate) unsafe fn contraction(
        &self,
        c: &Contraction,
        compiled: &CompiledContraction,
        packed: &[Option<&RightFactor>],
    ) {
        let (batch, rows) = (self.values(&c.batch), self.values(&c.rows));
        let (items, rows_total, depth) = (product(&batch), product(&rows), self.size(c.depth));
        if items == 0 || rows_total == 0 {
            return;
        }
        let (operand, k) = (compiled.operand, depth as usize);
        let mut parts = self.parts(c, compiled, packed, &batch);
        // Right factors that were not packed beforehand lie side by side in memory on loan.
        let room = |part: &PartRun| part.right.bytes().saturating_add(63) & !63;
        let unpacked = || parts.iter().filter(|part| part.source.is_some());
        let bytes = unpacked().fold(0usize, |bytes, part| bytes.saturating_add(room(part)));
        let lease = unpacked().next().is_some().then(|| self.threads.lease(bytes));
        let mut place = lease.as_ref().map_or(std::ptr::null_mut(), |lease| lease.as_ptr());
        for part in &mut parts {
            let Some(source) = part.source else { continue };
            let sizes = part.sizes;
            // SAFETY: the loan is this launch's and has room for every part.
            unsafe { self.pack_right(source, operand, &batch, sizes, place) };
            let room = room(part);
            part.right = part.right.clone().with_data(place);
            place = place.wrapping_add(room);
        }

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
        let b: Vec<Vec<*const u8>> = parts
            .iter()
            .map(|part| (0..products.len()).map(|product| part.right.item(product / per_item)).collect())
            .collect();
        let finish = &|part: &PartRun, tile: &Tile| {
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
            unsafe { self.call_bound(&part.epilogue, &region) }
        };
        let finish: Vec<_> = parts.iter().map(|part| move |tile: &Tile| finish(part, tile)).collect();
        let parts: Vec<Part> = parts
            .iter()
            .zip(&b)
            .zip(&finish)
            .map(|((part, b), finish)| Part {
                n: part.sizes.n,
                segments: part.sizes.segments,
                column_multiple: part.group,
                packing: part.packing,
                b,
                epilogue: Epilogue::Call(finish),
            })
            .collect();
        let blocking = blocking(c);
        let problem = Gemm { isa: self.isa, operand, k, blocking, products: &products, parts: &parts };
        // SAFETY: rows and indices were checked against their buffers; packed factors have the layout of this machine.
        unsafe { gemm(self.threads, &problem) };
    }

    /// The parts that have columns, with the layout of their right factors.
    fn parts<'a>(
        &self,
        c: &Contraction,
        compiled: &'a CompiledContraction,
        packed: &[Option<&RightFactor>],
        batch: &[i64],
    ) -> Vec<PartRun<'a>> {
        let k = self.size(c.depth) as usize;
        let mut parts = Vec::with_capacity(c.parts.len());
        for (number, (part, compiled_part)) in c.parts.iter().zip(&compiled.parts).enumerate() {
            let (columns, segments) = (self.size(part.columns) as usize, part.segments as usize);
            if columns == 0 {
                continue;
            }
            let sizes = FactorSizes { k, n: columns, segments, interleaved: part.interleaved };
            let packed = packed.get(number).copied().flatten();
            let packing = Packing::of(compiled.operand, compiled_part.b_element(compiled.operand));
            let right = packed.cloned().unwrap_or_else(|| {
                let strides = match &compiled_part.b {
                    Source::Load { access, .. } => self.bind(access).strides,
                    Source::Fill(_) => vec![1; batch.len()],
                };
                let item_bytes = sizes.packed_bytes(self.isa, packing);
                RightFactor::layout(&strides[..batch.len()], batch, item_bytes)
            });
            let source = packed.is_none().then_some(&compiled_part.b);
            let epilogue = self.bind_function(&compiled_part.epilogue);
            let group = part.whole_groups(1) as usize;
            parts.push(PartRun { sizes, group, packing, right, source, epilogue });
        }
        parts
    }

    /// Packs a right factor.
    ///
    /// # Safety
    /// As for `execute`; the destination has room for all items of the factor's layout and is this launch's.
    unsafe fn pack_right(
        &self,
        source: &Source,
        operand: Operand,
        batch: &[i64],
        sizes: FactorSizes,
        destination: *mut u8,
    ) {
        let fill = match source {
            Source::Load { access, element } => {
                let bound = self.bind(access);
                let data = self.operands[bound.operand];
                // SAFETY: the access stays inside its operand; the destination is the caller's promise.
                unsafe { pack_loaded(self, (operand, *element), &bound, batch, data, sizes, destination) };
                return;
            }
            Source::Fill(fill) => *fill,
        };
        let FactorSizes { k, n, segments, .. } = sizes;
        let (depth, width) = (k as i64, (n as i64).saturating_mul(segments as i64));
        let packing = Packing::of(operand, operand.element());
        let item_bytes = sizes.packed_bytes(self.isa, packing);
        let element = operand.element();
        let plain = self.threads.lease(k * n * segments * element.size());
        for item in 0..product(batch) {
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
                unsafe { self.call(fill, &region) }
            });
            let source = Matrix { data: plain.as_ptr(), element, row_stride: n * segments, col_stride: 1 };
            let to = destination.wrapping_add(item as usize * item_bytes);
            // SAFETY: the plain factor is complete; the place of this item is nobody else's.
            unsafe { pack_segments(self.threads, self.isa, packing, source, sizes, to) };
        }
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

/// How the plan wishes a contraction to be cut, within what is sensible here.
fn blocking(c: &Contraction) -> Blocking {
    let Some(tile) = c.tile else { return Blocking::default() };
    let segments = c.parts.iter().map(|part| part.segments).max().unwrap_or(1);
    let within = |size: u32, least: usize, most: usize| (size as usize).clamp(least, most);
    Blocking {
        rows: within(tile.rows, 1, 4096),
        columns: within(tile.columns.saturating_mul(segments), 1, 4096),
        depth: within(tile.depth, 64, 8192),
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
