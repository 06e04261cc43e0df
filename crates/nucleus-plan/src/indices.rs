//! What is left to prove when sizes are bound: that indices stay inside what they index.
//!
//! A backend that cannot look at indices before each launch uses this proof. Where an index comes from follows from the plan: the token
//! partition of expert choice and inverted index maps are in range by construction, arithmetic on coordinates is bounded by the extents,
//! and what comes from an input is checked once, when the input is given.

use std::collections::HashMap;
use std::ops::Range;

use nucleus_ir::{DType, ScalarOp};

use crate::bind::{BindError, BoundPlan};
use crate::bounds::{Space, allowed_indices, find_index_outside, spaces};
use crate::buffer::{BufferId, Place};
use crate::kernel::{Anchor, OperandMode};
use crate::plan::{Launch, Plan};
use crate::scalar::{Access, ScalarFunction, Size, Step, StepId};

/// A check that the indices in an input lie where a launch may use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexCheck {
    /// The launch that uses them.
    pub launch: usize,
    /// Its slot.
    pub slot: String,
    /// The input that holds them, by position.
    pub input: u32,
    /// What they may be.
    pub allowed: Range<i64>,
    /// Which elements are looked at, over these extents, for these size arguments; `None` for all.
    touched: Option<(Access, Vec<i64>, Vec<i64>)>,
}

impl IndexCheck {
    /// The first of the input's elements that a launch would use as an index and must not.
    pub fn find_outside(&self, elements: &[i32]) -> Option<i64> {
        // Binding proved that accesses stay inside the buffer; an input that is shorter was refused before.
        let load = |element: i64| {
            let at = usize::try_from(element).ok();
            at.and_then(|at| elements.get(at)).copied().unwrap_or(-1)
        };
        match &self.touched {
            Some((access, extents, sizes)) => find_index_outside(access, extents, sizes, load, &self.allowed),
            None => {
                elements.iter().map(|value| i64::from(*value)).find(|value| !self.allowed.contains(value))
            }
        }
    }
}

/// The checks that inputs need before the launches of a bound plan may run unwatched.
///
/// # Errors
/// Indices that are neither in range by construction nor those of an input.
pub fn index_checks(plan: &Plan, bound: &BoundPlan) -> Result<Vec<IndexCheck>, BindError> {
    let mut values = Values { plan, bound, known: HashMap::new() };
    let mut checks: Vec<IndexCheck> = Vec::new();
    // Most kernels use no index.
    let follow: Vec<bool> = plan.kernels.iter().map(|kernel| follows_indices(&kernel.anchor)).collect();
    for (number, launch) in plan.launches.iter().enumerate() {
        if !follow[launch.kernel.0 as usize] {
            continue;
        }
        let sizes = bound.launch_sizes(number);
        let anchor = &plan.kernel(launch.kernel).anchor;
        for Space { slot, extents, function } in spaces(anchor, sizes) {
            for access in accesses_through(function) {
                let Some(through) = &access.indirect else { continue };
                let elements = bound.buffer_elements(launch.operands[access.operand as usize]);
                let stride = through.stride.value(sizes);
                let allowed = allowed_indices(access, stride, &extents, sizes, elements);
                let touched = (through.index.clone(), extents.clone(), sizes.to_vec());
                let buffer = launch.operands[through.index.operand as usize];
                values.require(&mut checks, number, &slot, (buffer, allowed, Some(touched)))?;
            }
        }
        match anchor {
            Anchor::InvertIndex(invert) => {
                let allowed = 0..invert.targets.value(sizes);
                let buffer = launch.operands[invert.index as usize];
                values.require(&mut checks, number, "index", (buffer, allowed, None))?;
            }
            Anchor::SegmentSum(sum) => {
                let [offsets, positions] = [sum.offsets, sum.positions];
                let wanted = [sum.batch, sum.targets, sum.position_count].map(|size| size.value(sizes));
                let operand = |operand: u32| launch.operands[operand as usize];
                if !values.are_rows(operand(offsets), operand(positions), wanted) {
                    return Err(unproved(plan, number, "positions"));
                }
            }
            _ => {}
        }
    }
    Ok(checks)
}

fn follows_indices(anchor: &Anchor) -> bool {
    matches!(anchor, Anchor::InvertIndex(_) | Anchor::SegmentSum(_))
        || anchor.functions().iter().any(|(_, _, function)| accesses_through(function).next().is_some())
}

