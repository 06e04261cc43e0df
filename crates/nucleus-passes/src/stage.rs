//! Stages: how often each value must be computed.
//!
//! A value that depends on the weights alone is computed when a model is loaded, one that depends on the prompt or the run-time
//! sizes once per prompt, the rest at every step. Nothing moves: a value's rate follows from what it is computed from, and the
//! plan runs each stage when its inputs change. Text keys and values, rotary tables and the like are cached by this pass alone.

use std::fmt;

use nucleus_ir::ops::Attribute;
use nucleus_ir::{Dim, DimError, Graph, NodeData, Op, Rate, Value, ValueDef};

use crate::error::PassError;

const PASS: &str = "stage";

/// Sets the rate of every value.
pub fn stage(graph: &Graph) -> Result<Graph, PassError> {
    let mut staged = graph.clone();
    assign_rates(&mut staged);
    Ok(staged)
}

/// Sets the rate of every value: inputs and weights have their own, a result has the largest rate of its node's
/// operands, and at least `per prompt` if a run-time size occurs in the node's attributes or result types.
pub fn assign_rates(graph: &mut Graph) {
    let mut rates = vec![Rate::Model; graph.value_count()];
    for (value, data) in graph.values() {
        rates[value.index()] = match data.def {
            ValueDef::Input(index) => graph.inputs[index].rate,
            ValueDef::Weight(index) => graph.weights[index].rate,
            ValueDef::Result { .. } => continue,
        };
    }
    for (_, data) in graph.nodes() {
        let floor = if depends_on_sizes(graph, data) { Rate::Prompt } else { Rate::Model };
        let rate = data.operands.iter().map(|operand| rates[operand.index()]).max();
        let rate = rate.map_or(floor, |rate| rate.max(floor));
        for result in &data.results {
            rates[result.index()] = rate;
        }
    }
    let values: Vec<Value> = graph.values().map(|(value, _)| value).collect();
    for value in values {
        graph.set_rate(value, rates[value.index()]);
    }
}

fn depends_on_sizes(graph: &Graph, node: &NodeData) -> bool {
    let symbolic = |dim: &Dim| dim.as_constant().is_none();
    node.op.attributes().iter().any(|(_, attribute)| match attribute {
        Attribute::Dim(dim) => symbolic(dim),
        Attribute::Shape(shape) => shape.iter().any(symbolic),
        Attribute::Bool(_)
        | Attribute::Float(_)
        | Attribute::DType(_)
        | Attribute::Axis(_)
        | Attribute::Axes(_) => false,
    }) || node.results.iter().any(|result| graph.ty(*result).shape.iter().any(symbolic))
}

/// The work of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageWork {
    /// The stage.
    pub rate: Rate,
    /// Nodes that compute something: all but constants, sizes and views.
    pub nodes: usize,
    /// Floating-point operations, by [`node_flops`].
    pub flops: Dim,
}

impl fmt::Display for StageWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} nodes, {} FLOPs", self.rate, self.nodes, self.flops)
    }
}

/// The work of every stage of a staged graph, slowest first. A value without a rate counts as `per step`.
pub fn work(graph: &Graph) -> Result<[StageWork; 3], PassError> {
    let mut work = Rate::ALL.map(|rate| StageWork { rate, nodes: 0, flops: Dim::constant(0) });
    for (_, data) in graph.nodes() {
        let rate = data.results.first().and_then(|result| graph.value(*result).rate).unwrap_or(Rate::Step);
        let Some(entry) = work.iter_mut().find(|entry| entry.rate == rate) else { continue };
        entry.nodes += usize::from(!is_free(&data.op));
        let flops = node_flops(graph, data).and_then(|flops| entry.flops.add(&flops));
        entry.flops = flops.map_err(|source| PassError::Dim { pass: PASS, source })?;
    }
    Ok(work)
}

/// True for ops that cost nothing: constants, and views that a kernel folds into its addressing.
fn is_free(op: &Op) -> bool {
    matches!(
        op,
        Op::Constant { .. }
            | Op::Size { .. }
            | Op::Iota { .. }
            | Op::StopGradient
            | Op::After
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
    )
}

/// The floating-point operations of a node: 2·M·K·N for a product, 4·B·A·S·L·d for attention, one per element of an element-wise
/// result, one per summed or compared element of a reduction, none for data movement and casts.
pub fn node_flops(graph: &Graph, node: &NodeData) -> Result<Dim, DimError> {
    let operand = |index: usize| graph.ty(node.operands[index]);
    let result = graph.ty(node.results[0]);
    let two = Dim::constant(2);
    match &node.op {
        Op::Matmul { transpose_a, .. } => {
            let a = operand(0);
            let k = &a.shape[if *transpose_a { a.rank() - 2 } else { a.rank() - 1 }];
            result.elements()?.mul(k)?.mul(&two)
        }
        Op::GroupedMatmul { .. } => result.elements()?.mul(&operand(0).shape[3])?.mul(&two),
        Op::Attention { .. } => result.elements()?.mul(&operand(1).shape[1])?.mul(&Dim::constant(4)),
        // Scores and their gradient, and the gradients of q, k and v.
        Op::AttentionGrad { .. } => operand(0).elements()?.mul(&operand(1).shape[1])?.mul(&Dim::constant(10)),
        Op::ReduceSum { .. } | Op::ReduceMax { .. } | Op::ExpertChoice { .. } => operand(0).elements(),
        Op::ScatterAdd => operand(2).elements(),
        Op::SegmentSum => operand(3).elements(),
        Op::StopGradient
        | Op::After
        | Op::Cast { .. }
        | Op::Constant { .. }
        | Op::Size { .. }
        | Op::Iota { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Broadcast { .. }
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Gather
        | Op::InvertIndex { .. } => Ok(Dim::constant(0)),
        Op::Neg
        | Op::Abs
        | Op::Exp
        | Op::Log
        | Op::Sqrt
        | Op::Rsqrt
        | Op::Tanh
        | Op::Sigmoid
        | Op::Sin
        | Op::Cos
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Max
        | Op::Min
        | Op::Less
        | Op::LessEqual
        | Op::Equal
        | Op::And
        | Op::Or
        | Op::Not
        | Op::Select => result.elements(),
    }
}
