//! Values from nothing, and ops element by element.

use super::RANK;
use super::generator::{Generator, batch, text, tokens};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::float::Float;
use crate::graph::Value;
use crate::ops::Op;

impl Generator<'_> {
    pub(super) fn source(&mut self) -> Option<()> {
        let value = f64::from(self.byte() % 16) / 4.0 - 1.0;
        let op = match self.below(5) {
            0 => Op::Constant { value: Float(value), dtype: DType::F32 },
            1 => Op::Constant { value: Float(value.trunc()), dtype: DType::I32 },
            2 => Op::Constant { value: Float(1.0), dtype: DType::Bool },
            3 => Op::Size { dim: [tokens(), text(), Dim::constant(5)][self.below(3)].clone() },
            _ => {
                let shape = match self.below(3) {
                    0 => vec![tokens()],
                    1 => vec![Dim::symbol("H"), Dim::symbol("W")],
                    _ => vec![batch(), text(), Dim::constant(2)],
                };
                let axis = self.below(shape.len());
                Op::Iota { shape, axis }
            }
        };
        self.add(op, &[]).map(|_| ())
    }

    /// tanh of a float tensor: a factor or argument that stays moderate.
    pub(super) fn bounded(&mut self, x: Value) -> Option<Value> {
        self.add(Op::Tanh, &[x])
    }

    /// |x| + 1 of a tensor of numbers.
    pub(super) fn above_one(&mut self, x: Value) -> Option<Value> {
        let ty = self.ty(x);
        let size = self.add(Op::Abs, &[x])?;
        let one = self.add(Op::Constant { value: Float(1.0), dtype: ty.dtype }, &[])?;
        let ones = self.add(Op::Broadcast { shape: ty.shape }, &[one])?;
        self.add(Op::Add, &[size, ones])
    }

    pub(super) fn unary(&mut self) -> Option<()> {
        let x = self.float(0..=RANK)?;
        match self.below(10) {
            0 => self.add(Op::Neg, &[x]),
            1 => self.add(Op::Abs, &[x]),
            2 => self.add(Op::Sigmoid, &[x]),
            3 => self.add(Op::Tanh, &[x]),
            4 => {
                let x = self.bounded(x)?;
                self.add(Op::Exp, &[x])
            }
            5 => {
                let x = self.bounded(x)?;
                self.add(Op::Sin, &[x])
            }
            6 => {
                let x = self.bounded(x)?;
                self.add(Op::Cos, &[x])
            }
            7 => {
                let x = self.above_one(x)?;
                self.add(Op::Log, &[x])
            }
            8 => {
                let x = self.above_one(x)?;
                self.add(Op::Sqrt, &[x])
            }
            _ => {
                let x = self.above_one(x)?;
                self.add(Op::Rsqrt, &[x])
            }
        }
        .map(|_| ())
    }

    pub(super) fn arithmetic(&mut self) -> Option<()> {
        let x = self.number()?;
        let y = self.same_type(x);
        match self.below(6) {
            0 => self.add(Op::Add, &[x, y]),
            1 => self.add(Op::Sub, &[x, y]),
            2 if self.graph.ty(y).dtype.is_float() => {
                let y = self.bounded(y)?;
                self.add(Op::Mul, &[x, y])
            }
            3 if self.graph.ty(y).dtype.is_float() => {
                let y = self.above_one(y)?;
                self.add(Op::Div, &[x, y])
            }
            2 => self.add(Op::Mul, &[x, y]),
            3 => self.add(Op::Div, &[x, y]),
            4 => self.add(Op::Max, &[x, y]),
            _ => self.add(Op::Min, &[x, y]),
        }
        .map(|_| ())
    }

    /// Two exact values of one type.
    pub(super) fn exact_pair(&mut self) -> Option<(Value, Value)> {
        let x = self.pick(|generator, value| generator.exact.contains(&value))?;
        let ty = self.ty(x);
        let y = self
            .pick(|generator, value| generator.exact.contains(&value) && *generator.graph.ty(value) == ty)?;
        Some((x, y))
    }

    pub(super) fn comparison(&mut self) -> Option<()> {
        let (x, y) = self.exact_pair()?;
        let op = [Op::Less, Op::LessEqual, Op::Equal][self.below(3)].clone();
        self.add(op, &[x, y]).map(|_| ())
    }

    pub(super) fn logic(&mut self) -> Option<()> {
        let x = self.of(|dtype| dtype == DType::Bool, 0..=RANK)?;
        let y = self.same_type(x);
        match self.below(3) {
            0 => self.add(Op::And, &[x, y]),
            1 => self.add(Op::Or, &[x, y]),
            _ => self.add(Op::Not, &[x]),
        }
        .map(|_| ())
    }

    pub(super) fn select(&mut self) -> Option<()> {
        let condition = self.of(|dtype| dtype == DType::Bool, 0..=RANK)?;
        let shape = self.ty(condition).shape;
        let y = self.pick(|generator, value| generator.graph.ty(value).shape == shape)?;
        let z = self.same_type(y);
        self.add(Op::Select, &[condition, y, z]).map(|_| ())
    }

    pub(super) fn cast(&mut self) -> Option<()> {
        let to = DType::COMPUTED[self.below(DType::COMPUTED.len())];
        let x = self.pick(|generator, value| to.is_float() || generator.exact.contains(&value))?;
        self.add(Op::Cast { to }, &[x]).map(|_| ())
    }

    pub(super) fn stop_gradient(&mut self) -> Option<()> {
        let x = self.of(|dtype| !dtype.is_float(), 0..=RANK)?;
        self.add(Op::StopGradient, &[x]).map(|_| ())
    }

    pub(super) fn after(&mut self) -> Option<()> {
        let x = self.of(|_| true, 0..=RANK)?;
        let event = self.of(|_| true, 0..=RANK)?;
        self.add(Op::After, &[x, event]).map(|_| ())
    }
}
