//! Other launches in the place of some.

use std::collections::HashMap;

use nucleus_plan::{BufferId, Kernel, KernelId, Launch, Place, Plan};

/// What stands in the place of a launch: these launches of these kernels; `None` for the launch itself.
pub(crate) type Replacement = Option<Vec<(Kernel, Launch)>>;

/// The plan with launches of these kernels in the place of those that have an entry, and without kernels and arena buffers that no
/// launch uses any more. Equal kernels become one. The kernels that the new launches name themselves do not matter.
pub(crate) fn replace_launches(mut plan: Plan, replaced: Vec<Replacement>) -> Plan {
    let mut made: HashMap<Kernel, KernelId> = HashMap::new();
    let mut launches = Vec::with_capacity(plan.launches.len());
    for (launch, replaced) in std::mem::take(&mut plan.launches).into_iter().zip(replaced) {
        let Some(replaced) = replaced else {
            launches.push(launch);
            continue;
        };
        for (kernel, launch) in replaced {
            let kernels = &mut plan.kernels;
            let kernel = *made.entry(kernel).or_insert_with_key(|kernel| {
                kernels.push(kernel.clone());
                KernelId(kernels.len() as u32 - 1)
            });
            launches.push(Launch { kernel, ..launch });
        }
    }
    plan.launches = launches;

    let mut used = vec![false; plan.kernels.len()];
    plan.launches.iter().for_each(|launch| used[launch.kernel.0 as usize] = true);
    let numbers = renumber(&mut plan.kernels, &used);
    plan.launches.iter_mut().for_each(|launch| launch.kernel.0 = numbers[launch.kernel.0 as usize]);

    let mut used: Vec<bool> =
        plan.buffers.iter().map(|buffer| !matches!(buffer.place, Place::Arena { .. })).collect();
    let bound = plan.launches.iter().flat_map(|launch| &launch.operands);
    bound.for_each(|BufferId(buffer)| used[*buffer as usize] = true);
    let numbers = renumber(&mut plan.buffers, &used);
    let bound = plan.launches.iter_mut().flat_map(|launch| &mut launch.operands);
    bound.for_each(|BufferId(buffer)| *buffer = numbers[*buffer as usize]);
    plan
}

/// Keeps what is used; gives for each its new position.
fn renumber<T>(items: &mut Vec<T>, used: &[bool]) -> Vec<u32> {
    let mut number = 0;
    let numbers = used
        .iter()
        .map(|used| {
            number += u32::from(*used);
            number.saturating_sub(1)
        })
        .collect();
    let mut used = used.iter();
    items.retain(|_| used.next().copied().unwrap_or_default());
    numbers
}
