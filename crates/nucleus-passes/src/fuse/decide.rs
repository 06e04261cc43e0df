//! Which values lie in buffers, and which are computed where they are used.

use nucleus_ir::graph::{Graph, Node, NodeData, Value};
use nucleus_ir::{DType, Op, Rate, ScalarOp};

use super::group::{Group, IsView, Kind};
use super::space::Space;
use super::state::State;
use crate::error::PassError;

/// The cost of an operation that is not one or two instructions.
const TRANSCENDENTAL: u32 = 16;
/// What is cheap enough to compute at each of several uses.
const CHEAP: u32 = 4;
/// What is cheap enough to compute at every point along which it is repeated.
const CHEAP_REPEATED: u32 = 2;
/// What is cheap enough to compute in every pass along a row.
const CHEAP_IN_ROWS: u32 = 8;
/// What is cheap enough to compute more often than its inputs change.
const CHEAP_PER_RATE: u32 = 2;
/// Functions do not grow beyond this.
const LARGEST: u32 = 64;
/// So many views, one of the other, are one too many to follow at every use: the last of them is stored.
const LONGEST_CHAIN: u32 = 64;

/// How a kernel takes an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// As any scalar function.
    Function,
    /// As a load, perhaps gathered, perhaps followed by casts.
    Cast,
    /// As a load, perhaps cast from 8-bit integers: a right factor, which is packed from them.
    Packed,
    /// As a load of a stored value.
    Stored,
}

/// A kernel that would compute a value if it is not stored.
struct Site {
    kernel: Kernel,
    need: Need,
    rate: Rate,
    /// True if the kernel has more points than the value has elements.
    repeats: bool,
    in_rows: bool,
}

/// How to compute a value from stored ones.
struct Cheap {
    sources: Vec<Value>,
    /// The value, and what is computed on the way.
    computed: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Group(usize),
    Value(Value),
}

/// The cost of one application of an operation.
fn cost_of(op: ScalarOp) -> u32 {
    match op {
        ScalarOp::Exp
        | ScalarOp::Log
        | ScalarOp::Tanh
        | ScalarOp::Sigmoid
        | ScalarOp::Sin
        | ScalarOp::Cos => TRANSCENDENTAL,
        _ => 1,
    }
}

impl State {
    /// Decides for every value outside the anchors' groups, and forms the groups of those that are stored.
    pub(crate) fn decide(&mut self) -> Result<(), PassError> {
        let costs = self.costs();
        let nodes: Vec<Node> = self.graph.nodes().map(|(node, _)| node).collect();
        self.cut_chains();
        for node in nodes.iter().rev() {
            let data = self.graph.node(*node);
            let result = data.results[0];
            if self.owner[result.index()].is_some() {
                continue;
            }
            let stored = match &data.op {
                Op::Concat { .. } => !self.read_by_pieces(result),
                op if op.is_view() => self.stored[result.index()],
                op if op.scalar().is_some() || matches!(op, Op::Gather) => {
                    self.must_store(result, data, costs[result.index()])
                }
                Op::Constant { .. } | Op::Size { .. } | Op::Iota { .. } => self.must_store(result, data, 0),
                _ => false,
            };
            self.stored[result.index()] = stored;
        }
        for node in &nodes {
            let result = self.graph.node(*node).results[0];
            if self.stored[result.index()] && self.owner[result.index()].is_none() {
                self.form_stored(result)?;
            }
        }
        for id in 0..self.groups.len() {
            for value in self.groups[id].owned.clone() {
                self.stored[value.index()] = self.needed_outside(value, id) || self.written_whole(value);
            }
        }
        self.leave_to_readers();
        Ok(())
    }

    /// Does not store what few cheap operations make of values that are stored too: readers of the former load the latter, of which they have
    /// all but one at hand, and compute it again. That saves a store and the memory.
    fn leave_to_readers(&mut self) {
        let mut pinned = vec![false; self.graph.value_count()];
        for value in self.graph.values().map(|(value, _)| value).rev().collect::<Vec<_>>() {
            let Some(id) = self.owner[value.index()] else { continue };
            let Some(cheap) = self.cheap(value).filter(|_| !pinned[value.index()]) else { continue };
            for source in &cheap.sources {
                pinned[source.index()] = true;
            }
            self.stored[value.index()] = false;
            for value in cheap.computed {
                if self.owner[value.index()] == Some(id) {
                    self.owner[value.index()] = None;
                    let group = &mut self.groups[id];
                    group.owned.retain(|owned| *owned != value);
                    group.inside.insert(value);
                }
            }
        }
    }

