//! `matmul` and `grouped_matmul`: matrix products with functions before and after them.
//!
//! A launch is one line of blocks, each of which computes one tile of one part (`scheduler/tiles.cuh` says which): batch × tiles of rows ×
//! tiles of columns of all parts side by side. Rows and batch are counted through all of their axes; the printed structs `Left`, `Part0`,
//! `Right0`, … turn these numbers into coordinates. A tile has as many accumulators for every part; the segments of a part share them: a tile
//! has [`Shape::columns`] columns of every segment, whole groups where there are any. Where not even one fits, the part is *wide*: its accumulators pass through scratch memory.
//!
//! Parts that differ in numbers of operands and sizes alone are one struct, see [`class`]. The main loop is compiled once, unless right factors are moved in different ways: then for each struct.

mod choice;
mod class;
mod factor;
mod part;

use std::fmt::Write;

use nucleus_ir::DType;
use nucleus_plan::{Contraction, Kernel, Part, Size};

use self::choice::{Shape, choose};
use self::class::{Class, classes};
use super::space::size;
use super::{Blocks, ChosenTile, Direct, Function, Grid, KernelSource, SourceError, Unit};
use crate::architecture::Architecture;
use crate::facts::Facts;
use crate::tiles::{Device, Tile};

/// Rows of a block of the kernel that finishes wide parts.
const WIDE_ROWS: u32 = 4;

/// Tiles of rows whose tiles of columns are computed one after the other.
const GROUP_ROWS: u32 = 8;

/// Prints a contraction; `name` is that of its anchor.
pub(super) fn source(
    kernel: &Kernel,
    contraction: &Contraction,
    name: &str,
    facts: &Facts,
    architecture: Architecture,
) -> Result<KernelSource, SourceError> {
    check(kernel, contraction)?;
    let device = Device::of(architecture);
    let (classes, tables) = classes(kernel, contraction, facts)?;
    let (tile, shapes) = choose(kernel, contraction, &classes, facts, &device)?;
    let dtype = contraction.dtype;
    let wide = Wide::of(contraction, &classes, &shapes);

    let mut slots = vec![
        format!("typedef {} Product;\n", super::memory_type(dtype)),
        tables,
        sizes(contraction, &classes, &shapes),
    ];
    if let Some(wide) = &wide {
        slots.push(wide.before.clone());
    }
    let (slot, left) = part::left(kernel, contraction, facts).print("Left")?;
    slots.extend([slot, left]);
    let mut moves = Vec::new();
    for (number, (class, shape)) in classes.iter().zip(&shapes).enumerate() {
        let part = part::part(contraction, facts, class, shape, number)?;
        slots.extend(part.slots);
        moves.push(part.right);
    }
    let widened_bytes = if moves.iter().any(|way| way.widened) { tile.widened_bytes(dtype) } else { 0 };
    let one_loop = moves.iter().all(|way| *way == moves[0] && !way.computed);
    slots.push(each_part(contraction.parts.len(), &classes));
    if let Some(wide) = &wide {
        slots.push(wide.each.clone());
    }

    let even = |depth: Size| matches!(depth, Size::Const(depth) if depth % i64::from(tile.depth) == 0);
    let number = |n: u32| n.to_string();
    let mut constants = vec![
        ("THREADS", number(tile.threads())),
        ("BLOCKS", number(tile.blocks)),
        ("STAGES", number(tile.stages)),
        ("TILE_ROWS", number(tile.rows)),
        ("TILE_COLUMNS", number(tile.columns)),
        ("TILE_DEPTH", number(tile.depth)),
        ("EVEN_DEPTH", number(u32::from(even(contraction.depth)))),
        ("SLICE_ROWS", number(tile.slice_rows(dtype, &device))),
        ("GROUP_ROWS", number(GROUP_ROWS)),
        ("ONE_LOOP", number(u32::from(one_loop))),
        ("WARPS_ACROSS", number(tile.across)),
    ];
    if dtype == DType::F32 {
        constants.push(("THREAD_ROWS", number(tile.rows * tile.across / tile.warps / 8)));
        constants.push(("THREAD_COLUMNS", number(tile.columns / tile.across / 4)));
    }
    let mut functions = vec![Function {
        name: "matmul",
        threads: tile.threads(),
        shared_bytes: tile.shared_bytes(dtype, &device).max(widened_bytes),
        grid: Grid::line(grid(contraction, &classes, &shapes, &tile)),
    }];
    if let Some(wide) = &wide {
        constants.push(("WIDE_ROWS", number(WIDE_ROWS)));
        let threads = tile.threads();
        functions.push(Function {
            name: "finish",
            threads,
            shared_bytes: 0,
            grid: Grid::line(wide.grid.clone()),
        });
    }
    let template = match (dtype, &wide) {
        (DType::F32, None) => "sm80_f32_matmul.cuh",
        (DType::F32, Some(_)) => "sm80_f32_wide_matmul.cuh",
        (_, None) => "sm80_bf16_matmul.cuh",
        (_, Some(_)) => "sm80_bf16_wide_matmul.cuh",
    };
    let unit = Unit {
        kernel,
        name: &format!("{name}_{dtype}"),
        slots,
        constants,
        template,
        functions,
        scratch: wide.map_or(Blocks::NONE, |wide| wide.scratch),
    };
    let chosen = ChosenTile { tile, given: facts.tile().is_some() };
    Ok(KernelSource { tile: Some(chosen), ..unit.finish()? })
}

