//! Row reductions: phases along a row, then functions of their results.

use cranelift_codegen::ir::{BlockArg, InstBuilder, Value};
use nucleus_plan::{Operand, Phase, Reduction, ReductionOp, RowReduction, ScalarFunction, StepId};

use super::constants::has_many_constants;
use super::emit::{Emit, Lanes};
use super::error::CodegenError;
use super::function::{AccumulatorValues, Body, Environment};
use super::jit::{FunctionId, Jit};
use super::loops::{RegionValues, coordinates, enter, inner_loops};
use super::space::{Extent, append_unit_axis};

/// Vectors that are reduced side by side; their results are combined in a fixed order.
const UNROLL: usize = 4;

impl Jit {
    /// Compiles a row reduction: the region's rows, always over the whole of their columns.
    ///
    /// # Errors
    /// The code generator refuses it.
    pub fn compile_row_reduction(
        &mut self,
        name: &str,
        operands: &[Operand],
        reduction: &RowReduction,
    ) -> Result<FunctionId, CodegenError> {
        let outer: Vec<Extent> = reduction.rows.iter().map(|&size| size.into()).collect();
        let columns = Extent::from(reduction.columns);
        let row_function = append_unit_axis(&reduction.row);
        let phases = bodies(&reduction.phases, operands, 0);
        let row_body = Body::new(&row_function, operands, 0, &[]);
        let element_body = Body::new(&reduction.element, operands, 0, &[]);
        let has_elements = !reduction.element.steps.is_empty();
        self.define(name, |emit| {
            let [operand_table, sizes, region] = enter(emit);
            let functions: Vec<&ScalarFunction> = reduction
                .phases
                .iter()
                .map(|phase| &phase.function)
                .chain([&row_function, &reduction.element])
                .collect();
            if has_many_constants(functions.iter().copied()) {
                emit.use_constant_pool();
            }
            let extents = outer.iter().chain([&columns]);
            let environment = Environment::load(emit, [operand_table, sizes], functions, extents);
            let region = RegionValues::load(emit, region);
            let end = environment.extent(emit, &columns);
            let zero = emit.int64(0);
            let never_empty = columns.constant().is_some_and(|columns| columns > 0);
            emit.count_loop(region.outer_begin, region.outer_end, 1, &[], |emit, flat, _| {
                let coordinates = coordinates(emit, &environment, &outer, flat);
                let mut values = AccumulatorValues::Row(Vec::new());
                let columns = Columns { zero, end, never_empty };
                run_phases(emit, &environment, &coordinates, &phases, columns, &mut values);
                let row = row_body.begin_row(emit, &environment, &coordinates, &values);
                row_body.point(emit, &environment, &row, zero, &values);
                if has_elements {
                    run_elements(emit, &environment, &coordinates, &element_body, columns, &values);
                }
                Vec::new()
            });
            emit.builder.ins().return_(&[]);
        })
    }
}

/// The columns of a row.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// The position 0.
    pub(super) zero: Value,
    /// How many there are.
    pub(super) end: Value,
    /// True if that is known to be more than none.
    pub(super) never_empty: bool,
}

/// The functions of phases ready to be emitted; `row_accumulators` as for [`Body::new`].
pub(super) fn bodies<'a>(
    phases: &'a [Phase],
    operands: &'a [Operand],
    row_accumulators: u32,
) -> Vec<(Body<'a>, &'a [Reduction])> {
    let body = |phase: &'a Phase| {
        let values: Vec<StepId> = phase.reductions.iter().map(|reduction| reduction.value).collect();
        (Body::new(&phase.function, operands, row_accumulators, &values), phase.reductions.as_slice())
    };
    phases.iter().map(body).collect()
}

/// Runs the phases of a row one after the other and appends their results to the accumulators.
pub(super) fn run_phases(
    emit: &mut Emit,
    environment: &Environment,
    coordinates: &[Value],
    phases: &[(Body, &[Reduction])],
    columns: Columns,
    values: &mut AccumulatorValues,
) {
    for (body, reductions) in phases {
        emit.lanes = Lanes::One;
        let initial: Vec<Value> = reductions.iter().map(|r| identity(emit, r.op)).collect();
        let reduced = if_not_empty(emit, columns, &initial, |emit| {
            let row = body.begin_row(emit, environment, coordinates, values);
            reduce(emit, columns.zero, columns.end, reductions, &mut |emit, i| {
                body.point(emit, environment, &row, i, values)
            })
        });
        values.extend(reduced);
    }
}

