//! In which order the points of a row reduction run, and the functions compiled for it.
//!
//! Usually the elements of a row lie side by side and rows are reduced one after the other. A sum over a leading axis has its rows
//! side by side instead: then many rows are reduced together, and memory is still read from one end to the other.

use nucleus_plan::{Access, Kernel, Phase, RowReduction, ScalarFunction, Size, Step};

use crate::codegen::{
    Accumulators, CodegenError, Destination, Extent, FunctionId, Jit, LoopSpec, PartialSpec, Space,
    append_unit_axis, collapse, for_each_strides, permute_axes,
};

/// A compiled row reduction.
#[derive(Clone, Debug)]
pub(crate) enum CompiledReduction {
    /// One row after the other: all of a row by one function, and a long one, if nothing is computed at its elements afterwards, in parts.
    Rows { whole: FunctionId, long: Option<PartialReduction> },
    /// Neighbouring rows together.
    Across(PartialReduction),
}

/// Functions over parts of the columns, with the results of phases in a block between them.
#[derive(Clone, Debug)]
pub(crate) struct PartialReduction {
    /// The rows. The last axis is that of rows which are reduced together.
    pub(crate) space: Space,
    /// True if lanes are rows, false if they are columns.
    pub(crate) across: bool,
    /// By phase.
    pub(crate) phases: Vec<FunctionId>,
    /// Over the rows, if it does anything.
    pub(crate) row: Option<FunctionId>,
    /// Over the rows but their last axis, the columns, and that axis, if it does anything.
    pub(crate) element: Option<FunctionId>,
}

/// Compiles a row reduction.
pub(crate) fn compile_reduction(
    jit: &mut Jit,
    kernel: &Kernel,
    reduction: &RowReduction,
) -> Result<CompiledReduction, CodegenError> {
    if let Some(axis) = lane_axis(reduction) {
        return across(jit, kernel, reduction, axis).map(CompiledReduction::Across);
    }
    let whole = jit.compile_row_reduction("row_reduction", &kernel.operands, reduction)?;
    let long = match reduction.element.steps.is_empty() && !is_short(reduction.columns) {
        true => Some(along(jit, kernel, reduction)?),
        false => None,
    };
    Ok(CompiledReduction::Rows { whole, long })
}

/// Columns of a row that is never worth cutting.
pub(crate) const LONG_ROW: i64 = 1 << 14;

fn is_short(columns: Size) -> bool {
    matches!(columns, Size::Const(columns) if columns <= LONG_ROW)
}

/// The row axis along which fewer accesses jump than along the columns; `None` if there is none.
fn lane_axis(reduction: &RowReduction) -> Option<usize> {
    if matches!(reduction.columns, Size::Const(columns) if columns <= 1) {
        return None;
    }
    let functions = reduction.phases.iter().map(|phase| &phase.function).chain([&reduction.element]);
    let accesses: Vec<&Access> = functions.flat_map(ScalarFunction::accesses).collect();
    let columns = reduction.rows.len();
    // Two by two, as complex numbers lie, is still one piece of memory.
    let jumps = |access: &Access, axis: usize, nearest: i64| {
        let near = |stride: Size| matches!(stride, Size::Const(stride) if (0..=nearest).contains(&stride));
        let index = access.indirect.as_ref().map(|indirect| &indirect.index.strides[axis]);
        !near(access.strides[axis]) || index.is_some_and(|stride| !stride.is(0))
    };
    let along_columns = accesses.iter().filter(|access| jumps(access, columns, 2)).count();
    let long = |axis: &usize| !matches!(reduction.rows[*axis], Size::Const(extent) if extent < 4);
    let contiguous =
        |axis: &usize| accesses.iter().any(|access| access.strides[*axis].is(1) && jumps(access, columns, 2));
    let axes = (0..columns).rev().filter(long).filter(contiguous);
    let counted = axes.map(|axis| (accesses.iter().filter(|access| jumps(access, axis, 1)).count(), axis));
    let (count, axis) = counted.min_by_key(|(count, _)| *count)?;
    (count < along_columns).then_some(axis)
}

