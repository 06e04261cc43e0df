//! The form in which fusion takes a graph.
//!
//! `scatter_add` becomes an inverted index and a segment sum. Casts, and other functions of one operand, move up through
//! reshapes, concatenations and gathers of single use: then the producer stores what its consumer wants.

use std::sync::Arc;

use nucleus_ir::Op;
use nucleus_ir::graph::{Graph, Node, Value};

use super::PASS;
use crate::error::PassError;
use crate::rewrite::{Rebuild, eliminate_dead_code};
use crate::stage::assign_rates;

/// An equal graph in the form that fusion takes; every value has a rate.
pub(crate) fn canonical(graph: &Graph) -> Result<Graph, PassError> {
    let uses = graph.uses();
    let mut is_output = vec![false; graph.value_count()];
    graph.outputs.iter().for_each(|output| is_output[output.value.index()] = true);
    let mut rebuild = Rebuild::new(PASS, graph);
    for (_, data) in graph.nodes() {
        let operands = rebuild.operands(data)?;
        match &data.op {
            Op::ScatterAdd => {
                let [base, index, updates] = operands[..] else { return Err(defect("scatter_add")) };
                let size = graph.ty(data.operands[0]).shape[1].clone();
                let inverse = rebuild.add_node(Op::InvertIndex { size }, &[index], &data.scope)?;
                let (offsets, positions) = {
                    let results = &rebuild.graph().node(inverse).results;
                    (results[0], results[1])
                };
                let sum = rebuild.add(Op::SegmentSum, &[base, offsets, positions, updates], &data.scope)?;
                rebuild.set(data.results[0], sum);
            }
            Op::StopGradient => rebuild.set(data.results[0], operands[0]),
            op if op.scalar().is_some_and(|scalar| scalar.arity() == 1) => {
                let path = movable(graph, &uses, &is_output, op, data.operands[0]);
                let moved = lift(&mut rebuild, graph, (op, &data.scope), &path, data.operands[0])?;
                rebuild.set(data.results[0], moved);
            }
            _ => rebuild.copy(data)?,
        }
    }
    let mut result = eliminate_dead_code(PASS, &rebuild.finish()?)?;
    if result.values().any(|(_, data)| data.rate.is_none()) {
        assign_rates(&mut result);
    }
    Ok(result)
}

fn defect(op: &str) -> PassError {
    PassError::Invalid { pass: PASS, problems: vec![format!("`{op}` with a wrong number of operands")] }
}

/// The reshapes, concatenations and gathers, from `value` upwards, through which a function may move; empty if it gains nothing.
fn movable(graph: &Graph, uses: &[Vec<Node>], is_output: &[bool], op: &Op, value: Value) -> Vec<Node> {
    let mut path = Vec::new();
    let mut gains = false;
    let mut at = value;
    while let Some((node, _)) = graph.defining_node(at) {
        let data = graph.node(node);
        let narrows = matches!(op, Op::Cast { to } if to.size() < graph.ty(value).dtype.size());
        let moves = match data.op {
            Op::Reshape { .. } | Op::Concat { .. } => true,
            // A gather may repeat rows: only what makes them smaller gains.
            Op::Gather => narrows,
            _ => false,
        };
        if !moves || uses[at.index()].len() != 1 || is_output[at.index()] {
            break;
        }
        path.push(node);
        if !matches!(data.op, Op::Reshape { .. }) {
            gains = true;
            break;
        }
        at = data.operands[0];
    }
    if gains { path } else { Vec::new() }
}

/// `op` of `value` of the source, applied above the nodes of `path`.
fn lift(
    rebuild: &mut Rebuild<'_>,
    graph: &Graph,
    op: (&Op, &Option<Arc<str>>),
    path: &[Node],
    value: Value,
) -> Result<Value, PassError> {
    let Some((node, rest)) = path.split_first() else {
        let operand = rebuild.value(value)?;
        return rebuild.add(op.0.clone(), &[operand], op.1);
    };
    let data = graph.node(*node);
    let moved = data.operands.iter().enumerate().map(|(position, operand)| match (&data.op, position) {
        (Op::Gather, 1) => rebuild.value(*operand),
        _ => lift(rebuild, graph, op, rest, *operand),
    });
    let operands = moved.collect::<Result<Vec<Value>, PassError>>()?;
    rebuild.add(data.op.clone(), &operands, &data.scope)
}
