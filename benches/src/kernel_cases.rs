//! Problems of the 17B model's sizes for the micro-kernels, with operands of random numbers.

use nucleus_cpu::buffer::AlignedBuffer;
use nucleus_cpu::kernels::{
    Attention, AttentionGrad, AttentionOutput, AttentionTile, Blocking, Element, Epilogue, Gemm, Gradient,
    HeadView, Isa, KeySegment, Matrix, Operand, Packing, Part, Product, Right, RowSource, attention,
    attention_grad, gemm, pack_b, packed_bytes, peak, store_f32,
};
use nucleus_cpu::threads::Threads;

/// A matrix product: `experts` products of `rows` × k × (n · segments).
#[derive(Clone, Copy, Debug)]
pub struct GemmShape {
    /// What the model uses it for.
    pub name: &'static str,
    /// Independent products with weights of their own.
    pub experts: usize,
    /// Rows of each.
    pub rows: usize,
    /// Inner width.
    pub k: usize,
    /// Columns of a segment.
    pub n: usize,
    /// Column groups.
    pub segments: usize,
}

const fn shape(name: &'static str, [experts, rows, k, n, segments]: [usize; 5]) -> GemmShape {
    GemmShape { name, experts, rows, k, n, segments }
}

/// The products of the model at 64, 256 and 1024 image tokens (capacity factor 4: 4, 16 and 64 rows for each expert).
pub const GEMM_SHAPES: [GemmShape; 15] = [
    shape("query", [1, 64, 2048, 2048, 1]),
    shape("query", [1, 256, 2048, 2048, 1]),
    shape("query", [1, 1024, 2048, 2048, 1]),
    shape("key", [1, 256, 2048, 512, 1]),
    shape("modulation", [1, 1, 2048, 8192, 1]),
    shape("dense_up", [1, 256, 2048, 5376, 2]),
    shape("dense_up", [1, 1024, 2048, 5376, 2]),
    shape("dense_down", [1, 256, 5376, 2048, 1]),
    shape("dense_down", [1, 1024, 5376, 2048, 1]),
    shape("experts_up", [64, 4, 2048, 1344, 2]),
    shape("experts_down", [64, 4, 1344, 2048, 1]),
    shape("experts_up", [64, 16, 2048, 1344, 2]),
    shape("experts_down", [64, 16, 1344, 2048, 1]),
    shape("experts_up", [64, 64, 2048, 1344, 2]),
    shape("experts_down", [64, 64, 1344, 2048, 1]),
];

/// Image tokens of the attention problems; 64 text tokens come on top.
pub const ATTENTION_TOKENS: [usize; 3] = [256, 1024, 4096];

/// `count` random numbers in -1..1.
fn random(count: usize, element: Element) -> AlignedBuffer {
    let buffer = AlignedBuffer::zeroed(count * element.size());
    let mut state = 1u32;
    for at in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        // SAFETY: the buffer has room for `count` elements.
        unsafe { store_f32(buffer.as_ptr(), element, at, value) };
    }
    buffer
}

/// A matrix product with its operands.
pub struct GemmCase {
    /// How the work is cut.
    pub blocking: Blocking,
    shape: GemmShape,
    isa: Isa,
    operand: Operand,
    packing: Packing,
    a: AlignedBuffer,
    b: AlignedBuffer,
    c: AlignedBuffer,
}

impl GemmCase {
    /// Fills and packs the operands; the right ones are stored as `weights`.
    #[must_use]
    pub fn new(
        threads: &Threads,
        isa: Isa,
        (operand, weights): (Operand, Element),
        shape: GemmShape,
    ) -> Self {
        let GemmShape { experts, rows, k, n, segments, .. } = shape;
        let packing = Packing::of(operand, weights);
        let element = weights;
        let packed = segments * packed_bytes(isa, packing, k, n);
        let b = AlignedBuffer::zeroed(experts * packed);
        let weights = random(k * n * segments, element);
        let source = Matrix { data: weights.as_ptr(), element, row_stride: 1, col_stride: k };
        for expert in 0..experts {
            // SAFETY: the weights are [segments * n, k], and each expert has `packed` bytes.
            unsafe { pack_b(threads, isa, packing, source, k, n, segments, b.as_ptr().add(expert * packed)) };
        }
        let a = random(experts * rows * k, operand.element());
        let c = AlignedBuffer::zeroed(experts * rows * n * segments * operand.element().size());
        Self { blocking: Blocking::default(), shape, isa, operand, packing, a, b, c }
    }

