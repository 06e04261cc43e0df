//! The tile of a contraction, and how its parts lie in it.

use nucleus_plan::{Contraction, Kernel, Part, Size, Step};

use super::class::Class;
use super::factor::{stores, widened};
use crate::facts::Facts;
use crate::source::SourceError;
use crate::tiles::{Columns, Device, Problem, Tile};

/// How a part lies in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Columns of one segment; of a wide part those of all segments.
    pub(super) columns: u32,
    /// Neighbouring columns that a thread of the epilogue computes at a time.
    pub(super) lanes: u32,
    /// A group, or a column of every segment, does not fit: accumulators go to scratch memory, see `matmul/wide.cuh`.
    pub(super) wide: bool,
    /// One half of the product is computed.
    pub(super) symmetric: bool,
}

/// The shape of a part in a tile.
fn shape(contraction: &Contraction, class: &Class, tile: &Tile) -> Shape {
    let axis = column_axis(contraction, &class.part);
    let each = tile.columns / class.part.segments.max(1);
    let columns = match &class.part.groups {
        Some(groups) => each / groups.width.max(1) * groups.width,
        // Neighbours of one segment are moved and computed together.
        None if each >= 8 => each / 8 * 8,
        None => each,
    };
    let wide = columns == 0;
    // The other half is stored where rows and columns are exchanged: there must be as many of both.
    let square = |member: &usize| contraction.rows.as_slice() == [contraction.parts[*member].columns];
    let symmetric = class.part.symmetric && class.members.iter().all(square);
    let lanes = lanes(class, axis, if wide { 64 } else { columns });
    Shape { columns: if wide { tile.columns } else { columns }, lanes, wide, symmetric }
}

/// Neighbouring columns for a thread: as many as fill 16 bytes of the widest element that is stored, where accesses are aligned.
fn lanes(class: &Class, axis: usize, columns: u32) -> u32 {
    let mut lanes: i64 = if class.part.segments > 2 { 4 } else { 8 };
    let unit = class.part.groups.as_ref().map_or(columns, |groups| groups.width);
    for access in stores(&class.part.epilogue) {
        let Some(operand) = class.operands.get(access.operand as usize) else { continue };
        lanes = lanes.min(16 / operand.dtype.size() as i64);
    }
    for step in &class.part.epilogue.steps {
        let (Step::Load(access) | Step::Store { access, .. }) = step else { continue };
        let Some(stride) = access.strides.get(axis) else { continue };
        if stride.is(1) {
            lanes = lanes.min(class.facts.alignment(access, axis));
        } else if stride.is(2) {
            // Elements that alternate with another access's are moved with them, from the even one on.
            let odd = matches!(access.offset, Size::Const(offset) if offset % 2 != 0);
            lanes = lanes.min(if odd { lanes } else { class.facts.alignment(access, axis) });
        } else if !stride.is(0) {
            lanes = lanes.min(2);
        }
    }
    (lanes.max(1) as u32).min(1 << unit.trailing_zeros())
}

/// Loads of an epilogue.
fn loads(class: &Class) -> usize {
    class.part.epilogue.steps.iter().filter(|step| matches!(step, Step::Load(_))).count()
}

/// The axis of an epilogue along which columns are neighbours.
pub(super) fn column_axis(contraction: &Contraction, part: &Part) -> usize {
    contraction.batch.len() + contraction.rows.len() + usize::from(part.groups.is_some())
}

/// The tile, and the shape of every class in it.
pub(super) fn choose(
    kernel: &Kernel,
    contraction: &Contraction,
    classes: &[Class],
    facts: &Facts,
    device: &Device,
) -> Result<(Tile, Vec<Shape>), SourceError> {
    let shapes =
        |tile: &Tile| -> Vec<Shape> { classes.iter().map(|class| shape(contraction, class, tile)).collect() };
    let widens = |class: &Class| widened(&class.part.b, &class.operands, contraction.dtype).is_some();
    let widens = classes.iter().any(widens);
    let fitted = |tile: Tile| if widens { tile.widening(contraction.dtype, device) } else { Some(tile) };
    if let Some(tile) = facts.tile() {
        tile.check(contraction.dtype, device)?;
        if fitted(tile) != Some(tile) {
            return Err(tile.without_room_to_widen(contraction.dtype, device).into());
        }
        return Ok((tile, shapes(&tile)));
    }
    let problems = problems(kernel, contraction, classes, facts);
    let mut best: Option<(f64, Tile, Vec<Shape>)> = None;
    for mut tile in Tile::all(contraction.dtype, device).into_iter().filter_map(fitted) {
        // The results of many loads want registers at a time.
        tile.blocks = match classes.iter().map(loads).max() {
            Some(0..16) | None => tile.blocks,
            Some(16..32) => tile.blocks.min(3),
            Some(32..) => tile.blocks.min(2),
        };
        let shapes = shapes(&tile);
        let mut columns = vec![Columns { each: 0, wide: false }; contraction.parts.len()];
        for (class, shape) in classes.iter().zip(&shapes) {
            let each = if shape.wide { (shape.columns / class.part.segments).max(1) } else { shape.columns };
            class.members.iter().for_each(|member| columns[*member] = Columns { each, wide: shape.wide });
        }
        let time: f64 = problems.iter().map(|problem| problem.time(&tile, &columns, device)).sum();
        if best.as_ref().is_none_or(|(least, ..)| time < *least) {
            best = Some((time, tile, shapes));
        }
    }
    // Small tiles fit every device.
    let none = || SourceError::Unsupported("a product on a device with so little shared memory".to_owned());
    best.map(|(_, tile, shapes)| (tile, shapes)).ok_or_else(none)
}

/// The launches, as the cost model sees them.
fn problems(kernel: &Kernel, contraction: &Contraction, classes: &[Class], facts: &Facts) -> Vec<Problem> {
    // Unknown sizes are those of a large launch.
    let unknown = vec![vec![1024; kernel.size_args as usize]];
    let samples = if facts.samples().is_empty() { &unknown } else { facts.samples() };
    let bytes = |class: &Class| -> f64 {
        let accesses = class.part.epilogue.accesses();
        let of =
            |operand: u32| class.operands.get(operand as usize).map_or(0, |operand| operand.dtype.size());
        accesses.map(|access| of(access.operand) as f64).sum::<f64>() * class.members.len() as f64
    };
    let epilogue_bytes = classes.iter().map(bytes).sum::<f64>() / contraction.parts.len().max(1) as f64;
    let mut problems: Vec<Problem> = Vec::new();
    for sizes in samples {
        let value = |size: &Size| match size {
            Size::Const(value) => *value as f64,
            Size::Arg(argument) => sizes.get(*argument as usize).copied().unwrap_or(1) as f64,
        };
        let problem = Problem {
            dtype: contraction.dtype,
            batch: contraction.batch.iter().map(value).product(),
            rows: contraction.rows.iter().map(value).product(),
            depth: value(&contraction.depth),
            parts: contraction.parts.iter().map(|part| (value(&part.columns), part.segments)).collect(),
            epilogue_bytes,
        };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems
}
