//! The two passes of a differentiated graph, and the segments into which its layers divide it.

use std::collections::HashMap;

use nucleus_ir::graph::{NodeData, Value, ValueDef};
use nucleus_ir::{Graph, Op};

use crate::differentiate::gradient_name;
use crate::rewrite::live_nodes;

/// Which part of the graph a node belongs to.
pub(super) struct Segments {
    /// For every node, whether an output that is no gradient needs it.
    pub(super) forward: Vec<bool>,
    /// For every node, its segment.
    pub(super) of_node: Vec<Option<usize>>,
    /// For every segment the gradient that arrives from behind; `None` if there is none.
    pub(super) events: Vec<Option<Value>>,
    /// For every segment the position of the first node of its backward pass that waits for the event.
    pub(super) begins: Vec<usize>,
    /// For every value, whether it waits for an event.
    pub(super) waits: Vec<bool>,
}

impl Segments {
    pub(super) fn of(graph: &Graph) -> Segments {
        let forward = forward(graph);
        let (of_node, count) = by_scope(graph);
        let mut segments = Segments {
            forward,
            of_node,
            events: vec![None; count],
            begins: vec![usize::MAX; count],
            waits: vec![false; graph.value_count()],
        };
        segments.find_events(graph);
        segments.find_waiting(graph);
        segments
    }

    /// True if a value is computed in the forward pass.
    pub(super) fn is_forward(&self, graph: &Graph, value: Value) -> bool {
        graph.defining_node(value).is_none_or(|(node, _)| self.forward[node.index()])
    }

    /// The segment of the backward pass in which a node stands, if values may be recomputed for it.
    pub(super) fn backward(&self, node: usize) -> Option<usize> {
        let segment = self.of_node[node].filter(|_| !self.forward[node])?;
        (node >= self.begins[segment]).then_some(segment)
    }

    /// The event of a segment is, of what its backward pass takes from the backward pass outside, what is computed last; it must need more
    /// steps than any forward value of the segment.
    fn find_events(&mut self, graph: &Graph) {
        let count = self.events.len();
        let mut depth = vec![0u32; graph.value_count()];
        let mut deepest = vec![0u32; count];
        for (node, data) in graph.nodes() {
            let above = data.operands.iter().map(|operand| depth[operand.index()]).max().unwrap_or(0);
            data.results.iter().for_each(|result| depth[result.index()] = above + 1);
            if let Some(segment) = self.of_node[node.index()].filter(|_| self.forward[node.index()]) {
                deepest[segment] = deepest[segment].max(above + 1);
            }
        }
        for (node, data) in graph.nodes().filter(|(node, _)| !self.forward[node.index()]) {
            let Some(segment) = self.of_node[node.index()] else { continue };
            for operand in &data.operands {
                let Some((source, _)) = graph.defining_node(*operand) else { continue };
                let outside = !self.forward[source.index()] && self.of_node[source.index()] != Some(segment);
                if !outside || depth[operand.index()] <= deepest[segment] {
                    continue;
                }
                let begins = &mut self.begins[segment];
                *begins = (*begins).min(node.index());
                let known = self.events[segment];
                let later = known.is_none_or(|known| depth[known.index()] < depth[operand.index()]);
                if source.index() < *begins && later {
                    self.events[segment] = Some(*operand);
                }
            }
        }
    }

    fn find_waiting(&mut self, graph: &Graph) {
        for event in self.events.iter().flatten() {
            self.waits[event.index()] = true;
        }
        for (_, data) in graph.nodes() {
            let waits = data.operands.iter().any(|operand| self.waits[operand.index()]);
            data.results.iter().for_each(|result| self.waits[result.index()] |= waits);
        }
    }
}

/// For every node, whether an output that is not the gradient of a weight or input needs it.
fn forward(graph: &Graph) -> Vec<bool> {
    let weights = graph.weights.iter().map(|weight| gradient_name(&weight.name));
    let inputs = graph.inputs.iter().map(|input| gradient_name(&input.name));
    let gradients: std::collections::HashSet<String> = weights.chain(inputs).collect();
    let mut plain = graph.clone();
    plain.outputs.retain(|output| !gradients.contains(&output.name));
    live_nodes(&plain)
}

/// The scope up to its first number behind a name.
fn prefix(scope: &str) -> Option<&str> {
    let mut end = 0;
    for (position, part) in scope.split('.').enumerate() {
        end += part.len() + usize::from(position > 0);
        if position > 0 && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(&scope[..end]);
        }
    }
    None
}

/// The segment of every node, and how many there are. A function of weights alone that has no scope, such as a cast, belongs to the segment
/// of its uses if they have one in common.
fn by_scope(graph: &Graph) -> (Vec<Option<usize>>, usize) {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut of_node: Vec<Option<usize>> = Vec::with_capacity(graph.node_count());
    for (_, data) in graph.nodes() {
        let name = data.scope.as_deref().and_then(prefix);
        let next = numbers.len();
        of_node.push(name.map(|name| *numbers.entry(name).or_insert(next)));
    }
    let mut of_weights = vec![false; graph.value_count()];
    for (value, data) in graph.values() {
        of_weights[value.index()] = matches!(data.def, ValueDef::Weight(_));
    }
    let mut homeless = Vec::new();
    for (node, data) in graph.nodes() {
        let all = data.operands.iter().all(|operand| of_weights[operand.index()]);
        if all && !data.operands.is_empty() && data.scope.is_none() {
            data.results.iter().for_each(|result| of_weights[result.index()] = true);
            homeless.push(node);
        }
    }
    let uses = graph.uses();
    for node in homeless.into_iter().rev() {
        let users = graph.node(node).results.iter().flat_map(|result| &uses[result.index()]);
        let mut homes = users.map(|user| of_node[user.index()]);
        if let Some(first) = homes.next()
            && homes.all(|home| home == first)
        {
            of_node[node.index()] = first;
        }
    }
    (of_node, numbers.len())
}

/// True for ops that take no memory of their own: constants and views.
pub(super) fn is_view(data: &NodeData) -> bool {
    matches!(
        data.op,
        Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
            | Op::StopGradient
            | Op::After
    )
}
