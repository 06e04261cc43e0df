//! Places for the buffers of the arenas.
//!
//! A buffer that a later stage needs has its own place in the arena of its rate. All others share *slots* of the step arena: buffers
//! share a slot if they are never in use at the same time, and a slot is as large as its largest tenant. The larger buffers choose first
//! (greedy by size, Pisarchyk and Lee, arXiv 2001.03288); sizes are compared at sample bindings, since formulas alone have no order.
//! Offsets are running sums of slot sizes, formulas in the run-time sizes.

use std::collections::BTreeMap;

use nucleus_ir::dim::product;
use nucleus_ir::{Bindings, Dim, DimError, Rate};
use nucleus_plan::verify::sample_sizes;
use nucleus_plan::{Life, Place, Plan, lifetimes};

use crate::error::PassError;
use crate::fuse::is_nonnegative;

const PASS: &str = "allocate";
/// Every buffer starts at a multiple of this many bytes: a cache line, and the largest vector.
const ALIGNMENT: i64 = 64;
/// The most sizes of one slot of which none is provably the largest. Fewer where formulas of offsets grow beyond the limits of the dim algebra.
const MAX_RIVALS: [usize; 3] = [4, 2, 1];
/// The most slots that a buffer tries, the last ones made: a graph may keep as many buffers in use at one time as it has nodes.
const MAX_TRIED: usize = 256;

/// Gives every arena buffer its offset and the arenas their sizes.
pub fn allocate(mut plan: Plan) -> Result<Plan, PassError> {
    let mut result = Ok(());
    for most_rivals in MAX_RIVALS {
        result = place(&mut plan, most_rivals);
        if !matches!(result, Err(PassError::Dim { source: DimError::TooComplex, .. })) {
            break;
        }
    }
    result.map(|()| plan)
}

fn place(plan: &mut Plan, most_rivals: usize) -> Result<(), PassError> {
    let lives = lifetimes(plan);
    let points = sample_sizes(plan);
    let mut ends = [0, 0, 0].map(Dim::constant);
    let mut tenants = Vec::new();
    for (id, life) in lives.iter().enumerate() {
        let Place::Arena { rate, .. } = plan.buffers[id].place else { continue };
        let size = bytes(plan, id).map_err(dim_error)?;
        let rate = life.map_or(rate, |life| life.arena());
        match life {
            Some(life) if rate == Rate::Step && !life.persists => {
                tenants.push(Tenant { buffer: id, life: *life, at: evaluate(&size, &points), size });
            }
            _ => {
                let end = &mut ends[rate as usize];
                let place = Place::Arena { rate, offset: Some(end.clone()) };
                *end = end.add(&size).map_err(dim_error)?;
                plan.buffers[id].place = place;
            }
        }
    }
    for slot in share(tenants, most_rivals) {
        let size = slot.size().map_err(dim_error)?;
        let end = &mut ends[Rate::Step as usize];
        for buffer in slot.buffers {
            plan.buffers[buffer].place = Place::Arena { rate: Rate::Step, offset: Some(end.clone()) };
        }
        *end = end.add(&size).map_err(dim_error)?;
    }
    plan.arenas = Some(ends);
    Ok(())
}

fn dim_error(source: DimError) -> PassError {
    PassError::Dim { pass: PASS, source }
}

/// The bytes of a buffer, rounded up to the alignment.
fn bytes(plan: &Plan, id: usize) -> Result<Dim, DimError> {
    let buffer = &plan.buffers[id];
    let bytes = product(&buffer.shape)?.mul(&Dim::constant(buffer.dtype.size() as i64))?;
    bytes.ceil_div(&Dim::constant(ALIGNMENT))?.mul(&Dim::constant(ALIGNMENT))
}

fn evaluate(size: &Dim, points: &[Bindings]) -> Vec<i64> {
    points.iter().map(|point| size.eval(point).unwrap_or(i64::MAX / 2)).collect()
}

/// A buffer that looks for a slot.
struct Tenant {
    buffer: usize,
    life: Life,
    size: Dim,
    /// The size at the sample points.
    at: Vec<i64>,
}

/// A part of the arena that buffers share.
struct Slot {
    buffers: Vec<usize>,
    /// When the slot is taken: the last launch of every tenant, by the first.
    taken: BTreeMap<usize, usize>,
    /// Sizes of which none is provably the largest.
    rivals: Vec<Dim>,
    at: Vec<i64>,
}

