//! What fusion knows of a graph while it decides, and the coordinate changes of views.

use std::collections::HashSet;

use nucleus_ir::graph::{Graph, Node, NodeData, Value, ValueDef};
use nucleus_ir::{Dim, Op, Rate};

use super::affine::{Coord, Map, reshape};
use super::dependence::Dependence;
use super::group::{Group, IsView};
use super::symmetry::Symmetry;
use crate::error::PassError;

/// The decisions so far.
pub(crate) struct State {
    pub(crate) graph: Graph,
    /// The users of every value.
    pub(crate) uses: Vec<Vec<Node>>,
    /// The `after`s that wait for a value.
    pub(crate) waits: Vec<Vec<Node>>,
    /// The group that computes a value.
    pub(crate) owner: Vec<Option<usize>>,
    /// True for values that lie in a buffer.
    pub(crate) stored: Vec<bool>,
    /// The outputs that are this value, perhaps with its axes in another order and then reshaped, if it is not stored anywhere else.
    pub(crate) output: Vec<Option<usize>>,
    /// True for values that are outputs themselves.
    pub(crate) is_output: Vec<bool>,
    pub(crate) groups: Vec<Group>,
    pub(crate) dependence: Dependence,
    pub(crate) symmetry: Symmetry,
}

impl State {
    pub(crate) fn new(graph: Graph) -> State {
        let count = graph.value_count();
        let mut state = State {
            uses: graph.uses(),
            waits: vec![Vec::new(); count],
            owner: vec![None; count],
            stored: vec![false; count],
            output: vec![None; count],
            is_output: vec![false; count],
            groups: Vec::new(),
            dependence: Dependence::new(count),
            symmetry: Symmetry::of(&graph),
            graph,
        };
        for (node, data) in state.graph.nodes() {
            // An event is waited for, not read.
            if let (Op::After, [x, event]) = (&data.op, &data.operands[..])
                && x != event
            {
                state.uses[event.index()].retain(|user| *user != node);
                state.waits[event.index()].push(node);
            }
        }
        for (value, data) in state.graph.values() {
            state.stored[value.index()] = !matches!(data.def, ValueDef::Result { .. });
        }
        for (position, output) in state.graph.outputs.iter().enumerate() {
            state.is_output[output.value.index()] = true;
            let (value, _) = state.laid_out(output.value);
            let computed = state
                .graph
                .defining_node(value)
                .is_some_and(|(node, _)| !state.graph.node(node).op.is_view());
            // Outputs are written per step: a slower value stays in its arena, for every step to copy.
            if computed && state.output[value.index()].is_none() && state.rate(value) == Rate::Step {
                state.output[value.index()] = Some(position);
            }
        }
        state
    }

    /// How often a value must be computed.
    pub(crate) fn rate(&self, value: Value) -> Rate {
        self.graph.value(value).rate.unwrap_or(Rate::Step)
    }

    /// The node that computes a value.
    pub(crate) fn def(&self, value: Value) -> Option<(Node, &NodeData)> {
        self.graph.defining_node(value).map(|(node, _)| (node, self.graph.node(node)))
    }

    /// The value that a chain of reshapes stores densely: `value` itself or one above it.
    pub(crate) fn reshaped(&self, mut value: Value) -> Value {
        while !self.stored[value.index()]
            && let Some((_, data)) = self.def(value)
            && let Op::Reshape { .. } = data.op
        {
            value = data.operands[0];
        }
        value
    }

    /// The value of which an output is another shape, behind that a transpose that keeps rows together, and the axes that its axes are before the
    /// output is reshaped. Only what is read element by element may lie in another order.
    pub(crate) fn laid_out(&self, output: Value) -> (Value, Vec<usize>) {
        let mut value = output;
        while let Some((_, data)) = self.def(value)
            && self.keeps_order(data)
        {
            value = data.operands[0];
        }
        let mut axes: Vec<usize> = (0..self.graph.ty(value).rank()).collect();
        while let Some((_, data)) = self.def(value)
            && let Op::Transpose { permutation } = &data.op
            && permutation.last() == axes.len().checked_sub(1).as_ref()
            && self.graph.ty(value).dtype.is_float()
            && self.read_by_elements(data.operands[0])
        {
            let outer = axes.clone();
            permutation.iter().zip(outer).for_each(|(from, axis)| axes[*from] = axis);
            value = data.operands[0];
        }
        (value, axes)
    }

    /// True if all that reads a value takes elements where they are, in whatever order they lie.
    fn read_by_elements(&self, value: Value) -> bool {
        self.uses[value.index()].iter().all(|node| {
            let data = self.graph.node(*node);
            let transposes = matches!(data.op, Op::Transpose { .. }) && !self.keeps_order(data);
            transposes || data.op.scalar().is_some()
        })
    }

