//! Quantisation: large weights of products stored as 8-bit integers with one scale per output channel.
//!
//! `matmul(x, w)` becomes `matmul(x, cast(q)) · s`, where `q: i8` stands under the weight's own name and `s: f32` is a new weight named
//! `<name>.scale`. The scale's shape is the weight's with 1 in place of the axis that the product sums over, so that `w ≈ q · s` by the
//! rules of broadcasting; as the scale does not depend on that axis, it leaves the sum and ends in the product's epilogue. Factors keep
//! the compute dtype, which holds every `q` exactly, and sums stay `f32`: only the weights are rounded.
//!
//! A weight is quantised if
//! - it has at least [`Quantize::least_elements`] elements: the rest would save little;
//! - every use of it is the right factor of a product over tokens: of a `grouped_matmul`, or of a `matmul` whose left factor has rank 3 or
//!   more. Vectors of a whole image (timesteps, modulation) and everything that is not a product keep their precision;
//! - its products sum over the same axis, and none of them decides routing, where a rounded logit sends a token to another expert;
//! - it never changes: a weight under training stays as it is;
//! - no other weight has the name of its scale.

use std::collections::HashSet;

use nucleus_ir::graph::{NodeData, Value, ValueDef, Weight};
use nucleus_ir::{DType, Dim, Graph, Op, Rate, TensorType};

use crate::error::PassError;
use crate::precision::routing;
use crate::rewrite::Rebuild;
use crate::stage::assign_rates;

const PASS: &str = "quantize";

/// Which weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantize {
    /// Weights with fewer elements stay as they are.
    pub least_elements: i64,
}

impl Default for Quantize {
    /// From 2²⁰ elements on.
    fn default() -> Quantize {
        Quantize { least_elements: 1 << 20 }
    }
}

/// The name of the scale of a quantised weight.
pub fn scale_name(weight: &str) -> String {
    format!("{weight}.scale")
}

/// Quantises the weights that `options` and the rules of the [module documentation](self) choose; without options none.
///
/// # Errors
///
/// [`PassError::Type`] where the graph is not well typed.
pub fn quantize(graph: &Graph, options: Option<&Quantize>) -> Result<Graph, PassError> {
    let Some(options) = options else { return Ok(graph.clone()) };
    let axes = chosen_axes(graph, options);
    if axes.iter().all(Option::is_none) {
        return Ok(graph.clone());
    }
    let of_weight = |value: Value| match graph.def(value) {
        ValueDef::Weight(position) => axes[position].map(|axis| (position, axis)),
        ValueDef::Input(_) | ValueDef::Result { .. } => None,
    };
    let names: HashSet<&str> = graph
        .weights
        .iter()
        .zip(&axes)
        .filter_map(|(weight, axis)| axis.map(|_| weight.name.as_str()))
        .collect();
    let mut rebuild = Rebuild::with_weights(PASS, graph, |weight| {
        let quantised = names.contains(weight.name.as_str());
        if quantised { weight.ty.with_dtype(DType::I8) } else { weight.ty.clone() }
    });
    let mut scales = vec![None; graph.weights.len()];
    for (position, weight) in graph.weights.iter().enumerate() {
        let Some(axis) = axes[position] else { continue };
        let mut shape = weight.ty.shape.clone();
        shape[axis] = Dim::constant(1);
        let ty = TensorType::new(DType::F32, shape);
        scales[position] = Some(rebuild.add_weight(Weight::new(scale_name(&weight.name), ty)));
    }
    for (_, data) in graph.nodes() {
        let quantised = right_factor(data).and_then(of_weight);
        match quantised.and_then(|(position, axis)| Some((axis, scales[position]?))) {
            Some((axis, scale)) => scaled_product(&mut rebuild, graph, data, axis, scale)?,
            None => rebuild.copy(data)?,
        }
    }
    let mut quantised = rebuild.finish()?;
    if graph.values().any(|(_, data)| data.rate.is_some()) {
        assign_rates(&mut quantised);
    }
    Ok(quantised)
}

/// The right factor of a product.
fn right_factor(node: &NodeData) -> Option<Value> {
    match (&node.op, &node.operands[..]) {
        (Op::Matmul { .. } | Op::GroupedMatmul { .. }, [_, right]) => Some(*right),
        _ => None,
    }
}

/// `product(x, w)` as `product(x, cast(q)) · s`.
fn scaled_product(
    rebuild: &mut Rebuild<'_>,
    graph: &Graph,
    node: &NodeData,
    axis: usize,
    scale: Value,
) -> Result<(), PassError> {
    let [left, right] = node.operands[..] else { return rebuild.copy(node) };
    let factor = Op::Cast { to: graph.ty(right).dtype };
    let stored = rebuild.value(right)?;
    let factor = rebuild.add(factor, &[stored], &node.scope)?;
    let left = rebuild.value(left)?;
    let product = rebuild.add(node.op.clone(), &[left, factor], &node.scope)?;
    // The channels last, as they are in the product; the groups of a grouped product before its rows.
    let mut shape = rebuild.graph().ty(scale).shape.clone();
    shape.remove(axis);
    if !shape.is_empty() {
        shape.insert(shape.len() - 1, Dim::constant(1));
    }
    let scale = if rebuild.graph().ty(scale).shape == shape {
        scale
    } else {
        rebuild.add(Op::Reshape { shape }, &[scale], &node.scope)?
    };
    let shape = rebuild.graph().ty(product).shape.clone();
    let scale = rebuild.add(Op::Broadcast { shape }, &[scale], &node.scope)?;
    let scaled = rebuild.add(Op::Mul, &[product, scale], &node.scope)?;
    rebuild.set(node.results[0], scaled);
    Ok(())
}

/// For every weight the axis that its products sum over, if it is to be quantised.
fn chosen_axes(graph: &Graph, options: &Quantize) -> Vec<Option<usize>> {
    let routes = routing(graph);
    let uses = graph.uses();
    let names: HashSet<&str> = graph.weights.iter().map(|weight| weight.name.as_str()).collect();
    let mut axes = vec![None; graph.weights.len()];
    for (value, data) in graph.values() {
        let ValueDef::Weight(position) = data.def else { continue };
        let large = data.ty.elements().ok().and_then(|count| count.as_constant());
        let large = large.is_some_and(|count| count >= options.least_elements);
        let kept = graph.outputs.iter().any(|output| output.value == value);
        let taken = names.contains(scale_name(&graph.weights[position].name).as_str());
        let changes = graph.weights[position].rate != Rate::Model;
        if !data.ty.dtype.is_float() || !large || kept || taken || changes {
            continue;
        }
        let mut axis = None;
        let fits = uses[value.index()].iter().all(|node| {
            let used = if routes[node.index()] { None } else { summed_axis(graph, graph.node(*node), value) };
            used.is_some() && *axis.get_or_insert(used) == used
        });
        if fits {
            axes[position] = axis.flatten();
        }
    }
    axes
}

/// The axis of `weight` that a product over tokens sums over, if it is its right factor and nothing else.
fn summed_axis(graph: &Graph, node: &NodeData, weight: Value) -> Option<usize> {
    let [left, right] = node.operands[..] else { return None };
    if left == weight || right != weight {
        return None;
    }
    match node.op {
        Op::Matmul { transpose_a: false, transpose_b } => {
            let over_tokens = graph.ty(left).rank() >= 3 && graph.ty(right).rank() == 2;
            over_tokens.then_some(usize::from(transpose_b))
        }
        Op::GroupedMatmul { transpose_b } => Some(1 + usize::from(transpose_b)),
        _ => None,
    }
}
