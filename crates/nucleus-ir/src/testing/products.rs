//! Reductions, products, attention and its gradients.

use super::RANK;
use super::generator::{Generator, batch, text, tokens};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::float::Float;
use crate::ops::Op;
use crate::types::TensorType;

impl Generator<'_> {
    pub(super) fn reduce(&mut self) -> Option<()> {
        let x = self.of(|dtype| dtype != DType::Bool, 1..=RANK)?;
        let (axis, keep) = (self.below(self.ty(x).rank()), self.flag());
        let op = if self.flag() { Op::ReduceMax { axis, keep } } else { Op::ReduceSum { axis, keep } };
        self.add(op, &[x]).map(|_| ())
    }

    pub(super) fn matmul(&mut self) -> Option<()> {
        let a = self.float(2..=RANK)?;
        let (ty, transpose_b) = (self.ty(a), self.flag());
        let k = ty.shape[ty.rank() - 1].clone();
        if k.as_constant().is_some() && self.flag() {
            let n = Dim::constant([3, 8, 1][self.below(3)]);
            let shape = if transpose_b { vec![n, k] } else { vec![k, n] };
            let b = self.weight(ty.dtype, shape);
            return self.add(Op::Matmul { transpose_a: false, transpose_b }, &[a, b]).map(|_| ());
        }
        let b = self.same_type(a);
        let b = self.bounded(b)?;
        let transpose_a = !transpose_b;
        self.add(Op::Matmul { transpose_a, transpose_b }, &[a, b]).map(|_| ())
    }

    pub(super) fn grouped_matmul(&mut self) -> Option<()> {
        let x = self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            let constant = |axis: usize| ty.shape[axis].as_constant().is_some_and(|size| size > 0);
            ty.dtype.is_float()
                && ((ty.rank() == 4 && constant(1) && constant(3)) || (ty.rank() == 3 && constant(2)))
        })?;
        let ty = self.ty(x);
        let x = if ty.rank() == 4 {
            x
        } else {
            // Every group gets the same rows.
            let mut shape = ty.shape.clone();
            shape.insert(1, Dim::constant(1));
            let apart = self.add(Op::Reshape { shape: shape.clone() }, &[x])?;
            shape[1] = Dim::constant(3);
            self.add(Op::Broadcast { shape }, &[apart])?
        };
        let (ty, transpose_b) = (self.ty(x), self.flag());
        let (k, n) = (ty.shape[3].clone(), Dim::constant([4, 2][self.below(2)]));
        let shape =
            if transpose_b { vec![ty.shape[1].clone(), n, k] } else { vec![ty.shape[1].clone(), k, n] };
        let w = self.weight(ty.dtype, shape);
        self.add(Op::GroupedMatmul { transpose_b }, &[x, w]).map(|_| ())
    }

    pub(super) fn attention(&mut self) -> Option<()> {
        let head = |ty: &TensorType| ty.shape[2].as_constant().is_some_and(|size| size > 0 && size % 2 == 0);
        let x = self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            ty.dtype.is_float() && ty.rank() == 3 && head(ty)
        })?;
        let ty = self.ty(x);
        let context = self.pick(|generator, value| {
            let other = generator.graph.ty(value);
            other.dtype == ty.dtype
                && other.rank() == 3
                && other.shape[0] == ty.shape[0]
                && other.shape[2] == ty.shape[2]
        })?;
        let features = ty.shape[2].as_constant()?;
        let heads = if features % 4 == 0 && self.flag() { 4 } else { 2 };
        let d = Dim::constant(features / heads);
        let split = |ty: &TensorType, heads: i64| {
            vec![ty.shape[0].clone(), ty.shape[1].clone(), Dim::constant(heads), d.clone()]
        };
        let context_ty = self.ty(context);
        let q = self.add(Op::Reshape { shape: split(&ty, heads) }, &[x])?;
        let mut k = self.add(Op::Reshape { shape: split(&context_ty, heads) }, &[context])?;
        let key_heads = if self.flag() { 2 } else { heads };
        if key_heads < heads {
            let end = Dim::constant(key_heads);
            k = self.add(Op::Slice { axis: 2, start: Dim::constant(0), end }, &[k])?;
        }
        let v = self.bounded(k)?;
        let mut operands = vec![q, k, v];
        if self.flag() {
            let rows = &context_ty.shape[..2];
            let mask = self.pick(|generator, value| {
                let ty = generator.graph.ty(value);
                ty.dtype == DType::Bool && ty.shape == rows
            });
            operands.extend(mask);
        }
        self.add(Op::Attention { scale: Float(0.5) }, &operands).map(|_| ())
    }

    /// The gradients of an attention whose operands are products of sines over `iota`.
    pub(super) fn attention_grad(&mut self) -> Option<()> {
        let (heads, key_heads) = [(2, 2), (4, 2), (2, 1)][self.below(3)];
        let d = Dim::constant([2, 4, 8][self.below(3)]);
        let rows = [tokens(), text()];
        let (queries, keys) = (rows[self.below(2)].clone(), rows[self.below(2)].clone());
        let dtype = [DType::F32, DType::Bf16][self.below(2)];
        let mut operand = |rows: &Dim, heads: i64| {
            let shape = vec![batch(), rows.clone(), Dim::constant(heads), d.clone()];
            let axes = [1 + self.below(3), 1 + self.below(3)];
            let mut positions = |axis: usize| {
                let positions = self.add(Op::Iota { shape: shape.clone(), axis }, &[])?;
                self.add(Op::Cast { to: DType::F32 }, &[positions])
            };
            let (first, second) = (positions(axes[0])?, positions(axes[1])?);
            let (first, second) = (self.add(Op::Cos, &[first])?, self.add(Op::Sin, &[second])?);
            let product = self.add(Op::Mul, &[first, second])?;
            self.add(Op::Cast { to: dtype }, &[product])
        };
        let q = operand(&queries, heads)?;
        let k = operand(&keys, key_heads)?;
        let v = operand(&keys, key_heads)?;
        let dy = operand(&queries, heads)?;
        let mut operands = vec![q, k, v, dy];
        if self.flag() {
            let rows = [batch(), keys];
            let mask = self.pick(|generator, value| {
                let ty = generator.graph.ty(value);
                ty.dtype == DType::Bool && ty.shape == rows
            });
            operands.extend(mask);
        }
        for result in self.nodes(Op::AttentionGrad { scale: Float(0.5) }, &operands)? {
            self.hidden.insert(result);
            let stopped = self.add(Op::StopGradient, &[result])?;
            self.hidden.insert(stopped);
            // Where all keys are alike, or there is one, gradients cancel: what rounding leaves of them is small beside one, not beside nothing.
            let one = self.add(Op::Constant { value: Float(1.0), dtype: DType::F32 }, &[])?;
            let ones = self.add(Op::Broadcast { shape: self.ty(result).shape }, &[one])?;
            self.add(Op::Add, &[stopped, ones])?;
        }
        Some(())
    }
}
