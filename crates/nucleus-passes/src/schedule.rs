//! The order of launches.
//!
//! Stages come in turn: model, prompt, step. Inside a stage launches come in the order of the graph, as far as what they read is written:
//! a value is read soon after it is written, and what a backward pass needs is computed where the graph of gradients has it, not in the
//! forward pass, where it would wait.
//!
//! Two kinds of launches come as early as possible: those that write little of the arena for what they read of it, such as sums over tokens
//! and gradients of weights, which are outputs: put off, they would keep what they read from being freed. And tables, which follow from
//! the sizes alone: they are small, and in nobody's way when products move together.

use std::collections::BTreeSet;

use nucleus_ir::dim::product;
use nucleus_plan::verify::largest_sample;
use nucleus_plan::{Launch, OperandMode, Place, Plan};

use crate::error::PassError;

const PASS: &str = "schedule";

/// Orders the launches of a plan.
pub fn schedule(plan: Plan) -> Result<Plan, PassError> {
    let places: Vec<usize> = (0..plan.launches.len()).collect();
    order_launches(plan, &places)
}

/// A launch that writes less than one part in this many of what it reads runs as soon as it can.
const SHRINKS: i64 = 4;

/// Who writes and reads what.
struct Links {
    /// For every launch, the launches that must come before it.
    before: Vec<Vec<usize>>,
    /// For every launch, the launches that must come behind it.
    behind: Vec<Vec<usize>>,
}

impl Links {
    /// A launch that reads a buffer waits for every other that writes it. Launches are linked through a node for each buffer that has
    /// several writers, so that there are no more links than operands: those nodes are numbered behind the launches.
    fn new(plan: &Plan) -> Links {
        let count = plan.launches.len();
        let mut links = Links { before: vec![Vec::new(); count + plan.buffers.len()], behind: Vec::new() };
        for (position, launch) in plan.launches.iter().enumerate() {
            let operands = &plan.kernel(launch.kernel).operands;
            let bound = || operands.iter().zip(&launch.operands);
            let writes = |buffer| {
                bound().any(|(operand, written)| operand.mode != OperandMode::Read && *written == buffer)
            };
            for (operand, buffer) in bound() {
                let node = count + buffer.0 as usize;
                match operand.mode {
                    // A launch that also writes a buffer reads what it writes itself.
                    OperandMode::Read if !writes(*buffer) => links.before[position].push(node),
                    OperandMode::Read => {}
                    _ => links.before[node].push(position),
                }
            }
        }
        for list in &mut links.before {
            list.sort_unstable();
            list.dedup();
        }
        links.behind = vec![Vec::new(); links.before.len()];
        for (node, list) in links.before.iter().enumerate() {
            list.iter().for_each(|before| links.behind[*before].push(node));
        }
        links
    }
}

/// True for every launch that writes little of the arena for what it reads there, at sizes where time is spent, and for those of tables.
fn early(plan: &Plan, places: &[usize]) -> Vec<bool> {
    let sizes = largest_sample(plan).unwrap_or_default();
    let bytes: Vec<i64> = plan
        .buffers
        .iter()
        .map(|buffer| match buffer.place {
            Place::Arena { .. } => {
                let elements = product(&buffer.shape).and_then(|elements| elements.eval(&sizes));
                elements.unwrap_or(0).saturating_mul(buffer.dtype.size() as i64)
            }
            _ => 0,
        })
        .collect();
    // Buffers whose elements follow from sizes.
    let mut table: Vec<bool> =
        plan.buffers.iter().map(|buffer| matches!(buffer.place, Place::Arena { .. })).collect();
    let mut early = |launch: &Launch| {
        let (mut read, mut written, mut follows) = (0i64, 0i64, true);
        for (operand, buffer) in plan.kernel(launch.kernel).operands.iter().zip(&launch.operands) {
            let sum = if operand.mode == OperandMode::Read { &mut read } else { &mut written };
            *sum = sum.saturating_add(bytes[buffer.0 as usize]);
            follows &= operand.mode != OperandMode::Read || table[buffer.0 as usize];
        }
        for (operand, buffer) in plan.kernel(launch.kernel).operands.iter().zip(&launch.operands) {
            table[buffer.0 as usize] &= operand.mode == OperandMode::Read || follows;
        }
        follows || read > 0 && written.saturating_mul(SHRINKS) <= read
    };
    let mut order: Vec<usize> = (0..plan.launches.len()).collect();
    order.sort_by_key(|position| places[*position]);
    let mut result = vec![false; order.len()];
    for position in order {
        result[position] = early(&plan.launches[position]);
    }
    result
}

/// Puts the launches in an order in which they can run, otherwise by their places.
pub(crate) fn order_launches(mut plan: Plan, places: &[usize]) -> Result<Plan, PassError> {
    let links = Links::new(&plan);
    let count = plan.launches.len();
    let early = early(&plan, places);
    let mut waiting: Vec<usize> = links.before.iter().map(Vec::len).collect();
    let key = |position: usize| (plan.launches[position].stage, !early[position], places[position], position);
    let mut ready: BTreeSet<_> = (0..count).filter(|at| waiting[*at] == 0).map(key).collect();
    // Buffers that no launch writes, such as inputs.
    let mut done: Vec<usize> = (count..waiting.len()).filter(|node| waiting[*node] == 0).collect();
    let mut order = Vec::with_capacity(count);
    loop {
        while let Some(node) = done.pop() {
            for behind in &links.behind[node] {
                waiting[*behind] -= 1;
                match waiting[*behind] {
                    0 if *behind < count => drop(ready.insert(key(*behind))),
                    0 => done.push(*behind),
                    _ => {}
                }
            }
        }
        let Some((.., position)) = ready.pop_first() else { break };
        order.push(position);
        done.push(position);
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