/// The indirect accesses of a function.
fn accesses_through(function: &ScalarFunction) -> impl Iterator<Item = &Access> {
    let accesses = function.steps.iter().filter_map(|step| match step {
        Step::Load(access) | Step::Store { access, .. } => Some(access),
        _ => None,
    });
    accesses.filter(|access| access.indirect.is_some())
}

fn unproved(plan: &Plan, launch: usize, slot: &str) -> BindError {
    BindError::Bounds {
        launch,
        place: plan.describe(&plan.launches[launch]),
        slot: slot.to_owned(),
        why: "its indices are neither an input nor known to stay in range".to_owned(),
    }
}

/// What is known of the values of `i32` buffers.
struct Values<'a> {
    plan: &'a Plan,
    bound: &'a BoundPlan,
    /// `None` while a buffer is looked at, and where nothing is known.
    known: HashMap<BufferId, Option<(i64, i64)>>,
}

type Required = (BufferId, Range<i64>, Option<(Access, Vec<i64>, Vec<i64>)>);

impl Values<'_> {
    fn require(
        &mut self,
        checks: &mut Vec<IndexCheck>,
        launch: usize,
        slot: &str,
        (buffer, allowed, touched): Required,
    ) -> Result<(), BindError> {
        if touched.as_ref().is_some_and(|(_, extents, _)| extents.contains(&0)) {
            return Ok(());
        }
        if let Place::Input(input) = self.plan.buffer(buffer).place {
            let check = IndexCheck { launch, slot: slot.to_owned(), input, allowed, touched };
            let same = |other: &IndexCheck| {
                (other.input, &other.allowed, &other.touched) == (input, &check.allowed, &check.touched)
            };
            if !checks.iter().any(same) {
                checks.push(check);
            }
            return Ok(());
        }
        match self.of(buffer) {
            Some((low, high)) if low >= allowed.start && high < allowed.end => Ok(()),
            _ => Err(unproved(self.plan, launch, slot)),
        }
    }

    /// The smallest and the largest value that a buffer can hold.
    fn of(&mut self, buffer: BufferId) -> Option<(i64, i64)> {
        if let Some(known) = self.known.get(&buffer) {
            return *known;
        }
        self.known.insert(buffer, None);
        let mut range = None;
        for (number, launch) in self.plan.launches.iter().enumerate() {
            for operand in written(self.plan, launch, buffer) {
                let stored = self.stored(number, launch, operand)?;
                range = Some(range.map_or(stored, |range| union(range, stored)));
            }
        }
        let range = range.filter(is_i32);
        self.known.insert(buffer, range);
        range
    }

    /// What a launch writes to an operand.
    fn stored(&mut self, number: usize, launch: &Launch, operand: u32) -> Option<(i64, i64)> {
        let sizes = self.bound.launch_sizes(number);
        let size = |size: Size| size.value(sizes);
        match &self.plan.kernel(launch.kernel).anchor {
            Anchor::ExpertChoice(choice) => {
                let slots = size(choice.experts).checked_mul(size(choice.capacity))?;
                if operand == choice.slot_token {
                    return Some((0, size(choice.tokens) - 1));
                }
                let inverse = choice.inverse?;
                if operand == inverse.offsets {
                    return Some((0, slots));
                }
                (operand == inverse.positions).then_some((0, slots - 1))
            }
            Anchor::InvertIndex(invert) if operand == invert.offsets_out => Some((0, size(invert.positions))),
            Anchor::InvertIndex(invert) => Some((0, size(invert.positions) - 1)),
            Anchor::Map(map) => {
                let extents: Vec<i64> = map.space.iter().map(|extent| size(*extent)).collect();
                if extents.iter().any(|extent| *extent <= 0) {
                    return None;
                }
                self.function(launch, operand, &map.function, (&extents, sizes))
            }
            _ => None,
        }
    }

    /// What a function stores to an operand, by interval arithmetic.
    fn function(
        &mut self,
        launch: &Launch,
        operand: u32,
        function: &ScalarFunction,
        (extents, sizes): (&[i64], &[i64]),
    ) -> Option<(i64, i64)> {
        let mut steps: Vec<Option<(i64, i64)>> = Vec::with_capacity(function.steps.len());
        let mut result = None;
        for step in &function.steps {
            let value = match step {
                Step::Load(access) => {
                    let buffer = launch.operands[access.operand as usize];
                    match self.plan.buffer(buffer) {
                        loaded if loaded.dtype != DType::I32 => None,
                        loaded if matches!(loaded.place, Place::Input(_)) => None,
                        _ => self.of(buffer),
                    }
                }
                Step::Constant { value, dtype: DType::I32 } => Some((value.0 as i64, value.0 as i64)),
                Step::Affine { offset, strides } => affine(offset.value(sizes), strides, extents, sizes),
                Step::Apply { op, args } => apply(*op, args, &steps),
                Step::Store { access, value } if access.operand == operand => {
                    let stored = (*steps.get(value.0 as usize)?)?;
                    result = Some(result.map_or(stored, |range| union(range, stored)));
                    None
                }
                Step::Constant { .. } | Step::Accumulator(_) | Step::Store { .. } => None,
            };
            // A number that wraps is not known.
            steps.push(value.filter(is_i32));
        }
        result
    }

    /// Whether two buffers hold an inverted index map with these sizes: batch, targets and positions.
    fn are_rows(&self, offsets: BufferId, positions: BufferId, wanted: [i64; 3]) -> bool {
        let mut makers = self.plan.launches.iter().enumerate().filter(|(_, launch)| {
            [offsets, positions].iter().any(|buffer| !written(self.plan, launch, *buffer).is_empty())
        });
        let (Some((number, launch)), None) = (makers.next(), makers.next()) else { return false };
        let sizes = self.bound.launch_sizes(number);
        let operand = |operand: u32| launch.operands[operand as usize];
        let made = match &self.plan.kernel(launch.kernel).anchor {
            Anchor::InvertIndex(invert) => (
                operand(invert.offsets_out),
                operand(invert.positions_out),
                [invert.batch, invert.targets, invert.positions].map(|size| size.value(sizes)),
            ),
            Anchor::ExpertChoice(choice) => {
                let Some(inverse) = choice.inverse else { return false };
                let [batch, tokens, experts, capacity] =
                    [choice.batch, choice.tokens, choice.experts, choice.capacity]
                        .map(|size| size.value(sizes));
                let slots = experts.saturating_mul(capacity);
                (operand(inverse.offsets), operand(inverse.positions), [batch, tokens, slots])
            }
            _ => return false,
        };
        made == (offsets, positions, wanted)
    }
}

