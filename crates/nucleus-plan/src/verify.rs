//! The plan verifier.
//!
//! Limits: numbers of buffers, launches, steps and so on that keep the other checks quick. Nothing else is looked at beyond them.
//!
//! Invariants of kernels:
//! - operand numbers and size arguments are in range;
//! - an access has as many strides as its function has axes; an index is an `i32` operand, loaded directly;
//! - steps use earlier steps; every operation is defined for the dtypes of its operands; a stored value has its operand's dtype;
//! - functions that compute an operand have a result of the dtype that the slot wants and store nothing; the others only store;
//! - accumulators exist where they are used: one per segment of a contraction's part, one for attention and segment sums, two for
//!   expert choice, the results of earlier phases for row reductions and groups of columns;
//! - reduced values are `f32`; contractions have a part and factors are floats; groups of columns are whole and of a legal size; heads are
//!   a multiple of key heads;
//! - an operand is loaded only if its mode reads, stored only if it writes.
//!
//! Invariants of the plan:
//! - a launch binds a buffer of the right dtype to every operand and gives every size argument;
//! - buffers agree with the inputs, outputs and weights they stand for; every output has exactly one buffer; only weights are `i8`;
//! - stages do not decrease; a stage reads no input that may change after it;
//! - outputs are written per step;
//! - what is read was written by an earlier launch, and is not written afterwards; weights and inputs are never written;
//! - at sample sizes, direct accesses and what an anchor reads or writes whole stay inside their buffers, and no point of a launch touches
//!   what another stores;
//! - a launch binds a buffer that it writes to one operand only;
//! - once allocated: every arena buffer has an offset, a multiple of 64 and inside its arena; buffers that live at the same time do not
//!   overlap, at sample sizes.

mod kernels;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nucleus_ir::{Bindings, DType, Rate, TensorType};

use crate::buffer::Place;
use crate::kernel::{Anchor, OperandMode};
use crate::lifetime::{Life, lifetimes};
use crate::plan::Plan;
use crate::races::check_races;
use kernels::KernelCheck;

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct PlanError {
    /// The kernel, launch or buffer.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// The most errors that are reported.
const MAX_ERRORS: usize = 50;
/// The most buffers, kernels, launches and so on of a plan: checking them takes time that grows faster than their number.
const MAX_ITEMS: usize = 1 << 17;
/// The most steps of a scalar function.
const MAX_STEPS: usize = 1 << 16;
/// The most phases of a row reduction, key segments of an attention, and parts of a contraction with their phases.
const MAX_PARTS: usize = 1 << 12;
/// The most axes of an iteration space.
const MAX_AXES: usize = 64;
/// The most pairs of accesses that are kept apart, in all launches together. Most launches have one or two.
const MAX_PAIRS: usize = 1 << 22;

/// Checks every invariant; see the [module documentation](self). All violations are reported, up to a limit.
pub fn verify_plan(plan: &Plan) -> Result<(), Vec<PlanError>> {
    let mut verifier = Verifier { plan, errors: Vec::new() };
    verifier.limits();
    if !verifier.errors.is_empty() {
        return Err(verifier.errors);
    }
    for (id, kernel) in plan.kernels.iter().enumerate() {
        KernelCheck { kernel, place: format!("kernel k{id}"), verifier: &mut verifier }.check();
    }
    verifier.buffers();
    verifier.launches();
    // Sizes and lifetimes make sense only for a plan whose references do.
    if verifier.errors.is_empty() {
        for bindings in sample_sizes(plan) {
            verifier.accesses(&bindings);
            verifier.arenas(&bindings);
        }
    }
    if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
}

/// Bindings at which sizes are checked: small, uneven and large ones that satisfy the plan's constraints.
pub fn sample_sizes(plan: &Plan) -> Vec<Bindings> {
    let patterns: [[i64; 4]; 5] =
        [[1, 1, 1, 1], [2, 3, 5, 7], [1, 64, 64, 256], [3, 17, 9, 1], [2, 32, 48, 77]];
    let bind = |pattern: &[i64; 4]| -> Bindings {
        plan.dims.iter().enumerate().map(|(i, dim)| (dim.as_str(), pattern[i % pattern.len()])).collect()
    };
    let holds = |bindings: &Bindings| {
        plan.constraints.iter().all(|constraint| {
            match (constraint.smaller.eval(bindings), constraint.larger.eval(bindings)) {
                (Ok(smaller), Ok(larger)) => smaller <= larger,
                _ => false,
            }
        })
    };
    patterns.iter().map(bind).filter(holds).collect()
}

/// The largest of the sample sizes: where time is spent. `None` if the plan's constraints allow none of them.
pub fn largest_sample(plan: &Plan) -> Option<Bindings> {
    let volume = |point: &Bindings| point.iter().map(|(_, size)| size).fold(1, i64::saturating_mul);
    sample_sizes(plan).into_iter().max_by_key(volume)
}

struct Verifier<'a> {
    plan: &'a Plan,
    errors: Vec<PlanError>,
}

