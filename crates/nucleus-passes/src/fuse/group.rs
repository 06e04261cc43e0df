//! Groups: what one kernel computes.

use std::collections::{BTreeSet, HashMap, HashSet};

use nucleus_ir::graph::{Node, Value};
use nucleus_ir::{Dim, Op, Rate};

use super::affine::{Coord, Map};
use super::dependence::Dependence;
use super::space::Space;
use super::state::State;
use crate::error::PassError;

/// A kernel does not grow beyond this many values: functions of it are emitted, and compiled, as deep as they are long.
const LARGEST_GROUP: usize = 256;
/// The most passes along a row: each computes again what the ones before it computed.
const MAX_PHASES: usize = 8;

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
    /// `matmul`, `grouped_matmul`, `attention`, `attention_grad`, `expert_choice`, `invert_index` or `segment_sum`.
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
    /// For the gradients of attention, those of keys and of values of every key segment, each in a space of its own. What they own is
    /// also the group's.
    pub(crate) sides: Vec<Group>,
    /// Values that depend on the anchor's results and can be computed here on the way to owned ones.
    pub(crate) inside: HashSet<Value>,
    /// What can be computed here, where, and after which phases (see [`Computable`]).
    known: HashMap<(Value, Map), Computable>,
    pub(crate) rate: Rate,
}

/// Whether a value can be computed at the points of a group: if so, one more than the last phase whose reductions it uses.
type Computable = Option<usize>;

