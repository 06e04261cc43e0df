//! Precision: which values are held and multiplied in the compute dtype.
//!
//! With `bf16` or `f16`
//! - every float weight that never changes is *stored* in the compute dtype; one under training stays `f32` and is cast where a product takes it;
//! - products (`matmul`, `grouped_matmul`, `attention` and its gradients) take their operands in it and accumulate in `f32`, as their type rules say;
//! - everything else, that is, norms, softmax, tables of angles, gates, residuals, computes in `f32`: a weight that is not a product's
//!   operand is cast up where it is used;
//! - products that decide routing (those on the way to `expert_choice`) run in `f32` on weights cast up: they are small, and a
//!   rounded logit sends a token to another expert.
//!
//! Inputs and outputs keep their types. A cast that a product wants moves up through reshapes, transposes, broadcasts,
//! concatenations and gathers, which gives the same bits and lets the producer store the narrow type: keys and values cached per
//! prompt are cached in it. Slices of weights are moved through as well, other slices are not: a part may be all that is wanted.
//! There is one cast per value and dtype, and none of what was only widened.

use nucleus_ir::graph::{NodeData, Value, ValueDef};
use nucleus_ir::{DType, Graph, Op, Rate};

use crate::error::PassError;
use crate::rewrite::{Rebuild, eliminate_dead_code};
use crate::stage::assign_rates;

const PASS: &str = "precision";

/// Inserts the casts for `compute`. With `f32` the graph stays as it is.
///
/// # Errors
///
/// [`PassError::ComputeType`] if `compute` is not a float.
pub fn precision(graph: &Graph, compute: DType) -> Result<Graph, PassError> {
    if !compute.is_float() {
        return Err(PassError::ComputeType(compute));
    }
    if compute == DType::F32 {
        return Ok(graph.clone());
    }
    let lowered = lower(graph, compute)?;
    let mut lowered = eliminate_dead_code(PASS, &lowered)?;
    if graph.values().any(|(_, data)| data.rate.is_some()) {
        assign_rates(&mut lowered);
    }
    Ok(lowered)
}

fn lower(graph: &Graph, compute: DType) -> Result<Graph, PassError> {
    let demand = Demand::new(graph);
    let mut rebuild = Rebuild::with_weights(PASS, graph, |weight| {
        let narrows = weight.ty.dtype.is_float() && weight.rate == Rate::Model;
        if narrows { weight.ty.with_dtype(compute) } else { weight.ty.clone() }
    });
    // The narrow form of every value that a product wants narrow.
    let mut narrow: Vec<Option<Value>> = vec![None; graph.value_count()];
    for (value, data) in graph.values() {
        let stored = match data.def {
            ValueDef::Weight(position) if graph.weights[position].rate == Rate::Model => {
                rebuild.value(value)?
            }
            ValueDef::Input(_) | ValueDef::Weight(_) if demand.narrow[value.index()] => {
                let wide = rebuild.value(value)?;
                rebuild.add(Op::Cast { to: compute }, &[wide], &None)?
            }
            ValueDef::Input(_) | ValueDef::Weight(_) | ValueDef::Result { .. } => continue,
        };
        narrow[value.index()] = Some(stored);
        if let ValueDef::Weight(position) = data.def
            && graph.weights[position].rate == Rate::Model
            && rebuild.graph().ty(stored).dtype != data.ty.dtype
        {
            let wide = rebuild.add(Op::Cast { to: data.ty.dtype }, &[stored], &None)?;
            rebuild.set(value, wide);
        }
    }
    for (node, data) in graph.nodes() {
        if demand.product[node.index()] {
            let operands = product_operands(&rebuild, &narrow, graph, data)?;
            let product = rebuild.add_node(data.op.clone(), &operands, &data.scope)?;
            rebuild.set_results(data, product);
        } else {
            rebuild.copy(data)?;
        }
        for result in &data.results {
            if !demand.narrow[result.index()] {
                continue;
            }
            let value = if moves_cast(graph, &demand.stored, data) {
                let operands = product_operands(&rebuild, &narrow, graph, data)?;
                rebuild.add(data.op.clone(), &operands, &data.scope)?
            } else if let (Op::Cast { .. }, [source]) = (&data.op, &data.operands[..])
                && graph.ty(*source).dtype == compute
            {
                // What was widened is as it was before.
                rebuild.value(*source)?
            } else if let (Op::Cast { .. }, [bytes]) = (&data.op, &data.operands[..])
                && graph.ty(*bytes).dtype == DType::I8
            {
                // Every float type holds 8-bit integers: one exact cast instead of two.
                let stored = rebuild.value(*bytes)?;
                rebuild.add(Op::Cast { to: compute }, &[stored], &data.scope)?
            } else {
                let wide = rebuild.value(*result)?;
                rebuild.add(Op::Cast { to: compute }, &[wide], &data.scope)?
            };
            narrow[result.index()] = Some(value);
        }
    }
    rebuild.finish()
}

