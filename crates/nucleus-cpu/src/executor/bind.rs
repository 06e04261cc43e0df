//! What the CPU backend adds to the binding of sizes: memory that follows from the rows of products.

use nucleus_ir::Bindings;
use nucleus_plan::{Anchor, BindError, BoundPlan, Plan, Size};

/// Binds sizes; the memory of all arenas, of any one buffer, and of what a product notes of its rows is at most `limit` bytes.
///
/// # Errors
/// See [`BoundPlan::new`].
pub(crate) fn bind(plan: &Plan, dims: &Bindings, limit: u64) -> Result<BoundPlan, BindError> {
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
