//! Choices of experts, and what goes through index maps.

use super::generator::{Generator, batch, tokens};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::float::Float;
use crate::graph::{Value, ValueDef};
use crate::ops::Op;
use crate::types::TensorType;

impl Generator<'_> {
    pub(super) fn expert_choice(&mut self) -> Option<()> {
        let affinity = self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            ty.dtype == DType::F32 && ty.rank() == 3 && generator.exact.contains(&value)
        })?;
        let rows = self.ty(affinity).shape[1].clone();
        let capacity = self.capacity(&rows)?;
        let results = self.nodes(Op::ExpertChoice { capacity }, &[affinity])?;
        self.indices.push((*results.first()?, rows));
        Some(())
    }

    /// How many of so many rows an expert takes.
    fn capacity(&mut self, rows: &Dim) -> Option<Dim> {
        let one = Dim::constant(1);
        match self.below(4) {
            0 => Some(one),
            1 => Some(rows.clone()),
            2 => rows.ceil_div(&Dim::constant(3)).ok(),
            _ => Dim::max(&one, &rows.ceil_scale(1.3, 4.0).ok()?).ok(),
        }
    }

    /// An index map into rows of a tensor of shape [batch, rows, …]: of experts where there is one, else the identity.
    pub(super) fn index(&mut self, data: &TensorType) -> Option<Value> {
        let fits = |(value, rows): &&(Value, Dim)| {
            *rows == data.shape[1] && self.graph.ty(*value).shape[0] == data.shape[0]
        };
        let known: Vec<Value> = self.indices.iter().filter(fits).map(|(value, _)| *value).collect();
        if !known.is_empty() && self.flag() {
            return Some(known[self.below(known.len())]);
        }
        let shape = data.shape[..2].to_vec();
        let identity = self.add(Op::Iota { shape, axis: 1 }, &[])?;
        self.indices.push((identity, data.shape[1].clone()));
        Some(identity)
    }

    pub(super) fn gather(&mut self) -> Option<()> {
        let data = self.of(|_| true, 2..=4)?;
        let ty = self.ty(data);
        let index = self.index(&ty)?;
        self.add(Op::Gather, &[data, index]).map(|_| ())
    }

    pub(super) fn scatter(&mut self) -> Option<()> {
        let base = self.float(2..=4)?;
        let ty = self.ty(base);
        let index = self.index(&ty)?;
        let rows = self.add(Op::Gather, &[base, index])?;
        let updates = self.bounded(rows)?;
        self.add(Op::ScatterAdd, &[base, index, updates]).map(|_| ())
    }

    pub(super) fn segments(&mut self) -> Option<()> {
        let base = self.float(2..=4)?;
        let ty = self.ty(base);
        let index = self.index(&ty)?;
        let rows = self.add(Op::Gather, &[base, index])?;
        let updates = self.bounded(rows)?;
        let inverse = self.nodes(Op::InvertIndex { size: ty.shape[1].clone() }, &[index])?;
        let [offsets, positions] = inverse.as_slice() else { return None };
        self.add(Op::SegmentSum, &[base, *offsets, *positions, updates]).map(|_| ())
    }

    /// A layer of experts that choose their tokens by the input `x`, and what its gates and weights learn from.
    pub(super) fn experts(&mut self) -> Option<()> {
        let (logits, _) = self.graph.values().find(|(_, data)| data.def == ValueDef::Input(0))?;
        let m = self.pick(|generator, value| {
            let (ty, like) = (generator.graph.ty(value), generator.graph.ty(logits));
            let features = || ty.shape[2].as_constant().is_some_and(|size| size > 0);
            ty.dtype.is_float() && ty.rank() == 3 && ty.shape[..2] == like.shape[..2] && features()
        })?;
        let experts = self.ty(logits).shape[2].clone();
        let affinity = if self.flag() { self.softmax(logits)? } else { self.add(Op::Sigmoid, &[logits])? };
        let capacity = self.capacity(&tokens())?;
        let [index, gates] = self.nodes(Op::ExpertChoice { capacity: capacity.clone() }, &[affinity])?[..]
        else {
            return None;
        };
        self.indices.push((index, tokens()));
        let (m, ty) = (self.bounded(m)?, self.ty(m));
        let (k, f) = (ty.shape[2].clone(), [1, 4, 6][self.below(3)]);
        let x = self.add(Op::Gather, &[m, index])?;
        let up = self.weight(ty.dtype, vec![experts.clone(), k.clone(), Dim::constant(2 * f)]);
        let h = self.add(Op::GroupedMatmul { transpose_b: false }, &[x, up])?;
        let half =
            |start: i64| Op::Slice { axis: 3, start: Dim::constant(start), end: Dim::constant(start + f) };
        let (value, gate) = (self.add(half(0), &[h])?, self.add(half(f), &[h])?);
        let sigmoid = self.add(Op::Sigmoid, &[gate])?;
        let silu = self.add(Op::Mul, &[gate, sigmoid])?;
        let h = self.add(Op::Mul, &[value, silu])?;
        let down = self.weight(ty.dtype, vec![experts.clone(), Dim::constant(f), k.clone()]);
        let y = self.add(Op::GroupedMatmul { transpose_b: false }, &[h, down])?;

        let column = vec![batch(), experts.clone(), capacity.clone(), Dim::constant(1)];
        let mut gates = self.add(Op::Reshape { shape: column }, &[gates])?;
        if self.flag() {
            gates = self.shares(gates, index)?;
        }
        let gates = self.add(Op::Cast { to: ty.dtype }, &[gates])?;
        let wide = Op::Broadcast { shape: vec![batch(), experts, capacity, k] };
        let gates = self.add(wide, &[gates])?;
        let y = self.add(Op::Mul, &[y, gates])?;
        self.add(Op::ScatterAdd, &[m, index, y]).map(|_| ())
    }

    /// Gates [B, E, C, 1] over the sum of the gates of their token.
    fn shares(&mut self, gates: Value, index: Value) -> Option<Value> {
        let zero = self.add(Op::Constant { value: Float(0.0), dtype: DType::F32 }, &[])?;
        let shape = vec![batch(), tokens(), Dim::constant(1)];
        let zeros = self.add(Op::Broadcast { shape }, &[zero])?;
        let sums = self.add(Op::ScatterAdd, &[zeros, index, gates])?;
        // A token that no expert took has the sum 0, and is not gathered.
        self.hidden.insert(sums);
        let sums = self.add(Op::Gather, &[sums, index])?;
        self.add(Op::Div, &[gates, sums])
    }

    /// Over the last axis of x [B, S, E].
    fn softmax(&mut self, x: Value) -> Option<Value> {
        let shape = self.ty(x).shape;
        let most = self.add(Op::ReduceMax { axis: 2, keep: true }, &[x])?;
        let most = self.add(Op::Broadcast { shape: shape.clone() }, &[most])?;
        let x = self.add(Op::Sub, &[x, most])?;
        let x = self.add(Op::Exp, &[x])?;
        let sum = self.add(Op::ReduceSum { axis: 2, keep: true }, &[x])?;
        let sum = self.add(Op::Broadcast { shape }, &[sum])?;
        self.add(Op::Div, &[x, sum])
    }
}
