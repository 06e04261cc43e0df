//! Vertical fusion: reductions over groups of a product's columns become part of its epilogue.
//!
//! Queries and keys are products whose heads are normalised and turned: every head is a group of neighbouring columns, which a row
//! reduction would read again. Where a product's result is used by one row reduction alone, element by element, its groups are
//! whole in the block that a job of the product computes, and the reduction is done there: the product and its result never cross memory.
//!
//! The reduction's rows are those of the product and, as a further axis, the groups of its columns. A reduction that takes every
//! second element apart (rotary embeddings turn pairs) has the columns of the product as interleaved segments. What the product's own
//! epilogue makes of an accumulator, a bias or a scale, is computed in each of the reduction's functions instead of being loaded.
//!
//! The fused launch stands where the reduction stood. Groups may have [`MAX_REDUCED_COLUMNS`] columns, so that a product keeps
//! blocks of a good shape, and the repeated part of the epilogue [`MAX_REPEATED_STEPS`] steps.

mod fit;
mod inline;

use nucleus_ir::DimError;
use nucleus_plan::cost::{MAX_REDUCED_COLUMNS, MAX_REPEATED_STEPS};
use nucleus_plan::{Anchor, OperandMode, Plan};

use crate::error::PassError;
use crate::replace::{Replacement, replace_launches};
use fit::Fit;

const PASS: &str = "epilogue";

/// Moves row reductions into the epilogues of the products that they read.
pub fn epilogue(plan: Plan) -> Result<Plan, PassError> {
    let replaced = fused_launches(&plan).map_err(|source| PassError::Dim { pass: PASS, source })?;
    Ok(replace_launches(plan, replaced))
}

/// For every launch what stands in its place: nothing where a product was, the fused launch where its reduction was.
fn fused_launches(plan: &Plan) -> Result<Vec<Replacement>, DimError> {
    let uses = Uses::new(plan);
    let mut replaced: Vec<Replacement> = vec![None; plan.launches.len()];
    for (position, launch) in plan.launches.iter().enumerate() {
        if !matches!(plan.kernel(launch.kernel).anchor, Anchor::RowReduction(_)) {
            continue;
        }
        for buffer in &launch.operands {
            let Some(producer) = uses.passed_on(buffer.0 as usize, position) else { continue };
            if !uses.may_wait(plan, producer, position) {
                continue;
            }
            if let Some(fit) = Fit::of(plan, &plan.launches[producer], launch, *buffer)? {
                replaced[producer] = Some(Vec::new());
                replaced[position] = Some(vec![inline::fused(&fit)?]);
                break;
            }
        }
    }
    Ok(replaced)
}

/// Which launches use a buffer, by position, ascending.
struct Uses {
    writers: Vec<Vec<usize>>,
    readers: Vec<Vec<usize>>,
}

impl Uses {
    fn new(plan: &Plan) -> Uses {
        let count = plan.buffers.len();
        let mut uses = Uses { writers: vec![Vec::new(); count], readers: vec![Vec::new(); count] };
        for (position, launch) in plan.launches.iter().enumerate() {
            for (operand, buffer) in plan.kernel(launch.kernel).operands.iter().zip(&launch.operands) {
                let buffer = buffer.0 as usize;
                if operand.mode != OperandMode::Read {
                    uses.writers[buffer].push(position);
                }
                if operand.mode != OperandMode::Write {
                    uses.readers[buffer].push(position);
                }
            }
        }
        uses
    }

    /// The launch that alone writes a buffer which the launch at `reader` alone reads, through one operand each.
    fn passed_on(&self, buffer: usize, reader: usize) -> Option<usize> {
        match (self.writers[buffer].as_slice(), self.readers[buffer].as_slice()) {
            (&[writer], &[only]) if only == reader && writer < reader => Some(writer),
            _ => None,
        }
    }

    /// True if the launch at `from` would read the same at `to`, after it.
    fn may_wait(&self, plan: &Plan, from: usize, to: usize) -> bool {
        plan.launches[from].operands.iter().all(|buffer| {
            let writers = &self.writers[buffer.0 as usize];
            !writers.iter().any(|writer| *writer > from && *writer <= to)
        })
    }
}

#[cfg(test)]
mod tests;
