//! Products: of transposed factors, of repeated rows; attention under a mask that leaves nothing out.
//!
//! A model may join a per-image vector to every token and multiply: the router of Nucleus-Image multiplies `[timestep; token]`. The
//! vector's share of the product is the same for all tokens of an image, so it is computed once per image.

use nucleus_ir::graph::Value;
use nucleus_ir::{Dim, Float, Op};

use super::movement::MAX_PIECES;
use super::{Rewriter, Site};
use crate::error::PassError;

/// `matmul(broadcast(x), b)` → `broadcast(matmul(x, b))` where rows of x are repeated and `b` is one matrix.
pub(super) fn repeated_rows(
    rewriter: &mut Rewriter<'_>,
    site: &Site<'_>,
) -> Result<Option<Value>, PassError> {
    let (Op::Matmul { transpose_a: false, .. }, [a, b]) = (site.op, site.operands) else { return Ok(None) };
    let Some(mut rows) = repeated_row_source(rewriter, *a).filter(|_| rewriter.shape(*b).len() == 2) else {
        return Ok(None);
    };
    if let [depth] = rewriter.shape(rows) {
        let shape = vec![Dim::constant(1), depth.clone()];
        rows = rewriter.emit(Op::Reshape { shape }, &[rows], site.scope)?;
    }
    let mut shape = rewriter.shape(*a).to_vec();
    let product = rewriter.emit(site.op.clone(), &[rows, *b], site.scope)?;
    if let (Some(last), Some(columns)) = (shape.last_mut(), rewriter.shape(product).last()) {
        *last = columns.clone();
    }
    rewriter.emit(Op::Broadcast { shape }, &[product], site.scope).map(Some)
}

/// What is repeated along row axes to make `value`, if it is a broadcast that keeps the last axis and makes the tensor larger.
fn repeated_row_source(rewriter: &Rewriter<'_>, value: Value) -> Option<Value> {
    let (Op::Broadcast { shape }, [source]) = rewriter.op(value)? else { return None };
    let from = rewriter.shape(*source);
    let grows = from.len() < shape.len().min(2) || {
        let rows = from.iter().rev().zip(shape.iter().rev()).skip(1);
        rows.into_iter().any(|(from, to)| from != to)
            || shape[..shape.len() - from.len()].iter().any(|dim| !dim.is_constant(1))
    };
    (grows && from.last()? == shape.last()?).then_some(*source)
}

/// Additions per element that a split may cost for every multiplication that it saves per element.
const LEAST_DEPTH_PER_ADDITION: i64 = 8;

/// `matmul(concat(a, b, last axis), w)` → `matmul(a, w[rows of a]) + matmul(b, w[rows of b])` where the rows of a piece are repeated,
/// so that its product shrinks. Neighbours that are not repeated stay together.
pub(super) fn split_concat(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let (Op::Matmul { transpose_a: false, transpose_b }, [a, b]) = (site.op, site.operands) else {
        return Ok(None);
    };
    let rank = rewriter.shape(*a).len();
    let pieces = match rewriter.op(*a) {
        Some((Op::Concat { axis }, pieces))
            if *axis + 1 == rank && rewriter.shape(*b).len() == 2 && pieces.len() <= MAX_PIECES =>
        {
            pieces.to_vec()
        }
        _ => return Ok(None),
    };
    // Runs of pieces: a repeated one alone, others together.
    let mut runs: Vec<(bool, Vec<Value>)> = Vec::new();
    let mut saved = 0i64;
    for piece in pieces {
        let repeated = repeated_row_source(rewriter, piece).is_some();
        if repeated {
            let depth = rewriter.shape(piece)[rank - 1].as_constant();
            saved = saved.saturating_add(depth.unwrap_or(i64::MAX));
        }
        match runs.last_mut() {
            Some((false, run)) if !repeated => run.push(piece),
            _ => runs.push((repeated, vec![piece])),
        }
    }
    let additions = runs.len() as i64 - 1;
    if saved == 0 || saved < additions.saturating_mul(LEAST_DEPTH_PER_ADDITION) {
        return Ok(None);
    }

    let depth_axis = usize::from(*transpose_b);
    let mut start = Dim::constant(0);
    let mut sum = None;
    for (_, run) in runs {
        let joined = rewriter.emit(Op::Concat { axis: rank - 1 }, &run, site.scope)?;
        let end = rewriter.dim(start.add(&rewriter.shape(joined)[rank - 1]))?;
        let slice = Op::Slice { axis: depth_axis, start, end: end.clone() };
        let factor = rewriter.emit(slice, &[*b], site.scope)?;
        let product = rewriter.emit(site.op.clone(), &[joined, factor], site.scope)?;
        sum = Some(match sum {
            Some(sum) => rewriter.emit(Op::Add, &[sum, product], site.scope)?,
            None => product,
        });
        start = end;
    }
    Ok(sum)
}

/// A product of a factor whose last two axes are exchanged → the product with the attribute that says so.
pub(super) fn transposed_factor(
    rewriter: &mut Rewriter<'_>,
    site: &Site<'_>,
) -> Result<Option<Value>, PassError> {
    let mut operands = site.operands.to_vec();
    let mut op = site.op.clone();
    let (a, b) = match &mut op {
        // A transposed left factor wants leading axes equal to those of the right one.
        Op::Matmul { transpose_b, .. }
            if rewriter.shape(operands[0]).len() != rewriter.shape(operands[1]).len() =>
        {
            (None, Some(transpose_b))
        }
        Op::Matmul { transpose_a, transpose_b } => (Some(transpose_a), Some(transpose_b)),
        Op::GroupedMatmul { transpose_b } => (None, Some(transpose_b)),
        _ => return Ok(None),
    };
    let mut changed = false;
    for (operand, flag) in operands.iter_mut().zip([a, b]) {
        if let (Some(flag), Some(source)) = (flag, exchanged_source(rewriter, *operand)) {
            *flag = !*flag;
            *operand = source;
            changed = true;
        }
    }
    if changed { rewriter.emit(op, &operands, site.scope).map(Some) } else { Ok(None) }
}

/// What `value` is with its last two axes exchanged.
fn exchanged_source(rewriter: &Rewriter<'_>, value: Value) -> Option<Value> {
    let (Op::Transpose { permutation }, [source]) = rewriter.op(value)? else { return None };
    let (outer, [left, right]) = permutation.split_last_chunk::<2>()?;
    let kept = outer.iter().enumerate().all(|(axis, from)| axis == *from);
    (kept && *right == outer.len() && *left == outer.len() + 1).then_some(*source)
}

/// Attention under a mask that is true for every key → attention without a mask.
pub(super) fn open_mask(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let (Op::Attention { .. }, [q, k, v, mask]) = (site.op, site.operands) else { return Ok(None) };
    match rewriter.uniform_constant(*mask) {
        Some((Float(value), _)) if value != 0.0 => {
            rewriter.emit(site.op.clone(), &[*q, *k, *v], site.scope).map(Some)
        }
        _ => Ok(None),
    }
}
