//! `attention_grad`: sm80_bf16_attention_grad.cuh, which `f16` shares, for products of 16 bits and heads of a multiple of 8 up to 128
//! elements; sm80_f32_attention_grad.cuh for all else. Functions whose results nothing stores are left out.

use std::fmt::Write;

use nucleus_plan::{AttentionGrad, GradSegment, Kernel, Size};

use super::attention::query_blocks;
use super::attention_operands::{F32_SHARED, Heads, Slots, half_of_shared, ring};
use super::{Blocks, Function, Grid, KernelSource, SourceError, Unit};
use crate::architecture::Architecture;
use crate::facts::Facts;

/// Threads of the blocks of `statistics` and `query_gradients`, of `key_gradients`, and of `key_sums`.
const THREADS: u32 = 128;
const KEY_THREADS: u32 = 256;
const SUM_THREADS: u32 = 256;
/// Queries of a block: two tiles of 16 for each warp.
const QUERIES: u32 = THREADS;
/// Keys of a block of `key_gradients`: 16 for each warp.
const KEY_ROWS: u32 = KEY_THREADS / 2;
/// Threads, and rows of a tile, of the templates for `f32`.
const F32_THREADS: u32 = 256;
const F32_ROWS: u32 = 64;
/// The largest head of which a warp keeps the gradients of 16 keys and values in registers.
const LARGEST_HEAD: u32 = 128;
/// Keys of a tile of `query_gradients`, whose registers the gradients of 32 queries fill.
const PAIR_KEYS: u32 = 32;

/// How the blocks of the functions go about it.
struct Shape {
    keys: u32,
    slots: u32,
    pairs: u32,
    query_step: u32,
    query_stages: u32,
    /// Bytes of shared memory of `statistics`, `query_gradients` and `key_gradients`.
    shared_bytes: [u32; 3],
}

impl Shape {
    fn new(heads: Heads, architecture: Architecture) -> Option<Shape> {
        let row = heads.row_bytes();
        let queries = 2 * QUERIES * row;
        // Rather tiles of 32 keys than one block alone on a multiprocessor.
        let two_blocks = |keys: u32| queries + 2 * keys * row <= half_of_shared(architecture);
        let keys = if two_blocks(32) && !two_blocks(64) { 32 } else { 64 };
        let slots = ring(architecture, queries, keys * row, 4)?;
        let pairs = ring(architecture, queries, 2 * PAIR_KEYS * row, 3)?;
        let key_rows = 2 * KEY_ROWS * row;
        let stage = |step: u32| 2 * step * row + (8 * step).next_multiple_of(128);
        let fits = |step: &u32| key_rows + 2 * stage(*step) <= architecture.shared_memory();
        let query_step = [64, 32].into_iter().find(fits)?;
        let query_stages = 2;
        let shared_bytes = [
            queries + slots * keys * row,
            (queries + pairs * 2 * PAIR_KEYS * row).max(THREADS / 32 * heads.stage_bytes()),
            key_rows + query_stages * stage(query_step),
        ];
        Some(Shape { keys, slots, pairs, query_step, query_stages, shared_bytes })
    }

    fn constants(&self) -> Vec<(&'static str, String)> {
        let numbers = [
            ("THREADS", THREADS),
            ("KEYS", self.keys),
            ("SLOTS", self.slots),
            ("PAIR_KEYS", PAIR_KEYS),
            ("PAIRS", self.pairs),
            ("STATISTICS", QUERIES),
            ("KEY_THREADS", KEY_THREADS),
            ("QUERY_STEP", self.query_step),
            ("QUERY_STAGES", self.query_stages),
            ("SUM_THREADS", SUM_THREADS),
        ];
        numbers.map(|(name, number)| (name, number.to_string())).to_vec()
    }
}

/// Prints the gradients of attention.
pub(super) fn source(
    kernel: &Kernel,
    grad: &AttentionGrad,
    facts: &Facts,
    architecture: Architecture,
) -> Result<KernelSource, SourceError> {
    let heads =
        Heads { heads: grad.heads, key_heads: grad.key_heads, size: grad.head_size, scale: grad.scale.0 };
    let shape = match heads.fits_matrices(grad.dtype, LARGEST_HEAD) {
        true => Shape::new(heads, architecture),
        false => None,
    };
    let slots = Slots { operands: &kernel.operands, facts, dtype: grad.dtype, matrices: shape.is_some() };
    let mut text = vec![
        slots.head(heads, grad.batch, grad.queries),
        slots.rows("Q", &grad.q)?,
        slots.rows("DY", &grad.dy)?,
    ];
    for (number, segment) in grad.segments.iter().enumerate() {
        text.push(gradient_segment(&slots, number, segment)?);
    }
    text.push(slots.dispatch(grad.segments.len()));
    text.push(slots.slot("query_gradient", &grad.dq, 1)?);
    let any_keys = grad.segments.iter().any(|segment| !segment.dk.steps.is_empty());
    let any_values = grad.segments.iter().any(|segment| !segment.dv.steps.is_empty());
    text.push(format!("constexpr bool ANY_KEYS = {any_keys}, ANY_VALUES = {any_values};\n"));
    let mut constants = heads.constants(grad.segments.len());
    let template = match &shape {
        Some(shape) => {
            constants.extend(heads.matrix_constants());
            constants.extend(shape.constants());
            "sm80_bf16_attention_grad.cuh"
        }
        None => {
            constants.extend(heads.f32_constants());
            constants.push(("STATISTICS", F32_ROWS.to_string()));
            "sm80_f32_attention_grad.cuh"
        }
    };
    let lengths: Vec<Size> = grad.segments.iter().map(|segment| segment.keys.length).collect();
    let wanted = Wanted { queries: !grad.dq.steps.is_empty(), keys: any_keys || any_values };
    let (functions, scratch) = match &shape {
        Some(shape) => matrix_functions(shape, heads, grad, &lengths, &wanted),
        None => f32_functions(heads, grad, &lengths, &wanted),
    };
    let name = &format!("attention_grad_{}", grad.dtype);
    Unit { kernel, name, slots: text, constants, template, functions, scratch }.finish()
}

