//! Groups: what one kernel computes.

use std::collections::{BTreeSet, HashSet};

use nucleus_ir::graph::{Node, Value};
use nucleus_ir::{Dim, Op, Rate};

use super::affine::{Coord, Map};
use super::space::Space;
use super::state::State;
use crate::error::PassError;

/// A kernel does not grow beyond this many values: looking for what can join takes time that grows with their square, and so does
/// compiling what came of it.
const LARGEST_GROUP: usize = 256;

/// A reduction of a row reduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowSum {
    /// The `reduce_sum` or `reduce_max`.
    pub(crate) node: Node,
    /// In which pass along the row it can be computed.
    pub(crate) phase: usize,
    /// Where its operand lies, one map for every unrolled point.
    pub(crate) maps: Vec<Map>,
}

/// The loop structure of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A function at every point.
    Map,
    /// The pieces of a concatenation, each in its own iteration space.
    Pieces(Value),
    /// Reductions along the kernel's last axis.
    Rows(Vec<RowSum>),
    /// `matmul`, `grouped_matmul`, `attention`, `expert_choice`, `invert_index` or `segment_sum`.
    Anchor(Node),
}

/// The values that one kernel computes.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) kind: Kind,
    pub(crate) space: Space,
    /// For a row reduction, the space of its row results.
    pub(crate) rows: Option<Space>,
    /// Where the anchor's results are at hand: value, coordinates, number of the accumulator.
    pub(crate) accumulators: Vec<(Value, Map, u32)>,
    /// The values computed here and nowhere else.
    pub(crate) owned: Vec<Value>,
    /// Values that depend on the anchor's results and are computed here on the way to owned ones.
    pub(crate) inside: HashSet<Value>,
    pub(crate) rate: Rate,
}

impl Group {
    /// A group of that kind that owns `results` so far.
    pub(crate) fn new(kind: Kind, space: Space, rate: Rate, results: &[Value]) -> Group {
        let owned = results.to_vec();
        let (accumulators, inside) = (Vec::new(), HashSet::new());
        Group { kind, space, rows: None, accumulators, owned, inside, rate }
    }

    /// Where a value is computed, each element once, and whether that is per row.
    pub(crate) fn placements(&self, shape: &[Dim]) -> Result<Option<(Vec<Map>, bool)>, PassError> {
        if let Some(maps) = self.space.placements(shape)? {
            return Ok(Some((maps, false)));
        }
        match &self.rows {
            Some(rows) => Ok(rows.placements(shape)?.map(|maps| (maps, true))),
            None => Ok(None),
        }
    }

    /// The accumulator that holds `value` at these coordinates.
    pub(crate) fn accumulator(&self, value: Value, map: &[Coord]) -> Option<u32> {
        let found = self.accumulators.iter().find(|(known, at, _)| *known == value && at == map);
        found.map(|(_, _, index)| *index)
    }

    fn has_accumulator(&self, value: Value) -> bool {
        self.accumulators.iter().any(|(known, _, _)| *known == value)
    }
}

/// What a probe found on the way.
#[derive(Default)]
struct Probe {
    inside: Vec<Value>,
    seen: HashSet<(Value, Map)>,
    /// One more than the last phase whose reductions are used.
    phase: usize,
}

impl State {
    /// Lets `group` take over consumers of its results, as far as they can be computed where the results are, and adds it.
    ///
    /// A consumer joins if it is element-wise (or a concatenation whose piece is known at every point), is as often computed, has its
    /// elements at the group's points, and if none of its other operands needs a result of the group first.
    pub(crate) fn grow(&mut self, mut group: Group) -> Result<usize, PassError> {
        let id = self.groups.len();
        for value in &group.owned {
            self.owner[value.index()] = Some(id);
        }
        let tainted = self.closure(&group.owned);
        let mut pending: BTreeSet<Node> = BTreeSet::new();
        for value in &group.owned {
            pending.extend(self.uses[value.index()].iter().copied());
        }
        while let Some(node) = pending.pop_first() {
            let data = self.graph.node(node);
            let Some(&result) = data.results.first() else { continue };
            // Around an anchor everything that can joins; later only what is stored anyway.
            let transparent = data.op.is_view() || data.op.scalar().is_some() && group.kind == Kind::Map;
            let passes = transparent && !self.stored[result.index()];
            let joined = match &data.op {
                _ if passes => true,
                Op::ReduceSum { .. } | Op::ReduceMax { .. } => {
                    self.join_reduction(&mut group, node, &tainted)?
                }
                op if op.scalar().is_some() || matches!(op, Op::Concat { .. }) => {
                    self.join(&mut group, result, &tainted)?
                }
                _ => false,
            };
            if joined {
                if !passes {
                    self.owner[result.index()] = Some(id);
                    group.owned.push(result);
                }
                pending.extend(self.uses[result.index()].iter().copied());
            }
        }
        self.groups.push(group);
        Ok(id)
    }