    /// How readers may compute `value`, which a kernel stores, if they may as well.
    fn cheap(&self, value: Value) -> Option<Cheap> {
        let index = value.index();
        if !self.stored[index] || self.is_output[index] || self.output[index].is_some() {
            return None;
        }
        let cheap = self.cheap_operations(value)?;
        let mut sites = Vec::new();
        self.sites(value, false, &mut sites);
        let light =
            |site: &Site| site.need == Need::Function && site.rate == self.rate(value) && !site.repeats;
        if !sites.iter().all(light) {
            return None;
        }
        let mut missing = vec![0; sites.len()];
        for source in &cheap.sources {
            let mut readers = Vec::new();
            self.sites(*source, false, &mut readers);
            let reads = |site: &Site| readers.iter().any(|reader| reader.kernel == site.kernel);
            for (missing, site) in missing.iter_mut().zip(&sites) {
                *missing += usize::from(!reads(site));
            }
        }
        missing.iter().all(|missing| *missing <= 1).then_some(cheap)
    }

    /// The operations that make `value` of stored values, if they are few and cheap, and those values as large and as often computed.
    fn cheap_operations(&self, value: Value) -> Option<Cheap> {
        let mut cheap = Cheap { sources: Vec::new(), computed: vec![value] };
        let mut next = 0;
        while let Some(value) = cheap.computed.get(next).copied() {
            next += 1;
            let (_, data) = self.def(value)?;
            let op = data.op.scalar()?;
            let widens = matches!(op, ScalarOp::Cast(_)) && self.widens(data);
            if cost_of(op) > 1 || next > CHEAP as usize || matches!(op, ScalarOp::Cast(_)) && !widens {
                return None;
            }
            for operand in data.operands.iter().filter(|operand| !self.is_uniform(**operand)) {
                let source = self.viewed(*operand);
                let (given, made) = (self.graph.ty(*operand), self.graph.ty(value));
                let alike = given.shape == made.shape && (given.dtype == made.dtype || widens);
                if !alike || self.rate(source) != self.rate(value) {
                    return None;
                }
                let list = match self.stored[source.index()] {
                    true => &mut cheap.sources,
                    false if source == *operand => &mut cheap.computed,
                    false => return None,
                };
                if !list.contains(&source) {
                    list.push(source);
                }
            }
        }
        Some(cheap)
    }

    /// True for a cast of floats to a larger type: readers load less, and the same numbers.
    fn widens(&self, data: &NodeData) -> bool {
        let (from, to) = (self.graph.ty(data.operands[0]).dtype, self.graph.ty(data.results[0]).dtype);
        from.is_float() && to == DType::F32 && from != to
    }

    /// The stored value of which `value` is a slice or another shape, if there is one, else `value`.
    fn viewed(&self, value: Value) -> Value {
        let mut source = value;
        while !self.stored[source.index()] {
            match self.def(source) {
                Some((_, data)) if matches!(data.op, Op::Reshape { .. } | Op::Slice { .. }) => {
                    source = data.operands[0];
                }
                _ => return value,
            }
        }
        source
    }

    /// True for a constant, repeated or not.
    fn is_uniform(&self, value: Value) -> bool {
        match self.def(value) {
            Some((_, data)) if data.op.is_view() => self.is_uniform(data.operands[0]),
            Some((_, data)) => matches!(data.op, Op::Constant { .. }),
            None => false,
        }
    }

    /// Stores every so many-th view on the way from kernel to kernel, so that what follows values back to stored ones does not go far.
    fn cut_chains(&mut self) {
        let mut length = vec![0u32; self.graph.value_count()];
        for (_, data) in self.graph.nodes() {
            let result = data.results[0].index();
            if self.owner[result].is_some() || matches!(data.op, Op::Gather) {
                continue;
            }
            let operands = data.operands.iter().map(|operand| length[operand.index()]);
            length[result] = operands.max().unwrap_or(0);
            if data.op.is_view() {
                length[result] += 1;
                if length[result] == LONGEST_CHAIN {
                    self.stored[result] = true;
                    length[result] = 0;
                }
            }
        }
    }

    /// The group of a value that is stored and computed by no anchor.
    pub(crate) fn form_stored(&mut self, value: Value) -> Result<(), PassError> {
        let rate = self.rate(value);
        let shape = self.graph.ty(value).shape.clone();
        let concat = self.def(value).and_then(|(_, data)| match data.op {
            Op::Concat { axis } => Some((axis, data.operands.clone())),
            _ => None,
        });
        if let Some((axis, pieces)) = concat {
            let extent = |piece: &Value| self.graph.ty(*piece).shape[axis].clone();
            let first = extent(&pieces[0]);
            let computed_here = |piece: &Value| {
                let source = self.reshaped(*piece);
                !self.stored[source.index()] && self.owner[source.index()].is_none()
            };
            let together = pieces.len() <= 8
                && pieces.iter().all(|piece| extent(piece) == first && computed_here(piece));
            let space = Space::direct(&shape).unroll(axis, pieces.len() as i64, 0);
            if let Some(space) = space.filter(|_| together) {
                self.grow(Group::new(Kind::Map, space, rate, &[value]))?;
            } else {
                self.owner[value.index()] = Some(self.groups.len());
                self.groups.push(Group::new(Kind::Pieces(value), Space::direct(&shape), rate, &[value]));
            }
            return Ok(());
        }
        self.grow(Group::new(Kind::Map, Space::direct(&shape), rate, &[value]))?;
        Ok(())
    }