    /// Computes the product once.
    pub fn run(&mut self, threads: &Threads) {
        let GemmShape { experts, rows, k, n, segments, .. } = self.shape;
        let element = self.operand.element();
        let packed = segments * packed_bytes(self.isa, self.packing, k, n);
        let at = |buffer: &AlignedBuffer, bytes: usize, expert: usize| {
            buffer.as_ptr().wrapping_add(expert * bytes)
        };
        let products: Vec<Product> = (0..experts)
            .map(|expert| Product {
                rows,
                a: RowSource::Memory {
                    data: at(&self.a, rows * k * element.size(), expert),
                    element,
                    row_stride: k,
                    col_stride: 1,
                    index: None,
                },
            })
            .collect();
        let b: Vec<*const u8> = (0..experts).map(|expert| at(&self.b, packed, expert).cast_const()).collect();
        let outputs: Vec<*mut u8> =
            (0..experts).map(|expert| at(&self.c, rows * n * segments * element.size(), expert)).collect();
        let epilogue = Epilogue::Store { outputs: &outputs, element, row_stride: n * segments };
        let part = Part {
            n,
            segments,
            column_multiple: 1,
            symmetric: false,
            packing: self.packing,
            b: Right::Packed(&b),
            epilogue,
        };
        let problem = Gemm {
            isa: self.isa,
            operand: self.operand,
            k,
            blocking: self.blocking,
            products: &products,
            parts: &[part],
        };
        // SAFETY: the operands were made for this shape; `&mut self` keeps others from the output.
        unsafe { gemm(threads, &problem) };
    }

    /// Floating-point operations of one run.
    #[must_use]
    pub fn flops(&self) -> usize {
        let GemmShape { experts, rows, k, n, segments, .. } = self.shape;
        2 * experts * rows * k * n * segments
    }

    /// Bytes of packed weights that one run reads.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.b.len()
    }
}

/// Attention of image tokens over image and text tokens: 16 query heads, 4 key heads, width 128.
pub struct AttentionCase {
    isa: Isa,
    operand: Operand,
    tokens: usize,
    q: AlignedBuffer,
    /// Keys and values of image and text.
    kv: [AlignedBuffer; 4],
    output: AlignedBuffer,
}

const TEXT_TOKENS: usize = 64;
const Q_HEADS: usize = 16;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;

impl AttentionCase {
    /// Fills the operands.
    #[must_use]
    pub fn new(isa: Isa, operand: Operand, tokens: usize) -> Self {
        let element = operand.element();
        let kv = [tokens, tokens, TEXT_TOKENS, TEXT_TOKENS];
        Self {
            isa,
            operand,
            tokens,
            q: random(tokens * Q_HEADS * HEAD_DIM, element),
            kv: kv.map(|tokens| random(tokens * KV_HEADS * HEAD_DIM, element)),
            output: AlignedBuffer::zeroed(tokens * Q_HEADS * HEAD_DIM * element.size()),
        }
    }

    /// Computes attention once.
    pub fn run(&mut self, threads: &Threads) {
        let element = self.operand.element();
        let view = |buffer: &AlignedBuffer, heads: usize| HeadView {
            data: buffer.as_ptr(),
            element,
            batch_stride: 0,
            row_stride: heads * HEAD_DIM,
            head_stride: HEAD_DIM,
        };
        let [keys, values, text_keys, text_values] = &self.kv;
        let segment = |keys, values, len| KeySegment {
            keys: view(keys, KV_HEADS),
            values: view(values, KV_HEADS),
            len,
            mask: None,
        };
        let problem = Attention {
            isa: self.isa,
            operand: self.operand,
            batch: 1,
            q_rows: self.tokens,
            q_heads: Q_HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            q: view(&self.q, Q_HEADS),
            segments: &[segment(keys, values, self.tokens), segment(text_keys, text_values, TEXT_TOKENS)],
            output: AttentionOutput::Store {
                data: self.output.as_ptr(),
                element,
                batch_stride: 0,
                row_stride: Q_HEADS * HEAD_DIM,
                head_stride: HEAD_DIM,
            },
        };
        // SAFETY: the operands were made for these sizes; `&mut self` keeps others from the output.
        unsafe { attention(threads, &problem) };
    }

    /// Floating-point operations of the two matrix products of one run.
    #[must_use]
    pub fn flops(&self) -> usize {
        4 * self.tokens * (self.tokens + TEXT_TOKENS) * Q_HEADS * HEAD_DIM
    }
}

/// Gradients of attention in training: a batch of images with 64 text tokens, 8 query heads, 4 key heads.
#[derive(Clone, Copy, Debug)]
pub struct GradShape {
    /// Images.
    pub batch: usize,
    /// Image tokens.
    pub tokens: usize,
    /// Width of a head.
    pub head_dim: usize,
}

const fn grad_shape(batch: usize, tokens: usize, head_dim: usize) -> GradShape {
    GradShape { batch, tokens, head_dim }
}

