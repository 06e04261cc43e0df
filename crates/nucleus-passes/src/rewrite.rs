//! What the passes from graph to graph share: rebuilding a graph node by node, and dead code elimination.
//!
//! A pass reads its source in order and adds to a new graph, so that it never edits in place: operands exist before their uses by
//! construction, and types follow from [`nucleus_ir::infer()`].

use std::collections::HashMap;
use std::sync::Arc;

use nucleus_ir::graph::{Node, NodeData, Output, Value, ValueDef, Weight};
use nucleus_ir::{Graph, Op, TensorType};

use crate::error::PassError;

/// A graph under construction from a source graph.
///
/// Inputs, constraints and *all* weights are there from the start, in the order of the source. Equal ops on equal operands are one
/// node (hash-consing), so a pass may ask for the same cast or index map as often as it likes.
pub struct Rebuild<'a> {
    pass: &'static str,
    source: &'a Graph,
    graph: Graph,
    /// The new value of each source value, by index.
    values: Vec<Option<Value>>,
    nodes: HashMap<(Op, Vec<Value>), Node>,
}

impl<'a> Rebuild<'a> {
    /// An empty rebuild of `source` for the pass of that name.
    pub fn new(pass: &'static str, source: &'a Graph) -> Rebuild<'a> {
        Rebuild::with_weights(pass, source, |weight| weight.ty.clone())
    }

    /// The same, where `weight_type` gives every weight its type in the new graph.
    pub fn with_weights(
        pass: &'static str,
        source: &'a Graph,
        weight_type: impl Fn(&Weight) -> TensorType,
    ) -> Rebuild<'a> {
        let mut graph = Graph::new(&source.name, source.dims.clone());
        graph.constraints = source.constraints.clone();
        let inputs: Vec<Value> = source.inputs.iter().map(|input| graph.add_input(input.clone())).collect();
        let weights: Vec<Value> = source
            .weights
            .iter()
            .map(|weight| graph.add_weight(Weight { ty: weight_type(weight), ..weight.clone() }))
            .collect();
        let mut values = vec![None; source.value_count()];
        for (value, data) in source.values() {
            let new = match data.def {
                ValueDef::Input(index) => inputs[index],
                ValueDef::Weight(index) => weights[index],
                ValueDef::Result { .. } => continue,
            };
            if let Some(rate) = data.rate {
                graph.set_rate(new, rate);
            }
            values[value.index()] = Some(new);
        }
        Rebuild { pass, source, graph, values, nodes: HashMap::new() }
    }

    /// Adds a weight that the source does not have; before any node, so that weights stay in front.
    pub fn add_weight(&mut self, weight: Weight) -> Value {
        self.graph.add_weight(weight)
    }

    /// The pass that rebuilds.
    pub fn pass(&self) -> &'static str {
        self.pass
    }

    /// The new graph as far as it is built.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What stands for `value` of the source.
    pub fn value(&self, value: Value) -> Result<Value, PassError> {
        self.values[value.index()].ok_or(PassError::Order { pass: self.pass, value: value.index() })
    }

    /// What stands for the operands of a source node.
    pub fn operands(&self, node: &NodeData) -> Result<Vec<Value>, PassError> {
        node.operands.iter().map(|operand| self.value(*operand)).collect()
    }

    /// Lets `new` stand for `old` of the source.
    pub fn set(&mut self, old: Value, new: Value) {
        self.values[old.index()] = Some(new);
    }

    /// Applies an op in the new graph, or finds the node that already does.
    pub fn add_node(
        &mut self,
        op: Op,
        operands: &[Value],
        scope: &Option<Arc<str>>,
    ) -> Result<Node, PassError> {
        let mut key = (op, operands.to_vec());
        if let Some(node) = self.nodes.get(&key) {
            return Ok(*node);
        }
        if commutes(&key.0) {
            key.1.reverse();
            if let Some(node) = self.nodes.get(&key) {
                return Ok(*node);
            }
            key.1.reverse();
        }
        let node = self
            .graph
            .add_node(key.0.clone(), operands, scope.clone())
            .map_err(|source| PassError::Type { pass: self.pass, source })?;
        self.nodes.insert(key, node);
        Ok(node)
    }

    /// The same for an op with one result, which it returns.
    pub fn add(&mut self, op: Op, operands: &[Value], scope: &Option<Arc<str>>) -> Result<Value, PassError> {
        let node = self.add_node(op, operands, scope)?;
        Ok(self.graph.node(node).results[0])
    }

    /// Lets the results of `node` of the new graph stand for those of `old` of the source.
    pub fn set_results(&mut self, old: &NodeData, node: Node) {
        for (index, value) in old.results.iter().enumerate() {
            self.values[value.index()] = Some(self.graph.node(node).results[index]);
        }
    }

    /// Repeats a node of the source, with its rate.
    pub fn copy(&mut self, node: &NodeData) -> Result<(), PassError> {
        let operands = self.operands(node)?;
        let copy = self.add_node(node.op.clone(), &operands, &node.scope)?;
        self.set_results(node, copy);
        for old in &node.results {
            if let Some(rate) = self.source.value(*old).rate {
                let new = self.value(*old)?;
                self.graph.set_rate(new, rate);
            }
        }
        Ok(())
    }

    /// The new graph with its outputs, dead code included.
    pub fn finish(mut self) -> Result<Graph, PassError> {
        for output in &self.source.outputs {
            let value = self.value(output.value)?;
            self.graph.outputs.push(Output { name: output.name.clone(), value });
        }
        Ok(self.graph)
    }
}

/// True for ops that give the same bits with their two operands exchanged. `max` and `min` do not: they tell apart −0 and 0.
fn commutes(op: &Op) -> bool {
    matches!(op, Op::Add | Op::Mul | Op::Equal | Op::And | Op::Or)
}

/// Removes every node whose results no output needs. Inputs, weights and constraints stay.
pub fn eliminate_dead_code(pass: &'static str, graph: &Graph) -> Result<Graph, PassError> {
    let live = live_nodes(graph);
    let mut rebuild = Rebuild::new(pass, graph);
    for (node, data) in graph.nodes() {
        if live[node.index()] {
            rebuild.copy(data)?;
        }
    }
    rebuild.finish()
}

/// For every node, whether an output needs it.
pub fn live_nodes(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.node_count()];
    let mark = |live: &mut Vec<bool>, value: Value| {
        if let Some((node, _)) = graph.defining_node(value) {
            live[node.index()] = true;
        }
    };
    for output in &graph.outputs {
        mark(&mut live, output.value);
    }
    for (node, data) in graph.nodes().rev() {
        if live[node.index()] {
            for operand in &data.operands {
                mark(&mut live, *operand);
            }
        }
    }
    live
}
