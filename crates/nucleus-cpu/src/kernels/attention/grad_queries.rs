//! One task of the gradients of attention: some panels of queries, which share a key head, past all keys.
//!
//! A few panels at a time form a block. All blocks of keys go past it twice: first for the scores q·k and slopes dy·v with the running
//! maxima and sums of the softmax, then, when these are known, for the three products of their gradients. In the products of
//! scores, and in those that give dq, lanes are queries; in those that give dk and dv they are columns of a head, and what is
//! summed over are all queries of the block.

use std::ops::Range;

use super::columns::Columns;
use super::grad::{AttentionGrad, Gradient};
use super::pack::{Item, LINE_WORDS, PackedKeys, Side, row_stride};
use super::{AttentionTile, HeadView};
use crate::kernels::element::Operand;
use crate::kernels::pack::steps;
use crate::kernels::partition::part;
use crate::kernels::rows::convert_row;
use crate::kernels::simd::{
    Ahead, AttentionKernels, Factors, Kernels, PairArgs, PanelTile, ScoreGradients, SlopeBlock, SoftmaxBlock,
    TileArgs, Transpose,
};
use crate::threads::Worker;

/// The most panels of a block: the longer the sums over its queries, the less often those of the keys are read and written.
const BLOCK_PANELS: usize = 4;
/// Scores and slopes of a block, if several panels are to share it: most of the second-level cache.
const SCORE_BYTES: usize = 5 << 18;

const FIRST_SLOT: usize = 1;

/// Sides of packed keys: keys and values as rows, keys as what is summed over.
const KEYS: usize = 0;
const VALUES: usize = 1;
const KEYS_ALONG_KEYS: usize = 2;

/// What a task takes.
pub(super) struct GradTask {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) panels: Range<usize>,
    /// The packed keys of the key head.
    pub(super) keys: *const u32,
    /// Where the gradients of the keys go, and behind them those of the values.
    pub(super) sums: *mut f32,
}

pub(super) struct GradQueries<'a> {
    pub(super) problem: &'a AttentionGrad<'a>,
    pub(super) table: &'static AttentionKernels,
    /// The loops over f32, for probabilities that are not rounded.
    pub(super) exact: &'static AttentionKernels,
    pub(super) kernels: &'static Kernels,
    pub(super) packed: &'a PackedKeys<'a>,
    pub(super) columns: Columns,
}

/// A factor of all queries of a block in the two forms that products want, as words of what they sum over.
#[derive(Clone, Copy)]
struct Factor {
    /// [head_dim, panel columns] for each panel: lanes are queries.
    columns: *mut u32,
    /// [queries, panel columns] for so many columns of the head at a time: lanes are these.
    rows: *mut u32,
}

/// Memory of one block; panels stand one behind the other in all but the last three.
struct Scratch {
    q: Factor,
    dy: Factor,
    /// [keys, panel columns] for each panel: probabilities.
    probabilities: *mut f32,
    /// [keys, panel columns] for each panel: slopes, then the gradients of the scores.
    slopes: *mut f32,
    /// [head_dim, panel columns] for each panel: the gradients of the queries.
    dq: *mut f32,
    /// [4 + blocks, panel columns] for each panel: maxima, sums, corrections, means, and the factors of every block of keys.
    state: *mut f32,
    /// [block keys, queries] at `weight_stride`, as words: probabilities and gradients of scores of one block of keys.
    p: *mut u32,
    u: *mut u32,
    /// [panel columns, head_dim] at `row_stride`, words of queries or finished gradients.
    rows: *mut f32,
    /// [panel columns].
    ones: *mut f32,
}

/// A block of panels of a task.
struct Block<'a> {
    task: &'a GradTask,
    item: &'a Item,
    first_panel: usize,
    panels: usize,
    /// Queries, without the columns that the last panel lacks.
    queries: usize,
    /// True if the sums of the keys hold nothing yet.
    first: bool,
}

