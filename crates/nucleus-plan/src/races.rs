//! Proof that a kernel can run its points in any order, and several at a time.
//!
//! What one point stores, no other point may touch. Accesses are affine in the coordinates, so two of them meet where a linear equation
//! over boxed integers has a solution: for accesses a and b, `a.offset − b.offset + Σ a.stride · p − Σ b.stride · q = 0`. Terms are
//! settled from the largest factor down, keeping the remainders that smaller terms can still make up. Strides of tensors are a mixed
//! radix, each larger than what the smaller ones reach, so that hardly more than two remainders are left at any time; where there are
//! many, the proof is given up and the kernel refused.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::bounds::{Space, spaces};
use crate::kernel::{Anchor, Kernel, OperandMode};
use crate::scalar::{Access, Step};

/// The most remainders kept, and the most values tried for a coordinate.
const MAX_STATES: i128 = 256;
/// No buffer has as many elements as this; sums below it do not overflow.
const LARGEST: i128 = 1 << 100;

/// One access in its iteration space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// The slot, by position in the list of the anchor's functions.
    slot: usize,
    store: bool,
    /// True for what goes through an index, and for the index.
    indirect: bool,
    offset: i64,
    /// Stride and extent of every axis.
    axes: Vec<(i64, i64)>,
}

impl Place {
    /// The smallest and the largest element.
    fn range(&self) -> (i128, i128) {
        let (mut low, mut high) = (i128::from(self.offset), i128::from(self.offset));
        for (stride, extent) in &self.axes {
            let reach = i128::from(*stride) * i128::from(extent - 1);
            low = low.saturating_add(reach.min(0));
            high = high.saturating_add(reach.max(0));
        }
        (low, high)
    }
}

/// A term `factor · x` of the equation, x from `low` to `high`.
struct Term {
    factor: i128,
    low: i128,
    high: i128,
    /// True if x is how far the two points are apart along an axis.
    distance: bool,
}

/// Checks that no point of a kernel touches what another point stores, for size arguments of these values. `budget` is the number of
/// pairs of accesses that may still be looked at.
///
/// # Errors
/// The slot and what is wrong, where points meet or where that cannot be ruled out.
pub fn check_races(kernel: &Kernel, sizes: &[i64], budget: &mut usize) -> Result<(), (String, String)> {
    let spaces = spaces(&kernel.anchor, sizes);
    let mut places: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
    for (number, Space { extents, function, .. }) in spaces.iter().enumerate() {
        if extents.iter().any(|extent| *extent <= 0) {
            continue;
        }
        let mut add = |access: &Access, store: bool, index: bool| {
            let read_only = kernel
                .operands
                .get(access.operand as usize)
                .is_none_or(|known| known.mode == OperandMode::Read);
            if read_only {
                return;
            }
            let strides = access.strides.iter().map(|stride| stride.value(sizes));
            places.entry(access.operand).or_default().push(Place {
                slot: number,
                store,
                indirect: index || access.indirect.is_some(),
                offset: access.offset.value(sizes),
                axes: strides.zip(extents.iter().copied()).collect(),
            });
        };
        for step in &function.steps {
            let (Step::Load(access) | Step::Store { access, .. }) = step else { continue };
            add(access, matches!(step, Step::Store { .. }), false);
            if let Some(indirect) = &access.indirect {
                add(&indirect.index, false, true);
            }
        }
    }
    whole_operands(kernel, &places)?;
    let name = |slot: usize| spaces[slot].slot.clone();
    let axes = |slot: usize| spaces[slot].extents.len();
    for (operand, mut places) in places {
        if !places.iter().any(|place| place.store) {
            continue;
        }
        let mut seen: HashSet<Place> = HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        if let Some(place) = places.iter().find(|place| place.indirect) {
            let why =
                format!("operand {operand} is stored to, and has or goes through an index: points may meet");
            return Err((name(place.slot), why));
        }
        for (position, a) in places.iter().enumerate() {
            for b in places[..=position].iter().filter(|b| a.store || b.store) {
                *budget = budget.checked_sub(1).ok_or_else(|| {
                    let why = format!(
                        "operand {operand} is stored in too many ways to prove that they do not meet"
                    );
                    (name(a.slot), why)
                })?;
                // Points of a row reduction's row run one after the other, slot by slot.
                let together = match &kernel.anchor {
                    _ if a.slot == b.slot => Some(axes(a.slot)),
                    Anchor::RowReduction(reduction) => Some(reduction.rows.len()),
                    _ => None,
                };
                if may_meet(a, b, together) {
                    let other = if a.store && b.store { "stores" } else { "reads" };
                    let why =
                        format!("a point stores an element of operand {operand} that another point {other}");
                    return Err((name(if a.store { a.slot } else { b.slot }), why));
                }
            }
        }
    }
    Ok(())
}