/// Which gradients anything is done with.
struct Wanted {
    queries: bool,
    keys: bool,
}

/// The sum of a number for each segment.
fn over_segments(lengths: &[Size], number: impl Fn(Size) -> Blocks) -> Blocks {
    lengths.iter().fold(Blocks::NONE, |sum, length| sum.plus(number(*length)))
}

fn matrix_functions(
    shape: &Shape,
    heads: Heads,
    grad: &AttentionGrad,
    lengths: &[Size],
    wanted: &Wanted,
) -> (Vec<Function>, Blocks) {
    let Shape { shared_bytes, .. } = shape;
    let queries = || Grid::line(query_blocks(heads, grad.batch, grad.queries, QUERIES, 1));
    let mut functions = Vec::new();
    let mut function = |name, threads, shared_bytes, grid| {
        functions.push(Function { name, threads, shared_bytes, grid });
    };
    if wanted.queries || wanted.keys {
        function("statistics", THREADS, shared_bytes[0], queries());
    }
    if wanted.queries {
        function("query_gradients", THREADS, shared_bytes[1], queries());
    }
    if wanted.keys {
        let tiles = |length| Blocks::constant(heads.heads).times(&[grad.batch], 1).times(&[length], KEY_ROWS);
        let blocks = over_segments(lengths, tiles);
        function("key_gradients", KEY_THREADS, shared_bytes[2], Grid::line(blocks));
        let vectors = Size::Const(i64::from(heads.key_heads) * i64::from(heads.size / 8));
        let sums = |length| Blocks::constant(1).times(&[vectors, grad.batch, length], SUM_THREADS);
        function("key_sums", SUM_THREADS, 0, Grid::line(over_segments(lengths, sums)));
    }
    // 8 bytes of a query's statistics, and 8 bytes for each column of a key.
    let kilobytes = || Blocks::constant(heads.heads.saturating_mul(1024)).times(&[grad.batch], 1);
    let mut scratch = kilobytes().times(&[grad.queries], QUERIES);
    if wanted.keys {
        let columns = Size::Const(i64::from(heads.size));
        scratch =
            lengths.iter().fold(scratch, |sum, length| sum.plus(kilobytes().times(&[columns, *length], 128)));
    }
    (functions, scratch)
}

fn f32_functions(
    heads: Heads,
    grad: &AttentionGrad,
    lengths: &[Size],
    wanted: &Wanted,
) -> (Vec<Function>, Blocks) {
    let chunks = heads.column_chunks();
    let queries = |chunks| Grid::line(query_blocks(heads, grad.batch, grad.queries, F32_ROWS, chunks));
    let mut functions = Vec::new();
    let mut function = |name, grid| {
        functions.push(Function { name, threads: F32_THREADS, shared_bytes: F32_SHARED, grid });
    };
    if wanted.queries || wanted.keys {
        function("statistics", queries(1));
    }
    if wanted.queries {
        function("query_gradients", queries(chunks));
    }
    if wanted.keys {
        let blocks = heads.key_heads.saturating_mul(chunks);
        let tiles = |length| Blocks::constant(blocks).times(&[grad.batch], 1).times(&[length], F32_ROWS);
        function("key_gradients", Grid::line(over_segments(lengths, tiles)));
    }
    let bytes = heads.heads.saturating_mul(8 * F32_ROWS);
    (functions, Blocks::constant(bytes).times(&[grad.batch], 1).times(&[grad.queries], F32_ROWS))
}

/// A segment with the epilogues of its gradients.
fn gradient_segment(slots: &Slots, number: usize, segment: &GradSegment) -> Result<String, SourceError> {
    let mut text = String::new();
    let mut members = String::new();
    let gradients = [
        (format!("dk{number}"), "HAS_KEYS", "key_gradient", &segment.dk),
        (format!("dv{number}"), "HAS_VALUES", "value_gradient", &segment.dv),
    ];
    for (slot, has, member, function) in gradients {
        let wanted = !function.steps.is_empty();
        let _ = writeln!(members, "    static constexpr bool {has} = {wanted};");
        if wanted {
            text.push_str(&slots.slot(&slot, function, 1)?);
            let _ = writeln!(
                members,
                "    template <int V>\n    DEVICE void {member}(const Arguments& args, int i0, int i1, int i2, int i3, const float (&lane)[1][V], const float (&sum)[1]) {{\n        {slot}<V>(args, i0, i1, i2, i3, lane, sum);\n    }}"
            );
        }
    }
    text.push_str(&slots.segment(number, &segment.keys, &members)?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::attention_operands::tests::{architectures, heads_of};

    #[test]
    fn every_head_finds_room_on_every_architecture() {
        for architecture in architectures() {
            for size in (8..=LARGEST_HEAD).step_by(8) {
                let fits = |shape: Shape| {
                    let bytes = shape.shared_bytes.into_iter().max().unwrap_or(0);
                    bytes <= architecture.shared_memory() && shape.slots >= 2 && shape.pairs >= 2
                };
                let shape = Shape::new(heads_of(size), architecture);
                assert!(shape.is_some_and(fits), "heads of {size} on {architecture}");
            }
        }
    }
}
