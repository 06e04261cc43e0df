//! Which loop structure a row reduction takes.

use nucleus_plan::{Access, Kernel, OperandMode, RowReduction, ScalarFunction, Size, Step};

use super::MAX_CUT_PHASES;
use crate::facts::Facts;

/// A loop structure and its sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Elements of a row side by side, a team of threads for each row. With `vectors` the row has at most `vectors · team · lanes` columns.
    Side { threads: u32, team: u32, lanes: u32, vectors: u32, cached: Vec<Access> },
    /// Elements of a row side by side, a block for every `chunk` columns.
    SideCut { threads: u32, lanes: u32, chunk: u32 },
    /// Rows side by side along an axis, `tx` threads along rows and `ty` along columns. `short` if there are never more columns than the threads
    /// of a block add in `f32`.
    Columns { axis: usize, tx: u32, ty: u32, lanes: u32, short: bool },
    /// The same, a block for every `chunk` columns.
    ColumnsCut { axis: usize, tx: u32, ty: u32, lanes: u32, chunk: u32 },
}

impl Shape {
    /// Neighbouring elements that a thread computes at a time.
    pub(super) fn lanes(&self) -> u32 {
        match self {
            Shape::Side { lanes, .. }
            | Shape::SideCut { lanes, .. }
            | Shape::Columns { lanes, .. }
            | Shape::ColumnsCut { lanes, .. } => *lanes,
        }
    }

    /// True if rows are cut and several functions run.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self, Shape::SideCut { .. } | Shape::ColumnsCut { .. })
    }

    /// The row axis along which lanes lie; `None` for columns.
    pub(super) fn row_axis(&self) -> Option<usize> {
        match self {
            Shape::Columns { axis, .. } | Shape::ColumnsCut { axis, .. } => Some(*axis),
            _ => None,
        }
    }

    /// The loads whose values stay in registers from the first phase to the element function.
    pub(super) fn cached(&self) -> &[Access] {
        match self {
            Shape::Side { cached, .. } => cached,
            _ => &[],
        }
    }
}

/// Blocks that keep the largest devices busy: one for each of some 132 multiprocessors, eight for each where they are short.
const FEW_BLOCKS: i64 = 132;
const MANY_BLOCKS: i64 = 8 * FEW_BLOCKS;
/// Threads of blocks that need no other number.
const THREADS: u32 = 256;
/// Rows of as many columns are cut where there are few of them.
const LONG: i64 = 1 << 15;
/// Floats of a row that a thread keeps in registers.
const MAX_CACHED: u32 = 48;
/// Columns of which a thread of the structure `Columns` adds the values in `f32`: `STEPS` of its template.
const STEPS: u32 = 32;
/// What a size is taken for where neither the kernel nor a sample says it.
const UNKNOWN: i64 = 1024;

/// The structure for a kernel.
pub(super) fn choose(kernel: &Kernel, reduction: &RowReduction, facts: &Facts) -> Shape {
    let rows: i64 =
        reduction.rows.iter().fold(1, |product: i64, size| product.saturating_mul(typical(*size, facts)));
    let rows = rows.min(1 << 40);
    let columns = typical(reduction.columns, facts);
    let phases = reduction.phases.iter().filter(|phase| !phase.reductions.is_empty()).count();
    let cuttable = (1..=MAX_CUT_PHASES).contains(&phases);
    // Sizes of samples are small where a dim counts things other than tokens. A sum that may grow to any length, over rows whose number
    // cannot, is taken for a long one.
    let fixed = |limit: i64| {
        let known = |size: &Size| matches!(size, Size::Const(_));
        reduction.rows.iter().all(known) && rows <= limit && matches!(reduction.columns, Size::Arg(_))
    };
    match fastest_axis(kernel, reduction) {
        Some(axis) => {
            let lanes = lanes(kernel, reduction, facts, axis);
            let columns = if fixed(1 << 14) { columns.max(512) } else { columns };
            columns_shape(reduction, axis, lanes, ceil(rows, lanes.into()), columns, cuttable)
        }
        None => {
            let lanes = lanes(kernel, reduction, facts, reduction.rows.len());
            if cuttable && (fixed(64) || (columns >= LONG && rows < 2 * FEW_BLOCKS)) {
                let step = i64::from(THREADS * lanes);
                let chunk = power_of_two(ceil(rows.saturating_mul(columns), MANY_BLOCKS * step)).clamp(2, 16)
                    * THREADS
                    * lanes;
                return Shape::SideCut { threads: THREADS, lanes, chunk };
            }
            side_shape(kernel, reduction, lanes, rows, columns)
        }
    }
}

