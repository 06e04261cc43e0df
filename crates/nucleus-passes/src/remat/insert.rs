//! The graph with recomputed nodes.

use std::collections::HashMap;
use std::sync::Arc;

use nucleus_ir::graph::{NodeData, Value};
use nucleus_ir::{Graph, Op};

use super::PASS;
use super::segments::{Segments, is_view};
use crate::error::PassError;
use crate::rewrite::{Rebuild, eliminate_dead_code};

/// Lets the backward pass of every segment compute the nodes marked in `recomputed` again.
pub(super) fn insert(graph: &Graph, segments: &Segments, recomputed: &[bool]) -> Result<Graph, PassError> {
    let rebuild = Rebuild::new(PASS, graph);
    let mut insert = Insert { graph, segments, recomputed, rebuild, made: HashMap::new() };
    for (node, data) in graph.nodes() {
        let Some(segment) = segments.backward(node.index()) else {
            insert.rebuild.copy(data)?;
            continue;
        };
        let waits = data.operands.iter().any(|operand| segments.waits[operand.index()]);
        let operands = insert.operands(segment, data, waits)?;
        let copy = insert.rebuild.add_node(data.op.clone(), &operands, &data.scope)?;
        insert.rebuild.set_results(data, copy);
    }
    eliminate_dead_code(PASS, &insert.rebuild.finish()?)
}

struct Insert<'a> {
    graph: &'a Graph,
    segments: &'a Segments,
    recomputed: &'a [bool],
    rebuild: Rebuild<'a>,
    /// What stands for a forward value in the backward pass of a segment, where the reader waits for the event itself and where not.
    made: HashMap<(usize, Value, bool), Value>,
}

impl Insert<'_> {
    fn operands(&mut self, segment: usize, data: &NodeData, waits: bool) -> Result<Vec<Value>, PassError> {
        // Values above come before those below in the graph, so that this does not go deep.
        let mut pending: Vec<(Value, bool)> = data.operands.iter().map(|operand| (*operand, waits)).collect();
        while let Some((value, waits)) = pending.last().copied() {
            let missing = self.missing(segment, value, waits);
            if missing.is_empty() {
                self.make(segment, value, waits)?;
                pending.pop();
            } else {
                pending.extend(missing);
            }
        }
        data.operands.iter().map(|operand| self.known(segment, *operand, waits)).collect()
    }

    fn known(&self, segment: usize, value: Value, waits: bool) -> Result<Value, PassError> {
        self.made
            .get(&(segment, value, waits))
            .copied()
            .ok_or(PassError::Order { pass: PASS, value: value.index() })
    }

    /// The node that is applied again to stand for a value, and whether its operands must wait for the event themselves.
    fn again(&self, segment: usize, value: Value, waits: bool) -> Option<(&NodeData, bool)> {
        let (node, _) = self.graph.defining_node(value)?;
        let data = self.graph.node(node);
        if !self.segments.forward[node.index()] || data.operands.is_empty() {
            return None;
        }
        let clone = self.recomputed[node.index()] && self.segments.of_node[node.index()] == Some(segment);
        match data.op {
            _ if is_view(data) => Some((data, waits)),
            // Readers that take a concatenation piece by piece see its pieces.
            Op::Concat { .. } if clone => Some((data, waits)),
            _ if clone => Some((data, false)),
            _ => None,
        }
    }

    /// What must be made before a value.
    fn missing(&self, segment: usize, value: Value, waits: bool) -> Vec<(Value, bool)> {
        if self.made.contains_key(&(segment, value, waits)) {
            return Vec::new();
        }
        let Some((data, waits)) = self.again(segment, value, waits) else { return Vec::new() };
        let needed = data.operands.iter().map(|operand| (*operand, waits));
        needed.filter(|(operand, waits)| !self.made.contains_key(&(segment, *operand, *waits))).collect()
    }

    fn make(&mut self, segment: usize, value: Value, waits: bool) -> Result<(), PassError> {
        if self.made.contains_key(&(segment, value, waits)) {
            return Ok(());
        }
        let old = self.rebuild.value(value)?;
        let again = self.again(segment, value, waits).map(|(data, waits)| (data.clone(), waits));
        let made = match again {
            Some((data, below)) => {
                let operands: Vec<Value> = data
                    .operands
                    .iter()
                    .map(|operand| self.known(segment, *operand, below))
                    .collect::<Result<_, _>>()?;
                let index = self.graph.defining_node(value).map_or(0, |(_, index)| index);
                if operands == self.rebuild.operands(&data)? {
                    old
                } else {
                    let node = self.rebuild.add_node(data.op.clone(), &operands, &recompute(&data.scope))?;
                    self.rebuild.graph().node(node).results[index]
                }
            }
            None if waits || !self.segments.is_forward(self.graph, value) || self.is_constant(value) => old,
            None => match self.segments.events[segment] {
                Some(event) => {
                    let event = self.rebuild.value(event)?;
                    let scope = self.graph.defining_node(value).map(|(node, _)| self.graph.node(node));
                    let scope = recompute(&scope.and_then(|data| data.scope.clone()));
                    self.rebuild.add(Op::After, &[old, event], &scope)?
                }
                None => old,
            },
        };
        self.made.insert((segment, value, waits), made);
        Ok(())
    }

    fn is_constant(&self, value: Value) -> bool {
        self.graph.defining_node(value).is_some_and(|(node, _)| self.graph.node(node).operands.is_empty())
    }
}

/// The scope of what is recomputed.
fn recompute(scope: &Option<Arc<str>>) -> Option<Arc<str>> {
    Some(match scope {
        Some(scope) => format!("{scope}.recompute").into(),
        None => "recompute".into(),
    })
}
