//! Products of matrices, and attention.

use nucleus_ir::graph::Value;
use nucleus_ir::{Float, Op};

use super::Backward;
use super::accumulate::Contribution::Whole;
use crate::error::PassError;

/// Y = A B for A and B as stored or transposed: dA = dY Bᵀ, dB = Aᵀ dY, each transposed if its factor was. A right factor that is one
/// matrix for all leading axes gets its gradient in one product over all rows.
pub(super) fn matmul(
    backward: &mut Backward,
    (a, transpose_a): (Value, bool),
    (b, transpose_b): (Value, bool),
    dy: Value,
) -> Result<(), PassError> {
    if backward.is_active(a) {
        let b = backward.wide(b)?;
        let da = if transpose_a {
            product(backward, (b, transpose_b), (dy, true))?
        } else {
            product(backward, (dy, false), (b, !transpose_b))?
        };
        backward.contribute(a, Whole(da));
    }
    if backward.is_active(b) {
        let mut a = backward.wide(a)?;
        let mut dy = dy;
        if backward.shape(b).len() < backward.shape(a).len() {
            a = rows(backward, a)?;
            dy = rows(backward, dy)?;
        }
        let db = if transpose_b {
            product(backward, (dy, true), (a, transpose_a))?
        } else {
            product(backward, (a, !transpose_a), (dy, false))?
        };
        backward.contribute(b, Whole(db));
    }
    Ok(())
}

fn product(
    backward: &mut Backward,
    (a, transpose_a): (Value, bool),
    (b, transpose_b): (Value, bool),
) -> Result<Value, PassError> {
    backward.emit(Op::Matmul { transpose_a, transpose_b }, &[a, b])
}

/// All leading axes and the rows as one axis.
fn rows(backward: &mut Backward, x: Value) -> Result<Value, PassError> {
    let shape = backward.shape(x).to_vec();
    let Some((columns, leading)) = shape.split_last() else { return Ok(x) };
    let rows = backward.dim(nucleus_ir::dim::product(leading))?;
    backward.reshape(x, vec![rows, columns.clone()])
}

/// y[b, e] = x[b, e] w[e]: dx[b, e] = dy[b, e] w[e]ᵀ, and dw[e] = Σ_b x[b, e]ᵀ dy[b, e], one product per group over the rows of all batch items.
pub(super) fn grouped_matmul(
    backward: &mut Backward,
    x: Value,
    (w, transpose_b): (Value, bool),
    dy: Value,
) -> Result<(), PassError> {
    if backward.is_active(x) {
        let w = backward.wide(w)?;
        let dx = backward.emit(Op::GroupedMatmul { transpose_b: !transpose_b }, &[dy, w])?;
        backward.contribute(x, Whole(dx));
    }
    if backward.is_active(w) {
        let x = backward.wide(x)?;
        let (x, dy) = (rows_of_groups(backward, x)?, rows_of_groups(backward, dy)?);
        let (left, right) = if transpose_b { (dy, x) } else { (x, dy) };
        let dw = product(backward, (left, true), (right, false))?;
        backward.contribute(w, Whole(dw));
    }
    Ok(())
}

/// [B, E, C, K] as [E, B·C, K].
fn rows_of_groups(backward: &mut Backward, x: Value) -> Result<Value, PassError> {
    let by_group = backward.emit(Op::Transpose { permutation: vec![1, 0, 2, 3] }, &[x])?;
    let shape = backward.shape(by_group).to_vec();
    let rows = backward.dim(shape[1].mul(&shape[2]))?;
    backward.reshape(by_group, vec![shape[0].clone(), rows, shape[3].clone()])
}

/// See [`Op::AttentionGrad`].
pub(super) fn attention(
    backward: &mut Backward,
    operands: &[Value],
    scale: Float,
    dy: Value,
) -> Result<(), PassError> {
    // q, k, v, dy, and the mask if there is one. Gradients are `f32`, and the op takes all four in one type.
    let mut with_dy = Vec::with_capacity(operands.len() + 1);
    for operand in &operands[..3] {
        with_dy.push(backward.wide(*operand)?);
    }
    with_dy.push(dy);
    with_dy.extend_from_slice(&operands[3..]);
    let first = backward.emit(Op::AttentionGrad { scale }, &with_dy)?;
    let Some((node, _)) = backward.graph.defining_node(first) else { return Ok(()) };
    let gradients = backward.graph.node(node).results.clone();
    for (to, gradient) in operands.iter().zip(gradients) {
        backward.contribute(*to, Whole(gradient));
    }
    Ok(())
}
