//! Random well-typed graphs, for tests that compare what two parts of the system make of the same graph.
//!
//! A graph is a function of a string of bytes, so that a property-testing library can draw the bytes and shrink them:
//!
//! ```
//! use nucleus_ir::testing::random_graph;
//! let graph = random_graph(&[3, 141, 59, 26, 5, 35]);
//! assert_eq!(nucleus_ir::verify_graph::verify_graph(&graph), Ok(()));
//! ```
//!
//! Graphs use every op of the table and dims `B`, `H`, `W`, `T`; they run for every binding of the dims to sizes from 1, as
//! long as inputs of type `i32` hold small numbers. So that two ways of rounding give nearly the same answer,
//! - values stay moderate: factors and arguments of `exp` pass through `tanh`, divisors are at least 1;
//! - what decides (comparisons, conversions to `i32` or `bool`, `expert_choice`) looks only at inputs, constants and integers, which
//!   every implementation has exactly.
//!
//! So that finite differences are gradients, `stop_gradient` stands behind integers and booleans alone, and behind `attention_grad`, which has no
//! derivative and looks only at constants.

use std::collections::HashSet;
use std::sync::Arc;

use crate::dim::{Dim, Symbol};
use crate::dtype::DType;
use crate::float::Float;
use crate::graph::{Graph, Input, Output, Value, Weight};
use crate::ops::Op;
use crate::types::{Rate, TensorType};

/// The most nodes of a random graph; a step may add a few more.
const MAX_NODES: usize = 60;
/// The largest rank that steps build on.
const RANK: usize = 5;

/// The graph that these bytes choose. No bytes give the smallest graph.
pub fn random_graph(bytes: &[u8]) -> Graph {
    generated(Generator::new(bytes))
}

/// The same with what only training graphs have: weights per step, `stop_gradient`, `after` and `attention_grad`.
pub fn random_training_graph(bytes: &[u8]) -> Graph {
    generated(Generator { training: true, ..Generator::new(bytes) })
}

/// Σ over the float outputs of Σ cotangent · output, put in front of the outputs as `loss`; cotangents are inputs `cotangent.<name>`, by default 1.
/// `None` where an output has more elements than a size can say.
pub fn with_loss(mut graph: Graph) -> Option<Graph> {
    let mut loss = graph.add(Op::Constant { value: Float(0.0), dtype: DType::F32 }, &[], None).ok()?;
    for output in graph.outputs.clone() {
        let ty = graph.ty(output.value).clone();
        if !ty.dtype.is_float() {
            continue;
        }
        let name = format!("cotangent.{}", output.name);
        let ty = TensorType::new(DType::F32, ty.shape);
        let count = ty.elements().ok()?;
        let cotangent =
            graph.add_input(Input { name, ty: ty.clone(), rate: Rate::Step, default: Some(Float(1.0)) });
        let mut add = |op, operands: &[Value]| graph.add(op, operands, None).ok();
        let wide = add(Op::Cast { to: DType::F32 }, &[output.value])?;
        let product = add(Op::Mul, &[wide, cotangent])?;
        let flat = add(Op::Reshape { shape: vec![count] }, &[product])?;
        let sum = add(Op::ReduceSum { axis: 0, keep: false }, &[flat])?;
        loss = add(Op::Add, &[loss, sum])?;
    }
    graph.outputs.insert(0, Output { name: "loss".to_owned(), value: loss });
    Some(graph)
}

fn generated(mut generator: Generator<'_>) -> Graph {
    while !generator.bytes.is_empty() && generator.graph.node_count() < MAX_NODES {
        generator.step();
    }
    generator.finish()
}

struct Generator<'a> {
    bytes: &'a [u8],
    graph: Graph,
    /// Values that every implementation computes without rounding.
    exact: HashSet<Value>,
    /// Values that no later step uses.
    hidden: HashSet<Value>,
    /// Weights may change at every step, and the ops of training graphs occur.
    training: bool,
    /// Index maps i32[B, i…] with the number of rows that they may point into.
    indices: Vec<(Value, Dim)>,
    scope: Option<Arc<str>>,
}

