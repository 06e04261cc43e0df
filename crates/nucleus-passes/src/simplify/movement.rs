//! Rules for views and concatenations.

use nucleus_ir::graph::Value;
use nucleus_ir::{Dim, Op};

use super::sizes::at_most;
use super::{Gradients, Rewriter, Site};
use crate::error::PassError;

/// The most pieces of a concatenation that joining concatenations makes: where one is a piece of itself twice over, again and again,
/// their number is exponential in the length of the text. Nor do uses of a concatenation look through more pieces: both may be many.
pub(super) const MAX_PIECES: usize = 64;

/// A reshape, broadcast, transpose or slice that changes nothing → its operand; a concatenation of one piece → the piece.
pub(super) fn identity(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let [x] = *site.operands else { return Ok(None) };
    let from = rewriter.shape(x);
    let same = match site.op {
        Op::Reshape { shape } | Op::Broadcast { shape } => shape == from,
        Op::Transpose { permutation } => permutation.iter().enumerate().all(|(axis, source)| axis == *source),
        Op::Slice { axis, start, end } => start.is_constant(0) && *end == from[*axis],
        Op::Concat { .. } => true,
        _ => false,
    };
    Ok(same.then_some(x))
}

/// What stops a gradient → its operand: gradients were taken before, or nobody wants them.
pub(super) fn open_gradient(
    rewriter: &mut Rewriter<'_>,
    site: &Site<'_>,
) -> Result<Option<Value>, PassError> {
    let open = rewriter.gradients == Gradients::Taken && matches!(site.op, Op::StopGradient);
    Ok(open.then(|| site.operands[0]))
}

/// Two views of the same kind → one. A broadcast does without a reshape that only adds or drops leading axes of size 1.
pub(super) fn compose(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let [x] = *site.operands else { return Ok(None) };
    let Some((inner, &[source])) = rewriter.op(x) else { return Ok(None) };
    let combined = match (site.op, inner) {
        (Op::Reshape { .. }, Op::Reshape { .. }) | (Op::Broadcast { .. }, Op::Broadcast { .. }) => {
            site.op.clone()
        }
        (Op::Broadcast { shape: to }, Op::Reshape { shape }) => {
            let from = rewriter.shape(source);
            if without_leading_ones(from) != without_leading_ones(shape) || from.len() > to.len() {
                return Ok(None);
            }
            site.op.clone()
        }
        (Op::Transpose { permutation: outer }, Op::Transpose { permutation: inner }) => {
            Op::Transpose { permutation: outer.iter().map(|axis| inner[*axis]).collect() }
        }
        (Op::Slice { axis, start, end }, Op::Slice { axis: inner_axis, start: offset, .. })
            if axis == inner_axis =>
        {
            let (start, end) = (start.add(offset), end.add(offset));
            Op::Slice { axis: *axis, start: rewriter.dim(start)?, end: rewriter.dim(end)? }
        }
        _ => return Ok(None),
    };
    rewriter.emit(combined, &[source], site.scope).map(Some)
}

fn without_leading_ones(shape: &[Dim]) -> &[Dim] {
    let ones = shape.iter().take_while(|dim| dim.is_constant(1)).count();
    &shape[ones..]
}

/// A view of a scalar repeated, or of a scalar → a broadcast of the scalar.
pub(super) fn uniform(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let (Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }, [x]) = (site.op, site.operands) else {
        return Ok(None);
    };
    let scalar = match rewriter.op(*x) {
        Some((Op::Broadcast { .. }, [source])) => *source,
        _ => *x,
    };
    if !rewriter.shape(scalar).is_empty() {
        return Ok(None);
    }
    let shape = result_shape(rewriter, site)?;
    rewriter.emit(Op::Broadcast { shape }, &[scalar], site.scope).map(Some)
}

fn result_shape(rewriter: &Rewriter<'_>, site: &Site<'_>) -> Result<Vec<Dim>, PassError> {
    let types: Vec<_> = site.operands.iter().map(|operand| rewriter.graph().ty(*operand)).collect();
    let results =
        nucleus_ir::infer(site.op, &types).map_err(|source| PassError::Type { pass: super::PASS, source })?;
    Ok(results.into_iter().next().map(|ty| ty.shape).unwrap_or_default())
}

/// A slice that lies inside one piece of a concatenation → a slice of the piece; a slice of a broadcast → a broadcast, sliced before
/// where the axis is not one of repetition.
pub(super) fn slice(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let (Op::Slice { axis, start, end }, [x]) = (site.op, site.operands) else { return Ok(None) };
    match rewriter.op(*x) {
        Some((Op::Concat { axis: joined }, pieces)) if joined == axis && pieces.len() <= MAX_PIECES => {
            let pieces = pieces.to_vec();
            let mut offset = Dim::constant(0);
            for piece in pieces {
                let next = rewriter.dim(offset.add(&rewriter.shape(piece)[*axis]))?;
                if at_most(&offset, start) && at_most(end, &next) {
                    let (start, end) = (start.sub(&offset), end.sub(&offset));
                    let op = Op::Slice { axis: *axis, start: rewriter.dim(start)?, end: rewriter.dim(end)? };
                    return rewriter.emit(op, &[piece], site.scope).map(Some);
                }
                offset = next;
            }
            Ok(None)
        }
        Some((Op::Broadcast { .. }, [source])) => {
            let source = *source;
            let shape = result_shape(rewriter, site)?;
            let skipped = shape.len() - rewriter.shape(source).len();
            let repeated = *axis < skipped || rewriter.shape(source)[*axis - skipped].is_constant(1);
            let part = if repeated {
                source
            } else {
                let op = Op::Slice { axis: *axis - skipped, start: start.clone(), end: end.clone() };
                rewriter.emit(op, &[source], site.scope)?
            };
            rewriter.emit(Op::Broadcast { shape }, &[part], site.scope).map(Some)
        }
        _ => Ok(None),
    }
}

/// Adjacent slices of one tensor among the pieces → one slice; pieces of a piece that is joined along the same axis → pieces.
pub(super) fn concat(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    let Op::Concat { axis } = site.op else { return Ok(None) };
    let mut pieces: Vec<Value> = Vec::with_capacity(site.operands.len());
    for piece in site.operands {
        match rewriter.op(*piece) {
            Some((Op::Concat { axis: inner }, parts))
                if inner == axis && pieces.len() + parts.len() <= MAX_PIECES =>
            {
                pieces.extend(parts);
            }
            _ => pieces.push(*piece),
        }
    }
    let mut joined: Vec<Value> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let adjacent = joined.last().and_then(|last| adjacent_slices(rewriter, *axis, *last, piece));
        match adjacent {
            Some((source, op)) => {
                joined.pop();
                joined.push(rewriter.emit(op, &[source], site.scope)?);
            }
            None => joined.push(piece),
        }
    }
    if joined == site.operands {
        return Ok(None);
    }
    rewriter.emit(site.op.clone(), &joined, site.scope).map(Some)
}

fn adjacent_slices(rewriter: &Rewriter<'_>, axis: usize, left: Value, right: Value) -> Option<(Value, Op)> {
    match (rewriter.op(left)?, rewriter.op(right)?) {
        (
            (Op::Slice { axis: left_axis, start, end: middle }, [source]),
            (Op::Slice { axis: right_axis, start: next, end }, [other]),
        ) if source == other && *left_axis == axis && *right_axis == axis && middle == next => {
            Some((*source, Op::Slice { axis, start: start.clone(), end: end.clone() }))
        }
        _ => None,
    }
}
