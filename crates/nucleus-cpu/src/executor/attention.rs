//! Attention: views of queries, keys and values, and the epilogue on finished rows.

use nucleus_plan::{Access, Attention};

use super::compiled::{CompiledAttention, MaskSource, Source};
use super::contraction::Block;
use super::launch::LaunchContext;
use crate::codegen::{FunctionId, Region};
use crate::kernels::{
    self, AttentionOutput, AttentionTile, Element, HeadView, KeyMask, KeySegment, Operand, attention,
};
use crate::threads::Lease;

impl<'a> LaunchContext<'a> {
    /// Runs attention.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn attention(&self, a: &Attention, compiled: &CompiledAttention) {
        let (batch, queries) = (self.size(a.batch), self.size(a.queries));
        let (heads, key_heads, head_size) =
            (i64::from(a.heads), i64::from(a.key_heads), i64::from(a.head_size));
        if batch == 0 || queries == 0 {
            return;
        }
        // Computed operands live on loan until the end of the launch.
        let mut leases = Vec::new();
        let operand = compiled.operand;
        // SAFETY: loads were checked against their buffers; computed operands are written before they are read.
        let (q, segments) = unsafe {
            let q = self.heads(&compiled.q, operand, [batch, queries, heads, head_size], &mut leases);
            let mut segments = Vec::with_capacity(a.segments.len());
            for (segment, compiled) in a.segments.iter().zip(&compiled.segments) {
                let length = self.size(segment.length);
                let shape = [batch, length, key_heads, head_size];
                segments.push(KeySegment {
                    keys: self.heads(&compiled.k, operand, shape, &mut leases),
                    values: self.heads(&compiled.v, operand, shape, &mut leases),
                    len: length as usize,
                    mask: compiled.mask.as_ref().map(|mask| self.mask(mask, batch, length, &mut leases)),
                });
            }
            (q, segments)
        };
        let finish = |tile: &AttentionTile| {
            let first = (tile.batch as i64 * heads + tile.head as i64) * queries + tile.row as i64;
            let region = Region {
                outer_begin: first,
                outer_end: first + tile.rows as i64,
                inner_begin: 0,
                inner_end: head_size,
                block: tile.values.cast(),
                row_stride: tile.row_stride as i64,
                segment_stride: 0,
            };
            // SAFETY: the micro-kernel hands every row over once.
            unsafe { self.call(compiled.epilogue, &region) }
        };
        let problem = kernels::Attention {
            isa: self.isa,
            operand,
            batch: batch as usize,
            q_rows: queries as usize,
            q_heads: a.heads as usize,
            kv_heads: a.key_heads as usize,
            head_dim: a.head_size as usize,
            scale: a.scale.0 as f32,
            q,
            segments: &segments,
            output: AttentionOutput::Call(&finish),
        };
        // SAFETY: all views were checked against their buffers when sizes were bound.
        unsafe { attention(self.threads, &problem) };
    }

    /// Fills a [rows, width] block of memory on loan.
    ///
    /// # Safety
    /// As for `execute`; the function's space has that many rows and columns, and its result `size` bytes.
    pub(super) unsafe fn fill_block(
        &self,
        fill: FunctionId,
        (rows, width): (i64, i64),
        size: usize,
        leases: &mut Vec<Lease<'a>>,
    ) -> *mut u8 {
        let lease = self.threads.lease((rows * width) as usize * size);
        let block = Block { data: lease.as_ptr() };
        leases.push(lease);
        self.for_rows(rows, width, |begin, end| {
            let region = Region {
                outer_begin: begin,
                outer_end: end,
                inner_begin: 0,
                inner_end: width,
                block: block.at(begin * width * size as i64),
                row_stride: width,
                segment_stride: 0,
            };
            // SAFETY: rows of the loan belong to one job each.
            unsafe { self.call(fill, &region) }
        });
        block.data
    }

    unsafe fn heads(
        &self,
        source: &Source,
        operand: Operand,
        [batch, rows, heads, head_size]: [i64; 4],
        leases: &mut Vec<Lease<'a>>,
    ) -> HeadView {
        match source {
            Source::Load { access, element } => self.head_view(access, *element),
            Source::Fill(fill) => {
                let element = operand.element();
                let shape = (batch * rows * heads, head_size);
                // SAFETY: passed on.
                let data = unsafe { self.fill_block(*fill, shape, element.size(), leases) };
                HeadView {
                    data,
                    element,
                    batch_stride: (rows * heads * head_size) as usize,
                    row_stride: (heads * head_size) as usize,
                    head_stride: head_size as usize,
                }
            }
        }
    }

    fn head_view(&self, access: &Access, element: Element) -> HeadView {
        let bound = self.bind(access);
        // Strides go round below zero as addresses do: the micro-kernel's sums wrap in the same way.
        HeadView {
            data: self.address(bound.operand, bound.offset),
            element,
            batch_stride: bound.strides[0] as usize,
            row_stride: bound.strides[1] as usize,
            head_stride: bound.strides[2] as usize,
        }
    }

    unsafe fn mask(
        &self,
        mask: &MaskSource,
        batch: i64,
        length: i64,
        leases: &mut Vec<Lease<'a>>,
    ) -> KeyMask {
        match mask {
            MaskSource::Load(access) => {
                let bound = self.bind(access);
                let data = self.address(bound.operand, bound.offset);
                KeyMask { data, batch_stride: bound.strides[0] as usize }
            }
            MaskSource::Fill(fill) => {
                // SAFETY: passed on.
                let data = unsafe { self.fill_block(*fill, (batch, length), 1, leases) };
                KeyMask { data, batch_stride: length as usize }
            }
        }
    }
}