impl<'a> Generator<'a> {
    fn new(bytes: &'a [u8]) -> Generator<'a> {
        let dims = ["B", "H", "W", "T"].map(Symbol::new).to_vec();
        let graph = Graph::new("random", dims);
        let mut generator = Generator {
            bytes,
            graph,
            exact: HashSet::new(),
            hidden: HashSet::new(),
            training: false,
            indices: Vec::new(),
            scope: None,
        };
        let features = Dim::constant([4, 8, 6, 2][generator.below(4)]);
        generator.input("x", DType::F32, vec![batch(), tokens(), features.clone()], Rate::Step, None);
        generator.input("text", DType::F32, vec![batch(), text(), features], Rate::Prompt, None);
        generator.input("mask", DType::Bool, vec![batch(), text()], Rate::Prompt, Some(1.0));
        generator.input("time", DType::Bf16, vec![batch()], Rate::Step, None);
        generator.input("count", DType::I32, vec![text(), Dim::constant(3)], Rate::Model, Some(2.0));
        generator
    }

    fn input(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, rate: Rate, default: Option<f64>) {
        let ty = TensorType::new(dtype, shape);
        let value =
            self.graph.add_input(Input { name: name.to_owned(), ty, rate, default: default.map(Float) });
        self.exact.insert(value);
    }

    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => 0,
        }
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// The last results and every input are likelier than what lies between.
    fn pick(&mut self, accept: impl Fn(&Generator<'_>, Value) -> bool) -> Option<Value> {
        let seen = |value: &Value| !self.hidden.contains(value) && accept(self, *value);
        let all: Vec<Value> = self.graph.values().map(|(value, _)| value).filter(seen).collect();
        if all.is_empty() {
            return None;
        }
        let back = self.below(all.len().min(12));
        Some(all[all.len() - 1 - back])
    }

    fn of(&mut self, dtype: impl Fn(DType) -> bool, rank: std::ops::RangeInclusive<usize>) -> Option<Value> {
        self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            dtype(ty.dtype) && rank.contains(&ty.rank())
        })
    }

    fn number(&mut self) -> Option<Value> {
        self.of(|dtype| dtype != DType::Bool, 0..=RANK)
    }

    fn float(&mut self, rank: std::ops::RangeInclusive<usize>) -> Option<Value> {
        self.of(DType::is_float, rank)
    }

    fn same_type(&mut self, like: Value) -> Value {
        let ty = self.graph.ty(like).clone();
        self.pick(|generator, value| *generator.graph.ty(value) == ty).unwrap_or(like)
    }

    fn ty(&self, value: Value) -> TensorType {
        self.graph.ty(value).clone()
    }

    /// Applies an op that was built to fit; a step gives up where it does not.
    fn nodes(&mut self, op: Op, operands: &[Value]) -> Option<Vec<Value>> {
        let rounds = matches!(op, Op::Matmul { .. } | Op::GroupedMatmul { .. } | Op::Attention { .. })
            || matches!(op, Op::AttentionGrad { .. })
            || matches!(op, Op::ReduceSum { .. } | Op::ScatterAdd | Op::SegmentSum)
            || matches!(op, Op::Cast { to } if to.is_float())
            || matches!(op.scalar(), Some(scalar) if scalar.result(&[DType::F32]) == Some(DType::F32))
            || matches!(op, Op::Add | Op::Sub | Op::Mul | Op::Div);
        let exact = operands.iter().all(|operand| self.exact.contains(operand));
        let node = self.graph.add_node(op, operands, self.scope.clone()).ok()?;
        let results = self.graph.node(node).results.clone();
        for result in &results {
            if exact && (!rounds || self.graph.ty(*result).dtype == DType::I32) {
                self.exact.insert(*result);
            }
        }
        Some(results)
    }

    fn add(&mut self, op: Op, operands: &[Value]) -> Option<Value> {
        self.nodes(op, operands)?.first().copied()
    }

    fn weight(&mut self, dtype: DType, shape: Vec<Dim>) -> Value {
        let name = format!("layer.{}.weight", self.graph.weights.len());
        let mut weight = Weight::new(name, TensorType::new(dtype, shape));
        if self.training && self.flag() {
            weight.rate = Rate::Step;
        }
        let value = self.graph.add_weight(weight);
        self.exact.insert(value);
        value
    }

    fn finish(mut self) -> Graph {
        if self.graph.node_count() == 0 {
            // A graph of inputs alone has nothing to compare.
            self.source();
        }
        let mut values: Vec<Value> =
            self.graph.nodes().flat_map(|(_, node)| node.results.iter().copied()).collect();
        let unused: Vec<bool> = self.graph.uses().iter().map(Vec::is_empty).collect();
        values.retain(|value| unused[value.index()]);
        let keep = values.len().saturating_sub(4);
        for (index, value) in values.into_iter().skip(keep).enumerate() {
            self.graph.outputs.push(Output { name: format!("y{index}"), value });
        }
        self.graph
    }

    fn step(&mut self) -> Option<()> {
        let scopes = [None, Some("block"), Some("block.attn"), None];
        self.scope = scopes[self.below(4)].map(Arc::from);
        match self.below(if self.training { 27 } else { 24 }) {
            0 => self.source(),
            1 => self.unary(),
            2..=4 => self.arithmetic(),
            5 => self.comparison(),
            6 => self.logic(),
            7 => self.select(),
            8 => self.cast(),
            9 | 10 => self.reshape(),
            11 => self.transpose(),
            12 => self.broadcast(),
            13 => self.slice(),
            14 => self.concat(),
            15 => self.reduce(),
            16 | 17 => self.matmul(),
            18 => self.grouped_matmul(),
            19 => self.attention(),
            20 => self.expert_choice(),
            21 => self.gather(),
            22 => self.scatter(),
            23 => self.segments(),
            24 => self.stop_gradient(),
            25 => self.after(),
            _ => self.attention_grad(),
        }
    }

    fn source(&mut self) -> Option<()> {
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
    fn bounded(&mut self, x: Value) -> Option<Value> {
        self.add(Op::Tanh, &[x])
    }

    /// |x| + 1 of a tensor of numbers.
    fn above_one(&mut self, x: Value) -> Option<Value> {
        let ty = self.ty(x);
        let size = self.add(Op::Abs, &[x])?;
        let one = self.add(Op::Constant { value: Float(1.0), dtype: ty.dtype }, &[])?;
        let ones = self.add(Op::Broadcast { shape: ty.shape }, &[one])?;
        self.add(Op::Add, &[size, ones])
    }

    fn unary(&mut self) -> Option<()> {
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

    fn arithmetic(&mut self) -> Option<()> {
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
    fn exact_pair(&mut self) -> Option<(Value, Value)> {
        let x = self.pick(|generator, value| generator.exact.contains(&value))?;
        let ty = self.ty(x);
        let y = self
            .pick(|generator, value| generator.exact.contains(&value) && *generator.graph.ty(value) == ty)?;
        Some((x, y))
    }

    fn comparison(&mut self) -> Option<()> {
        let (x, y) = self.exact_pair()?;
        let op = [Op::Less, Op::LessEqual, Op::Equal][self.below(3)].clone();
        self.add(op, &[x, y]).map(|_| ())
    }

    fn logic(&mut self) -> Option<()> {
        let x = self.of(|dtype| dtype == DType::Bool, 0..=RANK)?;
        let y = self.same_type(x);
        match self.below(3) {
            0 => self.add(Op::And, &[x, y]),
            1 => self.add(Op::Or, &[x, y]),
            _ => self.add(Op::Not, &[x]),
        }
        .map(|_| ())
    }

    fn select(&mut self) -> Option<()> {
        let condition = self.of(|dtype| dtype == DType::Bool, 0..=RANK)?;
        let shape = self.ty(condition).shape;
        let y = self.pick(|generator, value| generator.graph.ty(value).shape == shape)?;
        let z = self.same_type(y);
        self.add(Op::Select, &[condition, y, z]).map(|_| ())
    }

    fn cast(&mut self) -> Option<()> {
        let to = DType::COMPUTED[self.below(DType::COMPUTED.len())];
        let x = self.pick(|generator, value| to.is_float() || generator.exact.contains(&value))?;
        self.add(Op::Cast { to }, &[x]).map(|_| ())
    }

    fn reshape(&mut self) -> Option<()> {
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

    fn transpose(&mut self) -> Option<()> {
        let x = self.of(|_| true, 1..=RANK)?;
        let mut axes: Vec<usize> = (0..self.ty(x).rank()).collect();
        let mut permutation = Vec::with_capacity(axes.len());
        while !axes.is_empty() {
            let next = self.below(axes.len());
            permutation.push(axes.remove(next));
        }
        self.add(Op::Transpose { permutation }, &[x]).map(|_| ())
    }

    fn broadcast(&mut self) -> Option<()> {
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

    fn slice(&mut self) -> Option<()> {
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

    fn concat(&mut self) -> Option<()> {
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

    fn reduce(&mut self) -> Option<()> {
        let x = self.of(|dtype| dtype != DType::Bool, 1..=RANK)?;
        let (axis, keep) = (self.below(self.ty(x).rank()), self.flag());
        let op = if self.flag() { Op::ReduceMax { axis, keep } } else { Op::ReduceSum { axis, keep } };
        self.add(op, &[x]).map(|_| ())
    }

    fn matmul(&mut self) -> Option<()> {
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

    fn grouped_matmul(&mut self) -> Option<()> {
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

    fn attention(&mut self) -> Option<()> {
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
    fn attention_grad(&mut self) -> Option<()> {
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

    fn stop_gradient(&mut self) -> Option<()> {
        let x = self.of(|dtype| !dtype.is_float(), 0..=RANK)?;
        self.add(Op::StopGradient, &[x]).map(|_| ())
    }

    fn after(&mut self) -> Option<()> {
        let x = self.of(|_| true, 0..=RANK)?;
        let event = self.of(|_| true, 0..=RANK)?;
        self.add(Op::After, &[x, event]).map(|_| ())
    }

    fn expert_choice(&mut self) -> Option<()> {
        let affinity = self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            ty.dtype == DType::F32 && ty.rank() == 3 && generator.exact.contains(&value)
        })?;
        let rows = self.ty(affinity).shape[1].clone();
        let one = Dim::constant(1);
        let capacity = match self.below(4) {
            0 => one,
            1 => rows.clone(),
            2 => rows.ceil_div(&Dim::constant(3)).ok()?,
            _ => Dim::max(&one, &rows.ceil_scale(1.3, 4.0).ok()?).ok()?,
        };
        let results = self.nodes(Op::ExpertChoice { capacity }, &[affinity])?;
        self.indices.push((*results.first()?, rows));
        Some(())
    }

    /// An index map into rows of a tensor of shape [batch, rows, …]: of experts where there is one, else the identity.
    fn index(&mut self, data: &TensorType) -> Option<Value> {
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

    fn gather(&mut self) -> Option<()> {
        let data = self.of(|_| true, 2..=4)?;
        let ty = self.ty(data);
        let index = self.index(&ty)?;
        self.add(Op::Gather, &[data, index]).map(|_| ())
    }

    fn scatter(&mut self) -> Option<()> {
        let base = self.float(2..=4)?;
        let ty = self.ty(base);
        let index = self.index(&ty)?;
        let rows = self.add(Op::Gather, &[base, index])?;
        let updates = self.bounded(rows)?;
        self.add(Op::ScatterAdd, &[base, index, updates]).map(|_| ())
    }

    fn segments(&mut self) -> Option<()> {
        let base = self.float(2..=4)?;
        let ty = self.ty(base);
        let index = self.index(&ty)?;
        let rows = self.add(Op::Gather, &[base, index])?;
        let updates = self.bounded(rows)?;
        let inverse = self.nodes(Op::InvertIndex { size: ty.shape[1].clone() }, &[index])?;
        let [offsets, positions] = inverse.as_slice() else { return None };
        self.add(Op::SegmentSum, &[base, *offsets, *positions, updates]).map(|_| ())
    }
}

fn batch() -> Dim {
    Dim::symbol("B")
}

/// H·W image tokens.
fn tokens() -> Dim {
    Dim::symbol("H").mul(&Dim::symbol("W")).unwrap_or_else(|_| Dim::constant(1))
}

fn text() -> Dim {
    Dim::symbol("T")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::dim::Bindings;
    use crate::ops::op_table;
    use crate::verify_graph::verify_graph;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) as u8
        };
        (0..length).map(|_| next(&mut state)).collect()
    }

    #[test]
    fn every_op_occurs() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let graph = random_training_graph(&noise(seed, 400));
            seen.extend(graph.nodes().map(|(_, node)| node.op.name()));
        }
        let missing: Vec<&str> =
            op_table().iter().map(|info| info.name).filter(|name| !seen.contains(name)).collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn weights_of_either_rate_occur() {
        let rates = |rate: Rate| {
            (0..50).any(|seed| {
                random_training_graph(&noise(seed, 400)).weights.iter().any(|weight| weight.rate == rate)
            })
        };
        assert!(rates(Rate::Model) && rates(Rate::Step));
    }

    proptest! {
        #[test]
        fn random_graphs_are_valid_for_all_sizes(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            sizes in prop::array::uniform4(1i64..6),
        ) {
            let graph = random_graph(&bytes);
            prop_assert_eq!(verify_graph(&graph), Ok(()));
            prop_assert!(graph.node_count() > 0 && !graph.outputs.is_empty());
            let bindings: Bindings = ["B", "H", "W", "T"].into_iter().zip(sizes).collect();
            for constraint in &graph.constraints {
                let (smaller, larger) = (constraint.smaller.eval(&bindings)?, constraint.larger.eval(&bindings)?);
                prop_assert!(smaller <= larger, "{:?}", constraint);
            }
        }
    }
}
