//! Fusion: from a graph to kernels.
//!
//! A kernel is an anchor with scalar functions around it. Fusion decides which values lie in buffers; everything else is computed
//! where it is used:
//!
//! 1. `canonical` brings the graph into the form the rest expects.
//! 2. Every anchor (matrix product, attention, segment sum, chain of reductions along the same rows …) takes over the element-wise
//!    consumers that can be computed where its results are (`group`, `anchors`).
//! 3. Of what is left, a value is stored if some use needs it in memory or if computing it at each use would cost more (`decide`);
//!    stored values become `map` kernels, several to a kernel where one needs the other.
//! 4. Functions are emitted by following values back to loads and results of the anchor (`emit`). Views are changes of coordinates
//!    on the way (`affine`); where they are not affine, the viewed value is stored after all and emission starts again.
//!
//! Nothing here knows the name of a model or of a layer.

mod affine;
mod anchors;
mod canonical;
mod decide;
mod emit;
mod group;
mod lower;
mod space;
mod state;

use nucleus_ir::graph::{Graph, Value, ValueDef};
use nucleus_ir::{DType, Dim, Op, Rate};
use nucleus_plan::{Buffer, BufferId, Place, Plan, PlanInput, PlanOutput};

use crate::error::PassError;
use crate::schedule::order_launches;
pub(crate) use affine::is_nonnegative;
use affine::row_major;
use emit::{Home, Stop};
use group::{Group, Kind};
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
        let mut missing = Vec::new();
        let plan = lower(&state, &mut missing)?;
        if missing.is_empty() {
            return order_launches(plan);
        }
        if let Some(value) = missing.iter().find(|value| state.stored[value.index()]) {
            let op = state.def(*value).map_or("an operand", |(_, data)| data.op.name());
            let what = format!("value {} of {op} cannot be read where it is needed", value.index());
            return Err(PassError::Invalid { pass: PASS, problems: vec![what] });
        }
        for value in missing {
            if !state.stored[value.index()] {
                store(&mut state, value)?;
            }
        }
    }
}

/// Stores a value that emission could not do without.
fn store(state: &mut State, value: Value) -> Result<(), PassError> {
    state.stored[value.index()] = true;
    if state.owner[value.index()].is_none() {
        state.form_stored(value)?;
    }
    // What the new kernel reads must be stored too, where another kernel computes it.
    for id in 0..state.groups.len() {
        for value in state.groups[id].owned.clone() {
            state.stored[value.index()] |= state.needed_outside(value, id);
        }
    }
    Ok(())
}

/// Makes all kernels; what must be stored before they can be made is added to `missing`.
fn lower(state: &State, missing: &mut Vec<Value>) -> Result<Plan, PassError> {
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
    let mut lowering = Lowering { state, homes: &homes, plan: &mut plan };
    for group in &state.groups {
        match lowering.group(group) {
            Ok(()) => {}
            Err(Stop::Store(value)) => {
                if !missing.contains(&value) {
                    missing.push(value);
                }
            }
            Err(Stop::Fail(error)) => return Err(error),
        }
    }
    copy_outputs(&mut lowering, missing)?;
    Ok(plan)
}

/// Launches for the outputs whose value lies elsewhere: inputs, weights, views, and values that are two outputs.
fn copy_outputs(lowering: &mut Lowering<'_>, missing: &mut Vec<Value>) -> Result<(), PassError> {
    let state = lowering.state;
    for (position, output) in state.graph.outputs.iter().enumerate() {
        if state.output.contains(&Some(position)) {
            continue;
        }
        let ty = state.graph.ty(output.value);
        let place = Place::Output(position as u32);
        lowering.plan.buffers.push(Buffer { dtype: ty.dtype, shape: ty.shape.clone(), place });
        let target = Home {
            buffer: BufferId(lowering.plan.buffers.len() as u32 - 1),
            dtype: ty.dtype,
            offset: Dim::constant(0),
            strides: row_major(&ty.shape)?,
            dense: true,
        };
        let group = Group::new(Kind::Map, Space::direct(&ty.shape), Rate::Step, &[]);
        match lowering.copy(&group, output.value, &target) {
            Ok(()) => {}
            Err(Stop::Store(value)) => missing.push(value),
            Err(Stop::Fail(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Buffers for all stored values. Later values first, so that the pieces of a concatenation find it.
fn homes(state: &State, plan: &mut Plan) -> Result<Vec<Option<Home>>, PassError> {
    let graph = &state.graph;
    let mut homes: Vec<Option<Home>> = vec![None; graph.value_count()];
    for (value, data) in graph.values().rev() {
        let used = !state.uses[value.index()].is_empty()
            || state.output[value.index()].is_some()
            || graph.outputs.iter().any(|output| output.value == value)
            || state.owner[value.index()].is_some();
        if !state.stored[value.index()] || !used || homes[value.index()].is_some() {
            continue;
        }
        let place = match (data.def, state.output[value.index()]) {
            (ValueDef::Input(position), _) => Place::Input(position as u32),
            (ValueDef::Weight(position), _) => Place::Weight(graph.weights[position].name.clone()),
            (_, Some(output)) => Place::Output(output as u32),
            _ => Place::Arena { rate: state.rate(value), offset: None },
        };
        plan.buffers.push(Buffer { dtype: data.ty.dtype, shape: data.ty.shape.clone(), place });
        let home = Home {
            buffer: BufferId(plan.buffers.len() as u32 - 1),
            dtype: data.ty.dtype,
            offset: Dim::constant(0),
            strides: row_major(&data.ty.shape)?,
            dense: true,
        };
        homes[value.index()] = Some(home);
        place_pieces(state, value, &mut homes)?;
    }
    Ok(homes)
}

/// Lets the kernels that compute the pieces of a concatenation write them to their place in it.
fn place_pieces(state: &State, concat: Value, homes: &mut [Option<Home>]) -> Result<(), PassError> {
    let Some(owner) = state.owner[concat.index()] else { return Ok(()) };
    if state.groups[owner].kind != Kind::Pieces(concat) {
        return Ok(());
    }
    let Some((_, data)) = state.def(concat) else { return Ok(()) };
    let (Op::Concat { axis }, Some(home)) = (&data.op, homes[concat.index()].clone()) else { return Ok(()) };
    let mut start = Dim::constant(0);
    for piece in &data.operands {
        let index = piece.index();
        let ty = state.graph.ty(*piece);
        let offset = home.offset.add(&start.mul(&home.strides[*axis])?)?;
        start = start.add(&ty.shape[*axis])?;
        let is_output =
            state.output[index].is_some() || state.graph.outputs.iter().any(|output| output.value == *piece);
        let once = data.operands.iter().filter(|other| *other == piece).count() == 1;
        // No kernel may read one part of a buffer and write another: launches are ordered by whole buffers.
        let read_elsewhere = state.uses[index].iter().any(|node| {
            let result = state.graph.node(*node).results[0];
            result != concat && state.owner[result.index()] != state.owner[index]
        });
        // What is written or read whole, not through a scalar function, stays dense.
        let whole = state
            .def(*piece)
            .is_none_or(|(_, data)| matches!(data.op, Op::ExpertChoice { .. } | Op::InvertIndex { .. }))
            || ty.dtype == DType::I32;
        let free = state.stored[index] && state.owner[index].is_some() && homes[index].is_none();
        let fits = state.rate(*piece) == state.rate(concat) && !whole;
        if free && fits && once && !read_elsewhere && !is_output {
            homes[index] = Some(Home { offset, dense: false, ..home.clone() });
            place_pieces(state, *piece, homes)?;
        }
    }
    Ok(())
}
