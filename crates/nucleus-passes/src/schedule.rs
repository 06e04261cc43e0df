//! The order of launches.
//!
//! Stages come in turn: model, prompt, step. Inside a stage a launch comes after the launches that write what it reads; among those
//! that could come next, the one whose operands were written last does, so that a value is read while it is still in cache and its
//! buffer is free again soon.

use std::collections::BTreeSet;

use nucleus_plan::{OperandMode, Plan};

use crate::error::PassError;

const PASS: &str = "schedule";

/// Orders the launches of a plan.
pub fn schedule(plan: Plan) -> Result<Plan, PassError> {
    order_launches(plan)
}

/// What launches wait for: buffers that others write. Not launches, of which a buffer may have as many writers as readers.
struct Waits {
    /// For every buffer, the launches that have yet to write it.
    unwritten: Vec<usize>,
    /// For every buffer, the launches that wait until all of it is written.
    readers: Vec<Vec<usize>>,
    /// For every launch, the buffers that it writes.
    writes: Vec<Vec<usize>>,
    /// For every launch, the buffers that it waits for.
    waiting: Vec<usize>,
}

impl Waits {
    fn new(plan: &Plan) -> Waits {
        let count = plan.launches.len();
        let mut waits = Waits {
            unwritten: vec![0; plan.buffers.len()],
            readers: vec![Vec::new(); plan.buffers.len()],
            writes: vec![Vec::new(); count],
            waiting: vec![0; count],
        };
        let mut reads = vec![Vec::new(); count];
        for (position, launch) in plan.launches.iter().enumerate() {
            let kernel = plan.kernel(launch.kernel);
            for (operand, buffer) in kernel.operands.iter().zip(&launch.operands) {
                let list = match operand.mode {
                    OperandMode::Read => &mut reads[position],
                    _ => &mut waits.writes[position],
                };
                list.push(buffer.0 as usize);
            }
            for list in [&mut reads[position], &mut waits.writes[position]] {
                list.sort_unstable();
                list.dedup();
            }
            waits.writes[position].iter().for_each(|buffer| waits.unwritten[*buffer] += 1);
        }
        for (position, list) in reads.iter().enumerate() {
            // A launch that also writes a buffer reads what it writes itself.
            let own = &waits.writes[position];
            for buffer in list.iter().filter(|buffer| own.binary_search(buffer).is_err()) {
                if waits.unwritten[*buffer] > 0 {
                    waits.readers[*buffer].push(position);
                    waits.waiting[position] += 1;
                }
            }
        }
        waits
    }
}

/// Puts the launches in an order in which they can run.
pub(crate) fn order_launches(mut plan: Plan) -> Result<Plan, PassError> {
    let mut waits = Waits::new(&plan);
    let count = plan.launches.len();
    // When the last operand was written, per launch.
    let mut fresh = vec![0usize; count];
    let key = |position: usize, fresh: &[usize]| {
        (plan.launches[position].stage, std::cmp::Reverse(fresh[position]), position)
    };
    let mut ready: BTreeSet<_> = (0..count)
        .filter(|position| waits.waiting[*position] == 0)
        .map(|position| key(position, &fresh))
        .collect();
    let mut order = Vec::with_capacity(count);
    while let Some((_, _, position)) = ready.pop_first() {
        order.push(position);
        for buffer in &waits.writes[position] {
            waits.unwritten[*buffer] -= 1;
            if waits.unwritten[*buffer] > 0 {
                continue;
            }
            for reader in &waits.readers[*buffer] {
                fresh[*reader] = order.len();
                waits.waiting[*reader] -= 1;
                if waits.waiting[*reader] == 0 {
                    ready.insert(key(*reader, &fresh));
                }
            }
        }
    }
    let in_stages = order.windows(2).all(|pair| plan.launches[pair[0]].stage <= plan.launches[pair[1]].stage);
    if order.len() != count || !in_stages {
        let what = if in_stages { "launches wait for each other" } else { "a stage needs a later one" };
        return Err(PassError::Invalid { pass: PASS, problems: vec![what.to_owned()] });
    }
    let mut launches: Vec<Option<_>> = plan.launches.into_iter().map(Some).collect();
    plan.launches = order.into_iter().filter_map(|position| launches[position].take()).collect();
    Ok(plan)
}
