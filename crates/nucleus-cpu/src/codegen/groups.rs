//! Epilogues that reduce groups of columns first: phases over the group in a block of accumulators, then the function of its elements.

use cranelift_codegen::ir::InstBuilder;
use nucleus_plan::{Operand, Phase, ScalarFunction};

use super::constants::has_many_constants;
use super::error::CodegenError;
use super::function::{AccumulatorValues, Body, Environment};
use super::jit::{FunctionId, Jit};
use super::loops::{RegionValues, coordinates, enter};
use super::reduction::{Columns, bodies, run_elements, run_phases};
use super::space::Extent;

/// An epilogue over groups of columns.
#[derive(Clone, Copy, Debug)]
pub struct GroupSpec<'a> {
    /// For messages.
    pub name: &'a str,
    /// The operands.
    pub operands: &'a [Operand],
    /// The axes of the functions but the last two, which are the group and the column within it.
    pub outer: &'a [Extent],
    /// Columns of a group, at least 1.
    pub width: u32,
    /// Accumulators of a point in the region's block.
    pub segments: u32,
    /// What is reduced over the columns of a group.
    pub phases: &'a [Phase],
    /// What is stored.
    pub function: &'a ScalarFunction,
}

impl Jit {
    /// Compiles an epilogue over groups of columns. The last axis of its regions is that of columns counted through all groups, and they
    /// have whole groups only. The bits of a group's reductions do not depend on what else a region covers.
    ///
    /// # Errors
    /// The code generator refuses it.
    pub fn compile_groups(&mut self, spec: &GroupSpec) -> Result<FunctionId, CodegenError> {
        let GroupSpec { name, operands, outer, width, segments, phases, function } = *spec;
        let width = i64::from(width);
        let bodies = bodies(phases, operands, segments);
        let element = Body::new(function, operands, segments, &[]);
        self.define(name, |emit| {
            let [operand_table, sizes, region] = enter(emit);
            let functions: Vec<&ScalarFunction> =
                phases.iter().map(|phase| &phase.function).chain([function]).collect();
            if has_many_constants(functions.iter().copied()) {
                emit.use_constant_pool();
            }
            let environment = Environment::load(emit, [operand_table, sizes], functions, outer);
            let region = RegionValues::load(emit, region);
            let [zero, end] = [0, width].map(|value| emit.int64(value));
            let columns = Columns { zero, end, never_empty: true };
            let segment_bytes = region.segment_bytes(emit);
            emit.count_loop(region.outer_begin, region.outer_end, 1, &[], |emit, flat, _| {
                let of_row = coordinates(emit, &environment, outer, flat);
                let block = region.block_row(emit, flat, 4);
                emit.count_loop(region.inner_begin, region.inner_end, width, &[], |emit, first, _| {
                    let group = emit.builder.ins().udiv(first, end);
                    let coordinates: Vec<_> = of_row.iter().copied().chain([group]).collect();
                    let bytes = emit.builder.ins().imul_imm_s(first, 4);
                    let base = emit.iadd(block, bytes);
                    let mut values =
                        AccumulatorValues::Group { base, segment_bytes, segments, results: Vec::new() };
                    run_phases(emit, &environment, &coordinates, &bodies, columns, &mut values);
                    run_elements(emit, &environment, &coordinates, &element, columns, &values);
                    Vec::new()
                });
                Vec::new()
            });
            emit.builder.ins().return_(&[]);
        })
    }
}
