//! Horizontal fusion: products that share their left factor become parts of one launch.
//!
//! Queries, keys and values are three products of the same rows; the modulation vectors of all layers are products of one embedding.
//! As one launch they read and stage those rows once, and even a single row gives every core work.
//!
//! The merged launch stands where the first of its products stood. A product may move up there if nothing from there to its own place
//! writes what it reads or uses what it writes; then it also depends on no other product of the launch. As launches move up only, and never
//! past others that they depend on or that depend on them, moves do not disturb each other. Whether a product moves is decided by cost
//! ([`Company`]): what it saves must outweigh that its results wait longer, and the step arena must not grow much.

pub(crate) mod rebuild;
mod sites;

use std::collections::HashMap;

use nucleus_ir::DimError;
use nucleus_plan::cost::{Company, MAX_MERGED_OPERANDS, MAX_MERGED_PARTS, Machine};
use nucleus_plan::{Contraction, Launch, Plan};

use crate::error::PassError;
use crate::replace::{Replacement, replace_launches};
use rebuild::{LeftFactor, left_factor, merged};
use sites::Sites;

const PASS: &str = "merge";
/// The farthest that a launch moves: looking at what lies between takes time.
const MAX_REACH: usize = 4096;

/// Merges the products that share their left factor, for the machine that [`Machine::cpu`] describes.
pub fn merge(plan: Plan) -> Result<Plan, PassError> {
    merge_for(plan, &Machine::cpu())
}

/// The same for any machine.
pub fn merge_for(plan: Plan, machine: &Machine) -> Result<Plan, PassError> {
    let groups = groups(&plan, machine).map_err(dim_error)?;
    rebuild(plan, &groups).map_err(dim_error)
}

fn dim_error(source: DimError) -> PassError {
    PassError::Dim { pass: PASS, source }
}

/// Launches that become one, by position, ascending.
struct Group {
    members: Vec<usize>,
    parts: usize,
    operands: usize,
    /// Bytes that the members but the first touch.
    moved: f64,
}

/// Every group of more than one launch.
fn groups(plan: &Plan, machine: &Machine) -> Result<Vec<Group>, DimError> {
    let mut sites = Sites::new(plan, machine);
    let mut groups: Vec<Group> = Vec::new();
    let mut latest: HashMap<LeftFactor, usize> = HashMap::new();
    for (position, launch) in plan.launches.iter().enumerate() {
        let Some(contraction) = contraction(plan, launch) else { continue };
        let (left, left_bytes) = left_factor(plan, launch, contraction)?;
        let alone = Group {
            members: vec![position],
            parts: contraction.parts.len(),
            operands: launch.operands.len(),
            moved: 0.0,
        };
        if let Some(&number) = latest.get(&left) {
            let group = &mut groups[number];
            let first = group.members[0];
            let fits = group.parts + alone.parts <= MAX_MERGED_PARTS
                && group.operands + alone.operands <= MAX_MERGED_OPERANDS
                && position - first <= MAX_REACH;
            if fits && sites.may_move(position, first) {
                let company = Company {
                    left: sites.evaluate(&left_bytes),
                    results: sites.results(position),
                    between: (sites.touched(first + 1..position) - group.moved).max(0.0),
                };
                if company.saves(machine) > 0.0 && sites.move_up(position, first) {
                    group.members.push(position);
                    group.parts += alone.parts;
                    group.operands += alone.operands;
                    group.moved += sites.touched(position..position + 1);
                    continue;
                }
            }
        }
        latest.insert(left, groups.len());
        groups.push(alone);
    }
    groups.retain(|group| group.members.len() > 1);
    Ok(groups)
}

fn contraction<'a>(plan: &'a Plan, launch: &Launch) -> Option<&'a Contraction> {
    match &plan.kernel(launch.kernel).anchor {
        nucleus_plan::Anchor::Matmul(contraction) | nucleus_plan::Anchor::GroupedMatmul(contraction) => {
            Some(contraction)
        }
        _ => None,
    }
}

/// The plan with a launch for every group.
fn rebuild(plan: Plan, groups: &[Group]) -> Result<Plan, DimError> {
    let mut replaced: Vec<Replacement> = vec![None; plan.launches.len()];
    for group in groups {
        group.members.iter().for_each(|member| replaced[*member] = Some(Vec::new()));
        replaced[group.members[0]] = Some(vec![merged(&plan, &group.members)?]);
    }
    Ok(replace_launches(plan, replaced))
}

#[cfg(test)]
mod tests;
