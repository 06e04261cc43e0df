//! Reverse-mode differentiation, graph to graph: from a graph with a scalar loss to the same graph with gradients as further outputs.
//!
//! Nodes are visited last to first. When a node's turn comes, every use of its result has contributed to the gradient of that result; the
//! sum of the contributions goes through the node's vector-Jacobian product, the *rule* of its op, which contributes to the gradients of
//! the operands. There is one rule per op; `rules.rs` is the exhaustive match over them. What a rule adds are ops of the table, so that a
//! training graph takes the same way through the compiler as any other, and gradients can be printed, read and tested as text.
//!
//! - Gradients are `f32` whatever the type of their value, and of its shape. A rule that reads forward values of `bf16` or `f16` casts them up.
//! - Only *active* values get one: floats that are computed from a weight or input whose gradient is wanted.
//! - Contributions are summed in the order in which they are made, which the graph fixes.
//! - `i32` and `bool` values have no gradient, so indices and comparisons are constants: expert choice passes gradients through its gates alone.
//! - Nodes of the backward pass carry the scope of the forward node that they come from.
//!
//! The graph is simplified first, with every `stop_gradient` left in its place: what the rules then see has no dead nodes, repeated
//! elements are computed on before they are repeated, and products of repeated rows are small already, so that their gradients are, too.

mod accumulate;
mod elementwise;
mod indexing;
mod movement;
mod products;
mod reductions;
mod rules;

use std::collections::HashMap;
use std::sync::Arc;

use nucleus_ir::graph::{NodeData, Output, Value, ValueDef};
use nucleus_ir::{DType, Dim, DimError, Float, Graph, Op, Rate};

use crate::error::PassError;
use crate::simplify::simplify_before_gradients;
use crate::stage::assign_rates;
use accumulate::Contribution;

const PASS: &str = "differentiate";

/// Which gradients are wanted. The default is those of the first output with respect to every float weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gradients {
    /// The output that is differentiated, a scalar `f32`; `None` for the first.
    pub loss: Option<String>,
    /// The weights under training, by name; `None` for all that are floats. The others stay constants.
    pub weights: Option<Vec<String>>,
    /// Float inputs whose gradients are wanted as well.
    pub inputs: Vec<String>,
}

/// The graph with its outputs and then the gradients of the loss: `grad.<name>` for each selected weight, in the order of the weights, then
/// for each selected input, in the order of the inputs. A gradient is `f32` and of the shape of what it belongs to, zero where the loss does
/// not depend on it. Selected weights change at every step from now on; rates are set if they were set before.
///
/// # Errors
///
/// [`PassError::Unsupported`] where the request names what the graph does not have or what is not a float, where the loss is not a scalar
/// `f32`, where an output is called like a gradient, and where the loss depends on a gradient of attention, which has no derivative here.
pub fn differentiate(graph: &Graph, request: &Gradients) -> Result<Graph, PassError> {
    check(graph, request)?;
    reverse(simplify_before_gradients(graph)?, request)
}

/// The name of the output that holds the gradient of a weight or input.
pub fn gradient_name(name: &str) -> String {
    format!("grad.{name}")
}

fn unsupported<T>(what: String) -> Result<T, PassError> {
    Err(PassError::Unsupported { pass: PASS, what })
}

/// The request can be met by this graph.
fn check(graph: &Graph, request: &Gradients) -> Result<(), PassError> {
    let loss = loss(graph, request)?;
    let ty = graph.ty(loss.value);
    if ty.dtype != DType::F32 || ty.rank() != 0 {
        return unsupported(format!(
            "output `{}` of entry `{}` is {ty}: only a scalar, f32[], can be differentiated",
            loss.name, graph.name
        ));
    }
    let weights = || graph.weights.iter().map(|weight| (weight.name.as_str(), weight.ty.dtype));
    let inputs = || graph.inputs.iter().map(|input| (input.name.as_str(), input.ty.dtype));
    for name in request.weights.iter().flatten() {
        has_gradient(graph, "weight", name, weights().find(|(known, _)| known == name))?;
    }
    for name in &request.inputs {
        has_gradient(graph, "input", name, inputs().find(|(known, _)| known == name))?;
    }
    let mut names: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    let gradients: Vec<String> = targets(graph, request).into_iter().map(|(name, _)| name).collect();
    for name in &gradients {
        if names.contains(&name.as_str()) {
            return unsupported(format!(
                "entry `{}` would have two outputs `{name}`: rename one",
                graph.name
            ));
        }
        names.push(name);
    }
    Ok(())
}

