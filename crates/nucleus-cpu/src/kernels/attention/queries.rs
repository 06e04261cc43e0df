//! One job of attention: some panels of queries, which share a key head, past all keys.

use super::columns::Columns;
use super::pack::{LINE_WORDS, PackedKeys};
use super::{Attention, AttentionOutput, AttentionTile};
use crate::kernels::element::{Element, Operand, store_row};
use crate::kernels::pack::steps;
use crate::kernels::simd::{AttentionKernels, Kernels, PanelTile, SoftmaxBlock, Transpose, kernels};
use crate::threads::Worker;

/// Panels of a job: so many use a block of keys while it is in the second-level cache.
pub(super) const JOB_PANELS: usize = 8;

const QUERY_SLOT: usize = 0;
const SCORE_SLOT: usize = 1;
const OUTPUT_SLOT: usize = 2;
const STATE_SLOT: usize = 3;
const ROW_SLOT: usize = 4;

/// Which queries a job takes.
pub(super) struct Job {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) first_panel: usize,
    pub(super) panels: usize,
}

pub(super) struct Queries<'a> {
    pub(super) problem: &'a Attention<'a>,
    pub(super) table: &'static AttentionKernels,
    pub(super) packed: &'a PackedKeys<'a>,
    pub(super) columns: Columns,
}

/// Memory of one job; panels stand one behind the other in the first, third and fourth.
struct Scratch {
    /// [head words, panel columns] words for each panel.
    queries: *mut u32,
    /// [block keys, panel columns], used by one panel after the other.
    scores: *mut f32,
    /// [head_dim, panel columns] for each panel.
    outputs: *mut f32,
    /// [3, panel columns] for each panel: maxima, sums, corrections.
    state: *mut f32,
    /// [panel columns, head_dim] at `row_stride`, words of queries or finished outputs.
    rows: *mut u32,
}

