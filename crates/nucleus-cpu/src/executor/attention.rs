//! Attention and its gradients: views of queries, keys and values, and the epilogues on finished rows.

use nucleus_plan::{Access, Attention, AttentionGrad, KeySegment as PlanSegment};

use super::compiled::{CompiledAttention, CompiledAttentionGrad, CompiledSegment, MaskSource, Source};
use super::contraction::Block;
use super::launch::LaunchContext;
use crate::codegen::{FunctionId, Region};
use crate::kernels::{
    self, AttentionOutput, AttentionTile, Element, Gradient, HeadView, KeyMask, KeySegment, Operand,
    attention, attention_grad,
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
            let shape = [batch, key_heads, head_size];
            let pairs = a.segments.iter().zip(&compiled.segments);
            let segments: Vec<KeySegment> =
                pairs.map(|pair| self.key_segment(pair, operand, shape, &mut leases)).collect();
            (q, segments)
        };
        let finish = |tile: &AttentionTile| {
            let region = rows_of_head(tile, heads, queries, head_size);
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

    /// Runs the gradients of attention.
    ///
    /// # Safety
    /// As for `execute`.
    pub(crate) unsafe fn attention_grad(&self, a: &AttentionGrad, compiled: &CompiledAttentionGrad) {
        let (batch, queries) = (self.size(a.batch), self.size(a.queries));
        let [heads, key_heads, head_size] = [a.heads, a.key_heads, a.head_size].map(i64::from);
        if batch == 0 {
            return;
        }
        let mut leases = Vec::new();
        let operand = compiled.operand;
        // SAFETY: loads were checked against their buffers; computed operands are written before they are read.
        let (q, dy, segments) = unsafe {
            let shape = [batch, queries, heads, head_size];
            let q = self.heads(&compiled.q, operand, shape, &mut leases);
            let dy = self.heads(&compiled.dy, operand, shape, &mut leases);
            let shape = [batch, key_heads, head_size];
            let pairs = a.segments.iter().map(|segment| &segment.keys).zip(&compiled.segments);
            let segments: Vec<KeySegment> =
                pairs.map(|pair| self.key_segment(pair, operand, shape, &mut leases)).collect();
            (q, dy, segments)
        };
        let lengths: Vec<i64> = segments.iter().map(|segment| segment.len as i64).collect();
        let finish = |gradient: Gradient, tile: &AttentionTile| {
            let (epilogue, heads, rows) = match gradient {
                Gradient::Queries => (compiled.dq, heads, queries),
                Gradient::Keys(i) => (compiled.key_gradients[i][0], key_heads, lengths[i]),
                Gradient::Values(i) => (compiled.key_gradients[i][1], key_heads, lengths[i]),
            };
            if let Some(epilogue) = epilogue {
                // SAFETY: the micro-kernel hands every row over once.
                unsafe { self.call(epilogue, &rows_of_head(tile, heads, rows, head_size)) }
            }
        };
        let problem = kernels::AttentionGrad {
            isa: self.isa,
            operand,
            batch: batch as usize,
            q_rows: queries as usize,
            q_heads: a.heads as usize,
            kv_heads: a.key_heads as usize,
            head_dim: a.head_size as usize,
            scale: a.scale.0 as f32,
            q,
            dy,
            segments: &segments,
            output: &finish,
        };
        // SAFETY: all views were checked against their buffers when sizes were bound.
        unsafe { attention_grad(self.threads, &problem) };
    }

    unsafe fn key_segment(
        &self,
        (segment, compiled): (&PlanSegment, &CompiledSegment),
        operand: Operand,
        [batch, key_heads, head_size]: [i64; 3],
        leases: &mut Vec<Lease<'a>>,
    ) -> KeySegment {
        let length = self.size(segment.length);
        let shape = [batch, length, key_heads, head_size];
        // SAFETY: passed on.
        unsafe {
            KeySegment {
                keys: self.heads(&compiled.k, operand, shape, leases),
                values: self.heads(&compiled.v, operand, shape, leases),
                len: length as usize,
                mask: compiled.mask.as_ref().map(|mask| self.mask(mask, batch, length, leases)),
            }
        }
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

/// The region of finished rows of one head, in a space over (batch, head, row, column).
fn rows_of_head(tile: &AttentionTile, heads: i64, rows: i64, head_size: i64) -> Region {
    let first = (tile.batch as i64 * heads + tile.head as i64) * rows + tile.row as i64;
    Region {
        outer_begin: first,
        outer_end: first + tile.rows as i64,
        inner_begin: 0,
        inner_end: head_size,
        block: tile.values.cast(),
        row_stride: tile.row_stride as i64,
        segment_stride: 0,
    }
}
