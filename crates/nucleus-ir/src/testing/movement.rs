//! Ops that move elements.

use super::RANK;
use super::generator::{Generator, batch, text};
use crate::dim::Dim;
use crate::ops::Op;
use crate::types::TensorType;

impl Generator<'_> {
    pub(super) fn reshape(&mut self) -> Option<()> {
        let x = self.of(|_| true, 0..=RANK)?;
        let mut shape = self.ty(x).shape;
        match self.below(3) {
            0 if shape.len() >= 2 => {
                let at = self.below(shape.len() - 1);
                let merged = shape[at].mul(&shape[at + 1]).ok()?;
                shape[at] = merged;
                shape.remove(at + 1);
            }
            1 if !shape.is_empty() => {
                let at = self.below(shape.len());
                let half = shape[at].exact_div(&Dim::constant(2))?;
                shape[at] = half;
                shape.insert(at + 1, Dim::constant(2));
            }
            _ => {
                let at = self.below(shape.len() + 1);
                shape.insert(at, Dim::constant(1));
            }
        }
        self.add(Op::Reshape { shape }, &[x]).map(|_| ())
    }

    pub(super) fn transpose(&mut self) -> Option<()> {
        let x = self.of(|_| true, 1..=RANK)?;
        let mut axes: Vec<usize> = (0..self.ty(x).rank()).collect();
        let mut permutation = Vec::with_capacity(axes.len());
        while !axes.is_empty() {
            let next = self.below(axes.len());
            permutation.push(axes.remove(next));
        }
        self.add(Op::Transpose { permutation }, &[x]).map(|_| ())
    }

    pub(super) fn broadcast(&mut self) -> Option<()> {
        let x = self.of(|_| true, 0..=RANK - 2)?;
        let mut shape = self.ty(x).shape;
        let sizes = [Dim::constant(3), batch(), text()];
        for size in &mut shape {
            if size.is_constant(1) {
                *size = sizes[self.below(sizes.len())].clone();
            }
        }
        if self.flag() {
            shape.insert(0, sizes[self.below(sizes.len())].clone());
        }
        self.add(Op::Broadcast { shape }, &[x]).map(|_| ())
    }

    pub(super) fn slice(&mut self) -> Option<()> {
        let x = self.of(|_| true, 1..=RANK)?;
        let axis = self.below(self.ty(x).rank());
        let size = self.ty(x).shape[axis].clone();
        let middle = size.ceil_div(&Dim::constant(2)).ok()?;
        let (start, end) = match self.below(3) {
            0 => (Dim::constant(0), Dim::constant(1)),
            1 => (Dim::constant(0), middle),
            _ => (middle.sub(&Dim::constant(1)).ok()?, size),
        };
        self.add(Op::Slice { axis, start, end }, &[x]).map(|_| ())
    }

    pub(super) fn concat(&mut self) -> Option<()> {
        let x = self.of(|_| true, 1..=RANK)?;
        let axis = self.below(self.ty(x).rank());
        let ty = self.ty(x);
        let joins = |other: &TensorType| {
            other.dtype == ty.dtype
                && other.rank() == ty.rank()
                && (0..ty.rank()).all(|i| i == axis || other.shape[i] == ty.shape[i])
        };
        let y = self.pick(|generator, value| joins(generator.graph.ty(value)))?;
        let operands = if self.flag() { vec![x, y] } else { vec![y, x, y] };
        self.add(Op::Concat { axis }, &operands).map(|_| ())
    }
}