/// The sizes at which gradients are measured.
pub const GRAD_SHAPES: [GradShape; 6] = [
    grad_shape(8, 64, 64),
    grad_shape(8, 256, 64),
    grad_shape(8, 256, 128),
    grad_shape(2, 1024, 64),
    grad_shape(2, 1024, 128),
    grad_shape(1, 4096, 128),
];

/// The gradients of attention with their operands.
pub struct GradCase {
    isa: Isa,
    operand: Operand,
    shape: GradShape,
    q: AlignedBuffer,
    dy: AlignedBuffer,
    /// Keys and values of image and text.
    kv: [AlignedBuffer; 4],
    dq: AlignedBuffer,
    /// Their gradients.
    dkv: [AlignedBuffer; 4],
}

const GRAD_HEADS: usize = 8;

impl GradCase {
    /// Fills the operands.
    #[must_use]
    pub fn new(isa: Isa, operand: Operand, shape: GradShape) -> Self {
        let element = operand.element();
        let GradShape { batch, tokens, head_dim } = shape;
        let kv = [tokens, tokens, TEXT_TOKENS, TEXT_TOKENS];
        let queries = batch * tokens * GRAD_HEADS * head_dim;
        let keys = |tokens: usize| batch * tokens * KV_HEADS * head_dim;
        Self {
            isa,
            operand,
            shape,
            q: random(queries, element),
            dy: random(queries, element),
            kv: kv.map(|tokens| random(keys(tokens), element)),
            dq: AlignedBuffer::zeroed(4 * queries),
            dkv: kv.map(|tokens| AlignedBuffer::zeroed(4 * keys(tokens))),
        }
    }

    /// Computes the gradients once.
    pub fn run(&mut self, threads: &Threads) {
        let GradShape { batch, tokens, head_dim } = self.shape;
        let element = self.operand.element();
        let view = |buffer: &AlignedBuffer, tokens: usize, heads: usize, element| HeadView {
            data: buffer.as_ptr(),
            element,
            batch_stride: tokens * heads * head_dim,
            row_stride: heads * head_dim,
            head_stride: head_dim,
        };
        let lengths = [tokens, TEXT_TOKENS];
        let segments = [0, 1].map(|at| KeySegment {
            keys: view(&self.kv[2 * at], lengths[at], KV_HEADS, element),
            values: view(&self.kv[2 * at + 1], lengths[at], KV_HEADS, element),
            len: lengths[at],
            mask: None,
        });
        let output = |gradient: Gradient, tile: &AttentionTile| {
            let to = match gradient {
                Gradient::Queries => view(&self.dq, tokens, GRAD_HEADS, Element::F32),
                Gradient::Keys(at) => view(&self.dkv[2 * at], lengths[at], KV_HEADS, Element::F32),
                Gradient::Values(at) => view(&self.dkv[2 * at + 1], lengths[at], KV_HEADS, Element::F32),
            };
            let first = tile.batch * to.batch_stride + tile.head * to.head_stride;
            for row in 0..tile.rows {
                let at = first + (tile.row + row) * to.row_stride;
                // SAFETY: rows of the tile belong to this call, and so do those of the output.
                unsafe {
                    let from = tile.values.add(row * tile.row_stride);
                    std::ptr::copy_nonoverlapping(from, to.data.cast_mut().cast::<f32>().add(at), head_dim);
                }
            }
        };
        let problem = AttentionGrad {
            isa: self.isa,
            operand: self.operand,
            batch,
            q_rows: tokens,
            q_heads: GRAD_HEADS,
            kv_heads: KV_HEADS,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            q: view(&self.q, tokens, GRAD_HEADS, element),
            dy: view(&self.dy, tokens, GRAD_HEADS, element),
            segments: &segments,
            output: &output,
        };
        // SAFETY: the operands were made for these sizes; `&mut self` keeps others from the outputs.
        unsafe { attention_grad(threads, &problem) };
    }

    /// Floating-point operations of the five matrix products of one run.
    #[must_use]
    pub fn flops(&self) -> usize {
        let GradShape { batch, tokens, head_dim } = self.shape;
        10 * batch * tokens * (tokens + TEXT_TOKENS) * GRAD_HEADS * head_dim
    }
}

/// Multiply-adds in registers on every thread; returns the floating-point operations done.
#[must_use]
pub fn peak_on_all_threads(threads: &Threads, isa: Isa, operand: Operand, iterations: usize) -> usize {
    threads.parallel_for(threads.count(), |_, _| {
        std::hint::black_box(peak(isa, operand, iterations));
    });
    threads.count() * peak(isa, operand, 1) * iterations
}