    /// True for a view whose elements have the order of its operand's: a reshape, or a transpose that moves axes of one point alone.
    fn keeps_order(&self, data: &NodeData) -> bool {
        match &data.op {
            Op::Reshape { .. } => true,
            Op::Transpose { permutation } => {
                let shape = &self.graph.ty(data.operands[0]).shape;
                permutation.iter().filter(|axis| !shape[**axis].is_constant(1)).is_sorted()
            }
            _ => false,
        }
    }

    /// The coordinates of a view's operand, given those of its result; `None` where they are not affine.
    pub(crate) fn through_view(
        &self,
        view: &NodeData,
        map: &[Coord],
        extents: &[Dim],
    ) -> Result<Option<Map>, PassError> {
        let from = &self.graph.ty(view.operands[0]).shape;
        let to = &self.graph.ty(view.results[0]).shape;
        Ok(match &view.op {
            Op::Reshape { .. } => reshape(map, to, from, extents)?,
            Op::After => Some(map.to_vec()),
            Op::Transpose { permutation } => {
                let mut operand = vec![Coord::zero(); from.len()];
                for (axis, source) in permutation.iter().enumerate() {
                    operand[*source] = map[axis].clone();
                }
                Some(operand)
            }
            Op::Broadcast { .. } => {
                let aligned = map[to.len() - from.len()..].iter().zip(from);
                let coord = |(coord, extent): (&Coord, &Dim)| {
                    if extent.is_constant(1) { Coord::zero() } else { coord.clone() }
                };
                Some(aligned.map(coord).collect())
            }
            Op::Slice { axis, start, .. } => {
                let mut operand = map.to_vec();
                operand[*axis] = operand[*axis].shifted(start)?;
                Some(operand)
            }
            _ => None,
        })
    }

    /// The piece of a concatenation that holds these coordinates at every point, and the coordinates in it.
    pub(crate) fn through_concat(
        &self,
        concat: &NodeData,
        map: &[Coord],
        extents: &[Dim],
    ) -> Result<Option<(Value, Map)>, PassError> {
        let Op::Concat { axis } = concat.op else { return Ok(None) };
        let mut start = Dim::constant(0);
        for piece in &concat.operands {
            let end = start.add(&self.graph.ty(*piece).shape[axis])?;
            if map[axis].within(&start, &end, extents)? {
                let mut inner = map.to_vec();
                inner[axis] = inner[axis].shifted(&Dim::constant(0).sub(&start)?)?;
                return Ok(Some((*piece, inner)));
            }
            start = end;
        }
        Ok(None)
    }

    /// True if something outside group `id` reads `value`, so that it must be stored.
    pub(crate) fn needed_outside(&self, value: Value, id: usize) -> bool {
        if self.output[value.index()].is_some() || self.is_output[value.index()] {
            return true;
        }
        self.uses[value.index()].iter().any(|node| {
            let data = self.graph.node(*node);
            let Some(&result) = data.results.first() else { return false };
            if self.owner[result.index()] == Some(id) {
                return false;
            }
            let in_a_kernel = self.stored[result.index()] || self.owner[result.index()].is_some();
            !is_transparent(&data.op) || in_a_kernel || self.needed_outside(result, id)
        })
    }

    /// Stores what the kernel of group `id` reads and other kernels compute, and returns it: the counterpart of
    /// [`State::needed_outside`] for a group that has been added late.
    pub(crate) fn store_operands(&mut self, id: usize) -> Vec<Value> {
        let mut stored = Vec::new();
        let mut seen: HashSet<Value> = HashSet::new();
        let mut pending: Vec<Value> = self.groups[id].owned.clone();
        while let Some(value) = pending.pop() {
            let Some((node, _)) = self.graph.defining_node(value).filter(|_| seen.insert(value)) else {
                continue;
            };
            match self.owner[value.index()] {
                Some(owner) if owner != id => {
                    if !std::mem::replace(&mut self.stored[value.index()], true) {
                        stored.push(value);
                    }
                }
                // A stored value has a kernel of its own, which has been looked at.
                None if self.stored[value.index()] => {}
                None if !is_transparent(&self.graph.node(node).op) => {}
                _ => pending.extend_from_slice(&self.graph.node(node).operands),
            }
        }
        stored
    }
}

/// Ops that a kernel computes on the way, if their results are not stored.
fn is_transparent(op: &Op) -> bool {
    op.is_view() || op.scalar().is_some() || matches!(op, Op::Concat { .. } | Op::Gather)
}

impl From<nucleus_ir::DimError> for PassError {
    fn from(source: nucleus_ir::DimError) -> PassError {
        PassError::Dim { pass: super::PASS, source }
    }
}