/// The row axis along which more bytes lie side by side than along the columns.
fn fastest_axis(kernel: &Kernel, reduction: &RowReduction) -> Option<usize> {
    let axes = reduction.rows.len();
    let mut bytes = vec![0; axes + 1];
    for access in accesses(reduction) {
        let size = kernel.operands.get(access.operand as usize).map_or(0, |operand| operand.dtype.size());
        for (axis, stride) in access.strides.iter().enumerate().take(axes + 1) {
            if stride.is(1) {
                bytes[axis] += size;
            }
        }
    }
    let extents = reduction.rows.iter().enumerate().filter(|(_, extent)| !extent.is(1));
    let best = extents.map(|(axis, _)| axis).max_by_key(|axis| bytes[*axis])?;
    (bytes[best] > bytes[axes]).then_some(best)
}

/// The accesses of the functions over rows and columns.
fn accesses(reduction: &RowReduction) -> impl Iterator<Item = &Access> {
    over_columns(reduction).flat_map(|function| &function.steps).filter_map(|step| match step {
        Step::Load(access) | Step::Store { access, .. } => Some(access),
        _ => None,
    })
}

/// The phases and the element function.
fn over_columns(reduction: &RowReduction) -> impl Iterator<Item = &ScalarFunction> {
    reduction.phases.iter().map(|phase| &phase.function).chain([&reduction.element])
}

/// Neighbouring elements along `axis` that a thread computes at a time: as many as fill 16 bytes of the widest element, where every access may be a
/// vector of them or is the same for all. They divide the axis.
fn lanes(kernel: &Kernel, reduction: &RowReduction, facts: &Facts, axis: usize) -> u32 {
    let extent = reduction.rows.get(axis).copied().unwrap_or(reduction.columns);
    let mut lanes = facts.divisor(extent).min(8);
    for access in accesses(reduction) {
        let Some(stride) = access.strides.get(axis) else { continue };
        if stride.is(1) {
            let bytes =
                kernel.operands.get(access.operand as usize).map_or(4, |operand| operand.dtype.size()) as i64;
            lanes = lanes.min(16 / bytes).min(facts.alignment(access, axis));
        } else if !stride.is(0) {
            // Neighbouring threads should take neighbouring elements.
            return 1;
        }
    }
    lanes.max(1) as u32
}

/// The structure for rows that lie side by side; `vectors` of them are there.
fn columns_shape(
    reduction: &RowReduction,
    axis: usize,
    lanes: u32,
    vectors: i64,
    columns: i64,
    cuttable: bool,
) -> Shape {
    // As few threads along the columns as keep the device busy.
    let busy = FEW_BLOCKS * i64::from(THREADS);
    let mut ty = 1;
    while ty < 32 && i64::from(ty) * 4 <= columns && vectors * i64::from(ty) < 4 * busy {
        ty *= 2;
    }
    if cuttable && columns >= 128 && vectors * i64::from(ty) < busy {
        let tx = power_of_two(vectors).clamp(4, 32);
        let ty = THREADS / tx;
        let tiles = ceil(vectors, tx.into());
        let chunk = power_of_two(ceil(columns.saturating_mul(tiles), MANY_BLOCKS)).clamp(4 * ty, 32 * ty);
        return Shape::ColumnsCut { axis, tx, ty, lanes, chunk };
    }
    let short = matches!(reduction.columns, Size::Const(columns) if columns <= i64::from(STEPS * ty));
    Shape::Columns { axis, tx: THREADS / ty, ty, lanes, short }
}

