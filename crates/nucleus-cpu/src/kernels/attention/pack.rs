//! Keys and values as the tile kernels read them: the rows of all segments one behind the other, in blocks.
//!
//! Masked keys are left out, so that what they hold cannot matter and they cost nothing.

use std::ops::Range;

use super::{HeadView, KeySegment};
use crate::kernels::element::{Element, Operand};
use crate::kernels::isa::Isa;
use crate::kernels::pack::{SendPtr, steps};
use crate::kernels::rows::convert_row;
use crate::kernels::simd::{AttentionKernels, Kernels, kernels};
use crate::threads::{Threads, Worker};

/// Words of a cache line.
pub(super) const LINE_WORDS: usize = 16;
/// Most keys of a block, in register tiles: with one panel of queries, its probabilities stay in the first-level cache.
const BLOCK_TILES: usize = 20;
/// Keys that one packing job takes; even, because pairs of keys share words.
const PACK_KEYS: usize = 64;

const ROW_SLOT: usize = 0;

/// Words of a row, an odd number of lines: neighbouring rows then fall into different sets of the cache.
pub(super) fn row_stride(words: usize) -> usize {
    (words.div_ceil(LINE_WORDS) | 1) * LINE_WORDS
}

/// Consecutive keys of one segment that take part.
struct Run {
    segment: usize,
    first: usize,
    /// Place of the first among the keys of the batch item.
    place: usize,
}

/// The keys of one batch item that take part, and how they form blocks.
pub(super) struct Item {
    /// In ascending places; each ends where the next begins.
    runs: Vec<Run>,
    pub(super) keys: usize,
    /// Keys of every block but the last, a multiple of the tile's rows.
    pub(super) block_keys: usize,
    pub(super) blocks: usize,
}

impl Item {
    fn new(segments: &[KeySegment], batch: usize, tile_rows: usize) -> Self {
        let (mut runs, mut keys) = (Vec::new(), 0);
        for (segment, KeySegment { len, mask, .. }) in segments.iter().enumerate() {
            let taken = |key: usize| {
                // SAFETY: the caller of `attention` vouches for [batch, len] bytes.
                mask.is_none_or(|mask| unsafe { *mask.data.wrapping_add(mask.place(batch, key)) != 0 })
            };
            let mut first = 0;
            while first < *len {
                let end = match mask {
                    None => *len,
                    Some(_) => (first..*len).find(|&key| !taken(key)).unwrap_or(*len),
                };
                if end > first {
                    runs.push(Run { segment, first, place: keys });
                    keys += end - first;
                }
                first = end + 1;
            }
        }
        let tiles = keys.div_ceil(tile_rows);
        let blocks = tiles.div_ceil(BLOCK_TILES);
        Self { runs, keys, block_keys: tiles.div_ceil(blocks.max(1)) * tile_rows, blocks }
    }

    /// The place of a key of a segment; `None` if it takes no part.
    pub(super) fn place(&self, segment: usize, key: usize) -> Option<usize> {
        let behind = self.runs.partition_point(|run| (run.segment, run.first) <= (segment, key));
        let run = self.runs[..behind].last().filter(|run| run.segment == segment)?;
        let place = run.place + (key - run.first);
        (place < self.runs.get(behind).map_or(self.keys, |next| next.place)).then_some(place)
    }

    /// Keys of a block.
    pub(super) fn keys_of(&self, block: usize) -> usize {
        self.block_keys.min(self.keys - block * self.block_keys)
    }
}

/// Keys and values that are to be packed.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) isa: Isa,
    /// What their elements are rounded to.
    pub(super) operand: Operand,
    pub(super) batch: usize,
    pub(super) head_dim: usize,
    pub(super) segments: &'a [KeySegment],
}

// SAFETY: a description of memory; the caller of attention vouches for its use on several threads.
unsafe impl Sync for Keys<'_> {}

/// Where the packed keys and values of one key head lie.
///
/// Block after block, each with the rows of its keys and behind them those of its values. A row of values is a key's, or
/// that of two neighbouring keys where words are pairs.
pub(super) struct PackedKeys<'a> {
    keys: Keys<'a>,
    kernels: &'static Kernels,
    words: Operand,
    /// One for each batch item.
    pub(super) items: Vec<Item>,
    /// Words from one key to the next.
    pub(super) key_stride: usize,
    /// Words from one row of values to the next.
    pub(super) value_stride: usize,
    /// Words of the longest head.
    pub(super) head_words: usize,
}