impl GradQueries<'_> {
    /// Words of the sums of all keys and values of one task.
    pub(super) fn sum_words(&self) -> usize {
        let places = self.packed.items.iter().map(|item| item.blocks * item.block_keys);
        2 * places.max().unwrap_or(0) * self.sum_stride()
    }

    /// Where the sum of a key begins.
    pub(super) fn sum_offset(&self, item: &Item, of_values: bool, place: usize) -> usize {
        (usize::from(of_values) * item.blocks * item.block_keys + place) * self.sum_stride()
    }

    fn sum_stride(&self) -> usize {
        row_stride(self.problem.head_dim.next_multiple_of(self.table.panel_cols))
    }

    fn row_stride(&self) -> usize {
        self.problem.head_dim.next_multiple_of(LINE_WORDS.max(self.table.panel_cols)) + LINE_WORDS
    }

    /// Columns of panels across a head.
    fn head_panels(&self) -> usize {
        self.problem.head_dim.div_ceil(self.table.panel_cols)
    }

    /// Words of a query.
    fn steps(&self) -> usize {
        steps(self.table.words, self.problem.head_dim)
    }

    /// Words that so many queries take as a factor that is summed over, a multiple of two.
    fn query_steps(&self, queries: usize) -> usize {
        steps(self.table.words, queries)
    }

    /// Words of the transposed queries of a panel.
    fn column_words(&self) -> usize {
        self.steps().next_multiple_of(self.table.lanes) * self.table.panel_cols
    }

    /// Words of the gradients of a panel of queries.
    fn gradient_words(&self) -> usize {
        self.problem.head_dim.next_multiple_of(self.table.lanes) * self.table.panel_cols
    }

    fn score_words(&self, item: &Item) -> usize {
        item.blocks * item.block_keys * self.table.panel_cols
    }

    fn state_words(&self, item: &Item) -> usize {
        (4 + item.blocks) * self.table.panel_cols
    }

    /// Words from one key's probabilities to the next's: no power of two.
    fn weight_stride(&self, panels: usize) -> usize {
        self.query_steps(panels * self.table.panel_cols) + LINE_WORDS
    }

    fn scratch(&self, item: &Item, panels: usize, worker: &mut Worker) -> Scratch {
        let cols = self.table.panel_cols;
        let mut slot = FIRST_SLOT;
        let mut take = |words: usize| {
            slot += 1;
            worker.scratch(slot, 4 * words).cast::<u32>()
        };
        let columns = panels * self.column_words();
        let rows = self.head_panels() * panels * self.query_steps(cols) * cols;
        let weights = item.block_keys * self.weight_stride(panels);
        let scratch = Scratch {
            q: Factor { columns: take(columns), rows: take(rows) },
            dy: Factor { columns: take(columns), rows: take(rows) },
            probabilities: take(panels * self.score_words(item)).cast(),
            slopes: take(panels * self.score_words(item)).cast(),
            dq: take(panels * self.gradient_words()).cast(),
            state: take(panels * self.state_words(item)).cast(),
            p: take(weights),
            u: take(weights),
            rows: take(cols * self.row_stride()).cast(),
            ones: take(cols).cast(),
        };
        // SAFETY: one row.
        unsafe { std::slice::from_raw_parts_mut(scratch.ones, cols).fill(1.0) };
        scratch
    }

    /// # Safety
    /// `keys` and `sums` of the task are what they say; no other task has the same panels.
    pub(super) unsafe fn run(&self, task: &GradTask, worker: &mut Worker) {
        let item = &self.packed.items[task.batch];
        let cols = self.table.panel_cols;
        let most = (SCORE_BYTES / (8 * self.score_words(item)).max(1)).clamp(1, BLOCK_PANELS);
        let blocks = task.panels.len().div_ceil(most);
        let scratch = self.scratch(item, most.min(task.panels.len()), worker);
        for number in 0..blocks {
            let range = part(task.panels.len(), blocks, number);
            let first_panel = task.panels.start + range.start;
            let queries = (self.columns.count() - first_panel * cols).min(range.len() * cols);
            let block = Block { task, item, first_panel, panels: range.len(), queries, first: number == 0 };
            // SAFETY: the scratch is that of the most panels of a block.
            unsafe {
                for panel in 0..block.panels {
                    self.stage(&block, panel, &self.problem.q, scratch.q, &scratch);
                    self.stage(&block, panel, &self.problem.dy, scratch.dy, &scratch);
                    if self.problem.scale < 0.0 {
                        // Maxima are those of q·k, which a negative factor would turn round.
                        let sign_bits = match self.table.words {
                            Operand::F32 => 0x8000_0000,
                            Operand::Bf16 => 0x8000_8000,
                        };
                        let columns = scratch.q.columns.add(panel * self.column_words());
                        let columns = std::slice::from_raw_parts_mut(columns, self.steps() * cols);
                        columns.iter_mut().for_each(|value| *value ^= sign_bits);
                    }
                }
                for keys in 0..item.blocks {
                    (0..block.panels).for_each(|panel| self.scores(&block, keys, panel, &scratch));
                }
                (0..block.panels).for_each(|panel| self.normalise(&block, panel, &scratch));
                for keys in 0..item.blocks {
                    (0..block.panels).for_each(|panel| self.score_gradients(&block, keys, panel, &scratch));
                    self.key_gradients(&block, keys, &scratch);
                    (0..block.panels).for_each(|panel| self.query_gradients(&block, keys, panel, &scratch));
                }
                (0..block.panels).for_each(|panel| self.finish(&block, panel, &scratch));
            }
        }
    }

    /// Brings the queries of a panel into both forms; missing columns are zero.
    unsafe fn stage(
        &self,
        block: &Block,
        panel: usize,
        source: &HeadView,
        factor: Factor,
        scratch: &Scratch,
    ) {
        let (dim, cols, stride) = (self.problem.head_dim, self.table.panel_cols, self.row_stride());
        // SAFETY: the rows hold a panel of queries, and both forms all panels of the block.
        unsafe {
            for col in 0..cols {
                let row = scratch.rows.add(col * stride);
                std::ptr::write_bytes(row, 0, stride);
                let query = self.columns.query(block.task.kv_head, block.first_panel + panel, col);
                if let Some((query, head)) = query {
                    let from = source.at(block.task.batch, query, head);
                    let (operand, words) = (self.problem.operand, self.table.words);
                    convert_row(self.kernels, from, source.element, dim, row.cast(), operand, words);
                }
            }
            for head_panel in 0..self.head_panels() {
                let first_row = (head_panel * block.panels + panel) * self.query_steps(cols);
                let destination = factor.rows.add(first_row * cols);
                match self.table.words {
                    Operand::F32 => {
                        for col in 0..cols {
                            let from = scratch.rows.add(col * stride + head_panel * cols).cast();
                            std::ptr::copy_nonoverlapping(from, destination.add(col * cols), cols);
                        }
                    }
                    Operand::Bf16 => (self.kernels.pair_rows)(&PairArgs {
                        source: scratch.rows.cast::<u16>().add(head_panel * cols),
                        source_stride: 2 * stride,
                        rows: cols,
                        cols,
                        destination,
                        stride: cols,
                    }),
                }
            }
            (self.table.transpose)(&Transpose {
                source: scratch.rows.cast(),
                source_stride: stride,
                destination: factor.columns.add(panel * self.column_words()),
                destination_stride: cols,
                rows: cols,
                cols: self.steps(),
            });
        }
    }

    /// A side of a packed block of keys, and words from one row of it to the next.
    fn packed_side(&self, block: &Block, keys: usize, side: usize) -> (*const u32, usize) {
        let Side { offset, stride } = self.packed.side(block.item, side);
        let block_start = keys * self.packed.block_words(block.item);
        (block.task.keys.wrapping_add(block_start + offset), stride)
    }

    /// Where the scores of a panel and a block of keys lie.
    fn score_offset(&self, block: &Block, keys: usize, panel: usize) -> usize {
        panel * self.score_words(block.item) + keys * block.item.block_keys * self.table.panel_cols
    }

    /// Scores, slopes and what is summed of them over the keys.
    unsafe fn scores(&self, block: &Block, keys: usize, panel: usize, scratch: &Scratch) {
        let (table, cols) = (self.table, self.table.panel_cols);
        let count = block.item.keys_of(keys);
        let at = self.score_offset(block, keys, panel);
        // SAFETY: packed operands and scratch have the sizes of their descriptions.
        unsafe {
            let (scores, slopes) = (scratch.probabilities.add(at), scratch.slopes.add(at));
            let factors = [(KEYS, scratch.q, scores), (VALUES, scratch.dy, slopes)];
            for (side, factor, products) in factors {
                let (rows, stride) = self.packed_side(block, keys, side);
                for first in (0..count).step_by(table.scores.len()) {
                    table.scores[table.scores.len().min(count - first) - 1](&PanelTile {
                        steps: self.steps(),
                        a: rows.add(first * stride),
                        a_stride: stride,
                        b: factor.columns.add(panel * self.column_words()),
                        c: products.add(first * cols),
                        keep: std::ptr::null(),
                    });
                }
            }
            let maximum = scratch.state.add(panel * self.state_words(block.item));
            let (sum, correction, mean) = (maximum.add(cols), maximum.add(2 * cols), maximum.add(3 * cols));
            (self.exact.softmax)(&SoftmaxBlock {
                keys: count,
                scores,
                scale: self.problem.scale.abs() * std::f32::consts::LOG2_E,
                first: keys == 0,
                maximum,
                sum,
                correction,
                round_to_bf16: false,
            });
            (table.slopes)(&SlopeBlock {
                keys: count,
                probabilities: scores,
                slopes,
                keep: if keys == 0 { std::ptr::null() } else { correction },
                sum: mean,
            });
            std::ptr::copy_nonoverlapping(maximum, maximum.add((4 + keys) * cols), cols);
        }
    }

    /// Turns the sums of a panel into the mean slopes and the factors of every block of keys.
    unsafe fn normalise(&self, block: &Block, panel: usize, scratch: &Scratch) {
        let cols = self.table.panel_cols;
        // SAFETY: the state of the panel.
        unsafe {
            let maximum = scratch.state.add(panel * self.state_words(block.item));
            let inverse = maximum.add(cols);
            if block.item.blocks == 0 {
                return;
            }
            for col in 0..cols {
                let sum = *inverse.add(col);
                // Every score may be -∞.
                *inverse.add(col) = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                *maximum.add(3 * cols + col) *= *inverse.add(col);
            }
            for keys in 0..block.item.blocks {
                (self.table.factors)(&Factors {
                    block: maximum.add((4 + keys) * cols),
                    last: maximum,
                    inverse,
                    scale: self.problem.scale.abs() * std::f32::consts::LOG2_E,
                });
            }
        }
    }

    unsafe fn score_gradients(&self, block: &Block, keys: usize, panel: usize, scratch: &Scratch) {
        let cols = self.table.panel_cols;
        let at = self.score_offset(block, keys, panel);
        // SAFETY: as for the scores; the panel has its columns of the weights.
        unsafe {
            let state = scratch.state.add(panel * self.state_words(block.item));
            (self.table.score_gradients)(&ScoreGradients {
                keys: block.item.keys_of(keys),
                probabilities: scratch.probabilities.add(at),
                slopes: scratch.slopes.add(at),
                factor: state.add((4 + keys) * cols),
                mean: state.add(3 * cols),
                scale: self.problem.scale,
                p: scratch.p.add(self.query_steps(panel * cols)),
                u: scratch.u.add(self.query_steps(panel * cols)),
                stride: self.weight_stride(block.panels),
            });
        }
    }

    /// Adds what the queries of the block give to the gradients of a block of keys and their values.
    unsafe fn key_gradients(&self, block: &Block, keys: usize, scratch: &Scratch) {
        let (cols, count) = (self.table.panel_cols, block.item.keys_of(keys));
        // Pairs are summed over where the tables of attention say so.
        let [tiles, _] = self.kernels.tiles(self.table.words).0;
        let (a_stride, c_stride) = (self.weight_stride(block.panels), self.sum_stride());
        for (of_values, weights, factor) in [(false, scratch.u, scratch.q), (true, scratch.p, scratch.dy)] {
            let place = self.sum_offset(block.item, of_values, keys * block.item.block_keys);
            for head_panel in 0..self.head_panels() {
                for first in (0..count).step_by(tiles.len()) {
                    // SAFETY: the sums are this task's; the missing columns of the last panel are not among the queries.
                    unsafe {
                        let c = block.task.sums.add(place + first * c_stride + head_panel * cols);
                        // The sums of the next keys come from far.
                        let next = c.wrapping_add(tiles.len() * c_stride);
                        let ahead = |half: usize| Ahead {
                            at: next.wrapping_add(half * LINE_WORDS).cast(),
                            stride: 4 * c_stride,
                        };
                        tiles[tiles.len().min(count - first) - 1](&TileArgs {
                            steps: self.query_steps(block.queries),
                            a: weights.add(first * a_stride),
                            a_stride,
                            b: factor.rows.add(head_panel * block.panels * self.query_steps(cols) * cols),
                            c,
                            c_stride,
                            add: !block.first,
                            ahead: [ahead(0), ahead(1)],
                        });
                    }
                }
            }
        }
    }

    /// Adds what a block of keys gives to the gradients of a panel of queries.
    unsafe fn query_gradients(&self, block: &Block, keys: usize, panel: usize, scratch: &Scratch) {
        let (table, cols, dim) = (self.table, self.table.panel_cols, self.problem.head_dim);
        let (key_rows, a_stride) = self.packed_side(block, keys, KEYS_ALONG_KEYS);
        let tiles = dim.div_ceil(table.outputs.len());
        let bound = |tile: usize| tile * dim / tiles;
        for tile in 0..tiles {
            // SAFETY: as for the scores.
            unsafe {
                table.outputs[bound(tile + 1) - bound(tile) - 1](&PanelTile {
                    steps: steps(table.words, block.item.keys_of(keys)),
                    a: key_rows.add(bound(tile)),
                    a_stride,
                    b: scratch.slopes.add(self.score_offset(block, keys, panel)).cast(),
                    c: scratch.dq.add(panel * self.gradient_words() + bound(tile) * cols),
                    keep: if keys == 0 { std::ptr::null() } else { scratch.ones },
                });
            }
        }
    }

    /// Hands over the gradients of a panel of queries, head by head.
    unsafe fn finish(&self, block: &Block, panel: usize, scratch: &Scratch) {
        let (cols, dim, stride) = (self.table.panel_cols, self.problem.head_dim, self.row_stride());
        let GradTask { batch, kv_head, .. } = *block.task;
        // SAFETY: the rows hold a panel of queries.
        unsafe {
            if block.item.blocks == 0 {
                std::ptr::write_bytes(scratch.rows, 0, cols * stride);
            } else {
                (self.table.transpose)(&Transpose {
                    source: scratch.dq.add(panel * self.gradient_words()).cast(),
                    source_stride: cols,
                    destination: scratch.rows.cast(),
                    destination_stride: stride,
                    rows: dim,
                    cols,
                });
            }
            for (col, head, row, rows) in self.columns.heads(kv_head, block.first_panel + panel) {
                let values = scratch.rows.add(col * stride);
                let tile = AttentionTile { batch, head, row, rows, values, row_stride: stride };
                (self.problem.output)(Gradient::Queries, &tile);
            }
        }
    }
}