    /// True if `value` can be computed at the group's points; then it is counted in.
    fn join(&self, group: &mut Group, value: Value, tainted: &[bool]) -> Result<bool, PassError> {
        let full = group.owned.len() >= LARGEST_GROUP;
        if full || self.owner[value.index()].is_some() || self.rate(value) != group.rate {
            return Ok(false);
        }
        let Some((maps, _)) = group.placements(&self.graph.ty(value).shape)? else { return Ok(false) };
        let mut probe = Probe::default();
        for map in &maps {
            if !self.probe(group, value, map, tainted, &mut probe)? {
                return Ok(false);
            }
        }
        group.inside.extend(probe.inside);
        Ok(true)
    }

    /// True if a reduction runs along the rows of the group; then it is counted in.
    fn join_reduction(&self, group: &mut Group, node: Node, tainted: &[bool]) -> Result<bool, PassError> {
        let data = self.graph.node(node);
        let (Op::ReduceSum { axis, .. } | Op::ReduceMax { axis, .. }) = data.op else { return Ok(false) };
        let (operand, result) = (data.operands[0], data.results[0]);
        let (Kind::Rows(_), Some(rows)) = (&group.kind, &group.rows) else { return Ok(false) };
        if self.owner[result.index()].is_some() || self.rate(result) != group.rate {
            return Ok(false);
        }
        let Some(maps) = group.space.placements(&self.graph.ty(operand).shape)? else { return Ok(false) };
        let column = group.space.extents.len() - 1;
        let along = |coord: &Coord| coord.terms.iter().any(|(axis, _)| *axis == column);
        let runs_along = maps.iter().all(|map| {
            let others = map.iter().enumerate().all(|(position, coord)| position == axis || !along(coord));
            others && map[axis].terms.iter().all(|(axis, _)| *axis == column)
        });
        let Some(row_maps) = rows.placements(&self.graph.ty(result).shape)? else { return Ok(false) };
        if !runs_along || maps.len() as i64 != group.space.unrolled {
            return Ok(false);
        }
        let mut probe = Probe::default();
        for map in &maps {
            if !self.probe(group, operand, map, tainted, &mut probe)? {
                return Ok(false);
            }
        }
        let phase = probe.phase;
        group.inside.extend(probe.inside);
        let Kind::Rows(sums) = &mut group.kind else { return Ok(false) };
        sums.push(RowSum { node, phase, maps });
        let number = sums.len() as u32 - 1;
        group.accumulators.push((result, row_maps[0].clone(), number));
        Ok(true)
    }

    /// True if `value` at `map` needs nothing of the group but accumulators at hand and values that do not depend on the group.
    fn probe(
        &self,
        group: &Group,
        value: Value,
        map: &[Coord],
        tainted: &[bool],
        probe: &mut Probe,
    ) -> Result<bool, PassError> {
        if !tainted[value.index()] {
            return Ok(true);
        }
        if let Some(number) = group.accumulator(value, map) {
            if let Kind::Rows(sums) = &group.kind {
                probe.phase = probe.phase.max(sums[number as usize].phase + 1);
            }
            return Ok(true);
        }
        if probe.seen.len() >= LARGEST_GROUP {
            return Ok(false);
        }
        if !probe.seen.insert((value, map.to_vec())) {
            return Ok(true);
        }
        let foreign = self.owner[value.index()].is_some_and(|owner| owner != self.groups.len());
        let Some((node, _)) = self.graph.defining_node(value) else { return Ok(false) };
        if foreign || group.has_accumulator(value) {
            return Ok(false);
        }
        let data = self.graph.node(node);
        let ok = match &data.op {
            op if op.is_view() => match self.through_view(data, map, &group.space.extents)? {
                Some(map) => self.probe(group, data.operands[0], &map, tainted, probe)?,
                None => false,
            },
            Op::Concat { .. } => match self.through_concat(data, map, &group.space.extents)? {
                Some((piece, map)) => self.probe(group, piece, &map, tainted, probe)?,
                None => false,
            },
            op if op.scalar().is_some() => {
                for operand in &data.operands {
                    if !self.probe(group, *operand, map, tainted, probe)? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => false,
        };
        if ok {
            probe.inside.push(value);
        }
        Ok(ok)
    }

    /// For every value, whether it is one of `seeds` or needs one of them first, where a kernel needs all its operands before any of
    /// its results.
    fn closure(&self, seeds: &[Value]) -> Vec<bool> {
        let mut reached = vec![false; self.graph.value_count()];
        let mut entered: HashSet<usize> = HashSet::new();
        entered.insert(self.groups.len());
        let mut pending: Vec<Value> = seeds.to_vec();
        while let Some(value) = pending.pop() {
            if std::mem::replace(&mut reached[value.index()], true) {
                continue;
            }
            for node in &self.uses[value.index()] {
                for result in &self.graph.node(*node).results {
                    pending.push(*result);
                    if let Some(owner) = self.owner[result.index()]
                        && entered.insert(owner)
                    {
                        pending.extend(self.groups[owner].owned.iter().copied());
                    }
                }
            }
        }
        reached
    }
}

/// Ops that only change coordinates.
pub(crate) trait IsView {
    /// True for reshape, transpose, broadcast and slice.
    fn is_view(&self) -> bool;
}

impl IsView for Op {
    fn is_view(&self) -> bool {
        matches!(self, Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. })
    }
}
