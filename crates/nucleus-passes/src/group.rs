//! Tiles of contractions, and the uniformity of grouped ones.
//!
//! Expert choice gives every expert the same number of rows, so a grouped product is one uniform problem with the expert as its batch
//! axis: no padding, no counts that only the device knows. The tile of every contraction comes from the analytic cost model, for the
//! launches that share its kernel, at sample sizes.

use nucleus_plan::cost::{Machine, Problem, choose_tile};
use nucleus_plan::verify::largest_sample;
use nucleus_plan::{Anchor, Plan};

use crate::error::PassError;

const PASS: &str = "group";

/// Sets the tile of every contraction, for the machine that [`Machine::cpu`] describes.
pub fn group(plan: Plan) -> Result<Plan, PassError> {
    group_for(plan, &Machine::cpu())
}

/// The same for any machine.
pub fn group_for(mut plan: Plan, machine: &Machine) -> Result<Plan, PassError> {
    let largest = largest_sample(&plan);
    let mut problems: Vec<Vec<Problem>> = vec![Vec::new(); plan.kernels.len()];
    for launch in &plan.launches {
        let id = launch.kernel.0 as usize;
        let (Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction)) = &plan.kernels[id].anchor
        else {
            continue;
        };
        let sizes = launch.sizes.iter().map(|size| largest.as_ref().map_or(Ok(1), |point| size.eval(point)));
        if let Ok(sizes) = sizes.collect::<Result<Vec<i64>, _>>() {
            problems[id].push(Problem::of(contraction, &sizes));
        }
    }
    for (kernel, problems) in plan.kernels.iter_mut().zip(&problems) {
        if let Anchor::GroupedMatmul(contraction) = &kernel.anchor
            && (contraction.batch.len() != 1 || contraction.rows.len() != 2)
        {
            let what = "a grouped product without one group axis and two row axes".to_owned();
            return Err(PassError::Unsupported { pass: PASS, what });
        }
        if let Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) = &mut kernel.anchor {
            contraction.tile = choose_tile(contraction, problems, machine);
        }
    }
    Ok(plan)
}