fn loss<'a>(graph: &'a Graph, request: &Gradients) -> Result<&'a Output, PassError> {
    let found = match &request.loss {
        Some(name) => graph.outputs.iter().find(|output| output.name == *name),
        None => graph.outputs.first(),
    };
    let Some(output) = found else {
        let known: Vec<String> = graph.outputs.iter().map(|output| format!("`{}`", output.name)).collect();
        let wanted = request.loss.as_deref().unwrap_or_default();
        return unsupported(format!(
            "entry `{}` has no output `{wanted}` to differentiate; it has {}",
            graph.name,
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        ));
    };
    Ok(output)
}

fn has_gradient(
    graph: &Graph,
    kind: &str,
    name: &str,
    found: Option<(&str, DType)>,
) -> Result<(), PassError> {
    match found {
        None => unsupported(format!("entry `{}` has no {kind} `{name}`", graph.name)),
        Some((_, dtype)) if !dtype.is_float() => unsupported(format!(
            "{kind} `{name}` of entry `{}` is {dtype}: only floats have gradients",
            graph.name
        )),
        Some(_) => Ok(()),
    }
}

/// The outputs that the request adds: name and the value whose gradient it is.
fn targets(graph: &Graph, request: &Gradients) -> Vec<(String, Value)> {
    let weight = |index: usize| {
        let weight = &graph.weights[index];
        let selected = request.weights.as_ref().is_none_or(|names| names.contains(&weight.name));
        (selected && weight.ty.dtype.is_float()).then_some(&weight.name)
    };
    let input = |index: usize| {
        let name = &graph.inputs[index].name;
        request.inputs.contains(name).then_some(name)
    };
    let (mut weights, mut inputs) = (Vec::new(), Vec::new());
    for (value, data) in graph.values() {
        match data.def {
            ValueDef::Weight(index) => {
                weights.extend(weight(index).map(|name| (index, gradient_name(name), value)));
            }
            ValueDef::Input(index) => {
                inputs.extend(input(index).map(|name| (index, gradient_name(name), value)));
            }
            ValueDef::Result { .. } => {}
        }
    }
    weights.sort_by_key(|(index, ..)| *index);
    inputs.sort_by_key(|(index, ..)| *index);
    weights.into_iter().chain(inputs).map(|(_, name, value)| (name, value)).collect()
}

/// Adds the backward pass to a graph that meets the request.
fn reverse(graph: Graph, request: &Gradients) -> Result<Graph, PassError> {
    let staged = graph.values().any(|(_, data)| data.rate.is_some());
    let targets = targets(&graph, request);
    let loss = loss(&graph, request)?.value;
    let forward: Vec<NodeData> = graph.nodes().map(|(_, data)| data.clone()).collect();
    let mut backward = Backward::new(graph, &targets);

    let seed = backward.constant(1.0)?;
    backward.contribute(loss, Contribution::Whole(seed));
    for node in forward.iter().rev() {
        backward.scope = node.scope.clone();
        let mut gradients = Vec::with_capacity(node.results.len());
        for result in &node.results {
            gradients.push(backward.gradient(*result)?);
        }
        if gradients.iter().any(Option::is_some) {
            rules::propagate(&mut backward, node, &gradients)?;
        }
    }
    backward.scope = None;
    let mut outputs = Vec::with_capacity(targets.len());
    for (name, target) in targets {
        let value = match backward.gradient(target)? {
            Some(gradient) => gradient,
            None => {
                let shape = backward.shape(target).to_vec();
                backward.zeros(&shape)?
            }
        };
        outputs.push((Output { name, value }, target));
    }

    let mut graph = backward.graph;
    graph.clear_rates();
    for (output, target) in outputs {
        graph.outputs.push(output);
        if let ValueDef::Weight(index) = graph.def(target) {
            graph.weights[index].rate = Rate::Step;
        }
    }
    if staged {
        assign_rates(&mut graph);
    }
    Ok(graph)
}

