//! Measured tiles, which come before the cost model of [`crate::tiles`].
//!
//! A table is a text file, a small part of TOML: comments, and for every measurement
//!
//! ```text
//! [[tile]]
//! architecture = "sm_90"
//! device = "NVIDIA H100 80GB HBM3"        # as the driver names it; without it the entry is for every device of the architecture
//! kernel = "5f0c…"                        # BLAKE3 of the kernel as plans print it, 64 hexadecimal digits
//! shape = "1x4096x2048x2048"              # batch, rows, columns of all parts, depth; each rounded up to a power of two
//! rows = 128                              # the fields of `Tile`
//! columns = 128
//! depth = 64
//! stages = 3
//! warps = 4
//! across = 2
//! blocks = 2
//! ```
//!
//! Compiling knows architectures, loading a device. Both choose by [`Tuning::apply`]: compiling prints a kernel as every other device of an
//! architecture wants it, and as each device of the table does, so that whatever loads it prints one of these texts again.

mod choices;
mod key;
mod parse;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use nucleus_plan::{Kernel, KernelId, Plan};
use thiserror::Error;

pub(crate) use choices::{Printed, print_all};
pub use choices::{TileChoice, tile_choices, tile_table};
pub use key::Problem;
pub use parse::MAX_BYTES;

use crate::architecture::Architecture;
use crate::facts::Facts;
use crate::source::{KernelSource, SourceError, kernel_source};
use crate::tiles::{Device, Tile};

/// Measured tiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    entries: BTreeMap<Key, Entry>,
}

/// What a measurement belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    architecture: Architecture,
    problem: Problem,
    /// `None` for every device of the architecture.
    device: Option<String>,
}

/// A tile, and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    tile: Tile,
    origin: Arc<str>,
    line: usize,
}

/// What is wrong with a table.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TuningError {
    /// It cannot be read.
    #[error("the table of tiles {origin} cannot be read: {why}")]
    Read {
        /// The file.
        origin: String,
        /// Why.
        why: String,
    },
    /// An entry is malformed, or its tile is none that the kernel can have.
    #[error("the table of tiles {origin}, line {line}: {what}")]
    Line {
        /// The file, or what else it is part of.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

impl Tuning {
    /// True if there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes all entries of another table, in place of its own for the same.
    pub fn extend(&mut self, other: Tuning) {
        self.entries.extend(other.entries);
    }

    /// The entries that apply to kernels of these plans on devices of these architectures.
    #[must_use]
    pub fn of_plans<'a>(
        &self,
        plans: impl IntoIterator<Item = &'a Plan>,
        architectures: &[Architecture],
    ) -> Tuning {
        let mut used = Tuning::default();
        if self.is_empty() {
            return used;
        }
        for plan in plans {
            for (number, kernel) in plan.kernels.iter().enumerate() {
                let facts = Facts::of(plan, KernelId(number as u32));
                let Some(problem) = Problem::of(kernel, &facts) else { continue };
                for architecture in architectures {
                    let entries = self.of_problem(*architecture, problem);
                    used.entries.extend(entries.map(|(key, entry)| (key.clone(), entry.clone())));
                }
            }
        }
        used
    }

    /// The entries for a problem on devices of an architecture; the one for all devices comes first.
    fn of_problem(
        &self,
        architecture: Architecture,
        problem: Problem,
    ) -> impl Iterator<Item = (&Key, &Entry)> {
        let first = Key { architecture, problem, device: None };
        let of = move |(key, _): &(&Key, &Entry)| key.architecture == architecture && key.problem == problem;
        self.entries.range(first..).take_while(of)
    }

    /// Devices that have entries of their own for a kernel.
    fn devices(&self, kernel: &Kernel, facts: &Facts, architecture: Architecture) -> Vec<&str> {
        if self.is_empty() {
            return Vec::new();
        }
        let Some(problem) = Problem::of(kernel, facts) else { return Vec::new() };
        self.of_problem(architecture, problem).filter_map(|(key, _)| key.device.as_deref()).collect()
    }

    /// Facts with the tile that was measured for this kernel, if one was: on the device of that name, else for every device of the
    /// architecture. `device` is `None` for a device of which nothing else is known.
    ///
    /// # Errors
    /// It is no tile that this kernel can have on the architecture.
    pub fn apply(
        &self,
        architecture: Architecture,
        device: Option<&str>,
        kernel: &Kernel,
        facts: Facts,
    ) -> Result<Facts, TuningError> {
        if self.is_empty() {
            return Ok(facts);
        }
        let (Some(problem), Some(dtype)) = (Problem::of(kernel, &facts), key::dtype(kernel)) else {
            return Ok(facts);
        };
        let named = |device: Option<&str>| {
            self.entries.get(&Key { architecture, problem, device: device.map(str::to_owned) })
        };
        let Some(entry) = device.and_then(|device| named(Some(device))).or_else(|| named(None)) else {
            return Ok(facts);
        };
        match entry.tile.check(dtype, &Device::of(architecture)) {
            Ok(()) => Ok(facts.with_tile(entry.tile)),
            Err(error) => Err(TuningError::Line {
                origin: entry.origin.to_string(),
                line: entry.line,
                what: format!(
                    "{error} (a {} in {dtype} on {architecture}); correct the entry, or remove it to have the tile chosen",
                    kernel.anchor.name()
                ),
            }),
        }
    }
}

impl fmt::Display for Tuning {
    /// The table, as [`Tuning::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, entry)) in self.entries.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            parse::write_entry(f, key.architecture, key.device.as_deref(), key.problem, &entry.tile)?;
        }
        Ok(())
    }
}

/// Prints a kernel of a plan for a device with the tile that the table has for it, else with the model's. `device` is its name, `None` for every
/// device of the architecture that the table does not name.
///
/// # Errors
/// The kernel cannot be printed, or the table's tile is none that it can have.
pub fn tuned_source(
    plan: &Plan,
    kernel: KernelId,
    architecture: Architecture,
    device: Option<&str>,
    tuning: &Tuning,
) -> Result<KernelSource, SourceError> {
    let facts = tuning.apply(architecture, device, plan.kernel(kernel), Facts::of(plan, kernel))?;
    kernel_source(plan.kernel(kernel), &facts, architecture)
}
