//! A phase of a row reduction over some of its columns: what a range of columns adds to accumulators in memory.
//!
//! Rows whose elements lie side by side in memory are reduced together, column after column, each lane of a vector a row of its own. A
//! long row of neighbouring elements is reduced alone, its lanes being columns. Either way a call covers columns from one
//! place to another, so that the caller decides where sums are cut.

use cranelift_codegen::ir::{InstBuilder, Value};
use nucleus_ir::DType;
use nucleus_plan::{Operand, Phase, StepId};

use super::constants::has_many_constants;
use super::emit::{Emit, Lanes};
use super::error::CodegenError;
use super::function::{AccumulatorValues, Body, Environment, Row, flags};
use super::jit::{FunctionId, Jit};
use super::loops::{RegionValues, coordinates, enter, inner_loops};
use super::memory::Place;
use super::reduction::{combine, reduce};
use super::space::Extent;

/// Columns whose values are combined with an accumulator before it is written back.
const TOGETHER: i64 = 4;
/// Functions with more steps than this are emitted for single columns only.
const LARGE: usize = 32;

/// A phase over part of its columns.
#[derive(Clone, Copy, Debug)]
pub struct PartialSpec<'a> {
    /// For messages.
    pub name: &'a str,
    /// The kernel's operands.
    pub operands: &'a [Operand],
    /// The axes of the phase's function but the last: see the two functions that compile it.
    pub outer: &'a [Extent],
    /// Its function over these axes, and what is reduced.
    pub phase: &'a Phase,
    /// How many reductions earlier phases have: their results are the first accumulators of the region's block, those of this phase follow.
    pub earlier: u32,
}

impl Jit {
    /// Compiles a phase whose lanes are rows. The axes of its function are those of the rows but one, the columns, and the last axis of the
    /// rows. A region is a range of columns within one point of the former, and a range of the last axis; accumulators lie in
    /// one row of the block. Columns are combined one by one, in order, whatever the region.
    ///
    /// # Errors
    /// The code generator refuses it.
    pub fn compile_partial_across(&mut self, spec: &PartialSpec) -> Result<FunctionId, CodegenError> {
        let PartialSpec { name, operands, outer, phase, earlier } = *spec;
        let body = Body::new(&phase.function, operands, u32::MAX, &values(phase));
        let large = phase.function.steps.len() > LARGE;
        self.define(name, |emit| {
            let [operand_table, sizes, region] = enter(emit);
            if has_many_constants([&phase.function]) {
                emit.use_constant_pool();
            }
            let environment =
                Environment::load(emit, [operand_table, sizes], [&phase.function], outer.iter());
            let region = RegionValues::load(emit, region);
            let mut coordinates = coordinates(emit, &environment, outer, region.outer_begin);
            let Some(begin) = coordinates.pop() else {
                emit.builder.ins().return_(&[]);
                return;
            };
            let count = emit.isub(region.outer_end, region.outer_begin);
            let end = emit.iadd(begin, count);
            let base = region.block_row(emit, region.outer_begin, 4);
            let segment_bytes = region.segment_bytes(emit);
            let block = Block { base, segment_bytes, earlier };
            let columns = |emit: &mut Emit, column: Value, count: i64| {
                let rows: Vec<Row> = (0..count)
                    .map(|next| {
                        let column = emit.builder.ins().iadd_imm_s(column, next);
                        let at: Vec<Value> = coordinates.iter().copied().chain([column]).collect();
                        body.begin_row(emit, &environment, &at, &block.values())
                    })
                    .collect();
                inner_loops(emit, region.inner_begin, region.inner_end, &mut |emit, i| {
                    block.update(emit, i, phase, |emit, totals| {
                        for row in &rows {
                            let values = body.point(emit, &environment, row, i, &block.values());
                            add(emit, phase, &values, totals);
                        }
                    });
                });
            };
            let mut column = begin;
            let counts = [TOGETHER, 1];
            for &count in if large { &counts[1..] } else { &counts[..] } {
                (column, _) = emit.count_loop(column, end, count, &[], |emit, column, _| {
                    columns(emit, column, count);
                    Vec::new()
                });
            }
            emit.builder.ins().return_(&[]);
        })
    }

