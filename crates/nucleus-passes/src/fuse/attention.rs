//! Attention and its gradients: keys that are read piece by piece, gradients that are finished piece by piece.
//!
//! The kernel of the gradients has an epilogue for the queries, and for each key segment one for the keys and one for the values: each
//! over a space of its own, in which what follows from the gradient there can be computed. These *sides* of the group grow one after
//! the other, as groups do; a value joins where it can be computed from one gradient at one segment, so that slices of the gradients, what a
//! concatenation of keys leads to, are written by the kernel in the form that their consumers want.

use nucleus_ir::graph::{Node, NodeData, Value};
use nucleus_ir::{DType, Dim, Op, dim::product};
use nucleus_plan::{Anchor, Attention, AttentionGrad, GradSegment, KeySegment, ScalarFunction, Step};

use super::affine::Map;
use super::emit::{Arguments, Emitter, Form, Missing, Stop};
use super::group::{Group, Kind};
use super::lower::{Lowering, flops, identity, operations};
use super::space::Space;
use super::state::State;
use crate::error::PassError;

/// The extents of a key segment and its coordinates among all keys.
struct Segment {
    extents: Vec<Dim>,
    map: Map,
}

impl State {
    /// The group of the gradients of attention.
    pub(crate) fn form_attention_grad(&mut self, node: Node) -> Result<(), PassError> {
        let results = self.graph.node(node).results.clone();
        let [dq, dk, dv] = results[..] else { return Ok(()) };
        let rate = self.rate(dq);
        let shape = self.graph.ty(dq).shape.clone();
        let side = |result: Value, extents: &[Dim], map: Map| {
            let mut side = Group::new(Kind::Anchor(node), Space::direct(extents), rate, &[result]);
            side.accumulators.push((result, map, 0));
            side
        };
        let mut owned = results;
        let mut group = side(dq, &shape, identity(&shape));
        self.extend(&mut group, &owned)?;
        owned.extend(&group.owned[1..]);
        for segment in self.segments_of_keys(node)? {
            for result in [dk, dv] {
                let mut side = side(result, &segment.extents, segment.map.clone());
                self.extend(&mut side, &owned)?;
                owned.extend(&side.owned[1..]);
                group.sides.push(side);
            }
        }
        group.owned = owned;
        self.add(group);
        Ok(())
    }

    fn segments_of_keys(&self, node: Node) -> Result<Vec<Segment>, PassError> {
        let shape = &self.graph.ty(self.graph.node(node).operands[1]).shape;
        let mut start = Dim::constant(0);
        let mut segments = Vec::new();
        for length in self.key_segments(node) {
            let mut extents = shape.clone();
            extents[1] = length.clone();
            let mut map = identity(&extents);
            map[1] = map[1].shifted(&start)?;
            start = start.add(&length)?;
            segments.push(Segment { extents, map });
        }
        Ok(segments)
    }
}