impl<'a> PackedKeys<'a> {
    pub(super) fn new(keys: Keys<'a>, table: &AttentionKernels) -> Self {
        let tile_rows = table.scores.len();
        let items = (0..keys.batch).map(|batch| Item::new(keys.segments, batch, tile_rows)).collect();
        let mut packed = Self {
            keys,
            kernels: kernels(keys.isa),
            words: table.words,
            items,
            key_stride: row_stride(steps(table.words, keys.head_dim)),
            value_stride: row_stride(keys.head_dim),
            head_words: 0,
        };
        let words = packed.items.iter().map(|item| item.blocks * packed.block_words(item));
        packed.head_words = words.max().unwrap_or(0);
        packed
    }

    /// Words of a block of keys and values.
    pub(super) fn block_words(&self, item: &Item) -> usize {
        self.value_offset(item) + steps(self.words, item.block_keys) * self.value_stride
    }

    /// Where the values of a block begin.
    pub(super) fn value_offset(&self, item: &Item) -> usize {
        item.block_keys * self.key_stride
    }

    /// Packs the key heads `heads`, counted through all batch items of `kv_heads` each, one behind the other.
    ///
    /// # Safety
    /// `place` has room for `head_words` of each.
    pub(super) unsafe fn pack_heads(
        &self,
        threads: &Threads,
        kv_heads: usize,
        heads: Range<usize>,
        place: SendPtr<u32>,
    ) {
        let most_keys = self.items.iter().map(|item| item.keys).max().unwrap_or(0);
        let pieces = most_keys.div_ceil(PACK_KEYS);
        threads.parallel_for(heads.len() * pieces, |job, worker| {
            let (position, key) = (job / pieces, job % pieces * PACK_KEYS);
            let (batch, kv_head) = ((heads.start + position) / kv_heads, (heads.start + position) % kv_heads);
            if key < self.items[batch].keys {
                let head = place.get().wrapping_add(position * self.head_words);
                // SAFETY: each piece of each head has its own place; sources are the caller's promise.
                unsafe { self.pack(batch, kv_head, key, head, worker) };
            }
        });
    }

    /// Packs the keys from place `first` on, [`PACK_KEYS`] or what is left of them.
    ///
    /// # Safety
    /// `head` has room for `head_words`; no other job packs these keys.
    unsafe fn pack(&self, batch: usize, kv_head: usize, first: usize, head: *mut u32, worker: &mut Worker) {
        let item = &self.items[batch];
        let last = item.keys.min(first + PACK_KEYS);
        let dim = self.keys.head_dim;
        let mut run = item.runs.partition_point(|run| run.place <= first) - 1;
        let halves = worker.scratch(ROW_SLOT, 4 * dim).cast::<u16>();
        for place in first..last {
            if item.runs.get(run + 1).is_some_and(|next| next.place == place) {
                run += 1;
            }
            let Run { segment, first, place: run_place } = item.runs[run];
            let (segment, key) = (&self.keys.segments[segment], first + place - run_place);
            let at = |view: &HeadView| (view.at(batch, key, kv_head), view.element);
            let (block, within) = (place / item.block_keys, place % item.block_keys);
            let start = block * self.block_words(item);
            // SAFETY: rows lie within their block, sources within the segment.
            unsafe {
                self.row(at(&segment.keys), head.add(start + within * self.key_stride));
                let values = head.add(start + self.value_offset(item));
                match self.words {
                    Operand::F32 => self.row(at(&segment.values), values.add(within * self.value_stride)),
                    Operand::Bf16 => {
                        let upper = within % 2;
                        self.row(at(&segment.values), halves.add(upper * dim).cast());
                        if place + 1 == item.keys && upper == 0 {
                            std::ptr::write_bytes(halves.add(dim), 0, dim);
                        }
                        if place + 1 == item.keys || upper == 1 {
                            let pairs = values.add(within / 2 * self.value_stride).cast::<u16>();
                            for col in 0..dim {
                                pairs.add(2 * col).write(*halves.add(col));
                                pairs.add(2 * col + 1).write(*halves.add(dim + col));
                            }
                        }
                    }
                }
            }
        }
    }

    /// Writes one row of `head_dim` elements as words, rounded to the operand type; an odd last pair is filled with zero.
    ///
    /// # Safety
    /// Both sides hold a row.
    pub(super) unsafe fn row(&self, (source, element): (*const u8, Element), destination: *mut u32) {
        let dim = self.keys.head_dim;
        // SAFETY: passed on.
        unsafe {
            convert_row(self.kernels, source, element, dim, destination, self.keys.operand, self.words);
        }
    }
}
