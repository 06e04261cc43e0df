//! When buffers of an arena are in use.

use nucleus_ir::Rate;

use crate::buffer::Place;
use crate::kernel::OperandMode;
use crate::plan::Plan;

/// When a buffer is in use: from the launch that first writes it to the last that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The position of the first launch that uses it.
    pub first: usize,
    /// The position of the last launch that uses it.
    pub last: usize,
    /// The stage that computes it.
    pub rate: Rate,
    /// True if a later stage uses it: then it must outlive its stage, because stages are not always run together.
    pub persists: bool,
}

impl Life {
    /// The arena for such a buffer.
    pub fn arena(&self) -> Rate {
        // Per model the run-time sizes, on which offsets among the steps' buffers depend, are not known.
        if self.persists || self.rate == Rate::Model { self.rate } else { Rate::Step }
    }

    /// True if both buffers are in use at some time.
    pub fn overlaps(&self, other: &Life) -> bool {
        self.persists || other.persists || self.first <= other.last && other.first <= self.last
    }
}

/// The life of every arena buffer; `None` for other buffers and for those that no launch uses.
pub fn lifetimes(plan: &Plan) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; plan.buffers.len()];
    for (position, launch) in plan.launches.iter().enumerate() {
        let modes = plan.kernel(launch.kernel).operands.iter().map(|operand| operand.mode);
        for (id, mode) in launch.operands.iter().zip(modes) {
            let index = id.0 as usize;
            if !matches!(plan.buffers[index].place, Place::Arena { .. }) {
                continue;
            }
            let fresh = Life { first: position, last: position, rate: launch.stage, persists: false };
            let life = lives[index].get_or_insert(fresh);
            life.last = position;
            if mode != OperandMode::Read {
                life.rate = life.rate.max(launch.stage);
            }
            life.persists |= launch.stage > life.rate;
        }
    }
    lives
}