impl Lowering<'_> {
    pub(super) fn attention(&mut self, group: &Group, node: Node, data: &NodeData) -> Result<(), Stop> {
        let Op::Attention { scale } = data.op else { return Ok(()) };
        let graph = &self.state.graph;
        let (q, k) = (data.operands[0], data.operands[1]);
        let extents = graph.ty(q).shape.clone();
        let k_shape = graph.ty(k).shape.clone();
        let mut arguments = Arguments::default();
        let batch = arguments.size(&extents[0]);
        let queries = arguments.size(&extents[1]);
        let q_function = self.operand(group, &mut arguments, &extents, Form::Load, q, &identity(&extents))?;
        let mut segments = Vec::new();
        for segment in self.state.segments_of_keys(node)? {
            let mask = data.operands.get(3).copied();
            segments.push(self.key_segment(group, &mut arguments, &segment, data, mask)?);
        }
        let epilogue = self.stores(group, &mut arguments, &extents, false)?;
        let flops = product(&extents)?
            .mul(&k_shape[1])?
            .mul(&Dim::constant(4))?
            .add(&flops(operations(&epilogue), &extents)?)?;
        let attention = Attention {
            batch,
            queries,
            heads: constant(&extents[2]),
            key_heads: constant(&k_shape[2]),
            head_size: constant(&extents[3]),
            scale,
            dtype: graph.ty(q).dtype,
            q: q_function,
            segments,
            epilogue,
        };
        self.launch(Anchor::Attention(attention), arguments, flops, group.rate, data.results[0])
    }

    pub(super) fn attention_grad(&mut self, group: &Group, node: Node, data: &NodeData) -> Result<(), Stop> {
        let Op::AttentionGrad { scale } = data.op else { return Ok(()) };
        let graph = &self.state.graph;
        let (q, k, dy) = (data.operands[0], data.operands[1], data.operands[3]);
        let extents = graph.ty(q).shape.clone();
        let k_shape = graph.ty(k).shape.clone();
        let mut arguments = Arguments::default();
        let batch = arguments.size(&extents[0]);
        let queries = arguments.size(&extents[1]);
        let [q_function, dy_function] = [q, dy].map(|value| {
            self.operand(group, &mut arguments, &extents, Form::Load, value, &identity(&extents))
        });
        let mut total = product(&extents)?.mul(&k_shape[1])?.mul(&Dim::constant(10))?;
        let mut segments = Vec::new();
        for (segment, sides) in self.state.segments_of_keys(node)?.iter().zip(group.sides.chunks_exact(2)) {
            let mask = data.operands.get(4).copied();
            let keys = self.key_segment(group, &mut arguments, segment, data, mask)?;
            let [dk, dv] = [0, 1].map(|number| self.side(&sides[number], &mut arguments));
            let (dk, dv) = (dk?, dv?);
            total = total.add(&flops(operations(&dk) + operations(&dv), &segment.extents)?)?;
            segments.push(GradSegment { keys, dk, dv });
        }
        let dq = self.stores(group, &mut arguments, &extents, false)?;
        let grad = AttentionGrad {
            batch,
            queries,
            heads: constant(&extents[2]),
            key_heads: constant(&k_shape[2]),
            head_size: constant(&extents[3]),
            scale,
            dtype: graph.ty(q).dtype,
            q: q_function?,
            dy: dy_function?,
            segments,
            dq: dq.clone(),
        };
        let total = total.add(&flops(operations(&dq), &extents)?)?;
        self.launch(Anchor::AttentionGrad(grad), arguments, total, group.rate, data.results[0])
    }

    /// Keys, values and mask of a segment.
    fn key_segment(
        &self,
        group: &Group,
        arguments: &mut Arguments,
        Segment { extents, map }: &Segment,
        data: &NodeData,
        mask: Option<Value>,
    ) -> Result<KeySegment, Stop> {
        let k = self.operand(group, arguments, extents, Form::Load, data.operands[1], map)?;
        let v = self.operand(group, arguments, extents, Form::Load, data.operands[2], map)?;
        let mask = match mask {
            None => None,
            Some(mask) => {
                let function = self.operand(group, arguments, &extents[..2], Form::Any, mask, &map[..2])?;
                (!always_true(&function)).then_some(function)
            }
        };
        Ok(KeySegment { length: arguments.size(&extents[1]), k, v, mask })
    }

    /// The stores of a side: of the gradient at its segment, and of what joined it.
    fn side(&self, side: &Group, arguments: &mut Arguments) -> Result<ScalarFunction, Stop> {
        let mut emitter = Emitter::new(self.state, self.homes, side, arguments, &side.space.extents);
        let mut missing = Missing::default();
        for value in side.owned.iter().filter(|value| self.state.stored[value.index()]) {
            let gradient = side.accumulators.iter().find(|(result, _, _)| result == value);
            let maps = match gradient {
                Some((_, map, _)) => Some(vec![map.clone()]),
                None => side.placements(&self.state.graph.ty(*value).shape)?.map(|(maps, _)| maps),
            };
            if let Some(maps) = maps {
                missing.part(emitter.store(*value, &maps))?;
            }
        }
        missing.check()?;
        Ok(emitter.function)
    }
}

fn constant(dim: &Dim) -> u32 {
    dim.as_constant().unwrap_or_default() as u32
}

/// True for a mask that leaves nothing out.
fn always_true(function: &ScalarFunction) -> bool {
    match function.result.map(|step| &function.steps[step.0 as usize]) {
        Some(Step::Constant { value, dtype: DType::Bool }) => value.0 == 1.0,
        _ => false,
    }
}
