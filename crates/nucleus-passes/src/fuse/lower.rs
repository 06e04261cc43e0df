//! Kernels and launches from groups.

use std::collections::HashMap;

use nucleus_ir::graph::{Node, NodeData, Value};
use nucleus_ir::{DType, Dim, Op, Rate, ScalarOp, dim::product};
use nucleus_plan::{
    Anchor, Contraction, ExpertChoice, InverseMap, InvertIndex, Kernel, KernelId, Launch, Map as MapAnchor,
    OperandMode, Part, Phase, Plan, Reduction, ReductionOp, RowReduction, ScalarFunction, SegmentSum, Size,
    Step,
};

use super::affine::{Coord, Map};
use super::emit::{Arguments, Emitter, Form, Missing, Stop};
use super::group::{Group, Kind};
use super::homes::Home;
use super::state::State;

/// The coordinates of a value whose axes are those of the iteration space.
pub(super) fn identity(extents: &[Dim]) -> Map {
    extents.iter().enumerate().map(|(axis, extent)| Coord::axis(axis, extent)).collect()
}

/// Operations of a function at one point; casts are free.
pub(super) fn operations(function: &ScalarFunction) -> i64 {
    let counts = |step: &&Step| matches!(step, Step::Apply { op, .. } if !matches!(op, ScalarOp::Cast(_)));
    function.steps.iter().filter(counts).count() as i64
}

/// `count` operations at every point of a space.
pub(super) fn flops(count: i64, extents: &[Dim]) -> Result<Dim, Stop> {
    Ok(product(extents)?.mul(&Dim::constant(count))?)
}

/// Makes the kernels and launches of the groups.
pub(crate) struct Lowering<'a> {
    pub(crate) state: &'a State,
    pub(crate) homes: &'a [Option<Home>],
    pub(crate) plan: &'a mut Plan,
    kernels: HashMap<Kernel, KernelId>,
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(state: &'a State, homes: &'a [Option<Home>], plan: &'a mut Plan) -> Lowering<'a> {
        Lowering { state, homes, plan, kernels: HashMap::new() }
    }
}