/// The functions for rows that are reduced together along `axis`.
fn across(
    jit: &mut Jit,
    kernel: &Kernel,
    reduction: &RowReduction,
    axis: usize,
) -> Result<PartialReduction, CodegenError> {
    let rank = reduction.rows.len();
    let others = (0..rank).filter(|other| *other != axis);
    let order: Vec<usize> = [rank].into_iter().chain(others).chain([axis]).collect();
    let axes: Vec<Extent> = order
        .iter()
        .map(|axis| reduction.rows.get(*axis).copied().unwrap_or(reduction.columns).into())
        .collect();
    let row = append_unit_axis(&reduction.row);
    let functions: Vec<&ScalarFunction> =
        reduction.phases.iter().map(|phase| &phase.function).chain([&row, &reduction.element]).collect();
    let (mut space, functions) = collapse_rows(&axes, &functions, &order);
    let columns = space.outer.remove(0);
    let [phases @ .., row, element] = functions.as_slice() else {
        return Err(CodegenError::Host("a reduction without functions".to_owned()));
    };
    // From columns, rows, lanes to rows, columns, lanes.
    let mut outer = space.outer.clone();
    outer.push(columns);
    let inside = |function: &ScalarFunction| {
        let columns = outer.len() - 1;
        let order: Vec<usize> = (1..=columns).chain([0, columns + 1]).collect();
        permute_axes(function, &order)
    };
    let operands = &kernel.operands;
    let mut earlier = 0;
    let mut compiled = Vec::with_capacity(phases.len());
    for (function, phase) in phases.iter().zip(&reduction.phases) {
        let phase = Phase { function: inside(function), reductions: phase.reductions.clone() };
        let spec = PartialSpec { name: "row_reduction", operands, outer: &outer, phase: &phase, earlier };
        compiled.push(jit.compile_partial_across(&spec)?);
        earlier += phase.reductions.len() as u32;
    }
    let mut row = row.clone();
    for_each_strides(&mut row, &mut |strides| {
        strides.remove(0);
    });
    let row = results(jit, kernel, &space, &row)?;
    let element =
        results(jit, kernel, &Space { outer: outer.clone(), inner: space.inner.clone() }, &inside(element))?;
    Ok(PartialReduction { space, across: true, phases: compiled, row, element })
}

/// Walks neighbouring row axes as one where every access of every function allows it. The columns, which are the first axis, stay apart.
fn collapse_rows(
    axes: &[Extent],
    functions: &[&ScalarFunction],
    order: &[usize],
) -> (Space, Vec<ScalarFunction>) {
    // A step that tells columns and rows apart keeps them so.
    let strides = (0..axes.len()).map(|axis| Size::Const(i64::from(axis == 0))).collect();
    let mut all = ScalarFunction {
        steps: vec![Step::Affine { offset: Size::Const(0), strides }],
        ..ScalarFunction::default()
    };
    for function in functions {
        all.steps.extend(permute_axes(function, order).steps);
    }
    let (space, all) = collapse(axes, &all, false);
    let mut steps = all.steps.into_iter().skip(1);
    let parts = functions.iter().map(|function| ScalarFunction {
        steps: steps.by_ref().take(function.steps.len()).collect(),
        result: function.result,
    });
    (space, parts.collect())
}

/// The functions for single rows that are cut.
fn along(jit: &mut Jit, kernel: &Kernel, reduction: &RowReduction) -> Result<PartialReduction, CodegenError> {
    let outer: Vec<Extent> = reduction.rows.iter().map(|&size| size.into()).collect();
    let operands = &kernel.operands;
    let mut earlier = 0;
    let mut phases = Vec::with_capacity(reduction.phases.len());
    for phase in &reduction.phases {
        let spec = PartialSpec { name: "long_row", operands, outer: &outer, phase, earlier };
        phases.push(jit.compile_partial_along(&spec)?);
        earlier += phase.reductions.len() as u32;
    }
    let space = Space { outer, inner: Extent::default() };
    let row = results(jit, kernel, &space, &append_unit_axis(&reduction.row))?;
    Ok(PartialReduction { space, across: false, phases, row, element: None })
}

/// A function of the results of phases; `None` if it does nothing.
fn results(
    jit: &mut Jit,
    kernel: &Kernel,
    space: &Space,
    function: &ScalarFunction,
) -> Result<Option<FunctionId>, CodegenError> {
    if function.steps.is_empty() {
        return Ok(None);
    }
    let (accumulators, destination) = (Accumulators::Block, Destination::None);
    let (name, operands) = ("row_results", &kernel.operands);
    jit.compile_loop(&LoopSpec { name, operands, space, function, accumulators, destination }).map(Some)
}
