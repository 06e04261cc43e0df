//! From symbolic to actual sizes: everything about a run that follows from the run-time dims, checked once.
//!
//! Binding proves that no launch leaves its buffers and that no point of one touches what another stores, as far as that follows from
//! sizes; what goes through an index must be looked at when the index is known ([`crate::bounds::allowed_indices`]).

use std::collections::HashSet;

use nucleus_ir::{Bindings, Dim, DimError, Rate};
use thiserror::Error;

use crate::bounds::{points, range, spaces, split_accesses};
use crate::buffer::{BufferId, Place};
use crate::kernel::{Kernel, KernelId, OperandMode};
use crate::plan::{Launch, Plan};
use crate::races::check_races;

/// The most pairs of accesses whose points are proved apart, in all launches together. Most launches have one or two.
const MAX_PAIRS: usize = 1 << 22;

/// Sizes that a plan cannot run with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BindError {
    /// A run-time size without a value, or one below 1.
    #[error("dim `{name}` {why}")]
    Dim {
        /// The size.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A relation between sizes does not hold.
    #[error("{what}: `{smaller}` = {smaller_value} exceeds `{larger}` = {larger_value}")]
    Constraint {
        /// What the relation means.
        what: String,
        /// The formula that must not be larger.
        smaller: String,
        /// Its value.
        smaller_value: i64,
        /// The formula that must not be smaller.
        larger: String,
        /// Its value.
        larger_value: i64,
    },
    /// Size arithmetic failed.
    #[error("{place}: {source}")]
    Size {
        /// Where.
        place: String,
        /// Why.
        source: DimError,
    },
    /// More memory than allowed.
    #[error("these sizes need {needed} bytes for {what}; the limit is {limit}")]
    Memory {
        /// What for.
        what: String,
        /// How much.
        needed: u128,
        /// How much there may be.
        limit: u64,
    },
    /// A launch would touch memory outside a buffer: the plan is wrong for these sizes.
    #[error("launch {launch} ({place}), slot `{slot}`: {why}")]
    Bounds {
        /// The launch's number.
        launch: usize,
        /// The anchor and the scope of the text.
        place: String,
        /// The slot.
        slot: String,
        /// What would happen.
        why: String,
    },
}

/// A plan's sizes for one binding of its dims.
#[derive(Clone, Debug)]
pub struct BoundPlan {
    buffers: Vec<BoundBuffer>,
    launches: Vec<Vec<i64>>,
    arenas: [usize; 3],
}

#[derive(Clone, Copy, Debug)]
struct BoundBuffer {
    elements: i64,
    bytes: usize,
    arena: Option<(Rate, usize)>,
}