    /// Compiles a phase whose lanes are columns. The axes of its function are those of the rows and the columns. A region is one row and a
    /// range of columns; accumulators lie in one point of the block. The order of a sum depends on the number of columns of the region alone.
    ///
    /// # Errors
    /// The code generator refuses it.
    pub fn compile_partial_along(&mut self, spec: &PartialSpec) -> Result<FunctionId, CodegenError> {
        let PartialSpec { name, operands, outer, phase, earlier } = *spec;
        let body = Body::new(&phase.function, operands, 0, &values(phase));
        self.define(name, |emit| {
            let [operand_table, sizes, region] = enter(emit);
            if has_many_constants([&phase.function]) {
                emit.use_constant_pool();
            }
            let environment =
                Environment::load(emit, [operand_table, sizes], [&phase.function], outer.iter());
            let region = RegionValues::load(emit, region);
            let coordinates = coordinates(emit, &environment, outer, region.outer_begin);
            let zero = emit.int64(0);
            // The block is addressed by row and accumulator: it has no column.
            let (base, segment_bytes) = (region.block(), region.segment_bytes(emit));
            let block = Block { base, segment_bytes, earlier };
            emit.lanes = Lanes::One;
            let results = (0..earlier).map(|number| block.load(emit, number, zero)).collect();
            let accumulators = AccumulatorValues::Row(results);
            let row = body.begin_row(emit, &environment, &coordinates, &accumulators);
            let sums =
                reduce(emit, region.inner_begin, region.inner_end, &phase.reductions, &mut |emit, i| {
                    body.point(emit, &environment, &row, i, &accumulators)
                });
            block.update(emit, zero, phase, |emit, totals| {
                for ((reduction, total), sum) in phase.reductions.iter().zip(totals).zip(sums) {
                    *total = combine(emit, reduction.op, *total, sum);
                }
            });
            emit.builder.ins().return_(&[]);
        })
    }
}

fn values(phase: &Phase) -> Vec<StepId> {
    phase.reductions.iter().map(|reduction| reduction.value).collect()
}

/// Combines totals with the values of a point.
fn add(emit: &mut Emit, phase: &Phase, values: &[Option<Value>], totals: &mut [Value]) {
    for (reduction, total) in phase.reductions.iter().zip(totals) {
        if let Some(value) = values[reduction.value.0 as usize] {
            *total = combine(emit, reduction.op, *total, value);
        }
    }
}

/// The accumulators of a region: the address of the first at position 0, and the bytes from one to the next.
#[derive(Clone, Copy)]
struct Block {
    base: Value,
    segment_bytes: Value,
    earlier: u32,
}

impl Block {
    fn values(self) -> AccumulatorValues {
        AccumulatorValues::Block { base: self.base, segment_bytes: self.segment_bytes }
    }

    fn place(self, emit: &mut Emit, number: u32, i: Value) -> Place {
        let segment = emit.builder.ins().imul_imm_s(self.segment_bytes, i64::from(number));
        let base = emit.iadd(self.base, segment);
        let bytes = emit.builder.ins().imul_imm_s(i, 4);
        Place::Contiguous(emit.iadd(base, bytes))
    }

    fn load(self, emit: &mut Emit, number: u32, i: Value) -> Value {
        let place = self.place(emit, number, i);
        emit.load(DType::F32, &place, flags())
    }

    /// Reads the accumulators of a phase at position `i` and the lanes behind it, lets `body` change them, and writes them back.
    fn update(self, emit: &mut Emit, i: Value, phase: &Phase, body: impl FnOnce(&mut Emit, &mut [Value])) {
        let numbers = self.earlier..self.earlier + phase.reductions.len() as u32;
        let mut totals: Vec<Value> = numbers.clone().map(|number| self.load(emit, number, i)).collect();
        body(emit, &mut totals);
        for (number, total) in numbers.zip(totals) {
            let place = self.place(emit, number, i);
            emit.store(DType::F32, total, &place, flags());
        }
    }
}
