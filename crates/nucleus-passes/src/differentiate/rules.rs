//! Which rule an op has. The match is exhaustive, so that a new op does not compile before it has one.

use nucleus_ir::Op;
use nucleus_ir::graph::{NodeData, Value};

use super::{Backward, elementwise, indexing, movement, products, reductions, unsupported};
use crate::error::PassError;

/// Contributes to the gradients of a node's operands; `gradients` are those of its results, one of them at least.
pub(super) fn propagate(
    backward: &mut Backward,
    node: &NodeData,
    gradients: &[Option<Value>],
) -> Result<(), PassError> {
    let operands = &node.operands[..];
    // All but one op with several results have integers among them, which have no gradient: one is left.
    let Some(dy) = gradients.iter().copied().flatten().next() else { return Ok(()) };
    match (&node.op, operands) {
        (Op::Neg, [x]) => elementwise::neg(backward, *x, dy),
        (Op::Abs, [x]) => elementwise::abs(backward, *x, dy),
        (Op::Exp, [x]) => elementwise::exp(backward, *x, node.results[0], dy),
        (Op::Log, [x]) => elementwise::log(backward, *x, dy),
        (Op::Sqrt, [x]) => elementwise::sqrt(backward, *x, node.results[0], dy),
        (Op::Rsqrt, [x]) => elementwise::rsqrt(backward, *x, node.results[0], dy),
        (Op::Tanh, [x]) => elementwise::tanh(backward, *x, node.results[0], dy),
        (Op::Sigmoid, [x]) => elementwise::sigmoid(backward, *x, node.results[0], dy),
        (Op::Sin, [x]) => elementwise::sin(backward, *x, dy),
        (Op::Cos, [x]) => elementwise::cos(backward, *x, dy),
        (Op::Add, [x, y]) => elementwise::add(backward, *x, *y, dy),
        (Op::Sub, [x, y]) => elementwise::sub(backward, *x, *y, dy),
        (Op::Mul, [x, y]) => elementwise::mul(backward, *x, *y, dy),
        (Op::Div, [x, y]) => elementwise::div(backward, *x, *y, node.results[0], dy),
        (Op::Max, [x, y]) => elementwise::larger(backward, *x, *y, dy),
        (Op::Min, [x, y]) => elementwise::smaller(backward, *x, *y, dy),
        (Op::Select, [condition, y, z]) => elementwise::select(backward, *condition, *y, *z, dy),
        (Op::Cast { .. }, [x]) => elementwise::cast(backward, *x, dy),

        (Op::After, [x, _]) => movement::after(backward, *x, dy),
        (Op::Reshape { .. }, [x]) => movement::reshape(backward, *x, dy),
        (Op::Transpose { permutation }, [x]) => movement::transpose(backward, *x, permutation, dy),
        (Op::Broadcast { .. }, [x]) => movement::broadcast(backward, *x, dy),
        (Op::Slice { axis, start, end }, [x]) => movement::slice(backward, *x, (*axis, start, end), dy),
        (Op::Concat { axis }, pieces) => movement::concat(backward, pieces, *axis, dy),

        (Op::Gather, [x, index]) => indexing::gather(backward, *x, *index, dy),
        (Op::ScatterAdd, [base, index, updates]) => {
            indexing::scatter_add(backward, *base, *index, *updates, dy)
        }
        (Op::SegmentSum, [base, offsets, positions, updates]) => {
            indexing::segment_sum(backward, *base, [*offsets, *positions], *updates, dy)
        }
        (Op::ExpertChoice { .. }, [affinity]) => {
            indexing::expert_choice(backward, *affinity, node.results[0], dy)
        }

        (Op::ReduceSum { axis, .. }, [x]) => reductions::reduce_sum(backward, *x, *axis, dy),
        (Op::ReduceMax { axis, .. }, [x]) => reductions::reduce_max(backward, *x, *axis, node.results[0], dy),

        (Op::Matmul { transpose_a, transpose_b }, [a, b]) => {
            products::matmul(backward, (*a, *transpose_a), (*b, *transpose_b), dy)
        }
        (Op::GroupedMatmul { transpose_b }, [x, w]) => {
            products::grouped_matmul(backward, *x, (*w, *transpose_b), dy)
        }
        (Op::Attention { scale }, _) => products::attention(backward, operands, *scale, dy),
        (Op::AttentionGrad { .. }, _) => {
            let place = node.scope.as_deref().map_or(String::new(), |scope| format!(" at `{scope}`"));
            unsupported(format!(
                "the loss depends on `attention_grad`{place}, which has no derivative: put a stop_gradient behind it"
            ))
        }

        // No operands; integers and truth values alone; or the end of all gradients.
        (Op::Constant { .. } | Op::Size { .. } | Op::Iota { .. }, _)
        | (Op::Less | Op::LessEqual | Op::Equal | Op::And | Op::Or | Op::Not, _)
        | (Op::InvertIndex { .. } | Op::StopGradient, _) => Ok(()),

        // The graph is well typed: an op has as many operands as the table says.
        (
            Op::Neg
            | Op::Abs
            | Op::Exp
            | Op::Log
            | Op::Sqrt
            | Op::Rsqrt
            | Op::Tanh
            | Op::Sigmoid
            | Op::Sin
            | Op::Cos
            | Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Div
            | Op::Max
            | Op::Min
            | Op::Select
            | Op::Cast { .. }
            | Op::After
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
            | Op::Gather
            | Op::ScatterAdd
            | Op::SegmentSum
            | Op::ExpertChoice { .. }
            | Op::ReduceSum { .. }
            | Op::ReduceMax { .. }
            | Op::Matmul { .. }
            | Op::GroupedMatmul { .. },
            _,
        ) => unsupported(format!("`{}` has {} operands", node.op.name(), operands.len())),
    }
}
