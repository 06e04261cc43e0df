//! Keys and values as the tile kernels read them: the rows of all segments one behind the other, in blocks.
//!
//! Masked keys are left out, so that what they hold cannot matter and they cost nothing.

use std::ops::Range;

use super::KeySegment;
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

/// What is packed.
#[derive(Clone, Copy)]
enum Source {
    Keys,
    Values,
}

/// How it is packed, by what products sum over.
#[derive(Clone, Copy)]
enum Form {
    /// Along the head: a row for each key, its words one behind the other.
    Rows,
    /// Along the keys: a row for each key, or for two neighbouring ones where words are pairs, with a word for every column of the head.
    Steps,
}

/// A form of the keys or values of a block, as wide as a product wants it.
#[derive(Clone, Copy)]
pub(super) struct Side {
    /// Words from the beginning of a block.
    pub(super) offset: usize,
    /// Words from one row to the next.
    pub(super) stride: usize,
}

/// Where the packed keys and values of one key head lie: block after block, each with all its sides one behind the other.
pub(super) struct PackedKeys<'a> {
    keys: Keys<'a>,
    kernels: &'static Kernels,
    words: Operand,
    sides: &'static [(Source, Form)],
    /// One for each batch item.
    pub(super) items: Vec<Item>,
    /// Words of the longest head.
    pub(super) head_words: usize,
}

impl<'a> PackedKeys<'a> {
    /// For attention: sides are the keys of scores and the values of outputs.
    pub(super) fn new(keys: Keys<'a>, table: &AttentionKernels) -> Self {
        Self::with(keys, table, &[(Source::Keys, Form::Rows), (Source::Values, Form::Steps)])
    }

    /// For its gradients: sides are the keys of scores, the values of slopes and the keys of the queries' gradients.
    pub(super) fn for_gradients(keys: Keys<'a>, table: &AttentionKernels) -> Self {
        const SIDES: &[(Source, Form)] =
            &[(Source::Keys, Form::Rows), (Source::Values, Form::Rows), (Source::Keys, Form::Steps)];
        // Rows of f32 are steps as well.
        let sides = match table.words {
            Operand::F32 => &SIDES[..2],
            Operand::Bf16 => SIDES,
        };
        Self::with(keys, table, sides)
    }

    fn with(keys: Keys<'a>, table: &AttentionKernels, sides: &'static [(Source, Form)]) -> Self {
        let tile_rows = table.scores.len();
        let items = (0..keys.batch).map(|batch| Item::new(keys.segments, batch, tile_rows)).collect();
        let (kernels, words) = (kernels(keys.isa), table.words);
        let mut packed = Self { keys, kernels, words, sides, items, head_words: 0 };
        let words = packed.items.iter().map(|item| item.blocks * packed.block_words(item));
        packed.head_words = words.max().unwrap_or(0);
        packed
    }

    /// Words of a block of keys and values.
    pub(super) fn block_words(&self, item: &Item) -> usize {
        self.sides.iter().map(|&(_, form)| self.side_words(item, form)).sum()
    }

    fn side_words(&self, item: &Item, form: Form) -> usize {
        let rows = match form {
            Form::Rows => item.block_keys,
            Form::Steps => steps(self.words, item.block_keys),
        };
        rows * self.stride(form)
    }

    fn stride(&self, form: Form) -> usize {
        row_stride(match form {
            Form::Rows => steps(self.words, self.keys.head_dim),
            Form::Steps => self.keys.head_dim,
        })
    }

    /// The side of that number in every block of an item, or the first where rows of it are what the missing one would be.
    pub(super) fn side(&self, item: &Item, number: usize) -> Side {
        let Some((_, form)) = self.sides.get(number) else { return self.side(item, 0) };
        let before = self.sides[..number].iter().map(|&(_, form)| self.side_words(item, form));
        Side { offset: before.sum(), stride: self.stride(*form) }
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
        let mut run = item.runs.partition_point(|run| run.place <= first) - 1;
        let halves = worker.scratch(ROW_SLOT, 4 * self.sides.len() * self.keys.head_dim).cast::<u16>();
        for place in first..last {
            if item.runs.get(run + 1).is_some_and(|next| next.place == place) {
                run += 1;
            }
            let Run { segment, first, place: run_place } = item.runs[run];
            let (segment, key) = (&self.keys.segments[segment], first + place - run_place);
            let (block, within) = (place / item.block_keys, place % item.block_keys);
            for (number, (source, form)) in self.sides.iter().enumerate() {
                let view = match source {
                    Source::Keys => &segment.keys,
                    Source::Values => &segment.values,
                };
                let source = (view.at(batch, key, kv_head), view.element);
                let Side { offset, stride } = self.side(item, number);
                let rows = head.wrapping_add(block * self.block_words(item) + offset);
                // SAFETY: rows lie within their side of the block, sources within the segment; every side has halves of its own.
                unsafe {
                    match (form, self.words) {
                        (Form::Rows, _) | (Form::Steps, Operand::F32) => {
                            self.row(source, rows.add(within * stride));
                        }
                        (Form::Steps, Operand::Bf16) => {
                            let halves = halves.add(2 * number * self.keys.head_dim);
                            let pairs = rows.add(within / 2 * stride);
                            self.half_of_pairs(source, within % 2, place + 1 == item.keys, halves, pairs);
                        }
                    }
                }
            }
        }
    }

    /// Takes a key, the lower or upper one of a pair, and writes the pairs when both are there, or the last has no partner.
    ///
    /// # Safety
    /// `halves` hold two rows of `head_dim`, the first of them the lower key; `pairs` one of words.
    unsafe fn half_of_pairs(
        &self,
        source: (*const u8, Element),
        upper: usize,
        last: bool,
        halves: *mut u16,
        pairs: *mut u32,
    ) {
        let dim = self.keys.head_dim;
        // SAFETY: rows and words of `head_dim`.
        unsafe {
            let (element, words) = (self.keys.operand, self.words);
            convert_row(
                self.kernels,
                source.0,
                source.1,
                dim,
                halves.add(upper * dim).cast(),
                element,
                words,
            );
            if upper == 0 {
                if !last {
                    return;
                }
                std::ptr::write_bytes(halves.add(dim), 0, dim);
            }
            for col in 0..dim {
                pairs.add(col).write(u32::from(*halves.add(col)) | u32::from(*halves.add(dim + col)) << 16);
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
            destination.add(steps(self.words, dim).max(1) - 1).write(0);
            convert_row(self.kernels, source, element, dim, destination, self.keys.operand, self.words);
        }
    }
}
