//! `row_reduction`: reductions along rows, then functions of their results.
//!
//! There are four loop structures ([`Shape`]), each a template: rows whose elements lie side by side, whole or cut; rows that lie side by side
//! themselves, whole or cut. What is the fastest axis of memory follows from strides, the rest from sizes; a structure is right for all sizes,
//! and good for those near the sample that it was chosen by.

mod shape;
mod slots;
#[cfg(test)]
mod tests;

use nucleus_plan::{Kernel, RowReduction, Size};

use super::space::size;
use super::{Blocks, Direct, Function, Grid, KernelSource, SourceError, Unit};
use crate::facts::Facts;
use shape::{Shape, choose};
use slots::Slots;

/// The most phases of a cut reduction, each of which takes two functions.
const MAX_CUT_PHASES: usize = 4;
const PARTIAL: [&str; MAX_CUT_PHASES] = ["partial0", "partial1", "partial2", "partial3"];
const FINISH: [&str; MAX_CUT_PHASES] = ["finish0", "finish1", "finish2", "finish3"];
/// Dynamic shared memory that every architecture gives a block.
const SHARED_MEMORY: u32 = 99 * 1024;

/// Threads that finish a cut reduction: blocks of the long structure, rows times strands of the other.
const FINISH_THREADS: u32 = 256;
const FINISH_ROWS: u32 = 32;

/// Prints a row reduction.
pub(super) fn source(
    kernel: &Kernel,
    reduction: &RowReduction,
    facts: &Facts,
) -> Result<KernelSource, SourceError> {
    let shape = choose(kernel, reduction, facts);
    let slots = Slots::new(kernel, reduction, facts, &shape);
    let reductions = slots.reductions();
    let widest = slots.phases.iter().map(|phase| phase.reductions.len() as u32).max().unwrap_or(0);
    let (rows, columns) = (reduction.rows.as_slice(), reduction.columns);
    let mut constants = vec![
        ("LANES", shape.lanes().to_string()),
        ("PHASES", slots.phases.len().to_string()),
        ("REDUCTIONS", reductions.to_string()),
    ];
    let mut constant = |name, value: u32| constants.push((name, value.to_string()));
    let whole = |grid, threads, shared_bytes| {
        vec![Function { name: "row_reduction", threads, shared_bytes, grid: Grid::line(grid) }]
    };
    let (template, functions, scratch) = match &shape {
        Shape::Side { threads, team, vectors, cached, .. } => {
            constant("THREADS", *threads);
            constant("TEAM", *team);
            constant("VECTORS", *vectors);
            constant("CACHED", cached.len() as u32);
            constant("HAS_ELEMENT", u32::from(slots.has_element()));
            constant("ROW_FIRST", u32::from(slots.row_first()));
            let shared_bytes = if *team > 32 { 4 * reductions * (team / 32) } else { 0 };
            let grid = Blocks::constant(1).times(rows, threads / team);
            ("sm80_row_reduction.cuh", whole(grid, *threads, shared_bytes), Blocks::NONE)
        }
        Shape::SideCut { threads, chunk, .. } => {
            constant("THREADS", *threads);
            constant("CHUNK", *chunk);
            constant("CACHED", 0);
            let warps = threads / 32;
            let parts = Blocks::points(rows).times(&[columns], *chunk);
            let finish = Blocks::points(rows);
            let functions =
                cut(&slots, (*threads, 4 * widest * warps, parts), (*threads, 8 * widest * warps, finish));
            ("sm80_row_reduction_long.cuh", functions, scratch(reductions, rows, columns, *chunk))
        }
        Shape::Columns { tx, ty, lanes, short, .. } => {
            constant("TX", *tx);
            constant("TY", *ty);
            constant("SHORT", u32::from(*short));
            constant("HAS_ELEMENT", u32::from(slots.has_element()));
            constant("ROW_FIRST", u32::from(slots.row_first()));
            let shared_bytes = if *ty > 1 { 4 * tx * ty * lanes } else { 0 };
            let grid = Blocks::constant(1).times(rows, tx * lanes);
            ("sm80_row_reduction_columns.cuh", whole(grid, tx * ty, shared_bytes), Blocks::NONE)
        }
        Shape::ColumnsCut { tx, ty, lanes, chunk, .. } => {
            constant("TX", *tx);
            constant("TY", *ty);
            constant("CHUNK", *chunk);
            let parts = Blocks::constant(1).times(rows, tx * lanes).times(&[columns], *chunk);
            let finish = Blocks::constant(1).times(rows, FINISH_ROWS);
            let functions = cut(
                &slots,
                (tx * ty, 4 * tx * ty * lanes, parts),
                (FINISH_THREADS, 8 * FINISH_THREADS, finish),
            );
            ("sm80_row_reduction_columns_long.cuh", functions, scratch(reductions, rows, columns, *chunk))
        }
    };
    if functions.iter().any(|function| function.shared_bytes > SHARED_MEMORY) {
        return Err(SourceError::Unsupported(format!("a row reduction of {reductions} results")));
    }
    let mut printed = slots.print()?;
    // A row of fewer than no elements has none, as in the grid.
    let count = match columns {
        Size::Const(columns) => columns.max(0).to_string(),
        argument => format!("i_max({}, 0)", size(argument, &Direct)),
    };
    printed.push(format!("DEVICE int column_count(const Arguments& args) {{ return {count}; }}\n"));
    if shape.is_cut() {
        printed.extend(wrappers(&functions));
    }
    let unit =
        Unit { kernel, name: "row_reduction", slots: printed, constants, template, functions, scratch };
    unit.finish()
}

/// Results of all chunks: for every reduction, row and chunk one number.
fn scratch(reductions: u32, rows: &[Size], columns: Size, chunk: u32) -> Blocks {
    Blocks::constant(4 * reductions).times(rows, 1).times(&[columns], chunk)
}

/// The functions of a cut reduction: threads, shared memory and blocks of those over chunks, and of those over rows.
fn cut(slots: &Slots, parts: (u32, u32, Blocks), finish: (u32, u32, Blocks)) -> Vec<Function> {
    let function = |name, (threads, shared_bytes, grid): &(u32, u32, Blocks)| Function {
        name,
        threads: *threads,
        shared_bytes: *shared_bytes,
        grid: Grid::line(grid.clone()),
    };
    let mut functions = Vec::new();
    for (partial, finishing) in PARTIAL.into_iter().zip(FINISH).take(slots.phases.len()) {
        functions.push(function(partial, &parts));
        functions.push(function(finishing, &finish));
    }
    if slots.has_element() {
        functions.push(Function { shared_bytes: 0, ..function("element", &parts) });
    }
    functions
}

/// The `__global__` functions of a cut reduction, which call those of its template.
fn wrappers(functions: &[Function]) -> Vec<String> {
    let mut printed = vec![
        "template <int P>\nDEVICE void partial(const Arguments& args);\ntemplate <int P>\nDEVICE void finish(const Arguments& args);\n"
            .to_owned(),
        "DEVICE void elements(const Arguments& args);\n".to_owned(),
    ];
    for Function { name, threads, .. } in functions {
        let call = match name.split_at_checked(name.len() - 1) {
            Some((function @ ("partial" | "finish"), phase)) => format!("{function}<{phase}>"),
            _ => "elements".to_owned(),
        };
        printed.push(format!(
            "KERNEL void __launch_bounds__({threads}) {name}(const __grid_constant__ Arguments args) {{ {call}(args); }}\n"
        ));
    }
    printed
}
