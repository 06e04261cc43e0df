//! The GPU of `--backend cuda`.

use std::path::Path;
use std::sync::Arc;

use nucleus_cuda::{Architecture, KernelSource};
use nucleus_runtime::gpu::{Cubins, KernelCode, NoCubin, Tuning};
use nucleus_runtime::{Compiled, Gpu};

use crate::arguments::Processor;
use crate::{progress, report};

/// The GPU, where one is asked for. Machine code is what the artifact carries, and what NVRTC makes of the rest; tiles are those of `table`
/// before the artifact's.
pub fn open(
    processor: Processor,
    artifact: Option<&Compiled>,
    table: Option<&Path>,
) -> anyhow::Result<Option<Gpu>> {
    match processor {
        Processor::Cpu => {
            no_table(table)?;
            Ok(None)
        }
        Processor::Cuda => {
            let (stored, mut tuning) = artifact
                .map(|compiled| (compiled.cubins.clone(), compiled.tuning.clone()))
                .unwrap_or_default();
            if let Some(table) = table {
                tuning.extend(Tuning::read(table)?);
            }
            Ok(Some(Gpu::open(Arc::new(Kernels(KernelCode::new(stored))))?.tuned(tuning)))
        }
    }
}

/// Refuses a table of tiles where nothing has tiles.
pub fn no_table(table: Option<&Path>) -> anyhow::Result<()> {
    anyhow::ensure!(table.is_none(), "--tuning gives the tiles of kernels for GPUs: it needs --backend cuda");
    Ok(())
}

/// Shows how far compilation is: hundreds of kernels take a minute the first time.
struct Kernels(KernelCode);

impl Cubins for Kernels {
    fn cubins(
        &self,
        sources: &[&KernelSource],
        architecture: Architecture,
        _progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, NoCubin> {
        let bar = progress::step_bar("kernels");
        let cubins = self.0.cubins(sources, architecture, &|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        if let Some(warning) = self.0.take_warning() {
            report::note(&format!("warning: {warning}"));
        }
        cubins
    }
}