impl Lowering<'_> {
    /// Adds the launches of a group.
    pub(crate) fn group(&mut self, group: &Group) -> Result<(), Stop> {
        match &group.kind {
            Kind::Map => self.map(group),
            Kind::Pieces(concat) => self.pieces(group, *concat),
            Kind::Rows(_) => self.rows(group),
            Kind::Anchor(node) => {
                let data = self.state.graph.node(*node);
                match &data.op {
                    Op::Attention { .. } => self.attention(group, *node, data),
                    Op::AttentionGrad { .. } => self.attention_grad(group, *node, data),
                    Op::ExpertChoice { .. } => self.expert_choice(group, *node, data),
                    Op::InvertIndex { .. } => self.invert_index(group, data),
                    Op::SegmentSum => self.segment_sum(group, data),
                    _ => self.contraction(group, data),
                }
            }
        }
    }

    pub(super) fn launch(
        &mut self,
        anchor: Anchor,
        arguments: Arguments,
        flops: Dim,
        stage: Rate,
        value: Value,
    ) -> Result<(), Stop> {
        let scope = self.state.def(value).and_then(|(_, data)| data.scope.as_ref()).map(ToString::to_string);
        let mut bytes = Dim::constant(0);
        for operand in &arguments.bytes {
            bytes = bytes.add(operand)?;
        }
        let size_args = arguments.sizes.len() as u32;
        let kernel = Kernel { operands: arguments.operands, size_args, anchor };
        let plan = &mut *self.plan;
        let kernel = *self.kernels.entry(kernel).or_insert_with_key(|kernel| {
            plan.kernels.push(kernel.clone());
            KernelId(plan.kernels.len() as u32 - 1)
        });
        let (operands, sizes) = (arguments.buffers, arguments.sizes);
        self.plan.launches.push(Launch { kernel, stage, operands, sizes, flops, bytes, scope });
        Ok(())
    }

    /// The stores of the group's values that are stored, per point or per row, over axes of these extents.
    pub(super) fn stores(
        &self,
        group: &Group,
        arguments: &mut Arguments,
        extents: &[Dim],
        per_row: bool,
    ) -> Result<ScalarFunction, Stop> {
        let mut emitter = Emitter::new(self.state, self.homes, group, arguments, extents);
        let mut missing = Missing::default();
        let of_side = |value: &Value| group.sides.iter().any(|side| side.owned.contains(value));
        for value in group.owned.iter().filter(|value| !of_side(value)) {
            if !self.state.stored[value.index()] || self.state.written_whole(*value) {
                continue;
            }
            let shape = &self.state.graph.ty(*value).shape;
            match group.placements(shape)? {
                Some((maps, of_row)) if of_row == per_row => {
                    missing.part(emitter.store(*value, &maps))?;
                }
                _ => {}
            }
        }
        missing.check()?;
        Ok(emitter.function)
    }

    /// A function that computes an operand in `dtype`.
    pub(super) fn operand(
        &self,
        group: &Group,
        arguments: &mut Arguments,
        extents: &[Dim],
        form: Form,
        value: Value,
        map: &[Coord],
    ) -> Result<ScalarFunction, Stop> {
        let mut emitter = Emitter::new(self.state, self.homes, group, arguments, extents);
        emitter.form = form;
        emitter.results = false;
        let step = emitter.value(value, map)?;
        let dtype = self.state.graph.ty(value).dtype;
        Ok(emitter.finish(step, dtype, dtype))
    }

    /// The operand bound to a value that fills its buffer.
    fn dense(&self, arguments: &mut Arguments, value: Value, mode: OperandMode) -> Result<u32, Stop> {
        let source = self.state.reshaped(value);
        let home = self.homes[source.index()].as_ref().filter(|home| home.dense).ok_or(Stop::store(value))?;
        Ok(arguments.operand(home.buffer, home.dtype, mode))
    }

    fn map(&mut self, group: &Group) -> Result<(), Stop> {
        let extents = &group.space.extents;
        let mut arguments = Arguments::default();
        let space: Vec<Size> = extents.iter().map(|extent| arguments.size(extent)).collect();
        let function = self.stores(group, &mut arguments, extents, false)?;
        let flops = flops(operations(&function), extents)?;
        self.launch(Anchor::Map(MapAnchor { space, function }), arguments, flops, group.rate, group.owned[0])
    }

    fn pieces(&mut self, group: &Group, concat: Value) -> Result<(), Stop> {
        let home = self.homes[concat.index()].clone().ok_or(Stop::store(concat))?;
        let Some((_, data)) = self.state.def(concat) else { return Err(Stop::store(concat)) };
        let Op::Concat { axis } = data.op else { return Err(Stop::store(concat)) };
        let mut start = Dim::constant(0);
        let mut missing = Missing::default();
        for piece in &data.operands {
            let extents = self.state.graph.ty(*piece).shape.clone();
            let offset = home.offset.add(&start.mul(&home.strides[axis])?)?;
            start = start.add(&extents[axis])?;
            let written_there = |known: &Home| known.buffer == home.buffer;
            if self.homes[piece.index()].as_ref().is_some_and(written_there) {
                continue;
            }
            let target = Home { offset, dense: false, ..home.clone() };
            let mut arguments = Arguments::default();
            let space: Vec<Size> = extents.iter().map(|extent| arguments.size(extent)).collect();
            let mut emitter = Emitter::new(self.state, self.homes, group, &mut arguments, &extents);
            emitter.results = false;
            let map = identity(&extents);
            let Some(step) = missing.part(emitter.value(*piece, &map))? else { continue };
            emitter.store_at(step, &target, &map, concat)?;
            let function = emitter.function;
            let flops = flops(operations(&function), &extents)?;
            self.launch(Anchor::Map(MapAnchor { space, function }), arguments, flops, group.rate, concat)?;
        }
        missing.check()
    }

    /// A launch that copies a stored value, or a view of one, to an output.
    pub(crate) fn copy(&mut self, group: &Group, value: Value, target: &Home) -> Result<(), Stop> {
        let extents = self.state.graph.ty(value).shape.clone();
        let mut arguments = Arguments::default();
        let space: Vec<Size> = extents.iter().map(|extent| arguments.size(extent)).collect();
        let mut emitter = Emitter::new(self.state, self.homes, group, &mut arguments, &extents);
        emitter.results = false;
        let map = identity(&extents);
        let step = emitter.value(value, &map)?;
        emitter.store_at(step, target, &map, value)?;
        let function = emitter.function;
        let anchor = Anchor::Map(MapAnchor { space, function });
        self.launch(anchor, arguments, Dim::constant(0), group.rate, value)
    }

    fn rows(&mut self, group: &Group) -> Result<(), Stop> {
        let Kind::Rows(sums) = &group.kind else { return Ok(()) };
        // Reductions are numbered phase by phase.
        let mut order: Vec<usize> = (0..sums.len()).collect();
        order.sort_by_key(|sum| sums[*sum].phase);
        let mut group = group.clone();
        for (_, _, number) in &mut group.accumulators {
            let position = order.iter().position(|sum| *sum == *number as usize);
            *number = position.unwrap_or_default() as u32;
        }
        let extents = group.space.extents.clone();
        let Some((columns, rows)) = extents.split_last() else { return Ok(()) };
        let mut arguments = Arguments::default();
        let row_sizes = rows.iter().map(|extent| arguments.size(extent)).collect();
        let column_size = arguments.size(columns);
        let mut per_element = 0;
        let mut phases: Vec<Phase> = Vec::new();
        for phase in 0..=sums.iter().map(|sum| sum.phase).max().unwrap_or_default() {
            let mut emitter = Emitter::new(self.state, self.homes, &group, &mut arguments, &extents);
            let mut reductions = Vec::new();
            for sum in order.iter().map(|sum| &sums[*sum]).filter(|sum| sum.phase == phase) {
                let data = self.state.graph.node(sum.node);
                let (op, combine) = match data.op {
                    Op::ReduceMax { .. } => (ReductionOp::Max, ScalarOp::Max),
                    _ => (ReductionOp::Sum, ScalarOp::Add),
                };
                let mut total = None;
                for map in &sum.maps {
                    let mut step = emitter.value(data.operands[0], map)?;
                    if self.state.graph.ty(data.operands[0]).dtype != DType::F32 {
                        step = emitter.push(Step::Apply { op: ScalarOp::Cast(DType::F32), args: vec![step] });
                    }
                    total = Some(match total {
                        None => step,
                        Some(total) => emitter.push(Step::Apply { op: combine, args: vec![total, step] }),
                    });
                }
                if let Some(value) = total {
                    reductions.push(Reduction { op, value });
                }
            }
            per_element += operations(&emitter.function) + reductions.len() as i64;
            phases.push(Phase { function: emitter.function, reductions });
        }
        let row = self.stores(&group, &mut arguments, rows, true)?;
        let element = self.stores(&group, &mut arguments, &extents, false)?;
        let flops =
            flops(per_element + operations(&element), &extents)?.add(&flops(operations(&row), rows)?)?;
        let anchor = RowReduction { rows: row_sizes, columns: column_size, phases, row, element };
        self.launch(Anchor::RowReduction(anchor), arguments, flops, group.rate, group.owned[0])
    }

    fn contraction(&mut self, group: &Group, data: &NodeData) -> Result<(), Stop> {
        let graph = &self.state.graph;
        let (a, b) = (data.operands[0], data.operands[1]);
        let (a_shape, b_shape) = (&graph.ty(a).shape, &graph.ty(b).shape);
        let extents = group.space.extents.clone();
        // Kernel axes: batch, rows, column. Coordinates of the factors over batch, rows, k and over batch, k, column.
        let (batch, transpose_a, transpose_b) = match data.op {
            Op::GroupedMatmul { transpose_b } => (1, false, transpose_b),
            Op::Matmul { transpose_a, transpose_b } => {
                (b_shape.len().saturating_sub(2), transpose_a, transpose_b)
            }
            _ => (0, false, false),
        };
        let outer = extents.len() - 1;
        let b_rank = b_shape.len();
        let depth = b_shape[if transpose_b { b_rank - 1 } else { b_rank - 2 }].clone();
        let mut a_extents = extents[..outer].to_vec();
        a_extents.push(depth.clone());
        let mut a_map = identity(&a_extents);
        if let Op::GroupedMatmul { .. } = data.op {
            a_map.swap(0, 1);
        }
        if transpose_a {
            a_map.swap(a_shape.len() - 2, a_shape.len() - 1);
        }
        let all_columns = b_shape[if transpose_b { b_rank - 2 } else { b_rank - 1 }].clone();
        let mut b_extents = extents[..batch].to_vec();
        b_extents.extend([depth.clone(), all_columns.clone()]);
        let mut b_map = identity(&b_extents);
        if transpose_b {
            b_map.swap(b_rank - 2, b_rank - 1);
        }
        let mut arguments = Arguments::default();
        let batch_sizes = extents[..batch].iter().map(|extent| arguments.size(extent)).collect();
        let row_sizes = extents[batch..outer].iter().map(|extent| arguments.size(extent)).collect();
        let columns = arguments.size(&extents[outer]);
        let depth_size = arguments.size(&depth);
        let a_function = self.operand(group, &mut arguments, &a_extents, Form::Cast, a, &a_map)?;
        let b_function = self.operand(group, &mut arguments, &b_extents, Form::Packed, b, &b_map)?;
        let epilogue = self.stores(group, &mut arguments, &extents, false)?;
        let one_matrix = group.space.unrolled == 1 && outer == batch + 1;
        let symmetric = one_matrix && self.state.symmetry.is_symmetric(data.results[0]);
        // Of a symmetric product one half is computed.
        let operations_each = Dim::constant(if symmetric { 1 } else { 2 });
        let product_flops =
            product(&extents[..outer])?.mul(&all_columns)?.mul(&depth)?.mul(&operations_each)?;
        let flops = product_flops.add(&flops(operations(&epilogue), &extents)?)?;
        let contraction = Contraction {
            batch: batch_sizes,
            rows: row_sizes,
            depth: depth_size,
            a: a_function,
            dtype: graph.ty(a).dtype,
            tile: None,
            parts: vec![Part {
                columns,
                segments: group.space.unrolled as u32,
                interleaved: false,
                symmetric,
                b: b_function,
                groups: None,
                epilogue,
            }],
        };
        let anchor = match data.op {
            Op::GroupedMatmul { .. } => Anchor::GroupedMatmul(contraction),
            _ => Anchor::Matmul(contraction),
        };
        self.launch(anchor, arguments, flops, group.rate, data.results[0])
    }

    fn expert_choice(&mut self, group: &Group, node: Node, data: &NodeData) -> Result<(), Stop> {
        let Op::ExpertChoice { capacity } = &data.op else { return Ok(()) };
        let extents = self.state.graph.ty(data.operands[0]).shape.clone();
        let mut arguments = Arguments::default();
        let sizes: Vec<Size> = extents.iter().map(|extent| arguments.size(extent)).collect();
        let capacity = arguments.size(capacity);
        let map = identity(&extents);
        let affinity = self.operand(group, &mut arguments, &extents, Form::Any, data.operands[0], &map)?;
        let slot_token = self.write(&mut arguments, data.results[0])?;
        let inverse = match self.state.inverse(node) {
            Some(inverse) => {
                let lists = &self.state.graph.node(inverse).results;
                let offsets = self.write(&mut arguments, lists[0])?;
                Some(InverseMap { offsets, positions: self.write(&mut arguments, lists[1])? })
            }
            None => None,
        };
        let slots = self.state.graph.ty(data.results[1]).shape.clone();
        let epilogue = self.stores(group, &mut arguments, &slots, false)?;
        let sums = i64::from(epilogue.steps.contains(&Step::Accumulator(1)));
        let flops =
            flops(1 + operations(&affinity), &extents)?.add(&flops(sums + operations(&epilogue), &slots)?)?;
        let choice = ExpertChoice {
            batch: sizes[0],
            tokens: sizes[1],
            experts: sizes[2],
            capacity,
            affinity,
            slot_token,
            inverse,
            epilogue,
        };
        self.launch(Anchor::ExpertChoice(choice), arguments, flops, group.rate, data.results[0])
    }

    /// The operand that receives all of a value, its bytes counted.
    fn write(&self, arguments: &mut Arguments, value: Value) -> Result<u32, Stop> {
        let operand = self.dense(arguments, value, OperandMode::Write)?;
        self.count(arguments, operand, value)?;
        Ok(operand)
    }

    fn read(&self, arguments: &mut Arguments, value: Value) -> Result<u32, Stop> {
        let operand = self.dense(arguments, value, OperandMode::Read)?;
        self.count(arguments, operand, value)?;
        Ok(operand)
    }

    fn count(&self, arguments: &mut Arguments, operand: u32, value: Value) -> Result<(), Stop> {
        let bytes = &mut arguments.bytes[operand as usize];
        *bytes = bytes.add(&self.state.graph.ty(value).bytes()?)?;
        Ok(())
    }

    fn invert_index(&mut self, group: &Group, data: &NodeData) -> Result<(), Stop> {
        let Op::InvertIndex { size } = &data.op else { return Ok(()) };
        let shape = self.state.graph.ty(data.results[1]).shape.clone();
        let mut arguments = Arguments::default();
        let batch = arguments.size(&shape[0]);
        let positions = arguments.size(&shape[1]);
        let targets = arguments.size(size);
        let index = self.read(&mut arguments, data.operands[0])?;
        let offsets_out = self.write(&mut arguments, data.results[0])?;
        let positions_out = self.write(&mut arguments, data.results[1])?;
        let anchor = InvertIndex { batch, positions, targets, index, offsets_out, positions_out };
        let none = Dim::constant(0);
        self.launch(Anchor::InvertIndex(anchor), arguments, none, group.rate, data.results[0])
    }

    fn segment_sum(&mut self, group: &Group, data: &NodeData) -> Result<(), Stop> {
        let graph = &self.state.graph;
        let extents = group.space.extents.clone();
        let (base, updates) = (data.operands[0], data.operands[3]);
        let position_count = graph.ty(data.operands[2]).shape[1].clone();
        let mut arguments = Arguments::default();
        let batch = arguments.size(&extents[0]);
        let targets = arguments.size(&extents[1]);
        let rest = extents[2..].iter().map(|extent| arguments.size(extent)).collect();
        let positions_size = arguments.size(&position_count);
        let offsets = self.read(&mut arguments, data.operands[1])?;
        let positions = self.read(&mut arguments, data.operands[2])?;
        let dtype = graph.ty(base).dtype;
        let mut emitter = Emitter::new(self.state, self.homes, group, &mut arguments, &extents);
        emitter.results = false;
        let step = emitter.value(base, &identity(&extents))?;
        let base_function = emitter.finish(step, dtype, DType::F32);

        let shape = &graph.ty(updates).shape;
        let index_axes = shape.len() + 1 - extents.len();
        let mut update_extents = shape.clone();
        let mut map = identity(shape);
        if index_axes == 0 {
            // One position per batch item: an axis of one point stands for it.
            update_extents.insert(1, Dim::constant(1));
            map = identity(&update_extents);
            map.remove(1);
        }
        let mut emitter = Emitter::new(self.state, self.homes, group, &mut arguments, &update_extents);
        emitter.results = false;
        emitter.merged = (index_axes > 1).then_some((1, index_axes));
        let step = match emitter.value(updates, &map) {
            // Stored, but not so that the index axes are one: the updates are copied.
            Err(Stop::Store(values)) if values.iter().all(|value| self.state.stored[value.index()]) => {
                return Err(Stop::store(updates));
            }
            other => other?,
        };
        let update = emitter.finish(step, dtype, DType::F32);
        let epilogue = self.stores(group, &mut arguments, &extents, false)?;
        let added = flops(1 + operations(&update), shape)?;
        let flops = added.add(&flops(operations(&base_function) + operations(&epilogue), &extents)?)?;
        let anchor = SegmentSum {
            batch,
            targets,
            rest,
            offsets,
            positions,
            position_count: positions_size,
            base: base_function,
            update,
            epilogue,
        };
        self.launch(Anchor::SegmentSum(anchor), arguments, flops, group.rate, data.results[0])
    }
}
