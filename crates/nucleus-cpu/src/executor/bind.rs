//! What the CPU backend adds to the binding of sizes: memory that follows from the rows of products, and launches that run slice by slice.

use nucleus_ir::Bindings;
use nucleus_plan::{Anchor, BindError, BoundPlan, Plan, Size};

use super::slices::{SlicedRun, sliced_runs};
use crate::program::{CpuProgram, Slicing};

/// A plan's sizes for one binding of its dims, with how its launches run.
#[derive(Clone, Debug)]
pub struct CpuBound {
    sizes: BoundPlan,
    /// In the order of their launches.
    pub(super) sliced: Vec<SlicedRun>,
}

impl CpuBound {
    pub(crate) fn new(
        program: &CpuProgram,
        dims: &Bindings,
        limit: u64,
        slicing: Slicing,
    ) -> Result<CpuBound, BindError> {
        let sizes = bind(program.plan(), dims, limit)?;
        let sliced = sliced_runs(program, &sizes, slicing);
        Ok(CpuBound { sizes, sliced })
    }

    /// The sizes of buffers, arenas and launches.
    pub fn sizes(&self) -> &BoundPlan {
        &self.sizes
    }

    /// The launches that run slice by slice, run by run.
    pub fn sliced(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.sliced.iter().map(|run| run.launches.clone())
    }
}

/// Binds sizes; the memory of all arenas, of any one buffer, and of what a product notes of its rows is at most `limit` bytes.
///
/// # Errors
/// See [`BoundPlan::new`].
fn bind(plan: &Plan, dims: &Bindings, limit: u64) -> Result<BoundPlan, BindError> {
    let bound = BoundPlan::new(plan, dims, limit)?;
    for (position, launch) in plan.launches.iter().enumerate() {
        let needed = bookkeeping_bytes(&plan.kernel(launch.kernel).anchor, bound.launch_sizes(position));
        if needed > u128::from(limit) {
            let what = format!("the rows of launch {position} ({})", plan.describe(launch));
            return Err(BindError::Memory { what, needed, limit });
        }
    }
    Ok(bound)
}

/// Bytes that a product needs to say where its rows lie: a few words for every item and run of rows.
fn bookkeeping_bytes(anchor: &Anchor, sizes: &[i64]) -> u128 {
    let (Anchor::Matmul(c) | Anchor::GroupedMatmul(c)) = anchor else { return 0 };
    let count = |axes: &[Size]| {
        axes.iter().fold(1u128, |total, size| total.saturating_mul(size.value(sizes).max(0) as u128))
    };
    let items = count(&c.batch);
    let runs = items.saturating_mul(64).saturating_add(items.saturating_mul(count(&c.rows)) / 8);
    // Few items may still have up to 64 runs each, which is nothing. Every part has a right factor for each run, and the segments of
    // each are packed apart.
    let segments: u128 = c.parts.iter().map(|part| 1 + u128::from(part.segments)).sum();
    runs.saturating_mul(128 + 64 * segments).saturating_sub(1 << 20)
}
