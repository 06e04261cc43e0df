//! Generated code at the 17B model's sizes: epilogues on finished tiles, row reductions, sums of segments.

use nucleus_cpu::buffer::AlignedBuffer;
use nucleus_cpu::codegen::{
    Accumulators, Code, CodegenError, Destination, Extent, FunctionId, Jit, LoopSpec, Region, Space,
};
use nucleus_ir::DType;
use nucleus_plan::text::{PlanTextError, parse_plan};
use nucleus_plan::{Anchor, Kernel, OperandMode, Plan, ScalarFunction, Size};

/// Kernels of the model as fusion prints them: reductions over heads and experts are parts of products only later.
const KERNELS: &str = include_str!("codegen_kernels.plan");
/// Image tokens.
const ROWS: i64 = 1024;
/// Rows of a finished tile.
const TILE_ROWS: i64 = 256;

/// What a slot is called here, its kernel in [`KERNELS`], the columns of a tile, and the launch's sizes.
struct Slot {
    name: &'static str,
    kernel: usize,
    tile: i64,
    sizes: &'static [i64],
}

const fn slot(name: &'static str, kernel: usize, tile: i64, sizes: &'static [i64]) -> Slot {
    Slot { name, kernel, tile, sizes }
}

const MODEL: i64 = 2048 * ROWS;
/// A tile of 0 columns: there is no tile, or it is whole.
const SLOTS: [Slot; 11] = [
    slot("swiglu", 0, 128, &[1, ROWS, MODEL, 5376 * ROWS]),
    slot("gated_residual", 1, 256, &[1, ROWS, MODEL]),
    slot("bias_to_bf16", 2, 256, &[1, ROWS, 2 * MODEL, MODEL]),
    slot("to_bf16", 3, 256, &[1, ROWS, MODEL, MODEL / 4]),
    slot("modulation", 4, 64, &[1]),
    slot("gated_experts", 5, 128, &[1, 64, 1344 * 64, 1344 * 64, 64, MODEL * 4, 2048 * 64]),
    slot("adaln_two_outputs", 6, 0, &[1, ROWS, MODEL]),
    slot("adaln_scale_shift", 7, 0, &[1, ROWS, MODEL]),
    slot("query_norm_rotary", 8, 0, &[1, ROWS, MODEL]),
    slot("softmax_64", 9, 0, &[1, ROWS, 64 * ROWS]),
    slot("segment_update", 10, 0, &[1, ROWS, 4 * ROWS, MODEL, 4 * MODEL]),
];

/// One compiled slot with its operands.
pub struct CodegenCase {
    /// For humans.
    pub name: &'static str,
    /// Points of the iteration space that a run covers.
    pub points: usize,
    /// Bytes of operands and accumulators that a run reads or writes, each counted once.
    pub bytes: usize,
    code: Code,
    function: FunctionId,
    operands: Vec<AlignedBuffer>,
    sizes: &'static [i64],
    _block: AlignedBuffer,
    calls: Vec<Region>,
}

/// Why a case cannot be made.
#[derive(Debug)]
pub enum CaseError {
    /// The kernels' text.
    Text(PlanTextError),
    /// The code generator.
    Codegen(CodegenError),
}

impl std::fmt::Display for CaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CaseError::Text(error) => error.fmt(f),
            CaseError::Codegen(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CaseError {}

/// All cases whose name contains `filter`.
///
/// # Errors
/// The kernels are not those of this version's plans.
pub fn cases(filter: &str) -> Result<Vec<CodegenCase>, CaseError> {
    let plan = parse_plan(KERNELS).map_err(CaseError::Text)?;
    let slots = SLOTS.iter().filter(|slot| slot.name.contains(filter));
    slots.map(|slot| case(&plan, slot).map_err(CaseError::Codegen)).collect()
}

fn case(plan: &Plan, slot: &Slot) -> Result<CodegenCase, CodegenError> {
    let kernel = &plan.kernels[slot.kernel];
    let mut jit = Jit::new()?;
    let (extents, function, loops) = match &kernel.anchor {
        Anchor::RowReduction(reduction) => {
            let extents = reduction.rows.iter().copied().chain([reduction.columns]).collect::<Vec<_>>();
            let function = jit.compile_row_reduction(slot.name, &kernel.operands, reduction)?;
            (extents, function, &reduction.element)
        }
        Anchor::SegmentSum(sum) => {
            let extents: Vec<Size> =
                [sum.batch, sum.position_count].into_iter().chain(sum.rest.clone()).collect();
            let accumulators = (Accumulators::Zero, Destination::AddToBlock);
            (
                extents.clone(),
                compile(&mut jit, slot.name, kernel, &extents, &sum.update, accumulators)?,
                &sum.update,
            )
        }
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
            let extents: Vec<Size> =
                c.batch.iter().chain(&c.rows).copied().chain([c.parts[0].columns]).collect();
            let accumulators = (Accumulators::Block, Destination::None);
            (
                extents.clone(),
                compile(&mut jit, slot.name, kernel, &extents, &c.parts[0].epilogue, accumulators)?,
                &c.parts[0].epilogue,
            )
        }
        _ => unreachable!("the text has no other anchors"),
    };
    let code = jit.finish()?;
    let extents: Vec<i64> = extents.iter().map(|size| size.value(slot.sizes)).collect();
    let operands = operands(kernel, loops, &extents, slot.sizes);
    let used = |operand: usize| loops.accesses().any(|access| access.operand as usize == operand);
    let mut bytes: usize = operands
        .iter()
        .enumerate()
        .filter(|(number, _)| used(*number))
        .map(|(_, (_, touched))| touched)
        .sum();
    let columns = extents[extents.len() - 1];
    let rows: i64 = extents[..extents.len() - 1].iter().product();
    let (calls, block) = regions(&kernel.anchor, rows, columns, slot.tile);
    if slot.tile > 0 {
        bytes += block.len() / (TILE_ROWS.min(rows) * slot.tile) as usize * (rows * columns) as usize;
    }
    Ok(CodegenCase {
        name: slot.name,
        points: (rows * columns) as usize,
        bytes,
        code,
        function,
        operands: operands.into_iter().map(|(buffer, _)| buffer).collect(),
        sizes: slot.sizes,
        _block: block,
        calls,
    })
}

