//! The loop nest around a scalar function.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use nucleus_ir::DType;
use nucleus_plan::{Operand, ScalarFunction};

use super::constants::has_many_constants;
use super::emit::{Emit, Lanes};
use super::error::CodegenError;
use super::function::{AccumulatorValues, Body, Environment, flags};
use super::jit::{FunctionId, Jit, Region};
use super::memory::Place;
use super::space::{Extent, Space};

/// What `Accumulator` steps of a function mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulators {
    /// All are 0.
    Zero,
    /// Floats in the region's block.
    Block,
}

/// What happens to the result of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// There is none: the function has stores.
    None,
    /// It is written to the region's block as this type: the result's own, or `f32` for a result of any float type.
    Block(DType),
    /// It is added to the floats in the region's block.
    AddToBlock,
}

/// A loop nest to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct LoopSpec<'a> {
    /// For messages.
    pub name: &'a str,
    /// The kernel's operands.
    pub operands: &'a [Operand],
    /// The iteration space.
    pub space: &'a Space,
    /// The function over it.
    pub function: &'a ScalarFunction,
    /// Its accumulators.
    pub accumulators: Accumulators,
    /// Its result.
    pub destination: Destination,
}

/// The fields of a [`Region`], loaded.
pub(super) struct RegionValues {
    pub(super) outer_begin: Value,
    pub(super) outer_end: Value,
    pub(super) inner_begin: Value,
    pub(super) inner_end: Value,
    block: Value,
    row_stride: Value,
    segment_stride: Value,
}

impl RegionValues {
    pub(super) fn load(emit: &mut Emit, region: Value) -> RegionValues {
        let mut field = |offset: usize| emit.builder.ins().load(types::I64, flags(), region, offset as i32);
        RegionValues {
            outer_begin: field(std::mem::offset_of!(Region, outer_begin)),
            outer_end: field(std::mem::offset_of!(Region, outer_end)),
            inner_begin: field(std::mem::offset_of!(Region, inner_begin)),
            inner_end: field(std::mem::offset_of!(Region, inner_end)),
            block: field(std::mem::offset_of!(Region, block)),
            row_stride: field(std::mem::offset_of!(Region, row_stride)),
            segment_stride: field(std::mem::offset_of!(Region, segment_stride)),
        }
    }

    /// Where position 0 of the last axis would lie in row `flat` of the block, whose elements have `element` bytes: both kinds of block are
    /// addressed by the position on the last axis, as operands are.
    pub(super) fn block_row(&self, emit: &mut Emit, flat: Value, element: i64) -> Value {
        let relative = emit.isub(flat, self.outer_begin);
        let row = emit.imul(relative, self.row_stride);
        let row = emit.isub(row, self.inner_begin);
        let row = emit.builder.ins().imul_imm_s(row, element);
        emit.iadd(self.block, row)
    }

    /// The block's first element.
    pub(super) fn block(&self) -> Value {
        self.block
    }

    /// Bytes from one accumulator of the block to the next.
    pub(super) fn segment_bytes(&self, emit: &mut Emit) -> Value {
        emit.builder.ins().imul_imm_s(self.segment_stride, 4)
    }
}

/// Opens a function of the common signature; gives operands, sizes and region.
pub(super) fn enter(emit: &mut Emit) -> [Value; 3] {
    let entry = emit.builder.create_block();
    emit.builder.append_block_params_for_function_params(entry);
    emit.builder.switch_to_block(entry);
    let parameters = emit.builder.block_params(entry);
    [parameters[0], parameters[1], parameters[2]]
}

/// The coordinates of row `flat`.
pub(super) fn coordinates(
    emit: &mut Emit,
    environment: &Environment,
    outer: &[Extent],
    flat: Value,
) -> Vec<Value> {
    let mut rest = flat;
    let mut reversed = Vec::with_capacity(outer.len());
    for extent in outer.iter().skip(1).rev() {
        let extent = environment.extent(emit, extent);
        let quotient = emit.builder.ins().udiv(rest, extent);
        let whole = emit.imul(quotient, extent);
        reversed.push(emit.isub(rest, whole));
        rest = quotient;
    }
    if !outer.is_empty() {
        reversed.push(rest);
    }
    reversed.reverse();
    reversed
}

impl Jit {
    /// Compiles a loop nest.
    ///
    /// # Errors
    /// The code generator refuses it.
    pub fn compile_loop(&mut self, spec: &LoopSpec) -> Result<FunctionId, CodegenError> {
        let LoopSpec { name, operands, space, function, accumulators, destination } = *spec;
        let kept = function.result.filter(|_| destination != Destination::None);
        let body = Body::new(function, operands, u32::MAX, kept.as_slice());
        self.define(name, |emit| {
            let [operand_table, sizes, region] = enter(emit);
            if has_many_constants([function]) {
                emit.use_constant_pool();
            }
            let extents = space.outer.iter();
            let environment = Environment::load(emit, [operand_table, sizes], [function], extents);
            let region = RegionValues::load(emit, region);
            emit.count_loop(region.outer_begin, region.outer_end, 1, &[], |emit, flat, _| {
                let coordinates = coordinates(emit, &environment, &space.outer, flat);
                let element = match destination {
                    Destination::Block(dtype) => dtype.size() as i64,
                    Destination::AddToBlock | Destination::None => 4,
                };
                let block = region.block_row(emit, flat, element);
                let accumulators = match accumulators {
                    Accumulators::Zero => AccumulatorValues::Zero,
                    Accumulators::Block => {
                        AccumulatorValues::Block { base: block, segment_bytes: region.segment_bytes(emit) }
                    }
                };
                let row = body.begin_row(emit, &environment, &coordinates, &accumulators);
                let mut point = |emit: &mut Emit, i: Value| {
                    let values = body.point(emit, &environment, &row, i, &accumulators);
                    let Some((result, value)) = kept.and_then(|id| Some((id, values[id.0 as usize]?))) else {
                        return;
                    };
                    let bytes = emit.builder.ins().imul_imm_s(i, element);
                    let place = Place::Contiguous(emit.iadd(block, bytes));
                    match destination {
                        Destination::None => {}
                        Destination::Block(dtype) => {
                            debug_assert!(dtype == DType::F32 || dtype == body.value_dtype(result));
                            emit.store(dtype, value, &place, flags());
                        }
                        Destination::AddToBlock => {
                            let sum = emit.load(DType::F32, &place, flags());
                            let sum = emit.fadd(sum, value);
                            emit.store(DType::F32, sum, &place, flags());
                        }
                    }
                };
                inner_loops(emit, region.inner_begin, region.inner_end, &mut point);
                Vec::new()
            });
            emit.builder.ins().return_(&[]);
        })
    }
}

/// `point` at four positions at once while they fit, then at single ones.
pub(super) fn inner_loops(
    emit: &mut Emit,
    begin: Value,
    end: Value,
    point: &mut dyn FnMut(&mut Emit, Value),
) {
    emit.lanes = Lanes::Four;
    let (i, _) = emit.count_loop(begin, end, 4, &[], |emit, i, _| {
        point(emit, i);
        Vec::new()
    });
    emit.lanes = Lanes::One;
    emit.count_loop(i, end, 1, &[], |emit, i, _| {
        point(emit, i);
        Vec::new()
    });
}
