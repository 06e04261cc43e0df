//! Fusion: from a graph to kernels.
//!
//! A kernel is an anchor with scalar functions around it. Fusion decides which values lie in buffers; everything else is computed
//! where it is used:
//!
//! 1. `canonical` brings the graph into the form the rest expects.
//! 2. Every anchor (matrix product, attention, segment sum, chain of reductions along the same rows …) takes over the element-wise
//!    consumers that can be computed where its results are (`group`, `anchors`); an expert choice also the inverse of its slots and the
//!    sums over them (`partition`).
//! 3. Of what is left, a value is stored if some use needs it in memory or if computing it at each use would cost more (`decide`);
//!    stored values become `map` kernels, several to a kernel where one needs the other.
//! 4. Functions are emitted by following values back to loads and results of the anchor (`emit`). Views are changes of coordinates
//!    on the way (`affine`); where they are not affine, the viewed value is stored after all and emission starts again.
//!
//! Nothing here knows the name of a model or of a layer.

mod affine;
mod anchors;
mod attention;
mod canonical;
mod decide;
mod dependence;
mod emit;
mod group;
mod homes;
mod lower;
mod partition;
mod space;
mod state;
mod symmetry;

use std::collections::HashSet;

use nucleus_ir::Rate;
use nucleus_ir::graph::{Graph, Value};
use nucleus_plan::{Buffer, BufferId, Place, Plan, PlanInput, PlanOutput};

use crate::error::PassError;
use crate::schedule::order_launches;
pub(crate) use affine::is_nonnegative;
pub(crate) use emit::Arguments;
use emit::Stop;
use group::{Group, Kind};
use homes::{Home, homes};
use lower::Lowering;
use space::Space;
use state::State;

pub(crate) const PASS: &str = "fuse";

/// The plan of a graph; its arena buffers have no offsets and its contractions no tiles yet.
pub fn fuse(graph: &Graph) -> Result<Plan, PassError> {
    let mut state = State::new(canonical::canonical(graph)?);
    state.form_anchors()?;
    state.decide()?;
    loop {
        let mut stopped = Vec::new();
        let Lowered { plan, homes, places } = lower(&state, &mut stopped)?;
        if stopped.is_empty() {
            return order_launches(plan, &places);
        }
        store_missing(&mut state, homes, stopped)?;
    }
}

/// What is lowered on its own.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The kernels of a group.
    Group(usize),
    /// The copy of a value to the output of that position.
    Copy(usize),
}

/// A plan in the making.
struct Lowered {
    plan: Plan,
    homes: Vec<Option<Home>>,
    /// For every launch, where in the graph it comes from.
    places: Vec<usize>,
}

/// Makes all kernels, as far as they can be made; the other parts are added to `stopped`.
fn lower(state: &State, stopped: &mut Vec<Part>) -> Result<Lowered, PassError> {
    let graph = &state.graph;
    let mut plan = Plan {
        entry: graph.name.clone(),
        dims: graph.dims.clone(),
        constraints: graph.constraints.clone(),
        weights: graph.weights.iter().map(|weight| (weight.name.clone(), weight.ty.clone())).collect(),
        ..Plan::default()
    };
    for input in &graph.inputs {
        let (name, ty) = (input.name.clone(), input.ty.clone());
        plan.inputs.push(PlanInput { name, ty, rate: input.rate, default: input.default });
    }
    for output in &graph.outputs {
        let ty = graph.ty(output.value).clone();
        plan.outputs.push(PlanOutput { name: output.name.clone(), ty });
    }
    let homes = homes(state, &mut plan)?;
    let mut lowering = Lowering::new(state, &homes, &mut plan);
    // Some outputs lie elsewhere: inputs, weights, views, and values that are two outputs.
    let computed: HashSet<usize> = state.output.iter().flatten().copied().collect();
    let copies = (0..graph.outputs.len()).filter(|position| !computed.contains(position));
    let mut places = Vec::new();
    // A kernel whose only value is left to its readers is none.
    let groups = (0..state.groups.len()).filter(|id| !state.groups[*id].owned.is_empty());
    for part in groups.map(Part::Group).chain(copies.map(Part::Copy)) {
        if lower_part(&mut lowering, part)?.is_some() {
            stopped.push(part);
        }
        places.resize(lowering.plan.launches.len(), place(state, part));
    }
    Ok(Lowered { plan, homes, places })
}

/// Where a part stands among others: at the first value that it computes.
fn place(state: &State, part: Part) -> usize {
    match part {
        Part::Group(id) => state.groups[id].owned.iter().map(|value| value.index()).min(),
        Part::Copy(position) => Some(state.graph.outputs[position].value.index()),
    }
    .unwrap_or(0)
}

/// Lowers one part; returns what must be stored first, if anything.
fn lower_part(lowering: &mut Lowering<'_>, part: Part) -> Result<Option<Vec<Value>>, PassError> {
    let state = lowering.state;
    let lowered = match part {
        Part::Group(id) => lowering.group(&state.groups[id]),
        Part::Copy(position) => copy_output(lowering, position),
    };
    match lowered {
        Ok(()) => Ok(None),
        Err(Stop::Store(values)) => Ok(Some(values)),
        Err(Stop::Fail(error)) => Err(error),
    }
}

/// A launch that copies a value to an output.
fn copy_output(lowering: &mut Lowering<'_>, position: usize) -> Result<(), Stop> {
    let value = lowering.state.graph.outputs[position].value;
    let ty = lowering.state.graph.ty(value);
    let place = Place::Output(position as u32);
    lowering.plan.buffers.push(Buffer { dtype: ty.dtype, shape: ty.shape.clone(), place });
    let buffer = BufferId(lowering.plan.buffers.len() as u32 - 1);
    let target = Home::dense(buffer, ty)?;
    let group = Group::new(Kind::Map, Space::direct(&ty.shape), Rate::Step, &[]);
    lowering.copy(&group, value, &target)
}

/// Stores what the stopped parts could not do without, and what the kernels of that need in turn.
///
/// The kernels made here are thrown away: where values lie, and in which order kernels come, is settled when all are known.
fn store_missing(
    state: &mut State,
    mut homes: Vec<Option<Home>>,
    mut pending: Vec<Part>,
) -> Result<(), PassError> {
    while let Some(part) = pending.pop() {
        let mut plan = Plan::default();
        let Some(missing) = lower_part(&mut Lowering::new(state, &homes, &mut plan), part)? else { continue };
        pending.push(part);
        let mut progress = false;
        for value in missing {
            if std::mem::replace(&mut state.stored[value.index()], true) {
                continue;
            }
            progress = true;
            let mut stored = vec![value];
            if state.owner[value.index()].is_none() {
                let first = state.groups.len();
                state.form_stored(value)?;
                for id in first..state.groups.len() {
                    pending.push(Part::Group(id));
                    stored.extend(state.store_operands(id));
                }
            }
            for value in stored {
                // Any buffer of its own will do.
                let buffer = BufferId(u32::MAX - value.index() as u32);
                homes[value.index()] = Some(Home::dense(buffer, state.graph.ty(value))?);
            }
        }
        if !progress {
            let what = match part {
                Part::Group(id) => {
                    let op =
                        state.def(state.groups[id].owned[0]).map_or("a value", |(_, data)| data.op.name());
                    format!("kernel {id}, which computes {op}, cannot read a value that it needs")
                }
                Part::Copy(position) => format!("output {position} cannot be read"),
            };
            return Err(PassError::Invalid { pass: PASS, problems: vec![what] });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
