//! `attention`: sm80_bf16_attention.cuh, which `f16` shares, for products of 16 bits and heads of a multiple of 8 up to 256 elements;
//! sm80_f32_attention.cuh for all else.

use nucleus_plan::{Attention, Kernel, Size};

use super::attention_operands::{F32_SHARED, Heads, Slots, half_of_shared, ring};
use super::{Blocks, Function, Grid, KernelSource, SourceError, Unit};
use crate::architecture::Architecture;
use crate::facts::Facts;

/// Threads of a block of either template.
const THREADS: u32 = 128;
const F32_THREADS: u32 = 256;
/// The largest head of which a warp keeps the results of 16 queries in registers.
const LARGEST_HEAD: u32 = 256;

/// How a block goes about it.
struct Shape {
    /// Tiles of 16 queries of a warp.
    m_tiles: u32,
    /// Keys of a tile.
    keys: u32,
    /// Tiles of keys or values in shared memory.
    slots: u32,
    /// Bytes of shared memory.
    shared_bytes: u32,
}

impl Shape {
    /// Two tiles of queries to a warp halve what it reads of the keys for each, but fill its registers: not with heads above 128. 64 keys at
    /// a time where two blocks still share a multiprocessor, else 32.
    fn new(heads: Heads, architecture: Architecture) -> Option<Shape> {
        let row = heads.row_bytes();
        let m_tiles = if heads.padded() <= 128 { 2 } else { 1 };
        let queries = m_tiles * THREADS / 2;
        let wide = heads.padded() <= 128 && (queries + 2 * 64) * row <= half_of_shared(architecture);
        let keys = if wide { 64 } else { 32 };
        let slots = ring(architecture, queries * row, keys * row, 4)?;
        let shared_bytes = ((queries + slots * keys) * row).max(THREADS / 32 * heads.stage_bytes());
        Some(Shape { m_tiles, keys, slots, shared_bytes })
    }
}

/// Prints attention.
pub(super) fn source(
    kernel: &Kernel,
    attention: &Attention,
    facts: &Facts,
    architecture: Architecture,
) -> Result<KernelSource, SourceError> {
    let heads = Heads {
        heads: attention.heads,
        key_heads: attention.key_heads,
        size: attention.head_size,
        scale: attention.scale.0,
    };
    let shape = match heads.fits_matrices(attention.dtype, LARGEST_HEAD) {
        true => Shape::new(heads, architecture),
        false => None,
    };
    let slots =
        Slots { operands: &kernel.operands, facts, dtype: attention.dtype, matrices: shape.is_some() };
    let mut text =
        vec![slots.head(heads, attention.batch, attention.queries), slots.rows("Q", &attention.q)?];
    for (number, segment) in attention.segments.iter().enumerate() {
        text.push(slots.segment(number, segment, "")?);
    }
    text.push(slots.dispatch(attention.segments.len()));
    text.push(slots.slot("epilogue", &attention.epilogue, 1)?);
    let mut constants = heads.constants(attention.segments.len());
    let (template, threads, queries, chunks, shared_bytes) = match &shape {
        Some(shape) => {
            constants.extend(heads.matrix_constants());
            constants.extend([
                ("THREADS", THREADS.to_string()),
                ("M_TILES", shape.m_tiles.to_string()),
                ("KEYS", shape.keys.to_string()),
                ("SLOTS", shape.slots.to_string()),
            ]);
            ("sm80_bf16_attention.cuh", THREADS, shape.m_tiles * THREADS / 2, 1, shape.shared_bytes)
        }
        None => {
            constants.extend(heads.f32_constants());
            ("sm80_f32_attention.cuh", F32_THREADS, 64, heads.column_chunks(), F32_SHARED)
        }
    };
    Unit {
        kernel,
        name: &format!("attention_{}", attention.dtype),
        slots: text,
        constants,
        template,
        functions: vec![Function {
            name: "attention",
            threads,
            shared_bytes,
            grid: Grid::line(query_blocks(heads, attention.batch, attention.queries, queries, chunks)),
        }],
        scratch: Blocks::NONE,
    }
    .finish()
}

/// A block for every tile of queries of every head and batch item, and every chunk of columns.
pub(super) fn query_blocks(heads: Heads, batch: Size, queries: Size, tile: u32, chunks: u32) -> Blocks {
    Blocks::constant(heads.heads.saturating_mul(chunks)).times(&[batch], 1).times(&[queries], tile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::attention_operands::tests::{architectures, heads_of};

    #[test]
    fn every_head_finds_room_on_every_architecture() {
        for architecture in architectures() {
            for size in (8..=LARGEST_HEAD).step_by(8) {
                let shape = Shape::new(heads_of(size), architecture);
                let fits =
                    |shape: &Shape| shape.shared_bytes <= architecture.shared_memory() && shape.slots >= 2;
                assert!(shape.as_ref().is_some_and(fits), "heads of {size} on {architecture}");
            }
        }
    }

    #[test]
    fn two_blocks_share_a_multiprocessor_at_the_usual_head_sizes() {
        for architecture in architectures() {
            for size in [64, 128] {
                let bytes = Shape::new(heads_of(size), architecture).map(|shape| shape.shared_bytes);
                assert!(
                    bytes.is_some_and(|bytes| bytes <= half_of_shared(architecture)),
                    "{size} on {architecture}"
                );
            }
        }
    }
}
