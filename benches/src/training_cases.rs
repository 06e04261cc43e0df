//! The products of a training step, whose right factors change at every run, as plans of one launch.

use nucleus_cpu::buffer::AlignedBuffer;
use nucleus_cpu::kernels::{Element, store_f32};
use nucleus_cpu::{BufferPointer, BufferTable, CpuBound, CpuProgram, Options};
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_plan::cost::{Machine, Problem, choose_tile};
use nucleus_plan::text::parse_plan;
use nucleus_plan::{Anchor, BufferId};

/// Why a case cannot be made or run.
pub type CaseError = Box<dyn std::error::Error>;

/// Where a factor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Neighbours in a row lie side by side.
    Rows,
    /// Neighbours in a column do.
    Columns,
    /// The right factor is the left one transposed, in the same memory.
    LeftTransposed,
}

/// `batch` products of [rows, depth] × [depth, columns].
#[derive(Clone, Copy, Debug)]
pub struct TrainingShape {
    /// What training uses it for.
    pub name: &'static str,
    /// Independent products.
    pub batch: usize,
    /// Rows of the left factor.
    pub rows: usize,
    /// What is summed over.
    pub depth: usize,
    /// Columns of the right factor.
    pub columns: usize,
    /// The left factor.
    pub left: Storage,
    /// The right factor.
    pub right: Storage,
}

const fn shape(
    name: &'static str,
    [batch, rows, depth, columns]: [usize; 4],
    left: Storage,
    right: Storage,
) -> TrainingShape {
    TrainingShape { name, batch, rows, depth, columns, left, right }
}

/// A model of width 512 with feed-forward layers of 2 · 1408 and 16 experts of 2 · 512, at 2048 tokens and capacity factor 2, and
/// Muon's orthogonalisation of its matrices.
pub const TRAINING_SHAPES: [TrainingShape; 19] = [
    shape("y = x Wᵀ", [1, 2048, 512, 512], Storage::Rows, Storage::Columns),
    shape("y = x Wᵀ", [1, 2048, 512, 2816], Storage::Rows, Storage::Columns),
    shape("y = x Wᵀ", [1, 2048, 1408, 512], Storage::Rows, Storage::Columns),
    shape("dx = dy W", [1, 2048, 512, 512], Storage::Rows, Storage::Rows),
    shape("dx = dy W", [1, 2048, 2816, 512], Storage::Rows, Storage::Rows),
    shape("dx = dy W", [1, 2048, 512, 1408], Storage::Rows, Storage::Rows),
    shape("dW = dyᵀ x", [1, 512, 2048, 512], Storage::Columns, Storage::Rows),
    shape("dW = dyᵀ x", [1, 2816, 2048, 512], Storage::Columns, Storage::Rows),
    shape("dW = dyᵀ x", [1, 512, 2048, 1408], Storage::Columns, Storage::Rows),
    shape("experts y = x W", [16, 256, 512, 1024], Storage::Rows, Storage::Rows),
    shape("experts dx = dy Wᵀ", [16, 256, 1024, 512], Storage::Rows, Storage::Columns),
    shape("experts dW = xᵀ dy", [16, 512, 256, 1024], Storage::Columns, Storage::Rows),
    shape("muon X Xᵀ", [32, 512, 512, 512], Storage::Rows, Storage::LeftTransposed),
    shape("muon A A", [32, 512, 512, 512], Storage::Rows, Storage::Rows),
    shape("muon X Xᵀ", [8, 512, 1408, 512], Storage::Rows, Storage::LeftTransposed),
    shape("muon B X", [8, 512, 512, 1408], Storage::Rows, Storage::Rows),
    shape("muon X Xᵀ", [1, 512, 512, 512], Storage::Rows, Storage::LeftTransposed),
    shape("muon B X", [1, 512, 512, 512], Storage::Rows, Storage::Rows),
    shape("muon X Xᵀ", [3, 64, 512, 64], Storage::Rows, Storage::LeftTransposed),
];