impl Slot {
    /// True if no tenant is in use during `life`. Tenants do not overlap, so the last that begins before its end ends last.
    fn is_free(&self, life: &Life) -> bool {
        self.taken.range(..=life.last).next_back().is_none_or(|(_, last)| *last < life.first)
    }

    fn size(&self) -> Result<Dim, DimError> {
        let mut sizes = self.rivals.iter();
        let first = sizes.next().cloned().unwrap_or(Dim::constant(0));
        sizes.try_fold(first, |largest, size| Dim::max(&largest, size))
    }

    /// What the slot's rivals are with one more tenant of that size.
    fn rivals_with(&self, size: &Dim) -> Vec<Dim> {
        let at_most = |a: &Dim, b: &Dim| b.sub(a).is_ok_and(|difference| is_nonnegative(&difference));
        if self.rivals.contains(size) || self.rivals.iter().any(|rival| at_most(size, rival)) {
            return self.rivals.clone();
        }
        let mut rivals: Vec<Dim> =
            self.rivals.iter().filter(|rival| !at_most(rival, size)).cloned().collect();
        rivals.push(size.clone());
        rivals
    }

    /// How much the slot grows for a tenant, and how much of it the tenant leaves unused, over all points as shares of the slot.
    fn fit(&self, tenant: &Tenant) -> (f64, f64) {
        let (mut growth, mut waste) = (0.0, 0.0);
        for (slot, size) in self.at.iter().zip(&tenant.at) {
            let share = (*size - *slot) as f64 / (*slot).max(1) as f64;
            growth += share.max(0.0);
            waste += (-share).max(0.0);
        }
        (growth, waste)
    }
}

/// Slots for all tenants, with so many rivals in a slot at most.
fn share(mut tenants: Vec<Tenant>, most_rivals: usize) -> Vec<Slot> {
    // Larger first; at the last, equal ones in the order of their use.
    tenants.sort_by(|a, b| {
        let total = |tenant: &Tenant| tenant.at.iter().map(|size| *size as f64).sum::<f64>();
        total(b).total_cmp(&total(a)).then(a.life.first.cmp(&b.life.first)).then(a.buffer.cmp(&b.buffer))
    });
    let mut slots: Vec<Slot> = Vec::new();
    for tenant in tenants {
        let free = |slot: &&mut Slot| slot.is_free(&tenant.life);
        let narrow = |slot: &&mut Slot| {
            slot.rivals.contains(&tenant.size) || slot.rivals_with(&tenant.size).len() <= most_rivals
        };
        let untried = slots.len().saturating_sub(MAX_TRIED);
        let best = slots[untried..].iter_mut().filter(free).filter(narrow).min_by(|a, b| {
            let (a_fit, b_fit) = (a.fit(&tenant), b.fit(&tenant));
            a_fit.0.total_cmp(&b_fit.0).then(a_fit.1.total_cmp(&b_fit.1))
        });
        match best {
            Some(slot) => {
                slot.rivals = slot.rivals_with(&tenant.size);
                slot.at.iter_mut().zip(&tenant.at).for_each(|(slot, size)| *slot = (*slot).max(*size));
                slot.buffers.push(tenant.buffer);
                slot.taken.insert(tenant.life.first, tenant.life.last);
            }
            None => slots.push(Slot {
                buffers: vec![tenant.buffer],
                taken: BTreeMap::from([(tenant.life.first, tenant.life.last)]),
                rivals: vec![tenant.size],
                at: tenant.at,
            }),
        }
    }
    slots
}

/// The most bytes of the step arena that are in use at one time: what no allocation can go below.
pub fn peak_live_bytes(plan: &Plan, bindings: &Bindings) -> Result<i64, PassError> {
    let mut change = vec![0i64; plan.launches.len() + 1];
    for (id, life) in lifetimes(plan).into_iter().enumerate() {
        if let Some(life) = life.filter(|life| life.arena() == Rate::Step) {
            let size = bytes(plan, id).and_then(|size| size.eval(bindings)).map_err(dim_error)?;
            if !life.persists {
                change[life.first] += size;
                change[life.last + 1] -= size;
            }
        }
    }
    let mut live = 0;
    Ok(change.into_iter().fold(0, |peak, change| {
        live += change;
        peak.max(live)
    }))
}