/// What one use of a value contributes, and the scope of that use.
type Use = (Contribution, Option<Arc<str>>);

/// The graph with as much of its backward pass as there is, and what has been contributed to gradients that are not summed yet.
struct Backward {
    graph: Graph,
    /// For every forward value, whether it has a gradient.
    active: Vec<bool>,
    /// For every forward value, what its uses have contributed.
    contributions: HashMap<Value, Vec<Use>>,
    /// The scope of the forward node whose rule is at work.
    scope: Option<Arc<str>>,
}

impl Backward {
    fn new(graph: Graph, targets: &[(String, Value)]) -> Backward {
        let mut active = vec![false; graph.value_count()];
        for (_, target) in targets {
            active[target.index()] = true;
        }
        for (_, node) in graph.nodes() {
            // Nothing flows through a `stop_gradient`, nor to the event of an `after`.
            let sources: &[Value] = match node.op {
                Op::StopGradient => &[],
                Op::After => &node.operands[..1],
                _ => &node.operands[..],
            };
            if sources.iter().any(|source| active[source.index()]) {
                for result in &node.results {
                    active[result.index()] = graph.ty(*result).dtype.is_float();
                }
            }
        }
        Backward { graph, active, contributions: HashMap::new(), scope: None }
    }

    fn is_active(&self, value: Value) -> bool {
        self.active[value.index()]
    }

    fn shape(&self, value: Value) -> &[Dim] {
        &self.graph.ty(value).shape
    }

    /// Applies an op and returns its first result.
    fn emit(&mut self, op: Op, operands: &[Value]) -> Result<Value, PassError> {
        let scope = self.scope.clone();
        self.graph.add(op, operands, scope).map_err(|source| PassError::Type { pass: PASS, source })
    }

    fn constant(&mut self, value: f64) -> Result<Value, PassError> {
        self.emit(Op::Constant { value: Float(value), dtype: DType::F32 }, &[])
    }

    /// `value` in every element of a tensor like `like`, in `f32`.
    fn full(&mut self, value: f64, like: Value) -> Result<Value, PassError> {
        let constant = self.constant(value)?;
        let shape = self.shape(like).to_vec();
        self.broadcast(constant, shape)
    }

    fn zeros(&mut self, shape: &[Dim]) -> Result<Value, PassError> {
        let zero = self.constant(0.0)?;
        self.broadcast(zero, shape.to_vec())
    }

    fn broadcast(&mut self, value: Value, shape: Vec<Dim>) -> Result<Value, PassError> {
        if self.shape(value) == shape { Ok(value) } else { self.emit(Op::Broadcast { shape }, &[value]) }
    }

    fn reshape(&mut self, value: Value, shape: Vec<Dim>) -> Result<Value, PassError> {
        if self.shape(value) == shape { Ok(value) } else { self.emit(Op::Reshape { shape }, &[value]) }
    }

    /// A float value in `f32`.
    fn wide(&mut self, value: Value) -> Result<Value, PassError> {
        match self.graph.ty(value).dtype {
            DType::F32 => Ok(value),
            _ => self.emit(Op::Cast { to: DType::F32 }, &[value]),
        }
    }

    fn dim(&self, dim: Result<Dim, DimError>) -> Result<Dim, PassError> {
        dim.map_err(|source| PassError::Dim { pass: PASS, source })
    }
}
