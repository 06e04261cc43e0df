//! Routing: every `scatter_add` becomes a sum over an inverted index map.
//!
//! Expert choice gives each expert a list of tokens (slot → token). Putting results back is a scatter, which a parallel machine can
//! only do with atomics, in any order. Inverted once, the map lists the slots of every token (token → slots), and each token sums
//! its own slots in ascending order: no atomics, no zero-fill, the same bits on every run. The rule is general: any
//! `scatter_add(base, index, updates)` is `segment_sum(base, invert_index(index), updates)`, bit for bit, and all scatters
//! through one index map share its inverse. In Nucleus-Image these are the sum of a token's gates and the sum of its experts.

use nucleus_ir::{Graph, Op};

use crate::error::PassError;
use crate::rewrite::Rebuild;
use crate::stage::assign_rates;

const PASS: &str = "route";

/// Replaces every `scatter_add`. Rates are set if they were set before.
pub fn route(graph: &Graph) -> Result<Graph, PassError> {
    let mut rebuild = Rebuild::new(PASS, graph);
    for (_, data) in graph.nodes() {
        if !matches!(data.op, Op::ScatterAdd) {
            rebuild.copy(data)?;
            continue;
        }
        let operands = rebuild.operands(data)?;
        let [base, index, updates] = operands[..] else {
            rebuild.copy(data)?;
            continue;
        };
        let size = rebuild.graph().ty(base).shape[1].clone();
        let inverse = rebuild.add_node(Op::InvertIndex { size }, &[index], &data.scope)?;
        let lists = rebuild.graph().node(inverse).results.clone();
        let sum = rebuild.add_node(Op::SegmentSum, &[base, lists[0], lists[1], updates], &data.scope)?;
        rebuild.set_results(data, sum);
    }
    let staged = graph.values().any(|(_, data)| data.rate.is_some());
    let mut routed = rebuild.finish()?;
    if staged {
        assign_rates(&mut routed);
    }
    Ok(routed)
}