impl TrainingShape {
    /// The same product with a left factor stored by rows and a right one that is a weight, packed when it is loaded.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { left: Storage::Rows, right: Storage::Columns, ..self }
    }

    /// Floating-point operations.
    #[must_use]
    pub fn flops(&self) -> usize {
        2 * self.batch * self.rows * self.depth * self.columns
    }

    fn text(&self, dtype: DType, weights: bool) -> String {
        let Self { batch, rows, depth, columns, left, right, .. } = *self;
        let of = |storage: Storage, height: usize, width: usize| match storage {
            Storage::Rows => (height * width, width, 1),
            Storage::Columns | Storage::LeftTransposed => (height * width, 1, height),
        };
        let (a_item, a_row, a_k) = of(left, rows, depth);
        let (b_item, b_k, b_column) = of(right, depth, columns);
        let (b_operand, b_place) = match (right, weights) {
            (Storage::LeftTransposed, _) => (0, "input 1"),
            (_, true) => (1, "weight \"w\""),
            (_, false) => (1, "input 1"),
        };
        let right = if weights { "weight \"w\"" } else { "input y" };
        let rate = if weights { "" } else { " per step" };
        // As the compiler prints them: nothing is cast to its own type.
        let factor = |load: String| match dtype {
            DType::F32 => format!("v0 = {load}; return v0;"),
            _ => format!("v0 = {load}; v1 = cast(v0, {dtype}); return v1;"),
        };
        let a = factor(format!("load o0[{a_item}*i0 + {a_row}*i1 + {a_k}*i2]"));
        let b = factor(format!("load o{b_operand}[{b_item}*i0 + {b_k}*i1 + {b_column}*i2]"));
        let (a_count, b_count, c_item) = (batch * a_item, batch * b_item, rows * columns);
        format!(
            "plan product {{
    input x: f32[{a_count}] per step;
    {right}: f32[{b_count}]{rate};
    output z: f32[{batch}, {rows}, {columns}];
    buffer b0: f32[{a_count}] input 0;
    buffer b1: f32[{b_count}] {b_place};
    buffer b2: f32[{batch}, {rows}, {columns}] output 0;
    kernel k0(read f32, read f32, write f32) sizes 0 matmul {dtype} {{
        batch {batch};
        rows {rows};
        columns {columns}; segments 1; depth {depth};
        a {{ {a} }}
        b {{ {b} }}
        epilogue {{ v0 = accumulator 0; store o2[{c_item}*i0 + {columns}*i1 + i2] = v0; }}
    }}
    launch k0(b0, b1, b2) per step flops 0 bytes 0;
}}
"
        )
    }
}

/// A product with its operands, ready to run.
pub struct TrainingCase {
    program: CpuProgram,
    bound: CpuBound,
    table: BufferTable,
    _memory: [AlignedBuffer; 3],
}

impl TrainingCase {
    /// Fills the operands with random numbers; with `weights` the right factor is packed here, else by every run.
    ///
    /// # Errors
    /// The plan is not one of this version, or there is no memory.
    pub fn new(threads: usize, dtype: DType, shape: TrainingShape, weights: bool) -> Result<Self, CaseError> {
        let mut plan = parse_plan(&shape.text(dtype, weights))?;
        if let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor {
            let problem = Problem::of(contraction, &[]);
            contraction.tile = choose_tile(contraction, &[problem], &Machine::cpu());
        }
        let mut program = CpuProgram::compile(plan, Options { threads, ..Options::default() })?;
        let bound = program.bind(&Bindings::default())?;
        let mut table = BufferTable::new(program.plan());
        let memory = [0, 1, 2].map(|buffer| {
            let memory = AlignedBuffer::zeroed(bound.sizes().buffer_bytes(BufferId(buffer)));
            let mut state = buffer;
            for at in 0..memory.len() / 4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                // SAFETY: `at` is below the number of floats.
                unsafe { store_f32(memory.as_ptr(), Element::F32, at, value) };
            }
            let pointer = BufferPointer { data: memory.as_ptr(), bytes: memory.len(), dtype: DType::F32 };
            table.set(BufferId(buffer), pointer);
            memory
        });
        if weights {
            // SAFETY: the table has all memory that the bound plan asks for.
            unsafe { program.pack_weights(&table, &mut |_: &str| {})? };
        }
        Ok(Self { program, bound, table, _memory: memory })
    }

    /// Computes the product once.
    ///
    /// # Errors
    /// There is no memory.
    pub fn run(&mut self) -> Result<(), CaseError> {
        // SAFETY: the table's memory is owned by this case, which `&mut self` keeps others from.
        unsafe { self.program.execute(&self.bound, Rate::Step, &self.table, None)? };
        Ok(())
    }
}