/// What an anchor itself writes is used by nothing else in the kernel, and what it reads itself is not stored.
fn whole_operands(kernel: &Kernel, places: &BTreeMap<u32, Vec<Place>>) -> Result<(), (String, String)> {
    let stored = |operand: u32| places.get(&operand).is_some_and(|list| list.iter().any(|place| place.store));
    let (written, read) = match &kernel.anchor {
        Anchor::ExpertChoice(choice) => {
            let inverse = choice.inverse.map(|inverse| [inverse.offsets, inverse.positions]);
            ([choice.slot_token].into_iter().chain(inverse.into_iter().flatten()).collect(), vec![])
        }
        Anchor::InvertIndex(invert) => (vec![invert.offsets_out, invert.positions_out], vec![invert.index]),
        Anchor::SegmentSum(sum) => (vec![], vec![sum.offsets, sum.positions]),
        _ => return Ok(()),
    };
    for (position, operand) in written.iter().enumerate() {
        let others = written[..position].contains(operand) || read.contains(operand);
        if others || places.contains_key(operand) {
            return Err((
                "results".to_owned(),
                format!("operand {operand} is written whole and used otherwise"),
            ));
        }
    }
    match read.into_iter().find(|operand| stored(*operand)) {
        Some(operand) => {
            Err(("results".to_owned(), format!("operand {operand} is read whole and stored to")))
        }
        None => Ok(()),
    }
}

/// Whether two accesses may touch one element at two different points. The first `together` axes are the same axes for both, and the
/// points differ if they differ along one of these; `None` for points that always differ.
fn may_meet(a: &Place, b: &Place, together: Option<usize>) -> bool {
    let ((a_low, a_high), (b_low, b_high)) = (a.range(), b.range());
    if a_high < b_low || b_high < a_low {
        return false;
    }
    let mut terms: Vec<Term> = Vec::new();
    // Whether the points are known to differ, or may, whatever the equation says.
    let mut apart = together.is_none();
    let together = together.unwrap_or(0);
    for (&(a_stride, extent), &(b_stride, _)) in a.axes.iter().zip(&b.axes).take(together) {
        let last = i128::from(extent - 1);
        if last == 0 {
            continue;
        }
        if a_stride == b_stride {
            apart |= a_stride == 0;
            terms.push(Term { factor: a_stride.into(), low: -last, high: last, distance: true });
        } else {
            apart = true;
            terms.push(Term { factor: a_stride.into(), low: 0, high: last, distance: false });
            terms.push(Term { factor: -i128::from(b_stride), low: 0, high: last, distance: false });
        }
    }
    for (place, sign) in [(a, 1), (b, -1)] {
        for &(stride, extent) in place.axes.iter().skip(together) {
            let (factor, high) = (sign * i128::from(stride), i128::from(extent - 1));
            terms.push(Term { factor, low: 0, high, distance: false });
        }
    }
    terms.retain(|term| term.factor != 0 && term.low < term.high);
    terms.sort_by_key(|term| std::cmp::Reverse(term.factor.abs()));
    solvable(i128::from(a.offset) - i128::from(b.offset), &terms, apart)
}

/// Whether `start + Σ factor · x = 0` has a solution in which some distance is not 0, or any at all if `apart`; also where that
/// cannot be told soon.
fn solvable(start: i128, terms: &[Term], apart: bool) -> bool {
    // What the terms from each one on can add up to.
    let mut reach = vec![(0i128, 0i128)];
    for term in terms.iter().rev() {
        let (low, high) = reach[reach.len() - 1];
        let (one, other) = (term.factor * term.low, term.factor * term.high);
        reach.push((low.saturating_add(one.min(other)), high.saturating_add(one.max(other))));
    }
    let (low, high) = reach.pop().unwrap_or((0, 0));
    if low < -LARGEST || high > LARGEST {
        return true;
    }
    let mut states: BTreeSet<(i128, bool)> = BTreeSet::from([(start, apart)]);
    for term in terms {
        let (low, high) = reach.pop().unwrap_or((0, 0));
        let mut next = BTreeSet::new();
        for (sum, apart) in states {
            // −high ≤ sum + factor · x ≤ −low.
            let (factor, from, to) = if term.factor > 0 {
                (term.factor, -high - sum, -low - sum)
            } else {
                (-term.factor, low + sum, high + sum)
            };
            let first = term.low.max(from.div_euclid(factor) + i128::from(from.rem_euclid(factor) != 0));
            let last = term.high.min(to.div_euclid(factor));
            if last - first >= MAX_STATES {
                return true;
            }
            for x in first..=last {
                next.insert((sum + term.factor * x, apart || term.distance && x != 0));
            }
        }
        if next.len() as i128 > MAX_STATES {
            return true;
        }
        states = next;
    }
    states.contains(&(0, true))
}

#[cfg(test)]
mod tests;
