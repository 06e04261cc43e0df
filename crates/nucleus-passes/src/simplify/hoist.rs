//! Element-wise ops on repeated elements.

use nucleus_ir::graph::Value;
use nucleus_ir::{Dim, Op};

use super::{Rewriter, Site};
use crate::error::PassError;

/// `f(broadcast(a), broadcast(b)…)` → `broadcast(f(a, b…))`, where a, b… are first repeated against each other as far as they
/// must be, and the result of that is still smaller.
pub(super) fn element_wise(rewriter: &mut Rewriter<'_>, site: &Site<'_>) -> Result<Option<Value>, PassError> {
    if site.op.scalar().is_none() {
        return Ok(None);
    }
    let mut sources = Vec::with_capacity(site.operands.len());
    for operand in site.operands {
        match rewriter.op(*operand) {
            Some((Op::Broadcast { .. }, [source])) => sources.push(*source),
            _ => return Ok(None),
        }
    }
    let whole = rewriter.shape(site.operands[0]).to_vec();
    let shapes: Vec<&[Dim]> = sources.iter().map(|source| rewriter.shape(*source)).collect();
    let common = common_shape(&shapes);
    if common == whole {
        return Ok(None);
    }
    let mut operands = Vec::with_capacity(sources.len());
    for source in sources {
        operands.push(rewriter.emit(Op::Broadcast { shape: common.clone() }, &[source], site.scope)?);
    }
    let small = rewriter.emit(site.op.clone(), &operands, site.scope)?;
    rewriter.emit(Op::Broadcast { shape: whole }, &[small], site.scope).map(Some)
}

/// The smallest shape to which all of `shapes`, which broadcast to one shape, broadcast.
fn common_shape(shapes: &[&[Dim]]) -> Vec<Dim> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut common = vec![Dim::constant(1); rank];
    for shape in shapes {
        let skipped = rank - shape.len();
        for (axis, dim) in shape.iter().enumerate() {
            if !dim.is_constant(1) {
                common[skipped + axis] = dim.clone();
            }
        }
    }
    common
}
