//! The graph under construction: what bytes choose, and which values a step may use.

use std::collections::HashSet;
use std::sync::Arc;

use super::RANK;
use crate::dim::{Dim, Symbol};
use crate::dtype::DType;
use crate::float::Float;
use crate::graph::{Graph, Input, Output, Value, Weight};
use crate::ops::Op;
use crate::types::{Rate, TensorType};

/// Nodes of a layer of a loss.
const NODES_OF_A_LAYER: usize = 12;

/// What is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The ops of models.
    Inference,
    /// Weights may change at every step, and the ops of training graphs occur.
    Training,
    /// Nodes lie in layers, and blocks of experts occur.
    Loss,
}

pub(super) struct Generator<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) graph: Graph,
    /// Values that every implementation computes without rounding.
    pub(super) exact: HashSet<Value>,
    /// Values that no later step uses.
    pub(super) hidden: HashSet<Value>,
    pub(super) kind: Kind,
    /// Index maps i32[B, i…] with the number of rows that they may point into.
    pub(super) indices: Vec<(Value, Dim)>,
    pub(super) scope: Option<Arc<str>>,
}

impl<'a> Generator<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Generator<'a> {
        let dims = ["B", "H", "W", "T"].map(Symbol::new).to_vec();
        let graph = Graph::new("random", dims);
        let mut generator = Generator {
            bytes,
            graph,
            exact: HashSet::new(),
            hidden: HashSet::new(),
            kind: Kind::Inference,
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

    pub(super) fn input(
        &mut self,
        name: &str,
        dtype: DType,
        shape: Vec<Dim>,
        rate: Rate,
        default: Option<f64>,
    ) {
        let ty = TensorType::new(dtype, shape);
        let value =
            self.graph.add_input(Input { name: name.to_owned(), ty, rate, default: default.map(Float) });
        self.exact.insert(value);
    }

    pub(super) fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// The last results and every input are likelier than what lies between.
    pub(super) fn pick(&mut self, accept: impl Fn(&Generator<'_>, Value) -> bool) -> Option<Value> {
        let seen = |value: &Value| !self.hidden.contains(value) && accept(self, *value);
        let all: Vec<Value> = self.graph.values().map(|(value, _)| value).filter(seen).collect();
        if all.is_empty() {
            return None;
        }
        let back = self.below(all.len().min(12));
        Some(all[all.len() - 1 - back])
    }

    pub(super) fn of(
        &mut self,
        dtype: impl Fn(DType) -> bool,
        rank: std::ops::RangeInclusive<usize>,
    ) -> Option<Value> {
        self.pick(|generator, value| {
            let ty = generator.graph.ty(value);
            dtype(ty.dtype) && rank.contains(&ty.rank())
        })
    }

    pub(super) fn number(&mut self) -> Option<Value> {
        self.of(|dtype| dtype != DType::Bool, 0..=RANK)
    }

    pub(super) fn float(&mut self, rank: std::ops::RangeInclusive<usize>) -> Option<Value> {
        self.of(DType::is_float, rank)
    }

    pub(super) fn same_type(&mut self, like: Value) -> Value {
        let ty = self.graph.ty(like).clone();
        self.pick(|generator, value| *generator.graph.ty(value) == ty).unwrap_or(like)
    }

    pub(super) fn ty(&self, value: Value) -> TensorType {
        self.graph.ty(value).clone()
    }

    /// Applies an op that was built to fit; a step gives up where it does not.
    pub(super) fn nodes(&mut self, op: Op, operands: &[Value]) -> Option<Vec<Value>> {
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

    pub(super) fn add(&mut self, op: Op, operands: &[Value]) -> Option<Value> {
        self.nodes(op, operands)?.first().copied()
    }

    pub(super) fn weight(&mut self, dtype: DType, shape: Vec<Dim>) -> Value {
        let name = format!("layer.{}.weight", self.graph.weights.len());
        let mut weight = Weight::new(name, TensorType::new(dtype, shape));
        if self.kind == Kind::Training && self.flag() {
            weight.rate = Rate::Step;
        }
        let value = self.graph.add_weight(weight);
        self.exact.insert(value);
        value
    }

    pub(super) fn finish(mut self) -> Graph {
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

    pub(super) fn step(&mut self) -> Option<()> {
        let scopes = [None, Some("block"), Some("block.attn"), None];
        self.scope = match self.kind {
            Kind::Loss => Some(format!("layer.{}.part", self.graph.node_count() / NODES_OF_A_LAYER).into()),
            Kind::Inference | Kind::Training => scopes[self.below(4)].map(Arc::from),
        };
        let steps = match self.kind {
            Kind::Inference => 24,
            Kind::Training | Kind::Loss => 27,
        };
        match self.below(steps) {
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
            _ if self.kind == Kind::Loss => self.experts(),
            _ => self.attention_grad(),
        }
    }
}

pub(super) fn batch() -> Dim {
    Dim::symbol("B")
}

/// H·W image tokens.
pub(super) fn tokens() -> Dim {
    Dim::symbol("H").mul(&Dim::symbol("W")).unwrap_or_else(|_| Dim::constant(1))
}

pub(super) fn text() -> Dim {
    Dim::symbol("T")
}
