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

/// The launches each launch must wait for, without duplicates.
fn dependencies(plan: &Plan) -> Vec<Vec<usize>> {
    let mut writers: Vec<Vec<usize>> = vec![Vec::new(); plan.buffers.len()];
    for (position, launch) in plan.launches.iter().enumerate() {
        let kernel = plan.kernel(launch.kernel);
        for (operand, buffer) in kernel.operands.iter().zip(&launch.operands) {
            if operand.mode != OperandMode::Read {
                writers[buffer.0 as usize].push(position);
            }
        }
    }
    let mut dependencies = Vec::with_capacity(plan.launches.len());
    for (position, launch) in plan.launches.iter().enumerate() {
        let kernel = plan.kernel(launch.kernel);
        let mut list = Vec::new();
        for (operand, buffer) in kernel.operands.iter().zip(&launch.operands) {
            if operand.mode == OperandMode::Read {
                list.extend(writers[buffer.0 as usize].iter().copied().filter(|writer| *writer != position));
            }
        }
        list.sort_unstable();
        list.dedup();
        dependencies.push(list);
    }
    dependencies
}

/// Puts the launches in an order in which they can run.
pub(crate) fn order_launches(mut plan: Plan) -> Result<Plan, PassError> {
    let dependencies = dependencies(&plan);
    let count = plan.launches.len();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut waiting: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    for (position, list) in dependencies.iter().enumerate() {
        for dependency in list {
            users[*dependency].push(position);
        }
    }
    // When the last operand was written, per launch.
    let mut fresh = vec![0usize; count];
    let key = |position: usize, fresh: &[usize]| {
        (plan.launches[position].stage, std::cmp::Reverse(fresh[position]), position)
    };
    let mut ready: BTreeSet<_> =
        (0..count).filter(|position| waiting[*position] == 0).map(|position| key(position, &fresh)).collect();
    let mut order = Vec::with_capacity(count);
    while let Some((_, _, position)) = ready.pop_first() {
        order.push(position);
        for user in &users[position] {
            fresh[*user] = order.len();
            waiting[*user] -= 1;
            if waiting[*user] == 0 {
                ready.insert(key(*user, &fresh));
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
