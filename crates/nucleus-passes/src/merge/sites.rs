//! Where launches stand, what they touch there, and whether one may stand earlier.

use std::ops::Range;

use nucleus_ir::dim::product;
use nucleus_ir::{Bindings, Dim, Rate};
use nucleus_plan::cost::Machine;
use nucleus_plan::verify::largest_sample;
use nucleus_plan::{OperandMode, Place, Plan, lifetimes};

/// The launches of a plan in their order, with sizes at the largest sample: where time is spent.
///
/// Positions are those before any move. What this says stays true when launches have moved up, since none moves past another use of what
/// it writes, nor past a writer of what it reads.
pub(super) struct Sites<'a> {
    plan: &'a Plan,
    sizes: Bindings,
    /// For every buffer the positions of the launches that use it, ascending.
    uses: Vec<Vec<usize>>,
    /// For every buffer the positions of the launches that write it, ascending.
    writes: Vec<Vec<usize>>,
    /// For every position the bytes that launches before it touch.
    touched: Vec<f64>,
    /// For every position the bytes of the step arena in use there.
    live: Vec<f64>,
    /// The most bytes of the step arena that may be in use.
    most_live: f64,
}

impl<'a> Sites<'a> {
    pub(super) fn new(plan: &'a Plan, machine: &Machine) -> Sites<'a> {
        let mut sites = Sites {
            plan,
            sizes: largest_sample(plan).unwrap_or_default(),
            uses: vec![Vec::new(); plan.buffers.len()],
            writes: vec![Vec::new(); plan.buffers.len()],
            touched: vec![0.0],
            live: vec![0.0; plan.launches.len()],
            most_live: 0.0,
        };
        for (position, launch) in plan.launches.iter().enumerate() {
            let kernel = plan.kernel(launch.kernel);
            for (operand, buffer) in kernel.operands.iter().zip(&launch.operands) {
                let buffer = buffer.0 as usize;
                sites.uses[buffer].push(position);
                if operand.mode != OperandMode::Read {
                    sites.writes[buffer].push(position);
                }
            }
            let before = sites.touched[position];
            sites.touched.push(before + sites.evaluate(&launch.bytes));
        }
        let mut change = vec![0.0; plan.launches.len() + 1];
        for (buffer, life) in lifetimes(plan).into_iter().enumerate() {
            if let Some(life) = life.filter(|life| !life.persists && life.arena() == Rate::Step) {
                let bytes = sites.buffer_bytes(buffer);
                change[life.first] += bytes;
                change[life.last + 1] -= bytes;
            }
        }
        let mut in_use = 0.0;
        for (live, change) in sites.live.iter_mut().zip(change) {
            in_use += change;
            *live = in_use;
        }
        let peak = sites.live.iter().fold(0.0f64, |peak, live| peak.max(*live));
        sites.most_live = peak + (peak / 8.0).max(machine.cache());
        sites
    }

    /// The value of a size; 0 if it has none.
    pub(super) fn evaluate(&self, size: &Dim) -> f64 {
        size.eval(&self.sizes).map_or(0.0, |value| value as f64)
    }

    fn buffer_bytes(&self, buffer: usize) -> f64 {
        let buffer = &self.plan.buffers[buffer];
        product(&buffer.shape).map_or(0.0, |elements| self.evaluate(&elements) * buffer.dtype.size() as f64)
    }

    /// The buffers that the launch at a position uses, and whether it writes them.
    fn buffers(&self, position: usize) -> impl Iterator<Item = (usize, bool)> {
        let launch = &self.plan.launches[position];
        let operands = self.plan.kernel(launch.kernel).operands.iter();
        let buffers = launch.operands.iter().map(|buffer| buffer.0 as usize);
        operands.zip(buffers).map(|(operand, buffer)| (buffer, operand.mode != OperandMode::Read))
    }

    /// True if the launch at `from` would compute the same at `to`, before it, and the launches between would too: none of these uses what
    /// it writes or writes what it reads, and neither does the launch at `to`.
    pub(super) fn may_move(&self, from: usize, to: usize) -> bool {
        self.buffers(from).all(|(buffer, written)| {
            let others = if written { &self.uses[buffer] } else { &self.writes[buffer] };
            let first = others.partition_point(|position| *position < to);
            others[first..].first().is_none_or(|position| *position >= from)
        })
    }

    /// Bytes of what the launch at a position leaves for others in an arena.
    pub(super) fn results(&self, position: usize) -> f64 {
        let arena = |buffer: usize| matches!(self.plan.buffers[buffer].place, Place::Arena { .. });
        let results = self.buffers(position).filter(|(buffer, written)| *written && arena(*buffer));
        results.map(|(buffer, _)| self.buffer_bytes(buffer)).sum()
    }

    /// Bytes that the launches at these positions touch.
    pub(super) fn touched(&self, positions: Range<usize>) -> f64 {
        self.touched[positions.end] - self.touched[positions.start]
    }

    /// Counts the results of the launch at `from` as in use from `to` on; does nothing and returns false if that takes too much memory.
    pub(super) fn move_up(&mut self, from: usize, to: usize) -> bool {
        let bytes = self.results(from);
        let fits = self.live[to..from].iter().all(|live| live + bytes <= self.most_live);
        if fits {
            self.live[to..from].iter_mut().for_each(|live| *live += bytes);
        }
        fits
    }
}