fn compile(
    jit: &mut Jit,
    name: &str,
    kernel: &Kernel,
    extents: &[Size],
    function: &ScalarFunction,
    (accumulators, destination): (Accumulators, Destination),
) -> Result<FunctionId, CodegenError> {
    let mut extents: Vec<Extent> = extents.iter().map(|&size| size.into()).collect();
    let inner = extents.pop().unwrap_or_default();
    let space = Space { outer: extents, inner };
    let operands = &kernel.operands;
    jit.compile_loop(&LoopSpec { name, operands, space: &space, function, accumulators, destination })
}

/// Memory of every operand with the bytes of it that are touched; floats that are read are small numbers of both signs.
fn operands(
    kernel: &Kernel,
    function: &ScalarFunction,
    extents: &[i64],
    sizes: &[i64],
) -> Vec<(AlignedBuffer, usize)> {
    let operand = |(number, operand): (usize, &nucleus_plan::Operand)| {
        let size = operand.dtype.size();
        let mut end = 0;
        let mut touched = 0;
        for access in function.accesses().filter(|access| access.operand as usize == number) {
            let along = |(stride, extent): (&Size, &i64)| stride.value(sizes) * (extent - 1);
            let last =
                access.offset.value(sizes) + access.strides.iter().zip(extents).map(along).sum::<i64>();
            end = end.max(last as usize + 1);
            let moves = |(stride, extent): (&Size, &i64)| if stride.value(sizes) == 0 { 1 } else { *extent };
            touched += access.strides.iter().zip(extents).map(moves).product::<i64>() as usize;
        }
        let buffer = AlignedBuffer::zeroed((end * size).max(1));
        if operand.mode == OperandMode::Read {
            fill(&buffer, operand.dtype, end);
        }
        (buffer, touched.min(end) * size)
    };
    kernel.operands.iter().enumerate().map(operand).collect()
}

/// Numbers in −1..1.
fn fill(buffer: &AlignedBuffer, dtype: DType, count: usize) {
    let mut state = 1u32;
    for at in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        // SAFETY: the buffer has room for `count` elements of this type.
        unsafe {
            match dtype {
                DType::F32 => buffer.as_ptr().cast::<f32>().add(at).write(value),
                DType::Bf16 => buffer.as_ptr().cast::<u16>().add(at).write((value.to_bits() >> 16) as u16),
                _ => {}
            }
        }
    }
}

/// The calls of one run, as the executor makes them, and the block that they share.
fn regions(anchor: &Anchor, rows: i64, columns: i64, tile: i64) -> (Vec<Region>, AlignedBuffer) {
    let region = |rows: std::ops::Range<i64>, columns: std::ops::Range<i64>, block: &AlignedBuffer| Region {
        outer_begin: rows.start,
        outer_end: rows.end,
        inner_begin: columns.start,
        inner_end: columns.end,
        block: block.as_ptr(),
        row_stride: columns.end - columns.start,
        segment_stride: (rows.end - rows.start) * (columns.end - columns.start),
    };
    match anchor {
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
            let height = TILE_ROWS.min(rows);
            let elements = (height * tile) as usize * c.parts[0].segments as usize;
            let block = AlignedBuffer::zeroed(4 * elements);
            fill(&block, DType::F32, elements);
            let mut calls = Vec::new();
            for row in (0..rows).step_by(height as usize) {
                for column in (0..columns).step_by(tile as usize) {
                    let end = [(row + height).min(rows), (column + tile).min(columns)];
                    calls.push(region(row..end[0], column..end[1], &block));
                }
            }
            (calls, block)
        }
        Anchor::SegmentSum(_) => {
            // One row at a time, here and there.
            let block = AlignedBuffer::zeroed(4 * columns as usize);
            let row = |position: i64| position * 1031 % rows;
            let calls = (0..rows).map(|at| region(row(at)..row(at) + 1, 0..columns, &block)).collect();
            (calls, block)
        }
        _ => {
            let block = AlignedBuffer::default();
            (vec![region(0..rows, 0..1, &block)], block)
        }
    }
}

impl CodegenCase {
    /// Covers the whole iteration space once.
    pub fn run(&mut self) {
        let table: Vec<*mut u8> = self.operands.iter().map(AlignedBuffer::as_ptr).collect();
        let function = self.code.function(self.function);
        for region in &self.calls {
            // SAFETY: operands and block were made for these sizes; `&mut self` keeps others away.
            unsafe { function(table.as_ptr(), self.sizes.as_ptr(), region) };
        }
    }
}
