//! What is kept and what is recomputed.

use std::collections::HashSet;

use nucleus_ir::graph::{NodeData, Value};
use nucleus_ir::{Bindings, DType, Graph, Op, ScalarOp};
use nucleus_plan::cost::Machine;

use super::segments::{Segments, is_view};
use super::{Policy, Remat, Report};
use crate::stage::node_flops;

/// Sizes that are not given, in the order of the graph's dims.
const USUAL_SIZES: [i64; 4] = [1, 64, 64, 256];
/// Bytes that a kept value may take for each second of recomputation that it saves. Products of a few hundred columns take about 10⁹ on the
/// machine of the cost model, element-wise functions 10¹⁰ and more.
const CHEAP: f64 = 2.5e9;
const FULL: f64 = 1e8;
/// Operations that one application of a transcendental function takes.
const TRANSCENDENTAL: f64 = 16.0;

/// For every node whether it is recomputed, and what comes of it.
pub(super) fn choose(graph: &Graph, segments: &Segments, request: &Remat) -> (Vec<bool>, Report) {
    let costs = Costs::of(graph, &request.sizes);
    let bytes = match request.policy {
        Policy::Cheap => return kept_until(graph, segments, &costs, CHEAP, f64::INFINITY),
        Policy::Full => return kept_until(graph, segments, &costs, FULL, f64::INFINITY),
        Policy::Memory(bytes) => bytes as f64,
    };
    // What is computed faster than memory carries it is better recomputed in any case. From everything recomputed, which may be more at a time
    // than would be kept, the way to a budget is not always downhill: then fixed rates may still meet it.
    let bandwidth = Machine::cpu().bandwidth;
    let mut least: Option<(Vec<bool>, Report)> = None;
    for (most_bytes, budget) in [(bandwidth, bytes), (CHEAP, f64::INFINITY), (FULL, f64::INFINITY)] {
        let found = kept_until(graph, segments, &costs, most_bytes, budget);
        if found.1.peak_bytes() <= bytes {
            return found;
        }
        if least.as_ref().is_none_or(|least| found.1.peak_bytes() < least.1.peak_bytes()) {
            least = Some(found);
        }
    }
    least.unwrap_or_else(|| (vec![false; graph.node_count()], Report::default()))
}

/// Keeps what saves most for its bytes, as long as that is a second for `most_bytes` and the whole stays within `budget`.
fn kept_until(
    graph: &Graph,
    segments: &Segments,
    costs: &Costs,
    most_bytes: f64,
    budget: f64,
) -> (Vec<bool>, Report) {
    let mut plans: Vec<SegmentPlan<'_>> = (0..segments.events.len())
        .filter(|segment| segments.events[*segment].is_some())
        .map(|segment| SegmentPlan::new(graph, segments, costs, segment))
        .collect();
    let mut next: Vec<Option<Step>> = plans.iter().map(|plan| plan.best(most_bytes)).collect();
    // Segments whose next step fits the budget, the best first.
    while let Some((number, step)) = next
        .iter()
        .enumerate()
        .filter_map(|(number, step)| Some((number, (*step)?)))
        .max_by(|(_, a), (_, b)| a.worth().total_cmp(&b.worth()))
    {
        let (previous, before) = (plans[number].now, report(&plans).peak_bytes());
        plans[number].keep(step.node);
        // Above the budget a step may still make less of what is recomputed at a time than it keeps.
        let after = report(&plans).peak_bytes();
        if step.bytes > 0.0 && after > budget && after >= before {
            plans[number].recompute(step.node, previous);
            next[number] = None;
            continue;
        }
        next[number] = plans[number].best(most_bytes);
    }
    let mut recomputed = vec![false; graph.node_count()];
    for plan in &plans {
        plan.recomputed.iter().for_each(|node| recomputed[*node] = true);
    }
    (recomputed, report(&plans))
}

