//! Matrix products: the rows of the left factor, and for every part the packed right factor and the epilogue on finished tiles.

use nucleus_plan::{Access, Contraction};

use super::ahead::Ahead;
use super::combination::BoundCombination;
use super::compiled::{CompiledContraction, CompiledEpilogue, Source};
use super::launch::{BoundAccess, LaunchContext, product};
use super::pack::{FactorSizes, PackJob, RightFactor, pack_items};
use super::shared::BoundFunction;
use crate::codegen::Region;
use crate::kernels::{
    Blocking, Element, Epilogue, Gemm, Matrix, Operand, Packing, Part, Product, Right, RowBlock, RowSource,
    Tile, gemm,
};

/// Rows that the micro-kernel can read by itself: for each product that is run, where they begin and how they go on.
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
    /// The product equals its transpose.
    symmetric: bool,
    packing: Packing,
    right: RightRun<'a>,
    epilogue: BoundEpilogue,
}

/// What finishes a tile.
enum BoundEpilogue {
    Combination(BoundCombination),
    Function(BoundFunction, Ahead),
}

/// Where a part's right factor comes from in a launch.
enum RightRun<'a> {
    /// It is packed.
    Packed(RightFactor),
    /// It is packed by this launch, before anything is multiplied.
    Unpacked(RightFactor, &'a Source),
    /// Jobs pack what they multiply.
    Stored(Stored),
}

/// A right factor as it lies in memory: one matrix for each item of the batch that is run.
struct Stored {
    matrices: Vec<Matrix>,
    segment_stride: usize,
}