    /// The cost of computing each value from stored ones, as if nothing outside the anchors' groups were stored.
    fn costs(&self) -> Vec<u32> {
        let mut costs = vec![0u32; self.graph.value_count()];
        for (_, data) in self.graph.nodes() {
            let own = match &data.op {
                Op::Gather => {
                    costs[data.results[0].index()] = 1;
                    continue;
                }
                op if op.is_view() => 0,
                op => match op.scalar() {
                    Some(scalar) => cost_of(scalar),
                    None => continue,
                },
            };
            let result = data.results[0];
            if self.owner[result.index()].is_some() {
                continue;
            }
            let operands = data.operands.iter().map(|operand| costs[operand.index()]);
            // Beyond the largest function a value is stored anyway.
            costs[result.index()] = operands.fold(own, u32::saturating_add).min(LARGEST + 1);
        }
        costs
    }

    fn must_store(&self, value: Value, data: &NodeData, cost: u32) -> bool {
        if self.output[value.index()].is_some() || self.is_output[value.index()] {
            return true;
        }
        let mut sites = Vec::new();
        self.sites(value, false, &mut sites);
        let own = data.op.scalar().map_or(0, cost_of);
        let light = cost < TRANSCENDENTAL;
        let only_casts = matches!(data.op, Op::Cast { .. } | Op::Gather) && cost <= 2;
        let one_kernel = sites.windows(2).all(|pair| pair[0].kernel == pair[1].kernel);
        let from_bytes =
            matches!(data.op, Op::Cast { .. }) && self.graph.ty(data.operands[0]).dtype == DType::I8;
        let free = own == 0 && cost == 0;
        sites.iter().any(|site| {
            let fits = match site.need {
                Need::Stored => false,
                // A stored copy would undo what quantisation saves.
                Need::Packed => from_bytes,
                Need::Cast => only_casts && one_kernel,
                Need::Function => {
                    free || {
                        let limit = match () {
                            () if self.rate(value) < site.rate => CHEAP_PER_RATE,
                            () if site.repeats => CHEAP_REPEATED,
                            () if !one_kernel => CHEAP,
                            () if site.in_rows && sites.len() > 1 => CHEAP_IN_ROWS,
                            () => LARGEST,
                        };
                        cost <= limit && (light || limit == LARGEST)
                    }
                }
            };
            !fits
        })
    }

    /// Every kernel in which `value` would be computed.
    fn sites(&self, value: Value, repeats: bool, sites: &mut Vec<Site>) {
        for node in &self.uses[value.index()] {
            let data = self.graph.node(*node);
            for (position, operand) in data.operands.iter().enumerate() {
                if *operand == value {
                    self.sites_of_use(data, position, repeats, sites);
                }
            }
        }
    }

    fn sites_of_use(&self, data: &NodeData, position: usize, repeats: bool, sites: &mut Vec<Site>) {
        let result = data.results[0];
        let rate = self.rate(result);
        let owner = self.owner[result.index()];
        let stored = self.stored[result.index()];
        let kernel = owner.map_or(Kernel::Value(result), Kernel::Group);
        let in_rows = owner.is_some_and(|id| matches!(self.groups[id].kind, Kind::Rows(_)));
        let mut site = |need| sites.push(Site { kernel, need, rate, repeats, in_rows });
        match &data.op {
            op if op.is_view() => {
                if stored || owner.is_some() {
                    return site(Need::Function);
                }
                let repeats = repeats || expands(&self.graph, data);
                if self.is_output[result.index()] && !matches!(op, Op::Reshape { .. }) {
                    return site(Need::Stored);
                }
                self.sites(result, repeats, sites);
            }
            Op::Gather => site(Need::Stored),
            Op::Concat { .. } if owner.is_none() && !stored => self.sites(result, repeats, sites),
            op if op.scalar().is_some() || matches!(op, Op::Concat { .. }) => {
                if owner.is_some() || stored {
                    site(Need::Function);
                } else {
                    self.sites(result, repeats, sites);
                }
            }
            Op::Matmul { .. } | Op::GroupedMatmul { .. } => {
                site(if position == 0 { Need::Cast } else { Need::Packed });
            }
            Op::Attention { .. } => site(if position == 3 { Need::Function } else { Need::Stored }),
            Op::AttentionGrad { .. } => site(if position == 4 { Need::Function } else { Need::Stored }),
            Op::SegmentSum => {
                site(if position == 0 || position == 3 { Need::Function } else { Need::Stored });
            }
            Op::InvertIndex { .. } => site(Need::Stored),
            _ => site(Need::Function),
        }
    }
}

/// True if a view repeats elements.
fn expands(graph: &Graph, view: &NodeData) -> bool {
    let Op::Broadcast { shape } = &view.op else { return false };
    let from = &graph.ty(view.operands[0]).shape;
    let repeated = shape.iter().rev().zip(from.iter().rev()).any(|(to, from)| to != from);
    repeated || shape[..shape.len() - from.len()].iter().any(|dim| !dim.is_constant(1))
}