/// Runs the function of a row's elements.
pub(super) fn run_elements(
    emit: &mut Emit,
    environment: &Environment,
    coordinates: &[Value],
    body: &Body,
    columns: Columns,
    values: &AccumulatorValues,
) {
    if_not_empty(emit, columns, &[], |emit| {
        let row = body.begin_row(emit, environment, coordinates, values);
        inner_loops(emit, columns.zero, columns.end, &mut |emit, i| {
            body.point(emit, environment, &row, i, values);
        });
        Vec::new()
    });
}

/// What `body` gives if there is a column, else `otherwise`: a row without columns must not be read at all.
fn if_not_empty(
    emit: &mut Emit,
    columns: Columns,
    otherwise: &[Value],
    body: impl FnOnce(&mut Emit) -> Vec<Value>,
) -> Vec<Value> {
    if columns.never_empty {
        return body(emit);
    }
    let [inside, join] = [(); 2].map(|()| emit.builder.create_block());
    let results = emit.parameters(join, otherwise);
    let skipped: Vec<BlockArg> = otherwise.iter().copied().map(BlockArg::Value).collect();
    emit.builder.ins().brif(columns.end, inside, &[], join, &skipped);
    emit.builder.switch_to_block(inside);
    let values = body(emit);
    let values: Vec<BlockArg> = values.into_iter().map(BlockArg::Value).collect();
    emit.builder.ins().jump(join, &values);
    emit.builder.switch_to_block(join);
    emit.lanes = Lanes::One;
    results
}

fn identity(emit: &mut Emit, op: ReductionOp) -> Value {
    match op {
        ReductionOp::Sum => emit.float(0.0),
        ReductionOp::Max => emit.float(f32::NEG_INFINITY),
    }
}

pub(super) fn combine(emit: &mut Emit, op: ReductionOp, x: Value, y: Value) -> Value {
    match op {
        ReductionOp::Sum => emit.fadd(x, y),
        ReductionOp::Max => emit.fmax(x, y),
    }
}

/// Runs along a row and reduces: 16 columns at a time into four vectors, then 4, then, from their combination on, single ones.
pub(super) fn reduce(
    emit: &mut Emit,
    begin: Value,
    end: Value,
    reductions: &[Reduction],
    point: &mut dyn FnMut(&mut Emit, Value) -> Vec<Option<Value>>,
) -> Vec<Value> {
    let count = reductions.len();
    let mut add = |emit: &mut Emit, i: Value, sums: &[Value]| -> Vec<Value> {
        let values = point(emit, i);
        let pairs = reductions.iter().zip(sums);
        pairs
            .map(|(reduction, &sum)| match values[reduction.value.0 as usize] {
                Some(value) => combine(emit, reduction.op, sum, value),
                None => sum,
            })
            .collect()
    };
    emit.lanes = Lanes::Four;
    let initial: Vec<Value> =
        (0..UNROLL).flat_map(|_| reductions).map(|reduction| identity(emit, reduction.op)).collect();
    let (i, sums) = emit.count_loop(begin, end, 4 * UNROLL as i64, &initial, |emit, i, sums| {
        let mut next = Vec::with_capacity(sums.len());
        for part in 0..UNROLL {
            let at = emit.builder.ins().iadd_imm_s(i, 4 * part as i64);
            next.extend(add(emit, at, &sums[part * count..(part + 1) * count]));
        }
        next
    });
    let (i, first) = emit.count_loop(i, end, 4, &sums[..count], |emit, i, sums| add(emit, i, sums));
    let mut totals = Vec::with_capacity(count);
    for (position, reduction) in reductions.iter().enumerate() {
        let op = reduction.op;
        emit.lanes = Lanes::Four;
        let parts =
            [first[position], sums[count + position], sums[2 * count + position], sums[3 * count + position]];
        let low = combine(emit, op, parts[0], parts[1]);
        let high = combine(emit, op, parts[2], parts[3]);
        let vector = combine(emit, op, low, high);
        let lanes = [0, 1, 2, 3].map(|lane| emit.lane(vector, lane));
        emit.lanes = Lanes::One;
        let even = combine(emit, op, lanes[0], lanes[2]);
        let odd = combine(emit, op, lanes[1], lanes[3]);
        totals.push(combine(emit, op, even, odd));
    }
    emit.lanes = Lanes::One;
    let (_, totals) = emit.count_loop(i, end, 1, &totals, |emit, i, sums| add(emit, i, sums));
    totals
}