/// The structure for rows whose elements lie side by side.
fn side_shape(kernel: &Kernel, reduction: &RowReduction, lanes: u32, rows: i64, columns: i64) -> Shape {
    let loops = |team: u32| {
        let threads = if team > 32 { team } else { 128 };
        Shape::Side { threads, team, lanes, vectors: 0, cached: Vec::new() }
    };
    let steps = ceil(columns, lanes.into()).max(1);
    if !matches!(reduction.columns, Size::Const(_)) {
        return loops(power_of_two(ceil(steps, 4)).clamp(8, 512));
    }
    let mut cached = repeated_loads(kernel, reduction);
    let floats = lanes * (cached.len() as u32).max(1);
    let team = if steps <= 128 {
        power_of_two(steps).min(32)
    } else {
        // Few rows want many threads each. A number that launches give may be anything, whatever the sample says.
        let known = reduction.rows.iter().all(|size| matches!(size, Size::Const(_)));
        let most = if known && rows < 2 * FEW_BLOCKS { 1 } else { 4 };
        let vectors = (MAX_CACHED / floats).clamp(1, most);
        let vectors = if vectors == 3 { 2 } else { vectors };
        power_of_two(ceil(steps, vectors.into())).clamp(64, 1024)
    };
    let vectors = ceil(steps, team.into()) as u32;
    if vectors * lanes > 32 {
        return loops(512);
    }
    cached.truncate((MAX_CACHED / (vectors * lanes)) as usize);
    let threads = if team > 32 { team } else { 128 };
    Shape::Side { threads, team, lanes, vectors, cached }
}

/// Loads of floats that differ from column to column and may be done once, before the first phase: those of most functions first. Loads of one function
/// alone are among them, so that all are in flight at a time.
fn repeated_loads(kernel: &Kernel, reduction: &RowReduction) -> Vec<Access> {
    let axis = reduction.rows.len();
    let stores = |function: &ScalarFunction, operand: u32| {
        let stored = |step: &Step| matches!(step, Step::Store { access, .. } if access.operand == operand);
        function.steps.iter().position(stored)
    };
    let mut loads: Vec<(Access, usize)> = Vec::new();
    for function in over_columns(reduction) {
        let mut seen: Vec<&Access> = Vec::new();
        for (number, step) in function.steps.iter().enumerate() {
            let Step::Load(access) = step else { continue };
            let along = |access: &Access| access.strides.get(axis).is_some_and(|stride| !stride.is(0));
            let varies =
                along(access) || access.indirect.as_ref().is_some_and(|indirect| along(&indirect.index));
            let Some(operand) = kernel.operands.get(access.operand as usize) else { continue };
            // What is stored before it is loaded must be loaded after.
            let later = stores(&reduction.row, access.operand).is_some()
                || stores(function, access.operand).is_some_and(|stored| stored < number);
            let readable = operand.mode != OperandMode::Write && operand.dtype.is_float();
            if !varies || later || !readable || seen.contains(&access) {
                continue;
            }
            seen.push(access);
            match loads.iter_mut().find(|(known, _)| known == access) {
                Some((_, count)) => *count += 1,
                None => loads.push((access.clone(), 1)),
            }
        }
    }
    loads.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    loads.into_iter().map(|(access, _)| access).collect()
}

/// A size at the sample; the largest of the launches.
fn typical(size: Size, facts: &Facts) -> i64 {
    match size {
        Size::Const(value) => value,
        Size::Arg(_) => facts.samples().iter().map(|sizes| size.value(sizes)).max().unwrap_or(UNKNOWN),
    }
    .clamp(0, 1 << 40)
}

fn ceil(value: i64, by: i64) -> i64 {
    value.max(0) / by + i64::from(value.max(0) % by != 0)
}

/// The smallest power of two from `value` on, at most 2³⁰.
fn power_of_two(value: i64) -> u32 {
    (value.clamp(1, 1 << 30) as u32).next_power_of_two()
}