/// What the code below relies on; verified plans have it.
fn check(kernel: &Kernel, contraction: &Contraction) -> Result<(), SourceError> {
    for (name, axes, function) in kernel.anchor.functions() {
        if function.accesses().any(|access| access.strides.len() != axes) {
            return Err(SourceError::Malformed(name));
        }
    }
    let legal = |part: &Part| part.segments > 0 && part.has_whole_groups();
    if contraction.parts.is_empty() || !contraction.parts.iter().all(legal) || !contraction.dtype.is_float() {
        return Err(SourceError::Malformed("parts".to_owned()));
    }
    Ok(())
}

/// Blocks of a launch.
fn grid(contraction: &Contraction, classes: &[Class], shapes: &[Shape], tile: &Tile) -> Blocks {
    let rows = |blocks: Blocks| blocks.times(&contraction.rows, tile.rows).times(&contraction.batch, 1);
    let mut constant = 0;
    let mut blocks = Blocks::NONE;
    for (class, shape) in classes.iter().zip(shapes) {
        for member in &class.members {
            let part = &contraction.parts[*member];
            match part.columns {
                Size::Const(columns) => constant += tiles(columns, class, shape),
                columns => {
                    let extents = [columns, Size::Const(together(class, shape))];
                    blocks = blocks.plus(rows(Blocks::constant(1).times(&extents, shape.columns)));
                }
            }
        }
    }
    blocks.plus(rows(Blocks::constant(u32::try_from(constant).unwrap_or(u32::MAX))))
}

/// Tiles of that many columns.
fn tiles(columns: i64, class: &Class, shape: &Shape) -> u64 {
    (columns.max(0).saturating_mul(together(class, shape)) as u64).div_ceil(u64::from(shape.columns))
}

/// Segments whose columns a tile has side by side as if they were one's.
fn together(class: &Class, shape: &Shape) -> i64 {
    if shape.wide { i64::from(class.part.segments) } else { 1 }
}

/// `rows`, `depth`, `row_tiles`, `column_tiles` and `part_of`.
fn sizes(contraction: &Contraction, classes: &[Class], shapes: &[Shape]) -> String {
    let rows: Vec<String> = contraction.rows.iter().map(|extent| size(*extent, &Direct)).collect();
    let rows = if rows.is_empty() { "1".to_owned() } else { rows.join(" * ") };
    let depth = size(contraction.depth, &Direct);
    let parts = &contraction.parts;
    let mut of_part = vec![String::new(); parts.len()];
    let mut constants = vec![None; parts.len()];
    for (class, shape) in classes.iter().zip(shapes) {
        for member in &class.members {
            of_part[*member] = match parts[*member].columns {
                Size::Const(columns) => {
                    let count = tiles(columns, class, shape);
                    constants[*member] = Some(count);
                    count.to_string()
                }
                columns => {
                    format!(
                        "ceil_div({} * {}, {})",
                        size(columns, &Direct),
                        together(class, shape),
                        shape.columns
                    )
                }
            };
        }
    }
    let same = constants.iter().all(|count| count.is_some() && *count == constants[0]);
    let part_of = if let [_] = of_part.as_slice() {
        "    return 0;\n".to_owned()
    } else if same {
        // A launch has no blocks if they have no columns.
        let each = constants[0].unwrap_or(1).max(1);
        format!("    const int part = column_tile / {each};\n    column_tile %= {each};\n    return part;\n")
    } else {
        let mut text = String::new();
        for (part, count) in of_part.iter().enumerate() {
            if part + 1 == of_part.len() {
                let _ = writeln!(text, "    return {part};");
            } else {
                let _ = writeln!(
                    text,
                    "    if (column_tile < {count}) return {part};\n    column_tile -= {count};"
                );
            }
        }
        text
    };
    format!(
        "DEVICE int rows(const Arguments& args) {{ return {rows}; }}\n\
         DEVICE int depth(const Arguments& args) {{ return {depth}; }}\n\
         DEVICE int row_tiles(const Arguments& args) {{ return ceil_div(rows(args), TILE_ROWS); }}\n\
         DEVICE int column_tiles(const Arguments& args) {{ return {}; }}\n\
         DEVICE int part_of(const Arguments& args, int& column_tile) {{\n{part_of}}}\n",
        of_part.join(" + "),
    )
}

