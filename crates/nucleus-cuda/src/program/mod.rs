//! A plan on a device: kernels loaded, sizes bound, stages executed.

mod bind;
mod error;
mod execute;
mod table;

use std::collections::HashMap;

use nucleus_ir::Bindings;
use nucleus_plan::{KernelId, Plan};

pub use bind::CudaBound;
pub use error::{CudaBindError, LoadError, RunError};
pub use table::{DevicePointer, DeviceTable};

use crate::cubins::Cubins;
use crate::driver::{Device, KernelFunction, Module};
use crate::source::{Blocks, Grid, KernelSource, SourceError};
use crate::tuning::{Tuning, tuned_source};

/// The environment variable that has every launch waited for, so that errors name theirs.
const WATCH: &str = "NUCLEUS_CUDA_SYNC";

/// A plan whose kernels are loaded onto a device.
#[derive(Debug)]
pub struct CudaProgram {
    plan: Plan,
    device: Device,
    kernels: Vec<LoadedKernel>,
    tiles: TileCounts,
    /// Every launch is waited for.
    watched: bool,
}

/// A kernel's functions and how they are launched.
#[derive(Debug)]
struct LoadedKernel {
    functions: Vec<(KernelFunction, Grid)>,
    scratch: Blocks,
}

/// The units of a plan's kernels, in the order of the kernels: with the tiles that the table has for the device, else the model's.
///
/// # Errors
/// A kernel is malformed, there is no template for it, or the table has a tile that it cannot have.
pub fn kernel_sources(plan: &Plan, device: &Device, tuning: &Tuning) -> Result<Vec<KernelSource>, LoadError> {
    let source = |kernel: usize| {
        let id = KernelId(kernel as u32);
        let source = tuned_source(plan, id, device.architecture(), Some(device.name()), tuning);
        let entry = || plan.entry.clone();
        source.map_err(|source| match source {
            SourceError::Tuning(source) => LoadError::Tuning { kernel, entry: entry(), source },
            source => LoadError::Source { kernel, entry: entry(), source },
        })
    };
    (0..plan.kernels.len()).map(source).collect()
}

/// Who chose the tiles of a program's contractions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TileCounts {
    /// Kernels whose tile is from the table.
    pub measured: usize,
    /// Kernels whose tile the cost model chose.
    pub modelled: usize,
}

impl CudaProgram {
    /// Loads every kernel of a verified plan, with tiles that were measured where the table has some; equal kernels are loaded once. `progress`
    /// hears how many have their machine code, and how many there are.
    ///
    /// # Errors
    /// A launch is malformed, a kernel has no template or no machine code, the table has a tile for it that it cannot have, or the device does
    /// not take it.
    pub fn load(
        plan: Plan,
        device: &Device,
        cubins: &dyn Cubins,
        tuning: &Tuning,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<CudaProgram, LoadError> {
        for (launch, given) in plan.launches.iter().enumerate() {
            plan.check_launch(given).map_err(|why| LoadError::Launch { launch, why })?;
        }
        let sources = kernel_sources(&plan, device, tuning)?;
        let mut distinct: Vec<&KernelSource> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for source in &sources {
            numbers.entry(&source.text).or_insert_with(|| {
                distinct.push(source);
                distinct.len() - 1
            });
        }
        let images = cubins.cubins(&distinct, device.architecture(), progress)?;
        let modules = distinct.iter().zip(&images).map(|(source, image)| {
            let module = Module::load(device, &source.name, image)?;
            let functions = source
                .functions
                .iter()
                .map(|function| module.function(function.name, function.threads, function.shared_bytes));
            Ok(functions.collect::<Result<Vec<KernelFunction>, _>>()?)
        });
        let modules = modules.collect::<Result<Vec<Vec<KernelFunction>>, LoadError>>()?;
        let kernels = sources.iter().map(|source| {
            let functions = modules[numbers[source.text.as_str()]].iter().cloned();
            let grids = source.functions.iter().map(|function| function.grid.clone());
            LoadedKernel { functions: functions.zip(grids).collect(), scratch: source.scratch.clone() }
        });
        let kernels = kernels.collect();
        let mut tiles = TileCounts::default();
        for tile in sources.iter().filter_map(|source| source.tile) {
            *(if tile.given { &mut tiles.measured } else { &mut tiles.modelled }) += 1;
        }
        let watched = std::env::var_os(WATCH).is_some_and(|value| !value.is_empty() && value != "0");
        Ok(CudaProgram { device: device.clone(), kernels, tiles, watched, plan })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Who chose the tiles of its contractions.
    pub fn tiles(&self) -> TileCounts {
        self.tiles
    }

    /// Whether every launch is waited for: then nothing is captured.
    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// Evaluates the plan's sizes and what each launch dispatches at them.
    ///
    /// # Errors
    /// Sizes do not fit the plan, an index may leave what it indexes, or a launch is larger than the device counts.
    pub fn bind(&self, dims: &Bindings) -> Result<CudaBound, CudaBindError> {
        CudaBound::new(self, dims)
    }
}
