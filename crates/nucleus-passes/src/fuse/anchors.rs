//! The groups that form around anchors.

use std::collections::HashSet;

use nucleus_ir::graph::{Node, Value};
use nucleus_ir::{Dim, Op};

use super::group::{Group, IsView, Kind, RowSum};
use super::space::Space;
use super::state::State;
use crate::error::PassError;

/// The most segments of one contraction, and the most points of a row computed at once.
const MAX_UNROLLED: i64 = 8;
/// The most pieces of keys that attention reads one by one.
const MAX_KEY_SEGMENTS: usize = 8;
/// How many values downstream of an anchor are looked at before its space is settled.
const FARTHEST: usize = 64;
/// The most uses of each.
const MOST_USES: usize = 256;

impl State {
    /// Forms the groups of all anchors, each with the consumers that it can take over.
    pub(crate) fn form_anchors(&mut self) -> Result<(), PassError> {
        let nodes: Vec<Node> = self.graph.nodes().map(|(node, _)| node).collect();
        for node in nodes {
            let data = self.graph.node(node).clone();
            let results = data.results.clone();
            let rate = self.rate(results[0]);
            let shape = self.graph.ty(results[0]).shape.clone();
            match &data.op {
                Op::Matmul { .. } | Op::GroupedMatmul { .. } => {
                    let mut space = match data.op {
                        // The batch axis of the kernel is the group.
                        Op::GroupedMatmul { .. } => Space::permuted(&shape, &[1, 0, 2, 3]),
                        _ => Space::direct(&shape),
                    };
                    if let Some(count) = self.segments(results[0])
                        && let Some(segmented) = space.unroll(shape.len() - 1, count, 0)
                    {
                        space = segmented;
                    }
                    self.form(Kind::Anchor(node), space, &results)?;
                }
                // An expert choice may have taken these over.
                Op::InvertIndex { .. } | Op::SegmentSum if self.owner[results[0].index()].is_some() => {}
                Op::Attention { .. } | Op::SegmentSum => {
                    self.form(Kind::Anchor(node), Space::direct(&shape), &results)?;
                }
                Op::AttentionGrad { .. } => self.form_attention_grad(node)?,
                Op::ExpertChoice { .. } => self.form_choice(node)?,
                Op::InvertIndex { .. } => {
                    for result in &results {
                        self.owner[result.index()] = Some(self.groups.len());
                    }
                    self.groups.push(Group::new(Kind::Anchor(node), Space::direct(&[]), rate, &results));
                }
                Op::ReduceSum { axis, .. } | Op::ReduceMax { axis, .. }
                    if self.owner[results[0].index()].is_none() =>
                {
                    self.form_rows(node, *axis)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn form(&mut self, kind: Kind, space: Space, results: &[Value]) -> Result<(), PassError> {
        let rate = self.rate(results[0]);
        let maps = space.placements(&self.graph.ty(results[0]).shape)?.unwrap_or_default();
        let mut group = Group::new(kind, space, rate, results);
        for (number, map) in maps.into_iter().enumerate() {
            group.accumulators.push((results[0], map, number as u32));
        }
        self.grow(group)?;
        Ok(())
    }

    /// A row reduction around `node`. Where its row ends in a concatenation of neighbouring elements (rotary embeddings turn pairs),
    /// the row runs over these groups of elements, so that the concatenation can join.
    fn form_rows(&mut self, node: Node, axis: usize) -> Result<(), PassError> {
        if let Some((concat, count)) = self.neighbours(node, axis) {
            self.form_rows_unrolled(node, axis, count)?;
            if self.owner[concat.index()] == Some(self.groups.len() - 1) {
                return Ok(());
            }
            for value in self.groups.pop().map(|group| group.owned).unwrap_or_default() {
                self.owner[value.index()] = None;
            }
        }
        self.form_rows_unrolled(node, axis, 1)
    }

    fn form_rows_unrolled(&mut self, node: Node, axis: usize, count: i64) -> Result<(), PassError> {
        let data = self.graph.node(node).clone();
        let shape = self.graph.ty(data.operands[0]).shape.clone();
        let column = shape.len() - 1;
        let axes: Vec<usize> = (0..shape.len())
            .map(|position| match position.cmp(&axis) {
                std::cmp::Ordering::Less => position,
                std::cmp::Ordering::Equal => column,
                std::cmp::Ordering::Greater => position - 1,
            })
            .collect();
        let mut space = Space::permuted(&shape, &axes);
        if count > 1
            && let Some(unrolled) = space.unroll(axis, count, 1)
        {
            space = unrolled;
        }
        let rows = space.rows(column);
        let rate = self.rate(data.results[0]);
        let defect = || PassError::Unsupported {
            pass: super::PASS,
            what: format!("`{}` over axis {axis}", data.op.name()),
        };
        let maps = space.placements(&shape)?.ok_or_else(defect)?;
        let row_maps = rows.placements(&self.graph.ty(data.results[0]).shape)?.ok_or_else(defect)?;
        let sums = vec![RowSum { node, phase: 0, maps }];
        let mut group = Group::new(Kind::Rows(sums), space, rate, &data.results);
        group.rows = Some(rows);
        group.accumulators.push((data.results[0], row_maps[0].clone(), 0));
        self.grow(group)?;
        Ok(())
    }

    /// A concatenation of single neighbouring elements, downstream of a reduction over the last axis of its rows.
    fn neighbours(&self, node: Node, axis: usize) -> Option<(Value, i64)> {
        let data = self.graph.node(node);
        let shape = &self.graph.ty(data.operands[0]).shape;
        if axis + 1 != shape.len() {
            return None;
        }
        let columns = shape[axis].as_constant()?;
        let mut pending = vec![data.results[0]];
        let mut seen: HashSet<Value> = HashSet::new();
        while let Some(value) = pending.pop() {
            if seen.len() >= FARTHEST || self.uses[value.index()].len() > MOST_USES {
                return None;
            }
            if !seen.insert(value) {
                continue;
            }
            for node in &self.uses[value.index()] {
                let data = self.graph.node(*node);
                let result = data.results[0];
                if let Op::Concat { axis } = data.op {
                    let shape = &self.graph.ty(result).shape;
                    let count = data.operands.len() as i64;
                    let single = |piece: &Value| self.graph.ty(*piece).shape[axis].is_constant(1);
                    let fits = axis > 0
                        && axis + 1 == shape.len()
                        && (2..=MAX_UNROLLED).contains(&count)
                        && data.operands.iter().all(single)
                        && shape[axis - 1].is_constant(columns / count)
                        && columns % count == 0;
                    if fits {
                        return Some((result, count));
                    }
                } else if data.op.is_view() || data.op.scalar().is_some() {
                    pending.push(result);
                }
            }
        }
        None
    }

    /// The number of equal column groups into which every use of a product's result cuts it; `None` if that gains nothing.
    fn segments(&self, product: Value) -> Option<i64> {
        let columns = self.graph.ty(product).shape.last()?.as_constant()?;
        let mut pending = vec![product];
        let mut seen: HashSet<Value> = HashSet::new();
        let mut width = None;
        let mut fuses = false;
        while let Some(value) = pending.pop() {
            if !seen.insert(value) {
                continue;
            }
            let far = seen.len() > FARTHEST || self.uses[value.index()].len() > MOST_USES;
            if far || self.is_output[value.index()] {
                return None;
            }
            let shape = &self.graph.ty(value).shape;
            for node in &self.uses[value.index()] {
                let data = self.graph.node(*node);
                let result = data.results[0];
                match &data.op {
                    Op::Slice { axis, start, end } => {
                        let whole = *axis + 1 == shape.len() && shape[*axis].is_constant(columns);
                        let size = end.sub(start).ok()?.as_constant().filter(|size| whole && *size > 0)?;
                        if start.as_constant()? % size != 0 || columns % size != 0 {
                            return None;
                        }
                        if *width.get_or_insert(size) != size {
                            return None;
                        }
                        fuses |= self.uses[result.index()]
                            .iter()
                            .any(|user| self.graph.node(*user).op.scalar().is_some());
                    }
                    Op::Reshape { .. } => pending.push(result),
                    op if op.scalar().is_some() => pending.push(result),
                    _ => return None,
                }
            }
        }
        let count = columns / width?;
        (fuses && (2..=MAX_UNROLLED).contains(&count)).then_some(count)
    }

    /// The lengths of the key segments of an attention node or its gradients: those of the pieces of k if it is a concatenation along the keys.
    pub(crate) fn key_segments(&self, node: Node) -> Vec<Dim> {
        let data = self.graph.node(node);
        match self.def(data.operands[1]) {
            Some((_, concat))
                if matches!(concat.op, Op::Concat { axis: 1 })
                    && concat.operands.len() <= MAX_KEY_SEGMENTS =>
            {
                concat.operands.iter().map(|piece| self.graph.ty(*piece).shape[1].clone()).collect()
            }
            _ => vec![self.graph.ty(data.operands[1]).shape[1].clone()],
        }
    }

    /// True if every use of a concatenation is the keys, values or mask of an attention, or of its gradients, that reads it piece by piece.
    pub(crate) fn read_by_pieces(&self, concat: Value) -> bool {
        let Some((_, data)) = self.def(concat) else { return false };
        if !matches!(data.op, Op::Concat { axis: 1 })
            || data.operands.len() > MAX_KEY_SEGMENTS
            || self.output[concat.index()].is_some()
            || self.is_output[concat.index()]
        {
            return false;
        }
        let lengths: Vec<Dim> =
            data.operands.iter().map(|piece| self.graph.ty(*piece).shape[1].clone()).collect();
        self.uses[concat.index()].iter().all(|node| {
            let user = self.graph.node(*node);
            let others: &[Value] = match user.op {
                Op::Attention { .. } => &user.operands[..1],
                Op::AttentionGrad { .. } => &[user.operands[0], user.operands[3]],
                _ => return false,
            };
            !others.contains(&concat) && self.key_segments(*node) == lengths
        })
    }
}
