//! The kernels that measure what a device can do. They belong to no plan.

use nucleus_ir::DType;
use nucleus_plan::{Anchor, Kernel, Map, Operand, OperandMode, ScalarFunction};

use super::{Blocks, Function, Grid, KernelSource, SourceError, Unit};

/// Threads of a block.
const THREADS: u32 = 256;
/// Sums of a thread that do not wait for each other.
const CHAINS: u32 = 8;
/// Multiply-adds of each sum in an iteration.
const STEPS: u32 = 8;

/// What does the multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Ordinary ones in `f32`.
    Plain,
    /// Matrix instructions on `bf16`.
    Matrix,
}

/// A kernel that measures.
///
/// It has one operand, which receives a float for every thread of the grid, and one size, the number of iterations.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The unit; of its functions the one that measures.
    pub source: KernelSource,
    /// Floating-point operations of a thread in one iteration.
    pub flops_per_thread: f64,
}

/// The kernel that measures one kind of multiply-add.
///
/// # Errors
/// None: its template is part of the build, as a test checks.
pub fn limit_source(kind: LimitKind) -> Result<Limit, SourceError> {
    let operand = Operand { dtype: DType::F32, mode: OperandMode::Write };
    // What a unit is made for: it decides the layout of the arguments.
    let anchor = Anchor::Map(Map { space: Vec::new(), function: ScalarFunction::default() });
    let kernel = Kernel { operands: vec![operand], size_args: 1, anchor };
    // A matrix instruction of 32 threads does 16 × 8 × 16 multiply-adds.
    let (name, flops) = match kind {
        LimitKind::Plain => ("limit_plain", 2.0),
        LimitKind::Matrix => ("limit_matrix", 2.0 * 16.0 * 8.0 * 16.0 / 32.0),
    };
    let constants = [("THREADS", THREADS), ("CHAINS", CHAINS), ("STEPS", STEPS)];
    let unit = Unit {
        kernel: &kernel,
        name: "limits",
        slots: Vec::new(),
        constants: constants.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
        template: "sm80_limits.cuh",
        functions: vec![Function {
            name,
            threads: THREADS,
            shared_bytes: 0,
            grid: Grid::line(Blocks::constant(1)),
        }],
        scratch: Blocks::NONE,
    };
    Ok(Limit { source: unit.finish()?, flops_per_thread: flops * f64::from(CHAINS * STEPS) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_functions_of_one_unit() {
        let (plain, matrix) =
            (limit_source(LimitKind::Plain).unwrap(), limit_source(LimitKind::Matrix).unwrap());
        assert_eq!(plain.source.text, matrix.source.text);
        for limit in [plain, matrix] {
            let declared = format!(") {}(", limit.source.functions[0].name);
            assert!(limit.source.text.contains(&declared), "{declared}");
        }
    }
}