impl BoundPlan {
    /// Evaluates every size of `plan`; the memory of all arenas, and of any one buffer, is at most `limit` bytes.
    ///
    /// # Errors
    /// A dim has no value or one below 1, a constraint does not hold, a size overflows or exceeds the limit, a launch would leave its
    /// buffers, or one of its points would touch what another stores.
    pub fn new(plan: &Plan, dims: &Bindings, limit: u64) -> Result<BoundPlan, BindError> {
        for symbol in &plan.dims {
            let why = match dims.get(symbol) {
                None => "has no value".to_owned(),
                Some(value) if value < 1 => format!("is {value}; sizes are at least 1"),
                Some(_) => continue,
            };
            return Err(BindError::Dim { name: symbol.to_string(), why });
        }
        let eval = |dim: &Dim, place: &dyn Fn() -> String| {
            dim.eval(dims).map_err(|source| BindError::Size { place: place(), source })
        };
        for constraint in &plan.constraints {
            let at = || constraint.what.clone();
            let (smaller, larger) = (eval(&constraint.smaller, &at)?, eval(&constraint.larger, &at)?);
            if smaller > larger {
                return Err(BindError::Constraint {
                    what: constraint.what.clone(),
                    smaller: constraint.smaller.to_string(),
                    smaller_value: smaller,
                    larger: constraint.larger.to_string(),
                    larger_value: larger,
                });
            }
        }
        let checked = |value: i64, what: &dyn Fn() -> String| match usize::try_from(value) {
            Ok(bytes) if value as u64 <= limit => Ok(bytes),
            _ => Err(BindError::Memory { what: what(), needed: value.max(0) as u128, limit }),
        };
        let arenas = match &plan.arenas {
            Some(sizes) => {
                let at = || "the arenas".to_owned();
                let mut arenas = [0; 3];
                for (bytes, size) in arenas.iter_mut().zip(sizes) {
                    *bytes = checked(eval(size, &at)?, &at)?;
                }
                let total: u128 = arenas.iter().map(|&bytes| bytes as u128).sum();
                if total > u128::from(limit) {
                    return Err(BindError::Memory { what: at(), needed: total, limit });
                }
                arenas
            }
            None => [0; 3],
        };
        let mut buffers = Vec::with_capacity(plan.buffers.len());
        for (position, buffer) in plan.buffers.iter().enumerate() {
            let at = || format!("buffer {position}");
            let mut elements = 1u128;
            for dim in &buffer.shape {
                let extent = eval(dim, &at)?;
                let extent = u128::try_from(extent).map_err(|_| BindError::Size {
                    place: format!("buffer {position} has extent {extent}"),
                    source: DimError::Overflow,
                })?;
                elements = elements.saturating_mul(extent).min(1 << 100);
            }
            let needed = elements * buffer.dtype.size() as u128;
            if needed > u128::from(limit).min(i64::MAX as u128) {
                return Err(BindError::Memory { what: at(), needed, limit });
            }
            let arena = match &buffer.place {
                Place::Arena { rate, offset: Some(offset) } => {
                    Some((*rate, checked(eval(offset, &at)?, &at)?))
                }
                _ => None,
            };
            buffers.push(BoundBuffer { elements: elements as i64, bytes: needed as usize, arena });
        }
        // Arenas, inputs and outputs are in memory together; weights have been checked against their file.
        let outside = plan
            .buffers
            .iter()
            .zip(&buffers)
            .filter(|(buffer, _)| !matches!(buffer.place, Place::Arena { .. } | Place::Weight(_)));
        let total = arenas.iter().map(|&bytes| bytes as u128).sum::<u128>()
            + outside.map(|(_, bound)| bound.bytes as u128).sum::<u128>();
        if total > u128::from(limit) {
            let what = "arenas, inputs and outputs".to_owned();
            return Err(BindError::Memory { what, needed: total, limit });
        }
        let mut launches = Vec::with_capacity(plan.launches.len());
        let mut pairs = MAX_PAIRS;
        let mut proved: HashSet<(KernelId, Vec<i64>, Vec<i64>)> = HashSet::new();
        for (position, launch) in plan.launches.iter().enumerate() {
            let at = || format!("launch {position}");
            let sizes: Result<Vec<i64>, BindError> = launch.sizes.iter().map(|dim| eval(dim, &at)).collect();
            let sizes = sizes?;
            let kernel = plan.kernel(launch.kernel);
            // What is proved of a kernel with these sizes and buffers as large holds for every layer that launches it.
            let elements = launch.operands.iter().map(|id| buffers[id.0 as usize].elements).collect();
            let check = if proved.insert((launch.kernel, sizes.clone(), elements)) {
                check_launch(kernel, launch, &sizes, &buffers)
                    .and_then(|()| check_races(kernel, &sizes, &mut pairs))
            } else {
                Ok(())
            };
            check.and_then(|()| check_operands_apart(plan, kernel, launch, &buffers)).map_err(
                |(slot, why)| BindError::Bounds { launch: position, place: plan.describe(launch), slot, why },
            )?;
            launches.push(sizes);
        }
        Ok(BoundPlan { buffers, launches, arenas })
    }

    /// Bytes of a buffer.
    pub fn buffer_bytes(&self, buffer: BufferId) -> usize {
        self.buffers[buffer.0 as usize].bytes
    }

    /// Bytes of the arena of a rate.
    pub fn arena_bytes(&self, rate: Rate) -> usize {
        self.arenas[rate as usize]
    }

    /// The number of elements of a buffer.
    pub fn buffer_elements(&self, buffer: BufferId) -> i64 {
        self.buffers[buffer.0 as usize].elements
    }

    /// Where a buffer lies: in which arena, and its first byte there. `None` for buffers that are not in an arena.
    pub fn arena_place(&self, buffer: BufferId) -> Option<(Rate, usize)> {
        self.buffers[buffer.0 as usize].arena
    }

