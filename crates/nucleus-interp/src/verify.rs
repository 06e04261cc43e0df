//! What must hold before a graph is evaluated: its tables agree, its sizes are bound and fit each other.

use nucleus_ir::{Bindings, Dim, Graph, ValueDef};

use crate::error::EvalError;

/// The largest size of an axis, as in the type rules.
const MAX_SIZE: i64 = 1 << 40;

/// Checks that every handle of the graph leads somewhere and back. The graph builder keeps this; a file need not.
pub(crate) fn check_structure(graph: &Graph) -> Result<(), EvalError> {
    let malformed = |what: String| Err(EvalError::Malformed { graph: graph.name.clone(), what });
    for (value, data) in graph.values() {
        let agrees = match data.def {
            ValueDef::Input(position) => graph.inputs.get(position).is_some_and(|input| input.ty == data.ty),
            ValueDef::Weight(position) => {
                graph.weights.get(position).is_some_and(|weight| weight.ty == data.ty)
            }
            ValueDef::Result { node, index } => {
                node.index() < graph.node_count() && graph.node(node).results.get(index) == Some(&value)
            }
        };
        if !agrees {
            return malformed(format!("value {} is not where it says it comes from", value.index()));
        }
    }
    for (node, data) in graph.nodes() {
        for operand in &data.operands {
            let known = operand.index() < graph.value_count()
                && graph.defining_node(*operand).is_none_or(|(before, _)| before < node);
            if !known {
                let index = operand.index();
                return malformed(format!("node {} uses value {index}, not known there", node.index()));
            }
        }
        for (index, result) in data.results.iter().enumerate() {
            let own = result.index() < graph.value_count()
                && graph.def(*result) == ValueDef::Result { node, index };
            if !own {
                return malformed(format!("result {index} of node {} is not its own", node.index()));
            }
        }
    }
    match graph.outputs.iter().find(|output| output.value.index() >= graph.value_count()) {
        Some(output) => malformed(format!("output `{}` is not a value", output.name)),
        None => Ok(()),
    }
}

/// Checks that every run-time size is bound and at least 1, and that the relations between sizes hold.
pub(crate) fn check_dims(graph: &Graph, dims: &Bindings) -> Result<(), EvalError> {
    for symbol in &graph.dims {
        let (graph, dim) = (graph.name.clone(), symbol.to_string());
        match dims.get(symbol) {
            None => return Err(EvalError::UnboundDim { graph, dim }),
            Some(value) if value < 1 => return Err(EvalError::DimNotPositive { graph, dim, value }),
            Some(_) => {}
        }
    }
    for constraint in &graph.constraints {
        let side = |dim: &Dim| {
            dim.eval(dims).map_err(|source| EvalError::Dim { what: constraint.what.clone(), source })
        };
        let (smaller_value, larger_value) = (side(&constraint.smaller)?, side(&constraint.larger)?);
        if smaller_value > larger_value {
            return Err(EvalError::Constraint {
                what: constraint.what.clone(),
                smaller: constraint.smaller.to_string(),
                smaller_value,
                larger: constraint.larger.to_string(),
                larger_value,
            });
        }
    }
    Ok(())
}

/// The sizes of a shape under a binding; `what` says whose shape it is.
pub(crate) fn bind_shape(
    what: impl Fn() -> String,
    shape: &[Dim],
    dims: &Bindings,
) -> Result<Vec<usize>, EvalError> {
    let size = |dim: &Dim| {
        let value = dim.eval(dims).map_err(|source| EvalError::Dim { what: what(), source })?;
        match usize::try_from(value) {
            Ok(size) if value <= MAX_SIZE => Ok(size),
            _ => Err(EvalError::Size { what: what(), formula: dim.to_string(), value }),
        }
    };
    shape.iter().map(size).collect()
}