/// The operands of a launch through which it writes a buffer.
fn written(plan: &Plan, launch: &Launch, buffer: BufferId) -> Vec<u32> {
    let modes = plan.kernel(launch.kernel).operands.iter().map(|operand| operand.mode);
    let operands = launch.operands.iter().zip(modes).enumerate();
    let written = operands.filter(|(_, (id, mode))| **id == buffer && *mode != OperandMode::Read);
    written.map(|(position, _)| position as u32).collect()
}

fn is_i32((low, high): &(i64, i64)) -> bool {
    *low >= i64::from(i32::MIN) && *high <= i64::from(i32::MAX)
}

fn union(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    (a.0.min(b.0), a.1.max(b.1))
}

fn affine(offset: i64, strides: &[Size], extents: &[i64], sizes: &[i64]) -> Option<(i64, i64)> {
    let (mut low, mut high) = (offset, offset);
    for (stride, extent) in strides.iter().zip(extents) {
        let reach = stride.value(sizes).checked_mul(extent - 1)?;
        low = low.checked_add(reach.min(0))?;
        high = high.checked_add(reach.max(0))?;
    }
    Some((low, high))
}

fn apply(op: ScalarOp, args: &[StepId], steps: &[Option<(i64, i64)>]) -> Option<(i64, i64)> {
    let argument = |at: usize| *steps.get(args.get(at)?.0 as usize)?;
    let (x, y) = (argument(0), argument(1));
    match op {
        ScalarOp::Add => Some((x?.0.checked_add(y?.0)?, x?.1.checked_add(y?.1)?)),
        ScalarOp::Sub => Some((x?.0.checked_sub(y?.1)?, x?.1.checked_sub(y?.0)?)),
        ScalarOp::Mul => {
            let corner = |a: i64, b: i64| a.checked_mul(b);
            let corners =
                [corner(x?.0, y?.0)?, corner(x?.0, y?.1)?, corner(x?.1, y?.0)?, corner(x?.1, y?.1)?];
            corners.into_iter().map(|corner| (corner, corner)).reduce(union)
        }
        ScalarOp::Max => Some((x?.0.max(y?.0), x?.1.max(y?.1))),
        ScalarOp::Min => Some((x?.0.min(y?.0), x?.1.min(y?.1))),
        ScalarOp::Select => Some(union(y?, argument(2)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
