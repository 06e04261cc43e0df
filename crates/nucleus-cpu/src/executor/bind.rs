//! From symbolic to actual sizes: everything about a run that follows from the run-time dims, checked once.

use std::collections::HashSet;

use nucleus_ir::{Bindings, Dim, Rate};
use nucleus_plan::{Anchor, BufferId, Kernel, KernelId, Launch, OperandMode, Place, Plan, Size, check_races};

use super::bounds::{points, range, split_accesses};
use super::error::{BindError, ExecuteError};
use super::slots::slots;
use super::table::{BufferPointer, BufferTable};

/// The most pairs of accesses whose points are proved apart, in all launches together. Most launches have one or two.
const MAX_PAIRS: usize = 1 << 22;

/// A plan's sizes for one binding of its dims.
#[derive(Clone, Debug)]
pub struct BoundPlan {
    pub(crate) buffers: Vec<BoundBuffer>,
    pub(crate) launches: Vec<Vec<i64>>,
    arenas: [usize; 3],
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundBuffer {
    pub(crate) elements: i64,
    pub(crate) bytes: usize,
    arena: Option<(Rate, usize)>,
}

/// Anchor and scope of a launch, for messages.
pub(crate) fn place(plan: &Plan, launch: &Launch) -> String {
    let anchor = plan.kernel(launch.kernel).anchor.name();
    match &launch.scope {
        Some(scope) => format!("{anchor} of `{scope}`"),
        None => anchor.to_owned(),
    }
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
                    source: nucleus_ir::DimError::Overflow,
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
                |(slot, why)| BindError::Bounds { launch: position, place: place(plan, launch), slot, why },
            )?;
            let needed = bookkeeping_bytes(&kernel.anchor, &sizes);
            if needed > u128::from(limit) {
                let what = format!("the rows of launch {position} ({})", place(plan, launch));
                return Err(BindError::Memory { what, needed, limit });
            }
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

    /// Gives every buffer of one arena its place in `data`, memory of `bytes` bytes aligned to 64.
    ///
    /// # Errors
    /// The memory is too small for the arena, or a buffer does not fit into it.
    pub fn place_arena(
        &self,
        plan: &Plan,
        rate: Rate,
        data: *mut u8,
        bytes: usize,
        table: &mut BufferTable,
    ) -> Result<(), ExecuteError> {
        let mut needed = self.arena_bytes(rate);
        for buffer in &self.buffers {
            if let Some((_, offset)) = buffer.arena.filter(|(of, _)| *of == rate) {
                needed = needed.max(offset.saturating_add(buffer.bytes));
            }
        }
        if bytes < needed {
            return Err(ExecuteError::Arena { rate: rate.name(), bytes, needed });
        }
        for (position, buffer) in self.buffers.iter().enumerate() {
            if let Some((_, offset)) = buffer.arena.filter(|(of, _)| *of == rate) {
                let dtype = plan.buffers[position].dtype;
                let pointer = BufferPointer { data: data.wrapping_add(offset), bytes: buffer.bytes, dtype };
                table.set(BufferId(position as u32), pointer);
            }
        }
        Ok(())
    }
}

/// Bytes that a product needs to say where its rows lie: a few words for every item and run of rows.
fn bookkeeping_bytes(anchor: &Anchor, sizes: &[i64]) -> u128 {
    let (Anchor::Matmul(c) | Anchor::GroupedMatmul(c)) = anchor else { return 0 };
    let count = |axes: &[Size]| {
        axes.iter().fold(1u128, |total, size| total.saturating_mul(size.value(sizes).max(0) as u128))
    };
    let items = count(&c.batch);
    let runs = items.saturating_mul(64).saturating_add(items.saturating_mul(count(&c.rows)) / 8);
    // Few items may still have up to 64 runs each, which is nothing. Every part has a right factor for each run, and the segments of
    // each are packed apart.
    let segments: u128 = c.parts.iter().map(|part| 1 + u128::from(part.segments)).sum();
    runs.saturating_mul(128 + 64 * segments).saturating_sub(1 << 20)
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
    for slot in slots(&kernel.anchor) {
        let fail = |why: String| Err((slot.name.clone(), why));
        let extents: Vec<i64> = slot.extents.iter().map(|extent| extent.value(sizes)).collect();
        if let Some(extent) = extents.iter().find(|&&extent| extent < 0) {
            return fail(format!("an extent is {extent}"));
        }
        if points(&extents).is_none() {
            return fail("the iteration space has more than 2^48 points".to_owned());
        }
        let (direct, indirect) = split_accesses(slot.function);
        for access in direct.into_iter().chain(indirect) {
            let Some((low, high)) = range(access, &extents, sizes) else { continue };
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