    /// The bytes that an arena must have for every buffer to fit into it: as many as the plan says, unless the plan is wrong.
    pub fn arena_extent(&self, rate: Rate) -> usize {
        let of_rate = self.buffers.iter().filter_map(|buffer| {
            let (_, offset) = buffer.arena.filter(|(of, _)| *of == rate)?;
            Some(offset.saturating_add(buffer.bytes))
        });
        of_rate.fold(self.arena_bytes(rate), usize::max)
    }

    /// The size arguments of a launch.
    pub fn launch_sizes(&self, launch: usize) -> &[i64] {
        &self.launches[launch]
    }

    /// Whether this can be of `plan`: it has as many buffers and launches.
    pub fn is_of(&self, plan: &Plan) -> bool {
        self.launches.len() == plan.launches.len() && self.buffers.len() == plan.buffers.len()
    }
}

/// Checks that what a launch writes lies nowhere else among its operands: points are proved not to meet operand by operand, and
/// indices are looked at before a launch uses them.
fn check_operands_apart(
    plan: &Plan,
    kernel: &Kernel,
    launch: &Launch,
    buffers: &[BoundBuffer],
) -> Result<(), (String, String)> {
    // Operands in the order of where they lie: arenas by offset, others by buffer.
    let mut places: Vec<(MemoryOf<'_>, usize, usize, usize)> = Vec::with_capacity(launch.operands.len());
    for (operand, id) in launch.operands.iter().enumerate() {
        let bound = &buffers[id.0 as usize];
        let (memory, start) = match (&plan.buffer(*id).place, bound.arena) {
            (_, Some((rate, start))) => (MemoryOf::Arena(rate), start),
            (Place::State(name), None) => (MemoryOf::State(name), 0),
            _ => (MemoryOf::Buffer(id.0), 0),
        };
        if bound.bytes > 0 {
            places.push((memory, start, start.saturating_add(bound.bytes), operand));
        }
    }
    places.sort_unstable();
    let written = |operand: usize| kernel.operands[operand].mode != OperandMode::Read;
    // The operands so far that reach farthest: of all, and of those that are written.
    let mut any: Option<(usize, usize)> = None;
    let mut stored: Option<(usize, usize)> = None;
    let mut memory = None;
    for (of, start, end, operand) in places {
        if memory.replace(of) != Some(of) {
            (any, stored) = (None, None);
        }
        let other = if written(operand) { any } else { stored };
        if let Some((_, other)) = other.filter(|(reach, _)| start < *reach) {
            let (first, second) = (other.min(operand), other.max(operand));
            let why = format!("operands {first} and {second} share memory, and one is written");
            return Err(("operands".to_owned(), why));
        }
        any = any.max(Some((end, operand)));
        if written(operand) {
            stored = stored.max(Some((end, operand)));
        }
    }
    Ok(())
}

/// What an operand is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MemoryOf<'a> {
    Arena(Rate),
    State(&'a str),
    Buffer(u32),
}

/// Checks that a launch stays inside its buffers; indirect accesses are checked when it runs.
fn check_launch(
    kernel: &Kernel,
    launch: &Launch,
    sizes: &[i64],
    buffers: &[BoundBuffer],
) -> Result<(), (String, String)> {
    let elements = |operand: u32| buffers[launch.operands[operand as usize].0 as usize].elements;
    for space in spaces(&kernel.anchor, sizes) {
        let fail = |why: String| Err((space.slot.clone(), why));
        if let Some(extent) = space.extents.iter().find(|&&extent| extent < 0) {
            return fail(format!("an extent is {extent}"));
        }
        if points(&space.extents).is_none() {
            return fail("the iteration space has more than 2^48 points".to_owned());
        }
        let (direct, indirect) = split_accesses(space.function);
        for access in direct.into_iter().chain(indirect) {
            let Some((low, high)) = range(access, &space.extents, sizes) else { continue };
            let available = elements(access.operand);
            if low < 0 || high >= i128::from(available) {
                let operand = access.operand;
                return fail(format!(
                    "operand {operand} has {available} elements; {low} to {high} are touched"
                ));
            }
        }
    }
    for dense in kernel.anchor.dense_operands() {
        let at = || format!("operand {}", dense.operand);
        if [dense.batch, dense.item[0], dense.item[1]].iter().any(|size| size.value(sizes) < 0) {
            return Err((at(), "a negative extent".to_owned()));
        }
        let (needed, available) = (dense.elements(sizes), elements(dense.operand));
        if needed > i128::from(available) {
            return Err((at(), format!("{available} elements where {needed} are needed")));
        }
    }
    Ok(())
}