impl Group {
    /// A group of that kind that owns `results` so far.
    pub(crate) fn new(kind: Kind, space: Space, rate: Rate, results: &[Value]) -> Group {
        let owned = results.to_vec();
        let (accumulators, inside, known) = (Vec::new(), HashSet::new(), HashMap::new());
        Group { kind, space, rows: None, accumulators, owned, sides: Vec::new(), inside, known, rate }
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

impl State {
    /// Lets `group` take over consumers of its results, as far as they can be computed where the results are, and adds it.
    ///
    /// A consumer joins if it is element-wise (or a concatenation whose piece is known at every point), is as often computed, has its
    /// elements at the group's points, and if none of its other operands needs a result of the group first.
    pub(crate) fn grow(&mut self, mut group: Group) -> Result<usize, PassError> {
        let seeds = group.owned.clone();
        self.extend(&mut group, &seeds)?;
        Ok(self.add(group))
    }

    /// Adds a group that has all it will own.
    pub(crate) fn add(&mut self, group: Group) -> usize {
        self.dependence.add_kernel(&group.owned);
        self.groups.push(group);
        self.groups.len() - 1
    }

    /// Lets a group that will be added next take over consumers of what it owns. `seeds` are all values that are known to be computed
    /// by its kernel.
    pub(crate) fn extend(&mut self, group: &mut Group, seeds: &[Value]) -> Result<(), PassError> {
        let id = self.groups.len();
        for value in seeds {
            self.owner[value.index()] = Some(id);
        }
        // The search borrows the rest of the state.
        let mut dependence = std::mem::replace(&mut self.dependence, Dependence::new(0));
        dependence.begin(id, seeds);
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
                    self.join_reduction(group, node, &mut dependence)?
                }
                op if op.scalar().is_some() || matches!(op, Op::Concat { .. }) => {
                    self.join(group, result, &mut dependence)?
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
        group.known = HashMap::new();
        self.dependence = dependence;
        Ok(())
    }

    /// True if `value` can be computed at the group's points; then it is counted in.
    fn join(&self, group: &mut Group, value: Value, dependence: &mut Dependence) -> Result<bool, PassError> {
        let full = group.owned.len() >= LARGEST_GROUP;
        if full || self.owner[value.index()].is_some() || self.rate(value) != group.rate {
            return Ok(false);
        }
        let Some((maps, _)) = group.placements(&self.graph.ty(value).shape)? else { return Ok(false) };
        Ok(self.computable(group, value, &maps, dependence)?.is_some())
    }

    /// True if a reduction runs along the rows of the group; then it is counted in.
    fn join_reduction(
        &self,
        group: &mut Group,
        node: Node,
        dependence: &mut Dependence,
    ) -> Result<bool, PassError> {
        let data = self.graph.node(node);
        let (Op::ReduceSum { axis, .. } | Op::ReduceMax { axis, .. }) = data.op else { return Ok(false) };
        let (operand, result) = (data.operands[0], data.results[0]);
        let (Kind::Rows(_), Some(rows)) = (&group.kind, &group.rows) else { return Ok(false) };
        let full = group.owned.len() >= LARGEST_GROUP;
        if full || self.owner[result.index()].is_some() || self.rate(result) != group.rate {
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
        let phase = self.computable(group, operand, &maps, dependence)?;
        let Some(phase) = phase.filter(|phase| *phase < MAX_PHASES) else { return Ok(false) };
        let Kind::Rows(sums) = &mut group.kind else { return Ok(false) };
        sums.push(RowSum { node, phase, maps });
        let number = sums.len() as u32 - 1;
        group.accumulators.push((result, row_maps[0].clone(), number));
        // What failed for want of this sum may succeed now.
        group.known.retain(|_, known| known.is_some());
        Ok(true)
    }

    /// Whether the group can compute `value` at all of `maps`.
    fn computable(
        &self,
        group: &mut Group,
        value: Value,
        maps: &[Map],
        dependence: &mut Dependence,
    ) -> Result<Computable, PassError> {
        let mut last = 0;
        for map in maps {
            match self.probe(group, value, map, dependence, 0)? {
                Some(phase) => last = last.max(phase),
                None => return Ok(None),
            }
        }
        Ok(Some(last))
    }

    /// Whether `value` at `map` needs nothing of the group but accumulators at hand and values that do not depend on the group; if so
    /// it is counted as inside. `depth` is how far the value is above the one that was asked for.
    fn probe(
        &self,
        group: &mut Group,
        value: Value,
        map: &[Coord],
        dependence: &mut Dependence,
        depth: usize,
    ) -> Result<Computable, PassError> {
        if !dependence.depends(self, value) {
            return Ok(Some(0));
        }
        if let Some(number) = group.accumulator(value, map) {
            return Ok(Some(match &group.kind {
                Kind::Rows(sums) => sums[number as usize].phase + 1,
                _ => 0,
            }));
        }
        let key = (value, map.to_vec());
        if let Some(known) = group.known.get(&key) {
            return Ok(*known);
        }
        let foreign = self.owner[value.index()].is_some_and(|owner| owner != self.groups.len());
        let Some((_, data)) = self.def(value) else { return Ok(None) };
        let full = depth >= LARGEST_GROUP || group.inside.len() >= LARGEST_GROUP;
        if foreign || full || group.has_accumulator(value) {
            return Ok(None);
        }
        let found = match &data.op {
            // What the group computes does not wait for what comes of it.
            Op::After if dependence.depends(self, data.operands[1]) => None,
            op if op.is_view() => match self.through_view(data, map, &group.space.extents)? {
                Some(map) => self.probe(group, data.operands[0], &map, dependence, depth + 1)?,
                None => None,
            },
            Op::Concat { .. } => match self.through_concat(data, map, &group.space.extents)? {
                Some((piece, map)) => self.probe(group, piece, &map, dependence, depth + 1)?,
                None => None,
            },
            op if op.scalar().is_some() => {
                let mut last = Some(0);
                for operand in &data.operands {
                    let phase = self.probe(group, *operand, map, dependence, depth + 1)?;
                    last = last.zip(phase).map(|(last, phase)| last.max(phase));
                    if last.is_none() {
                        break;
                    }
                }
                last
            }
            _ => None,
        };
        if found.is_some() {
            group.inside.insert(value);
        }
        group.known.insert(key, found);
        Ok(found)
    }
}

/// Ops that only change coordinates.
pub(crate) trait IsView {
    /// True for reshape, transpose, broadcast and slice.
    fn is_view(&self) -> bool;
}

impl IsView for Op {
    fn is_view(&self) -> bool {
        matches!(
            self,
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } | Op::After
        )
    }
}