/// Rows up to which one block has all of them, and each job packs what it multiplies: nothing is packed twice, and no packed factor
/// makes a round trip through the far caches, in which nothing is multiplied.
const ONE_BLOCK_ROWS: usize = 528;
/// Columns of such a block, so that its sums stay in the second-level cache.
const ONE_BLOCK_COLUMNS: usize = 128;

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
        let (rows_total, depth) = (product(&rows), self.size(c.depth));
        let sliced = self.part(product(&batch));
        let (first_item, items) = (sliced.start, sliced.end - sliced.start);
        if items == 0 || rows_total == 0 {
            return;
        }
        let (operand, k) = (compiled.operand, depth as usize);
        let mut parts = self.parts(c, compiled, packed, (&batch, &rows));
        let mut blocking = blocking(c);
        if parts.iter().any(|part| matches!(part.right, RightRun::Stored(_))) {
            blocking.rows = blocking.rows.max(ONE_BLOCK_ROWS);
            blocking.columns = blocking.columns.min(ONE_BLOCK_COLUMNS);
        }
        // Right factors that are packed first lie side by side in memory on loan.
        let room = |right: &RightFactor| right.bytes().saturating_add(63) & !63;
        let unpacked = parts.iter().filter_map(|part| match &part.right {
            RightRun::Unpacked(right, _) => Some(room(right)),
            _ => None,
        });
        let bytes = unpacked.reduce(usize::saturating_add);
        let lease = bytes.map(|bytes| self.threads.lease(bytes));
        let mut place = lease.as_ref().map_or(std::ptr::null_mut(), |lease| lease.as_ptr());
        for part in &mut parts {
            let RightRun::Unpacked(right, source) = &part.right else { continue };
            // SAFETY: the loan is this launch's and has room for every part.
            unsafe { self.pack_right(source, (operand, part.packing), &batch, part.sizes, place) };
            let room = room(right);
            part.right = RightRun::Packed(right.clone().with_data(place));
            place = place.wrapping_add(room);
        }

        // The left factor: in memory where its rows can be found by a stride or an index, else computed.
        let fill = |block: &RowBlock| {
            let first = (first_item + block.product as i64) * rows_total + block.row as i64;
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
        // What each product reads of each part; one of the two lists is empty.
        let b: Vec<(Vec<*const u8>, Vec<Matrix>)> = parts
            .iter()
            .map(|part| {
                let items = (0..products.len()).map(|product| product / per_item);
                match &part.right {
                    RightRun::Packed(right) | RightRun::Unpacked(right, _) => {
                        (items.map(|item| right.item(first_item as usize + item)).collect(), Vec::new())
                    }
                    RightRun::Stored(stored) => {
                        (Vec::new(), items.map(|item| stored.matrices[item]).collect())
                    }
                }
            })
            .collect();
        let finish = &|part: &PartRun, tile: &Tile| {
            let first = first_item * rows_total + tile.product as i64 * left.rows + tile.row as i64;
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
            unsafe {
                match &part.epilogue {
                    BoundEpilogue::Combination(bound) => self.combine_region(bound, &region),
                    BoundEpilogue::Function(bound, ahead) => self.call_ahead(bound, ahead, &region),
                }
            }
        };
        let finish: Vec<_> = parts.iter().map(|part| move |tile: &Tile| finish(part, tile)).collect();
        let parts: Vec<Part> = parts
            .iter()
            .zip(&b)
            .zip(&finish)
            .map(|((part, (packed, matrices)), finish)| Part {
                n: part.sizes.n,
                segments: part.sizes.segments,
                column_multiple: part.group,
                // Several axes of rows are several products.
                symmetric: part.symmetric && per_item == 1,
                packing: part.packing,
                b: match &part.right {
                    RightRun::Stored(stored) => {
                        Right::Stored { matrices, segment_stride: stored.segment_stride }
                    }
                    _ => Right::Packed(packed),
                },
                epilogue: Epilogue::Call(finish),
            })
            .collect();
        let problem = Gemm { isa: self.isa, operand, k, blocking, products: &products, parts: &parts };
        // SAFETY: rows and indices were checked against their buffers; packed factors have the layout of this machine.
        unsafe { gemm(self.threads, &problem) };
    }

    /// The parts that have columns, and where their right factors come from.
    fn parts<'a>(
        &self,
        c: &Contraction,
        compiled: &'a CompiledContraction,
        packed: &[Option<&RightFactor>],
        (batch, row_axes): (&[i64], &[i64]),
    ) -> Vec<PartRun<'a>> {
        let rows = product(row_axes);
        let extents = [batch, row_axes].concat();
        let k = self.size(c.depth) as usize;
        let mut parts = Vec::with_capacity(c.parts.len());
        for (number, (part, compiled_part)) in c.parts.iter().zip(&compiled.parts).enumerate() {
            let (columns, segments) = (self.size(part.columns) as usize, part.segments as usize);
            if columns == 0 {
                continue;
            }
            let sizes = FactorSizes { k, n: columns, segments, interleaved: part.interleaved };
            let (operand, element) = (compiled.operand, compiled_part.b_element(compiled.operand));
            let packed = packed.get(number).copied().flatten();
            let (packing, right) = match packed {
                Some(packed) => (Packing::of(operand, element), RightRun::Packed(packed.clone())),
                None => {
                    let packing = Packing::for_one_use(self.isa, operand, element);
                    let right = self.unpacked(&compiled_part.b, sizes, packing, (batch, rows));
                    (packing, right)
                }
            };
            let epilogue = match &compiled_part.epilogue {
                CompiledEpilogue::Combination(form) => {
                    BoundEpilogue::Combination(self.bind_combination(form, &extents))
                }
                CompiledEpilogue::Function(shared) => {
                    let ahead = self.bind_ahead(&part.epilogue, &extents);
                    BoundEpilogue::Function(self.bind_function(shared), ahead)
                }
            };
            let group = part.whole_groups(1) as usize;
            let symmetric = part.symmetric && segments == 1 && group == 1 && rows == columns as i64;
            parts.push(PartRun { sizes, group, symmetric, packing, right, epilogue });
        }
        parts
    }

    /// How a right factor that is not packed beforehand is packed.
    fn unpacked<'a>(
        &self,
        source: &'a Source,
        sizes: FactorSizes,
        packing: Packing,
        (batch, rows): (&[i64], i64),
    ) -> RightRun<'a> {
        let bound = match source {
            Source::Load { access, element } => Some((self.bind(access), *element)),
            Source::Fill(_) => None,
        };
        let strides =
            bound.as_ref().map_or_else(|| vec![1; batch.len()], |(access, _)| access.strides.clone());
        let item_bytes = sizes.packed_bytes(self.isa, packing);
        let factor = RightFactor::layout(&strides[..batch.len()], batch, item_bytes);
        if let Some((access, element)) = &bound
            && packs_as_it_multiplies(&access.strides, batch, rows)
        {
            return RightRun::Stored(self.stored(access, *element, batch, sizes));
        }
        RightRun::Unpacked(factor, source)
    }

    /// The matrices of a right factor in memory.
    fn stored(&self, access: &BoundAccess, element: Element, batch: &[i64], sizes: FactorSizes) -> Stored {
        let (segment_stride, col_stride) = sizes.column_strides(access.strides[batch.len() + 1] as usize);
        let row_stride = access.strides[batch.len()] as usize;
        let matrix = |mut item: i64| {
            let mut at = access.offset;
            for (&stride, &extent) in access.strides.iter().zip(batch).rev() {
                at += item % extent * stride;
                item /= extent;
            }
            let data = self.address(access.operand, at).cast_const();
            Matrix { data, element, row_stride, col_stride }
        };
        Stored { matrices: self.part(product(batch)).map(matrix).collect(), segment_stride }
    }

    /// Packs a right factor.
    ///
    /// # Safety
    /// As for `execute`; the destination has room for all items of the factor's layout and is this launch's.
    unsafe fn pack_right(
        &self,
        source: &Source,
        (operand, packing): (Operand, Packing),
        batch: &[i64],
        sizes: FactorSizes,
        destination: *mut u8,
    ) {
        let (threads, isa) = (self.threads, self.isa);
        let fill = match source {
            Source::Load { access, element } => {
                let bound = self.bind(access);
                let data = self.operands[bound.operand];
                let job = PackJob { threads, isa, packing, element: *element, access: &bound, batch, sizes };
                // SAFETY: the access stays inside its operand; the destination is the caller's promise.
                unsafe { pack_items(&job, data, destination) };
                return;
            }
            Source::Fill(fill) => *fill,
        };
        let FactorSizes { k, n, segments, .. } = sizes;
        let (depth, width) = (k as i64, (n as i64).saturating_mul(segments as i64));
        let item_bytes = sizes.packed_bytes(self.isa, packing);
        let element = operand.element();
        let plain = self.threads.lease(k * n * segments * element.size());
        let row_major = BoundAccess { operand: 0, offset: 0, strides: vec![width, 1] };
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
            let to = destination.wrapping_add(item as usize * item_bytes);
            let job = PackJob { threads, isa, packing, element, access: &row_major, batch: &[], sizes };
            // SAFETY: the plain factor is complete; the place of this item is nobody else's.
            unsafe { pack_items(&job, plain.as_ptr(), to) };
        }
    }

    /// Cuts the rows of the left factor into runs with one stride or one piece of an index; `None` if that gives too many, if they run
    /// backwards, or if k is not contiguous in gathered rows.
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
        let backwards = direct.strides.iter().any(|&stride| stride < 0) || direct.offset < 0;
        if backwards || (along_k != 1 && depth > 1 && access.indirect.is_some()) {
            return None;
        }
        let col_stride = if depth > 1 { along_k as usize } else { 1 };
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
        for number in self.part(runs) {
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
            sources.push(RowSource::Memory { data, element, row_stride, col_stride, index });
        }
        Some(LeftRows { sources, rows: run })
    }
}

/// Whether jobs pack what they multiply of a right factor that is not packed beforehand: where few rows multiply the same matrix.
pub(crate) fn packs_as_it_multiplies(strides: &[i64], batch: &[i64], rows: i64) -> bool {
    let items = RightFactor::layout(&strides[..batch.len()], batch, 0).items() as i64;
    (product(batch) / items.max(1)).saturating_mul(rows) as usize <= ONE_BLOCK_ROWS
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