/// Calls a body with the struct of a part.
fn each_part(parts: usize, classes: &[Class]) -> String {
    if classes.len() == 1 {
        return "template <class Body>\nDEVICE void each_part(const Arguments& args, int part, Body& body) { body.template run<Part0>(); }\n"
            .to_owned();
    }
    let mut numbers = vec![0; parts];
    let mut cases = String::new();
    for (number, class) in classes.iter().enumerate() {
        class.members.iter().for_each(|member| numbers[*member] = number);
        let _ = writeln!(cases, "    case {number}: body.template run<Part{number}>(); break;");
    }
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    format!(
        "CONSTANT unsigned short PART_CLASS[] = {{{}}};\ntemplate <class Body>\n\
         DEVICE void each_part(const Arguments& args, int part, Body& body) {{\n    switch (PART_CLASS[part]) {{\n{cases}    }}\n}}\n",
        numbers.join(", ")
    )
}

/// What wide parts need.
struct Wide {
    /// `batches` and `wide_before`.
    before: String,
    /// `wide_blocks` and `each_wide`.
    each: String,
    /// Blocks of `finish`.
    grid: Blocks,
    /// Bytes of their accumulators.
    scratch: Blocks,
}

impl Wide {
    /// `None` if no part is wide.
    fn of(contraction: &Contraction, classes: &[Class], shapes: &[Shape]) -> Option<Wide> {
        let wide = classes.iter().zip(shapes).enumerate().filter(|(_, (_, shape))| shape.wide);
        let (mut parts, mut before, mut each) = (Vec::new(), Vec::new(), String::new());
        let mut scratch = Blocks::NONE;
        let mut offsets = String::new();
        for (number, (class, _)) in wide {
            for member in &class.members {
                let (columns, segments) = (contraction.parts[*member].columns, class.part.segments);
                let sum = if before.is_empty() { "0".to_owned() } else { before.join(" + ") };
                let _ = writeln!(offsets, "    if (part == {member}) return {sum};");
                before.push(format!("i64({}) * {segments}", size(columns, &Direct)));
                let bytes = Blocks::constant(segments.saturating_mul(4)).times(&[columns], 1);
                scratch = scratch.plus(bytes.times(&contraction.rows, 1).times(&contraction.batch, 1));
                parts.push(member.to_string());
            }
            let _ = writeln!(
                each,
                "    if (number < {}) return body.template run<Whole{number}>(part);",
                parts.len()
            );
        }
        if parts.is_empty() {
            return None;
        }
        let batches: Vec<String> = contraction.batch.iter().map(|extent| size(*extent, &Direct)).collect();
        let batches = if batches.is_empty() { "1".to_owned() } else { batches.join(" * ") };
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        Some(Wide {
            before: format!(
                "DEVICE int batches(const Arguments& args) {{ return {batches}; }}\n\
                 DEVICE i64 wide_before(const Arguments& args, int part) {{\n{offsets}    return 0;\n}}\n"
            ),
            each: format!(
                "CONSTANT unsigned short WIDE_PARTS[] = {{{}}};\n\
                 DEVICE int wide_blocks(const Arguments& args) {{ return ceil_div(rows(args), WIDE_ROWS) * batches(args); }}\n\
                 template <class Body>\nDEVICE void each_wide(const Arguments& args, u32 number, Body& body) {{\n    \
                 const int part = WIDE_PARTS[number];\n{each}}}\n",
                parts.join(", ")
            ),
            grid: Blocks::constant(count).times(&contraction.rows, WIDE_ROWS).times(&contraction.batch, 1),
            scratch,
        })
    }
}