fn report(plans: &[SegmentPlan<'_>]) -> Report {
    let mut report = Report { segments: plans.len(), ..Report::default() };
    for plan in plans {
        report.kept += plan.now.kept;
        report.kept_bytes += plan.now.kept_bytes;
        report.recomputed += plan.now.recomputed;
        report.recomputed_bytes = report.recomputed_bytes.max(plan.now.recomputed_bytes);
        report.seconds += plan.now.seconds;
    }
    report
}

/// The sizes at which a graph is estimated: those that are given, usual ones for the rest.
pub(super) fn sizes(graph: &Graph, given: &Bindings) -> Bindings {
    let mut at = given.clone();
    for (position, dim) in graph.dims.iter().enumerate() {
        if at.get(dim).is_none() {
            at.bind(dim.as_str(), USUAL_SIZES[position % USUAL_SIZES.len()]);
        }
    }
    at
}

/// Bytes of every value and seconds of every node, at sample sizes.
struct Costs {
    bytes: Vec<f64>,
    seconds: Vec<f64>,
}

impl Costs {
    fn of(graph: &Graph, sizes: &Bindings) -> Costs {
        let at = self::sizes(graph, sizes);
        let bytes: Vec<f64> = graph
            .values()
            .map(|(_, data)| {
                let elements = data.ty.elements().and_then(|elements| elements.eval(&at));
                elements.map_or(0.0, |elements| elements as f64 * data.ty.dtype.size() as f64)
            })
            .collect();
        let machine = Machine::cpu();
        let seconds = |data: &NodeData| {
            let flops = node_flops(graph, data).and_then(|flops| flops.eval(&at));
            let flops = flops.map_or(0.0, |flops| flops as f64);
            let touched = || {
                let values = data.operands.iter().chain(&data.results);
                values.map(|value| bytes[value.index()]).sum::<f64>() / machine.bandwidth
            };
            let narrow = || graph.ty(data.operands[0]).dtype != DType::F32;
            match &data.op {
                _ if is_view(data) => 0.0,
                Op::Matmul { .. } | Op::GroupedMatmul { .. } | Op::Attention { .. } => {
                    flops / if narrow() { machine.bf16_flops } else { machine.f32_flops }
                }
                Op::AttentionGrad { .. } => flops / machine.f32_flops,
                op => match op.scalar() {
                    Some(ScalarOp::Cast(_)) => touched(),
                    Some(scalar) => flops * operations(scalar) / machine.scalar_flops,
                    None => flops / machine.scalar_flops + touched(),
                },
            }
        };
        let seconds = graph.nodes().map(|(_, data)| seconds(data)).collect();
        Costs { bytes, seconds }
    }
}

fn operations(op: ScalarOp) -> f64 {
    match op {
        ScalarOp::Exp
        | ScalarOp::Log
        | ScalarOp::Tanh
        | ScalarOp::Sigmoid
        | ScalarOp::Sin
        | ScalarOp::Cos => TRANSCENDENTAL,
        _ => 1.0,
    }
}

/// Keeping the results of a node.
#[derive(Clone, Copy, Debug)]
struct Step {
    node: usize,
    /// Seconds that it saves.
    seconds: f64,
    /// Bytes that it takes, less those of what need not be kept any more.
    bytes: f64,
}

impl Step {
    /// Seconds per byte; what takes none comes first.
    fn worth(&self) -> f64 {
        if self.bytes <= 0.0 { f64::INFINITY } else { self.seconds / self.bytes }
    }
}

/// What a choice makes of a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    kept: usize,
    kept_bytes: f64,
    recomputed: usize,
    recomputed_bytes: f64,
    seconds: f64,
}

struct SegmentPlan<'a> {
    graph: &'a Graph,
    costs: &'a Costs,
    segments: &'a Segments,
    /// The forward values that the backward pass of the segment reads.
    wanted: Vec<Value>,
    /// The nodes that are recomputed if the backward pass needs them.
    recomputed: HashSet<usize>,
    now: Outcome,
}