impl Verifier<'_> {
    fn report(&mut self, place: &str, what: String) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(PlanError { place: place.to_owned(), what });
        }
    }

    /// Numbers that would make the other checks take long.
    fn limits(&mut self) {
        let plan = self.plan;
        let counts = [
            ("dims", plan.dims.len()),
            ("constraints", plan.constraints.len()),
            ("inputs", plan.inputs.len()),
            ("outputs", plan.outputs.len()),
            ("weights", plan.weights.len()),
            ("buffers", plan.buffers.len()),
            ("kernels", plan.kernels.len()),
            ("launches", plan.launches.len()),
        ];
        for (what, count) in counts.into_iter().filter(|(_, count)| *count > MAX_ITEMS) {
            self.report("the plan", format!("has {count} {what}; there may be {MAX_ITEMS}"));
        }
        for (id, kernel) in plan.kernels.iter().enumerate() {
            let place = format!("kernel k{id}");
            let parts = match &kernel.anchor {
                Anchor::RowReduction(reduction) => reduction.phases.len(),
                Anchor::Attention(attention) => attention.segments.len(),
                Anchor::AttentionGrad(grad) => grad.segments.len(),
                Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
                    let phases =
                        c.parts.iter().flat_map(|part| &part.groups).map(|groups| groups.phases.len());
                    c.parts.len() + phases.sum::<usize>()
                }
                _ => 0,
            };
            let functions = if parts > MAX_PARTS { Vec::new() } else { kernel.anchor.functions() };
            if parts > MAX_PARTS {
                self.report(
                    &place,
                    format!("has {parts} phases, segments or parts; there may be {MAX_PARTS}"),
                );
            }
            for (name, axes, function) in functions {
                if axes > MAX_AXES || function.steps.len() > MAX_STEPS {
                    let what = format!(
                        "{name} has {axes} axes and {} steps; there may be {MAX_AXES} and {MAX_STEPS}",
                        function.steps.len()
                    );
                    self.report(&place, what);
                }
            }
        }
    }

    fn buffers(&mut self) {
        let plan = self.plan;
        let mut outputs = vec![0usize; plan.outputs.len()];
        let weights: HashMap<&str, &TensorType> =
            plan.weights.iter().map(|(name, ty)| (name.as_str(), ty)).collect();
        for (id, buffer) in plan.buffers.iter().enumerate() {
            let place = format!("buffer b{id}");
            if buffer.dtype == DType::I8 && !matches!(buffer.place, Place::Weight(_)) {
                self.report(&place, "is i8, which only weights may be".to_owned());
            }
            let expected = match &buffer.place {
                Place::Weight(name) => weights.get(name.as_str()).copied(),
                Place::State(name) if weights.contains_key(name.as_str()) => {
                    weights.get(name.as_str()).copied()
                }
                Place::Input(position) => plan.inputs.get(*position as usize).map(|input| &input.ty),
                Place::Output(position) => {
                    if let Some(count) = outputs.get_mut(*position as usize) {
                        *count += 1;
                    }
                    let output = plan.outputs.get(*position as usize).map(|output| &output.ty);
                    // An output may be written under another shape of as many elements.
                    match output {
                        Some(ty) if ty.dtype == buffer.dtype => {
                            let shape = nucleus_ir::dim::product(&buffer.shape);
                            if shape.is_ok() && shape == ty.elements() {
                                continue;
                            }
                        }
                        _ => {}
                    }
                    output
                }
                Place::Arena { .. } | Place::State(_) => continue,
            };
            match expected {
                None => self.report(&place, "stands for nothing that the plan lists".to_owned()),
                Some(ty) if ty.dtype != buffer.dtype || ty.shape != buffer.shape => {
                    self.report(&place, format!("has not the type {ty} of what it stands for"));
                }
                Some(_) => {}
            }
        }
        for (position, count) in outputs.into_iter().enumerate() {
            if count != 1 {
                self.report(&format!("output {position}"), format!("has {count} buffers"));
            }
        }
    }

    fn launches(&mut self) {
        let plan = self.plan;
        let mut written = vec![false; plan.buffers.len()];
        let mut read = vec![false; plan.buffers.len()];
        let mut stage = Rate::Model;
        for (position, launch) in plan.launches.iter().enumerate() {
            let place = format!("launch {position}");
            if launch.stage < stage {
                self.report(&place, format!("{} after a launch {stage}", launch.stage));
            }
            stage = stage.max(launch.stage);
            let Some(kernel) = plan.kernels.get(launch.kernel.0 as usize) else {
                self.report(&place, format!("there is no kernel k{}", launch.kernel.0));
                continue;
            };
            if launch.sizes.len() != kernel.size_args as usize {
                let (given, needed) = (launch.sizes.len(), kernel.size_args);
                self.report(&place, format!("{given} sizes for {needed} size arguments"));
            }
            if launch.operands.len() != kernel.operands.len() {
                let (given, needed) = (launch.operands.len(), kernel.operands.len());
                self.report(&place, format!("{given} buffers for {needed} operands"));
            }
            let bound = || launch.operands.iter().zip(&kernel.operands).enumerate();
            for (number, (id, operand)) in bound() {
                let Some(buffer) = plan.buffers.get(id.0 as usize) else {
                    self.report(&place, format!("there is no buffer b{}", id.0));
                    continue;
                };
                if buffer.dtype != operand.dtype {
                    let (given, wanted) = (buffer.dtype, operand.dtype);
                    self.report(&place, format!("operand {number} is {wanted}, b{} is {given}", id.0));
                }
                let index = id.0 as usize;
                if operand.mode != OperandMode::Write {
                    read[index] = true;
                    match &buffer.place {
                        Place::Input(input) => {
                            let rate = plan.inputs.get(*input as usize).map(|input| input.rate);
                            if rate.is_some_and(|rate| rate > launch.stage) {
                                self.report(&place, format!("b{index} changes after its stage"));
                            }
                        }
                        Place::Weight(_) | Place::State(_) => {}
                        Place::Arena { .. } | Place::Output(_) => {
                            if !written[index] {
                                self.report(&place, format!("b{index} is read before it is written"));
                            }
                        }
                    }
                }
            }
            let mut uses: HashMap<u32, u32> = HashMap::new();
            launch.operands.iter().for_each(|id| *uses.entry(id.0).or_default() += 1);
            for (_, (id, operand)) in bound() {
                let index = id.0 as usize;
                if operand.mode != OperandMode::Read && uses[&id.0] > 1 {
                    self.report(&place, format!("b{index} is written and bound to another operand too"));
                }
                let Some(buffer) = plan.buffers.get(index).filter(|_| operand.mode != OperandMode::Read)
                else {
                    continue;
                };
                if matches!(buffer.place, Place::Weight(_) | Place::Input(_)) {
                    self.report(&place, format!("b{index} is a weight or an input and is written"));
                }
                if operand.mode == OperandMode::Write
                    && read[index]
                    && !matches!(buffer.place, Place::State(_))
                {
                    self.report(&place, format!("b{index} is written after it was read"));
                }
                if matches!(buffer.place, Place::Output(_)) && launch.stage != Rate::Step {
                    self.report(&place, format!("b{index} is an output and written {}", launch.stage));
                }
                written[index] = true;
            }
        }
        for (index, buffer) in plan.buffers.iter().enumerate() {
            if matches!(buffer.place, Place::Output(_)) && !written[index] {
                self.report(&format!("buffer b{index}"), "an output that is never written".to_owned());
            }
        }
    }

    /// Direct accesses reach from their offset up to the last point of their space.
    fn accesses(&mut self, bindings: &Bindings) {
        let plan = self.plan;
        let mut pairs = MAX_PAIRS;
        for (position, launch) in plan.launches.iter().enumerate() {
            let kernel = plan.kernel(launch.kernel);
            let sizes: Result<Vec<i64>, _> = launch.sizes.iter().map(|size| size.eval(bindings)).collect();
            let Ok(sizes) = sizes else { continue };
            if let Err((slot, why)) = check_races(kernel, &sizes, &mut pairs) {
                self.report(&format!("launch {position}"), format!("{slot}: {why}, at {bindings:?}"));
            }
            for dense in kernel.anchor.dense_operands() {
                let buffer = launch.operands[dense.operand as usize];
                let elements =
                    nucleus_ir::dim::product(&plan.buffer(buffer).shape).and_then(|n| n.eval(bindings));
                let (needed, Ok(elements)) = (dense.elements(&sizes), elements) else { continue };
                if needed > i128::from(elements) {
                    let what = format!(
                        "{needed} elements of b{} are used, which has {elements}, at {bindings:?}",
                        buffer.0
                    );
                    self.report(&format!("launch {position}"), what);
                }
            }
            for (name, extents, function) in kernel.anchor.slots() {
                let extents: Vec<i64> = extents.iter().map(|extent| extent.value(&sizes)).collect();
                if extents.iter().any(|extent| *extent <= 0) {
                    continue;
                }
                for access in function.accesses().filter(|access| access.indirect.is_none()) {
                    let (mut low, mut high) = (access.offset.value(&sizes), access.offset.value(&sizes));
                    for (stride, extent) in access.strides.iter().zip(&extents) {
                        let reach = stride.value(&sizes).saturating_mul(extent - 1);
                        low = low.saturating_add(reach.min(0));
                        high = high.saturating_add(reach.max(0));
                    }
                    let buffer = plan.buffer(launch.operands[access.operand as usize]);
                    let elements = nucleus_ir::dim::product(&buffer.shape).and_then(|n| n.eval(bindings));
                    let Ok(elements) = elements else { continue };
                    if low < 0 || high >= elements {
                        let id = launch.operands[access.operand as usize].0;
                        let what = format!(
                            "{name} accesses elements {low} to {high} of b{id}, which has {elements}, at {bindings:?}"
                        );
                        self.report(&format!("launch {position}"), what);
                    }
                }
            }
        }
    }

    fn arenas(&mut self, bindings: &Bindings) {
        let plan = self.plan;
        let Some(arenas) = &plan.arenas else { return };
        let lives = lifetimes(plan);
        let mut placed: Vec<(usize, Rate, i64, i64, Life)> = Vec::new();
        for (id, buffer) in plan.buffers.iter().enumerate() {
            let Place::Arena { rate, offset } = &buffer.place else { continue };
            let place = format!("buffer b{id}");
            let Some(offset) = offset else {
                self.report(&place, "has no offset in its arena".to_owned());
                continue;
            };
            let elements = nucleus_ir::dim::product(&buffer.shape).and_then(|n| n.eval(bindings));
            let (Ok(start), Ok(elements)) = (offset.eval(bindings), elements) else { continue };
            let end = start.saturating_add(elements.saturating_mul(buffer.dtype.size() as i64));
            let size = arenas[*rate as usize].eval(bindings).unwrap_or(0);
            if start % 64 != 0 || start < 0 || end > size {
                self.report(&place, format!("lies at {start} to {end} of an arena of {size} bytes"));
            }
            let Some(life) = lives[id] else { continue };
            if *rate != life.arena() {
                self.report(&place, format!("lives in the arena {rate}, which is not for it"));
            }
            placed.push((id, *rate, start, end, life));
        }
        // In the order in which buffers come into use, with those in use by their place: as these do not overlap, a new one can only
        // overlap its neighbours.
        let forever = |life: &Life| if life.persists { (0, usize::MAX) } else { (life.first, life.last) };
        placed.retain(|(_, _, start, end, _)| start < end);
        placed.sort_by_key(|(id, rate, _, _, life)| (*rate, forever(life).0, *id));
        let mut in_use: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
        let mut leaving: BTreeSet<(usize, i64)> = BTreeSet::new();
        let mut arena = None;
        for (id, rate, start, end, life) in placed {
            if arena.replace(rate) != Some(rate) {
                in_use.clear();
                leaving.clear();
            }
            let (first, last) = forever(&life);
            while let Some((until, place)) = leaving.first().copied().filter(|(until, _)| *until < first) {
                leaving.remove(&(until, place));
                in_use.remove(&place);
            }
            let below = in_use.range(..end).next_back().filter(|(_, (_, other_end))| *other_end > start);
            if let Some((_, (other, _))) = below {
                let what = format!("overlaps b{other} while both are in use, at {bindings:?}");
                self.report(&format!("buffer b{id}"), what);
            } else {
                in_use.insert(start, (id, end));
                leaving.insert((last, start));
            }
        }
    }
}

#[cfg(test)]
mod tests;
