//! Ops that follow indices. All of them work per batch item: axis 0 of every operand is the batch.
//!
//! Loops run over the indices that are there, so an index is checked even where its row has no elements.

use nucleus_ir::TypeError;

use crate::error::NodeError;
use crate::movement::any;
use crate::real::Real;
use crate::tensor::{Data, element_count};

/// Checks that every index lies inside `0 .. size`.
fn check(operand: &'static str, index: &[i32], size: usize) -> Result<(), NodeError> {
    for (position, index) in index.iter().enumerate() {
        if usize::try_from(*index).map_or(true, |index| index >= size) {
            return Err(NodeError::Index { operand, position, index: *index, size });
        }
    }
    Ok(())
}

/// Checked indices [B, i…] as `(b, index)` in row-major order.
fn rows<'a>(index: &'a [i32], shape: &[usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    // Without indices nothing is yielded, so the divisor does not matter.
    let per_batch = element_count(&shape[1..]).unwrap_or(1).max(1);
    index.iter().enumerate().map(move |(position, index)| (position / per_batch, *index as usize))
}

/// `y[b, i…, r…] = x[b, index[b, i…], r…]`.
pub(crate) fn gather<F: Copy>(
    x: &Data<F>,
    x_shape: &[usize],
    index: &[i32],
    index_shape: &[usize],
) -> Result<Data<F>, NodeError> {
    let size = x_shape[1];
    check("index", index, size)?;
    // Without elements x has no row to measure, and every row is empty.
    let row = if x.is_empty() { 0 } else { x_shape[2..].iter().product() };
    Ok(any!(x, |x| {
        let mut result = Vec::with_capacity(index.len() * row);
        for (b, index) in rows(index, index_shape) {
            let from = (b * size + index) * row;
            result.extend_from_slice(&x[from..from + row]);
        }
        result
    }))
}

/// `y = base; y[b, index[b, i…], r…] += updates[b, i…, r…]` in ascending order of (i…).
pub(crate) fn scatter_add<F: Real>(
    base: &[F],
    base_shape: &[usize],
    index: &[i32],
    index_shape: &[usize],
    updates: &[F],
) -> Result<Vec<F>, NodeError> {
    let size = base_shape[1];
    check("index", index, size)?;
    let mut result = base.to_vec();
    if !base.is_empty() {
        let row: usize = base_shape[2..].iter().product();
        for ((b, index), update) in rows(index, index_shape).zip(updates.chunks_exact(row)) {
            let to = (b * size + index) * row;
            add(&mut result[to..to + row], update);
        }
    }
    Ok(result)
}

/// The positions of every target: `offsets` [B, size + 1] and `positions` [B, P].
pub(crate) fn invert_index(
    index: &[i32],
    shape: &[usize],
    size: i64,
) -> Result<(Vec<i32>, Vec<i32>), NodeError> {
    let size = usize::try_from(size).map_err(|_| TypeError::Attribute {
        op: "invert_index",
        attribute: "size",
        why: format!("{size} is negative"),
    })?;
    let per_batch = index.len() / shape[0].max(1);
    if i32::try_from(per_batch).is_err() {
        return Err(NodeError::IndexRange { what: "the number of indices", size: per_batch as i64 });
    }
    check("index", index, size)?;
    let mut offsets = Vec::with_capacity(shape[0] * (size + 1));
    let mut positions = vec![0; index.len()];
    for b in 0..shape[0] {
        let index = &index[b * per_batch..(b + 1) * per_batch];
        let positions = &mut positions[b * per_batch..(b + 1) * per_batch];
        // Counting sort: how many positions each target has, where its list starts, then every position into its list.
        let mut starts = vec![0; size + 1];
        for target in index {
            starts[*target as usize + 1] += 1;
        }
        for t in 0..size {
            starts[t + 1] += starts[t];
        }
        offsets.extend_from_slice(&starts);
        for (position, target) in index.iter().enumerate() {
            let next = &mut starts[*target as usize];
            positions[*next as usize] = position as i32;
            *next += 1;
        }
    }
    Ok((offsets, positions))
}

/// `y[b, t, r…] = base[b, t, r…] + Σ_p updates[b, positions[b, p], r…]` for p from `offsets[b, t]` to `offsets[b, t + 1] − 1`, in ascending
/// order. `updates` is [B, P, r…] with the axes i… counted as one.
pub(crate) fn segment_sum<F: Real>(
    base: &[F],
    base_shape: &[usize],
    offsets: &[i32],
    positions: &[i32],
    positions_shape: &[usize],
    updates: &[F],
) -> Result<Vec<F>, NodeError> {
    let (targets, per_batch) = (base_shape[1], positions_shape[1]);
    // An offset is also the end of a segment, so P itself is one.
    check("offsets", offsets, per_batch + 1)?;
    for (position, pair) in offsets.windows(2).enumerate() {
        if (position + 1) % (targets + 1) != 0 && pair[0] > pair[1] {
            return Err(NodeError::Descending { position: position + 1, offset: pair[1], before: pair[0] });
        }
    }
    check("positions", positions, per_batch)?;
    let mut result = base.to_vec();
    if base.is_empty() {
        return Ok(result);
    }
    let row: usize = base_shape[2..].iter().product();
    for (target, sum) in result.chunks_exact_mut(row).enumerate() {
        let (b, t) = (target / targets, target % targets);
        let offsets = &offsets[b * (targets + 1)..];
        for p in offsets[t]..offsets[t + 1] {
            let from = (b * per_batch + positions[b * per_batch + p as usize] as usize) * row;
            add(sum, &updates[from..from + row]);
        }
    }
    Ok(result)
}

fn add<F: Real>(sum: &mut [F], row: &[F]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += *x;
    }
}
