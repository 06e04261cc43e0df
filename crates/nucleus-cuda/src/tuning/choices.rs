//! Which tile every contraction of some plans has, and who chose it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nucleus_plan::{KernelId, Plan};

use super::key::Problem;
use super::{Tuning, parse, tuned_source};
use crate::architecture::Architecture;
use crate::compile::PrintError;
use crate::facts::Facts;
use crate::source::{ChosenTile, KernelSource};

/// A kernel of some plans as an architecture, or a device of the table, has it.
pub(crate) struct Printed<'a> {
    /// The plan's position.
    pub(crate) plan: usize,
    /// The kernel's number there.
    pub(crate) kernel: KernelId,
    /// The architecture.
    pub(crate) architecture: Architecture,
    /// A device for which the table has an entry of its own; `None` for all others.
    pub(crate) device: Option<&'a str>,
    /// The text.
    pub(crate) source: KernelSource,
}

/// Prints every kernel of some plans for every architecture, and for every device that the table has an own tile for.
pub(crate) fn print_all<'a>(
    plans: impl IntoIterator<Item = &'a Plan>,
    architectures: &[Architecture],
    tuning: &Tuning,
    mut each: impl FnMut(&'a Plan, Printed<'_>),
) -> Result<(), PrintError> {
    for (position, plan) in plans.into_iter().enumerate() {
        for (number, kernel) in plan.kernels.iter().enumerate() {
            let id = KernelId(number as u32);
            for architecture in architectures.iter().copied() {
                let named = tuning.devices(kernel, &Facts::of(plan, id), architecture);
                for device in std::iter::once(None).chain(named.into_iter().map(Some)) {
                    let source = tuned_source(plan, id, architecture, device, tuning);
                    let source = source.map_err(|source| PrintError {
                        entry: plan.entry.clone(),
                        kernel: id.0,
                        anchor: kernel.anchor.name(),
                        source,
                    })?;
                    each(plan, Printed { plan: position, kernel: id, architecture, device, source });
                }
            }
        }
    }
    Ok(())
}

/// The tile of a contraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileChoice {
    /// The entry of the model.
    pub entry: String,
    /// The kernel's number in its plan.
    pub kernel: u32,
    /// The kernel's name, which emitted files have, too.
    pub name: String,
    /// How many launches of the plan it has.
    pub launches: usize,
    /// The architecture.
    pub architecture: Architecture,
    /// A device for which the table has an entry of its own; `None` for all others.
    pub device: Option<String>,
    /// What a table knows it by; `None` if the plan has no sample, and then no table has it.
    pub problem: Option<Problem>,
    /// The tile, and who chose it.
    pub tile: ChosenTile,
}

/// The tiles of all contractions of some plans, kernel by kernel.
///
/// # Errors
/// A kernel cannot be printed.
pub fn tile_choices<'a>(
    plans: impl IntoIterator<Item = &'a Plan>,
    architectures: &[Architecture],
    tuning: &Tuning,
) -> Result<Vec<TileChoice>, PrintError> {
    let mut choices = Vec::new();
    print_all(plans, architectures, tuning, |plan, printed| {
        let Some(tile) = printed.source.tile else { return };
        choices.push(TileChoice {
            entry: plan.entry.clone(),
            kernel: printed.kernel.0,
            name: printed.source.name,
            launches: plan.launches.iter().filter(|launch| launch.kernel == printed.kernel).count(),
            architecture: printed.architecture,
            device: printed.device.map(str::to_owned),
            problem: Problem::of(plan.kernel(printed.kernel), &Facts::of(plan, printed.kernel)),
            tile,
        });
    })?;
    Ok(choices)
}

/// The choices as a table that makes them again, with comments that say what each is for.
pub fn tile_table(choices: &[TileChoice]) -> String {
    let mut text = String::from(
        "# Tiles of matrix products: what measurements may improve, and `nucleusc` takes with --tuning. A shape is batch x rows x columns x\n\
         # depth, rounded up to powers of two. With `device = \"…\"`, the driver's name of it, an entry is for that device alone.\n",
    );
    let mut known = BTreeSet::new();
    for choice in choices {
        let TileChoice { entry, kernel, name, launches, architecture, device, problem, tile } = choice;
        let times = if *launches == 1 { "launch" } else { "launches" };
        let by = if tile.given { "a table" } else { "the model" };
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# {name}: k{kernel} of `{entry}`, {launches} {times}; chosen by {by}\n");
        let device = device.as_deref();
        let _ = match problem {
            None => {
                writeln!(text, "# The plan has no sample of its sizes: no table has this kernel.")
            }
            Some(problem) if known.insert((*architecture, device, *problem)) => {
                parse::write_entry(&mut text, *architecture, device, *problem, &tile.tile)
            }
            Some(_) => writeln!(text, "# Has an entry above."),
        };
    }
    text
}