/// The operands of a node in the new graph, `f32` ones in their narrow form where there is one.
fn product_operands(
    rebuild: &Rebuild<'_>,
    narrow: &[Option<Value>],
    graph: &Graph,
    node: &NodeData,
) -> Result<Vec<Value>, PassError> {
    let operand = |operand: &Value| match narrow[operand.index()] {
        Some(narrow) if graph.ty(*operand).dtype == DType::F32 => Ok(narrow),
        _ => rebuild.value(*operand),
    };
    node.operands.iter().map(operand).collect()
}

/// True for ops whose factors are multiplied in the compute dtype.
fn is_product(op: &Op) -> bool {
    matches!(
        op,
        Op::Matmul { .. } | Op::GroupedMatmul { .. } | Op::Attention { .. } | Op::AttentionGrad { .. }
    )
}

/// True for ops that only move data, so that a cast of the result is a cast of the operands.
fn moves_cast(graph: &Graph, stored: &[bool], node: &NodeData) -> bool {
    match node.op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Concat { .. } | Op::Gather => {
            graph.ty(node.results[0]).dtype == DType::F32
        }
        Op::Slice { .. } => stored[node.operands[0].index()],
        _ => false,
    }
}

/// For every node, whether routing follows from it with no product in between.
pub(crate) fn routing(graph: &Graph) -> Vec<bool> {
    let mut values = vec![false; graph.value_count()];
    let mut nodes = vec![false; graph.node_count()];
    for (node, data) in graph.nodes().rev() {
        let routes = data.results.iter().any(|result| values[result.index()]);
        nodes[node.index()] = routes;
        let product = is_product(&data.op);
        if !product && (routes || matches!(data.op, Op::ExpertChoice { .. })) {
            for operand in &data.operands {
                values[operand.index()] = true;
            }
        }
    }
    nodes
}

/// What is wanted of the source graph.
struct Demand {
    /// For every node, whether it is a product in the compute dtype.
    product: Vec<bool>,
    /// For every value, whether it is wanted in the compute dtype.
    narrow: Vec<bool>,
    /// For every value, whether it is a weight or a view of one.
    stored: Vec<bool>,
}

impl Demand {
    fn new(graph: &Graph) -> Demand {
        let mut stored = vec![false; graph.value_count()];
        for (value, data) in graph.values() {
            let constant = |position: usize| graph.weights[position].rate == Rate::Model;
            stored[value.index()] = data.ty.dtype == DType::F32
                && matches!(data.def, ValueDef::Weight(position) if constant(position));
        }
        for (_, data) in graph.nodes() {
            if let Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } = data.op {
                stored[data.results[0].index()] = stored[data.operands[0].index()];
            }
        }

        let mut product = vec![false; graph.node_count()];
        let mut narrow = vec![false; graph.value_count()];
        let routing = routing(graph);
        for (node, data) in graph.nodes().rev() {
            let routes = routing[node.index()];
            match &data.op {
                op if is_product(op) => {
                    product[node.index()] = !routes;
                    for operand in &data.operands {
                        narrow[operand.index()] |= !routes && graph.ty(*operand).dtype == DType::F32;
                    }
                }
                _ => {
                    if data.results.iter().any(|result| narrow[result.index()])
                        && moves_cast(graph, &stored, data)
                    {
                        for operand in &data.operands {
                            narrow[operand.index()] |= graph.ty(*operand).dtype == DType::F32;
                        }
                    }
                }
            }
        }
        Demand { product, narrow, stored }
    }
}