impl<'a> SegmentPlan<'a> {
    fn new(graph: &'a Graph, segments: &'a Segments, costs: &'a Costs, segment: usize) -> SegmentPlan<'a> {
        let (mut wanted, mut pending) = (Vec::new(), Vec::new());
        // What others read is kept in any case.
        let mut held: HashSet<usize> = HashSet::new();
        for (node, data) in graph.nodes().filter(|(node, _)| !segments.forward[node.index()]) {
            for operand in &data.operands {
                if !segments.is_forward(graph, *operand) {
                    continue;
                }
                if segments.backward(node.index()) == Some(segment) {
                    wanted.push(*operand);
                } else {
                    pending.push(*operand);
                }
            }
        }
        while let Some(value) = pending.pop() {
            let Some((node, _)) = graph.defining_node(value) else { continue };
            held.insert(node.index());
            if is_view(graph.node(node)) {
                pending.extend_from_slice(&graph.node(node).operands);
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let recomputed = graph
            .nodes()
            .filter(|(node, data)| {
                let index = node.index();
                segments.forward[index]
                    && segments.of_node[index] == Some(segment)
                    && !held.contains(&index)
                    && !matches!(data.op, Op::ExpertChoice { .. })
            })
            .map(|(node, _)| node.index())
            .collect();
        let mut plan = SegmentPlan { graph, costs, segments, wanted, recomputed, now: Outcome::default() };
        plan.now = plan.outcome(None, &mut Vec::new());
        plan
    }

    fn keep(&mut self, node: usize) {
        self.recomputed.remove(&node);
        self.now = self.outcome(None, &mut Vec::new());
    }

    fn recompute(&mut self, node: usize, now: Outcome) {
        self.recomputed.insert(node);
        self.now = now;
    }

    /// What comes of the choice, with one more node kept; the nodes that are recomputed are added to `visited`.
    fn outcome(&self, keep: Option<usize>, visited: &mut Vec<usize>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut seen: HashSet<Value> = HashSet::new();
        let mut applied: HashSet<usize> = HashSet::new();
        let mut pending = self.wanted.clone();
        while let Some(value) = pending.pop() {
            let Some((node, _)) = self.graph.defining_node(value).filter(|_| seen.insert(value)) else {
                continue;
            };
            let data = self.graph.node(node);
            let index = node.index();
            if is_view(data) {
                pending.extend_from_slice(&data.operands);
            } else if self.recomputed.contains(&index) && keep != Some(index) {
                pending.extend_from_slice(&data.operands);
                // Functions of one element are computed where they are read, and seldom lie in memory.
                if data.op.scalar().is_none() || self.wanted.binary_search(&value).is_ok() {
                    outcome.recomputed_bytes += self.costs.bytes[value.index()];
                }
                if applied.insert(index) && !data.operands.is_empty() {
                    outcome.recomputed += 1;
                    outcome.seconds += self.costs.seconds[index];
                    visited.push(index);
                }
            } else if self.segments.forward[index] && !data.operands.is_empty() {
                outcome.kept += 1;
                outcome.kept_bytes += self.costs.bytes[value.index()];
            }
        }
        outcome
    }

    /// The node that is best kept next; `None` if keeping any takes more than so many bytes for each second saved.
    fn best(&self, most_bytes: f64) -> Option<Step> {
        let mut candidates = Vec::new();
        self.outcome(None, &mut candidates);
        let step = |node: usize| {
            let then = self.outcome(Some(node), &mut Vec::new());
            let seconds = self.now.seconds - then.seconds;
            Step { node, seconds, bytes: then.kept_bytes - self.now.kept_bytes }
        };
        candidates
            .into_iter()
            .map(step)
            .filter(|step| step.bytes < most_bytes * step.seconds)
            .max_by(|a, b| a.worth().total_cmp(&b.worth()).then(b.node.cmp(&a.node)))
    }
}
