//! Rematerialisation: which forward values the backward pass keeps, and which it computes again.
//!
//! A differentiated graph reads many forward values in its backward pass, and whatever is read there lies in memory from one to the other.
//! This pass lets the backward pass compute some of them again, layer by layer (Chen et al., arXiv 1604.06174):
//!
//! 1. *Segments* are found from the scopes of nodes: what lies in `name.<number>` is a segment, whatever the name. Values that enter a segment
//!    from outside are kept; so are weights and inputs, which lie in memory anyway.
//! 2. For each segment the pass begins with everything recomputed and decides what to keep (`choose`): one value after the other, first
//!    the one that saves the most seconds for each byte that it takes. Keeping ends where it frees too little time for its bytes, or at a budget.
//!    Choices of experts are kept always: a rounded affinity would choose other tokens.
//! 3. Recomputed nodes appear once per segment, behind `after(x, gradient)` where x is kept and the event is the gradient that arrives at
//!    the segment from behind (`insert`). So they are not equal to the forward nodes, and no kernel of the forward pass takes them over.
//!    The same holds for what the backward pass computes from forward values alone, such as derivatives of activations.
//!
//! Recomputed values have the scope of their node and then `recompute`. They are computed from the same values by the same ops, so
//! every bit of the gradients is as without this pass, as far as kernels of different fusion agree.

mod choose;
mod insert;
mod segments;

use std::fmt;

use nucleus_ir::{Bindings, Graph};

use crate::error::PassError;
use crate::stage::assign_rates;
use choose::choose;
use insert::insert;
use segments::Segments;

const PASS: &str = "remat";

/// How much is recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What costs little for the memory that it frees: element-wise functions, norms, casts, copies,
    /// products over a short axis.
    Cheap,
    /// Everything but choices of experts and what is tiny for the time that it takes.
    Full,
    /// As little as possible, so that by estimate the backward pass holds no more than so many bytes of forward values at a time.
    Memory(u64),
}

/// What to recompute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remat {
    /// How much.
    pub policy: Policy,
    /// The run-time sizes at which bytes and seconds are estimated; usual ones for those that are missing.
    pub sizes: Bindings,
}

impl Remat {
    /// A policy at usual sizes.
    pub fn new(policy: Policy) -> Remat {
        Remat { policy, sizes: Bindings::new() }
    }
}

/// What was decided, by estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// The segments that have a backward pass.
    pub segments: usize,
    /// Forward values of segments that are kept for the backward pass.
    pub kept: usize,
    /// Their bytes.
    pub kept_bytes: f64,
    /// Nodes that are computed again; views do not count.
    pub recomputed: usize,
    /// Bytes of their results in the segment that has the most of them: only one segment's are in use at a time.
    pub recomputed_bytes: f64,
    /// Seconds that recomputation takes.
    pub seconds: f64,
}

impl Report {
    /// Bytes of forward values in use in the backward pass at a time.
    pub fn peak_bytes(&self) -> f64 {
        self.kept_bytes + self.recomputed_bytes
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { segments, kept, recomputed, seconds, .. } = self;
        let megabytes = |bytes: f64| bytes / 1e6;
        write!(
            f,
            "{segments} segments: {kept} values kept ({:.1} MB), {recomputed} nodes recomputed ({:.1} MB at a time, {:.1} ms)",
            megabytes(self.kept_bytes),
            megabytes(self.recomputed_bytes),
            seconds * 1e3
        )
    }
}

/// The graph with values recomputed in its backward pass. A graph without gradients, or without request, stays as it is.
///
/// # Errors
///
/// [`PassError::Type`] and [`PassError::Order`] where the graph is not sound, and [`PassError::Unsupported`] where a budget is not met.
pub fn remat(graph: &Graph, request: Option<&Remat>) -> Result<Graph, PassError> {
    let Some(request) = request else { return Ok(graph.clone()) };
    let (graph, report) = remat_reported(graph, request)?;
    match request.policy {
        Policy::Memory(budget) if report.peak_bytes() > budget as f64 => {
            let sizes = choose::sizes(&graph, &request.sizes);
            let sizes: Vec<String> = sizes.iter().map(|(dim, size)| format!("{dim} = {size}")).collect();
            let what = format!(
                "with {} the backward pass holds {} of forward values at a time when all that can be is computed again; the budget is {}",
                sizes.join(", "),
                mebibytes(report.peak_bytes()),
                mebibytes(budget as f64)
            );
            Err(PassError::Unsupported { pass: PASS, what })
        }
        _ => Ok(graph),
    }
}

/// Bytes as people write them, rounded up so that a budget of that many is enough.
fn mebibytes(bytes: f64) -> String {
    format!("{:.3} MiB", (bytes / 1_048.576).ceil() / 1e3)
}

/// The same, and what was decided: as near to a budget as it gets.
///
/// # Errors
///
/// As for [`remat`].
pub fn remat_reported(graph: &Graph, request: &Remat) -> Result<(Graph, Report), PassError> {
    let segments = Segments::of(graph);
    if segments.events.iter().all(Option::is_none) {
        return Ok((graph.clone(), Report::default()));
    }
    let (recomputed, report) = choose(graph, &segments, request);
    let mut result = insert(graph, &segments, &recomputed)?;
    if graph.values().any(|(_, data)| data.rate.is_some()) {
        assign_rates(&mut result);
    }
    Ok((result, report))
}