impl Queries<'_> {
    /// Words of a query.
    fn steps(&self) -> usize {
        steps(self.table.words, self.problem.head_dim)
    }

    fn query_words(&self) -> usize {
        self.steps().next_multiple_of(self.table.lanes) * self.table.panel_cols
    }

    fn output_words(&self) -> usize {
        self.problem.head_dim.next_multiple_of(self.table.lanes) * self.table.panel_cols
    }

    /// One odd line more than the row has: widths are powers of two.
    fn row_stride(&self) -> usize {
        self.problem.head_dim.next_multiple_of(LINE_WORDS) + LINE_WORDS
    }

    /// # Safety
    /// `head` are the packed keys of the job's key head; no other job has the same panels.
    pub(super) unsafe fn run(&self, job: &Job, head: *const u32, worker: &mut Worker) {
        let item = &self.packed.items[job.batch];
        let cols = self.table.panel_cols;
        let scratch = Scratch {
            queries: worker.scratch(QUERY_SLOT, 4 * job.panels * self.query_words()).cast(),
            scores: worker.scratch(SCORE_SLOT, 4 * item.block_keys * cols).cast(),
            outputs: worker.scratch(OUTPUT_SLOT, 4 * job.panels * self.output_words()).cast(),
            state: worker.scratch(STATE_SLOT, 4 * job.panels * 3 * cols).cast(),
            rows: worker.scratch(ROW_SLOT, 4 * cols * self.row_stride()).cast(),
        };
        // SAFETY: the scratch has the sizes asked for above.
        unsafe {
            for block in 0..item.blocks.max(1) {
                for panel in 0..job.panels {
                    if block == 0 {
                        self.stage(job, panel, &scratch);
                    }
                    if block < item.blocks {
                        self.block(job, block, panel, head, &scratch);
                    }
                    if block + 1 >= item.blocks {
                        self.finish(job, panel, &scratch);
                    }
                }
            }
        }
    }

    /// The query in a column of a panel; none behind the last.
    fn query(&self, job: &Job, panel: usize, col: usize) -> Option<*const u8> {
        let (row, head) = self.columns.query(job.kv_head, job.first_panel + panel, col)?;
        Some(self.problem.q.at(job.batch, row, head))
    }

    /// Fetches the `part`th of `parts` shares of a panel of queries into the second-level cache.
    unsafe fn fetch_queries(&self, job: &Job, panel: usize, part: usize, parts: usize) {
        let cols = self.table.panel_cols;
        let bytes = self.problem.head_dim * self.problem.q.element.size();
        for col in part * cols / parts..(part + 1) * cols / parts {
            if let Some(source) = self.query(job, panel, col) {
                // SAFETY: a hint reads nothing.
                unsafe { (kernels(self.problem.isa).prefetch)(source.cast(), bytes) };
            }
        }
    }

    /// Transposes a panel of queries; missing columns are zero.
    unsafe fn stage(&self, job: &Job, panel: usize, scratch: &Scratch) {
        let (stride, steps) = (self.row_stride(), self.steps());
        // Maxima are those of q·k, which a negative factor would turn round.
        let sign_bits = match self.table.words {
            _ if self.problem.scale >= 0.0 => 0,
            Operand::F32 => 0x8000_0000,
            Operand::Bf16 => 0x8000_8000,
        };
        // SAFETY: the rows hold a panel of queries.
        unsafe {
            for col in 0..self.table.panel_cols {
                let row = scratch.rows.add(col * stride);
                let Some(source) = self.query(job, panel, col) else {
                    std::ptr::write_bytes(row, 0, steps);
                    continue;
                };
                self.packed.row((source, self.problem.q.element), row);
                if sign_bits != 0 {
                    (0..steps).for_each(|step| *row.add(step) ^= sign_bits);
                }
            }
            (self.table.transpose)(&Transpose {
                source: scratch.rows,
                source_stride: stride,
                destination: scratch.queries.add(panel * self.query_words()),
                destination_stride: self.table.panel_cols,
                rows: self.table.panel_cols,
                cols: steps,
            });
        }
    }

    /// Takes one panel past one block of keys.
    unsafe fn block(&self, job: &Job, block: usize, panel: usize, head: *const u32, scratch: &Scratch) {
        let (problem, packed, table) = (self.problem, self.packed, self.table);
        let item = &packed.items[job.batch];
        let cols = table.panel_cols;
        let keys = item.keys_of(block);
        let block_words = packed.block_words(item);
        // SAFETY: packed operands and scratch have the sizes of their descriptions.
        unsafe {
            let key_rows = head.add(block * block_words);
            let (keys_side, values_side) = (packed.side(item, 0), packed.side(item, 1));
            let value_rows = key_rows.add(values_side.offset);
            let queries = scratch.queries.add(panel * self.query_words());
            let tile_keys = table.scores.len();
            for first in (0..keys).step_by(tile_keys) {
                let rows = tile_keys.min(keys - first);
                if block == 0 && panel + 1 < job.panels {
                    self.fetch_queries(job, panel + 1, first / tile_keys, keys.div_ceil(tile_keys));
                }
                table.scores[rows - 1](&PanelTile {
                    steps: self.steps(),
                    a: key_rows.add(first * keys_side.stride),
                    a_stride: keys_side.stride,
                    b: queries,
                    c: scratch.scores.add(first * cols),
                    keep: std::ptr::null(),
                });
            }
            let maximum = scratch.state.add(panel * 3 * cols);
            let correction = maximum.add(2 * cols);
            (table.softmax)(&SoftmaxBlock {
                keys,
                scores: scratch.scores,
                scale: problem.scale.abs() * std::f32::consts::LOG2_E,
                first: block == 0,
                maximum,
                sum: maximum.add(cols),
                correction,
                round_to_bf16: problem.operand == Operand::Bf16,
            });
            let outputs = scratch.outputs.add(panel * self.output_words());
            let tiles = problem.head_dim.div_ceil(table.outputs.len());
            let bound = |tile: usize| tile * problem.head_dim / tiles;
            for tile in 0..tiles {
                let rows = bound(tile + 1) - bound(tile);
                table.outputs[rows - 1](&PanelTile {
                    steps: steps(table.words, keys),
                    a: value_rows.add(bound(tile)),
                    a_stride: values_side.stride,
                    b: scratch.scores.cast(),
                    c: outputs.add(bound(tile) * cols),
                    keep: if block == 0 { std::ptr::null() } else { correction },
                });
            }
        }
    }

    /// Divides by the sums and hands the rows over, head by head.
    unsafe fn finish(&self, job: &Job, panel: usize, scratch: &Scratch) {
        let (cols, dim, stride) = (self.table.panel_cols, self.problem.head_dim, self.row_stride());
        let rows = scratch.rows.cast::<f32>();
        // SAFETY: the rows hold a panel of outputs; each is handed over once.
        unsafe {
            if self.packed.items[job.batch].keys == 0 {
                (0..cols).for_each(|col| std::ptr::write_bytes(rows.add(col * stride), 0, dim));
            } else {
                let outputs = scratch.outputs.add(panel * self.output_words());
                let sum = scratch.state.add((panel * 3 + 1) * cols);
                for sum in std::slice::from_raw_parts_mut(sum, cols) {
                    // Every score may be -∞.
                    *sum = if *sum == 0.0 { 0.0 } else { 1.0 / *sum };
                }
                (self.table.scale_rows)(outputs, dim, sum);
                (self.table.transpose)(&Transpose {
                    source: outputs.cast(),
                    source_stride: cols,
                    destination: scratch.rows,
                    destination_stride: stride,
                    rows: dim,
                    cols,
                });
            }
            for (col, head, row, count) in self.columns.heads(job.kv_head, job.first_panel + panel) {
                self.hand_over(&AttentionTile {
                    batch: job.batch,
                    head,
                    row,
                    rows: count,
                    values: rows.add(col * stride),
                    row_stride: stride,
                });
            }
        }
    }

    unsafe fn hand_over(&self, tile: &AttentionTile) {
        let dim = self.problem.head_dim;
        match self.problem.output {
            AttentionOutput::Call(call) => call(tile),
            AttentionOutput::Store { data, element, batch_stride, row_stride, head_stride } => {
                let kernels: &Kernels = kernels(self.problem.isa);
                for row in 0..tile.rows {
                    let at =
                        tile.batch * batch_stride + (tile.row + row) * row_stride + tile.head * head_stride;
                    let to = data.wrapping_add(at * element.size());
                    // SAFETY: the row lies within the tile and the output.
                    unsafe {
                        let from = tile.values.add(row * tile.row_stride);
                        match element {
                            Element::Bf16 => (kernels.f32_to_bf16)(from, dim, to.cast()),
                            Element::F32 | Element::F16 | Element::I8 => store_row(from, dim, to, element),
                        }
                    }
                }
            }
        }
    }
}
