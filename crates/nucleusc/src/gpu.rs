//! The GPU of `--backend cuda`.

use std::sync::Arc;

use nucleus_cuda::{Architecture, KernelSource};
use nucleus_runtime::gpu::{Cubins, KernelCode, NoCubin};
use nucleus_runtime::{Compiled, Gpu};

use crate::arguments::Processor;
use crate::{progress, report};

/// The GPU, where one is asked for. Machine code is what the artifact carries, and what NVRTC makes of the rest.
pub fn open(processor: Processor, artifact: Option<&Compiled>) -> anyhow::Result<Option<Gpu>> {
    match processor {
        Processor::Cpu => Ok(None),
        Processor::Cuda => {
            let stored = artifact.map(|compiled| compiled.cubins.clone()).unwrap_or_default();
            Ok(Some(Gpu::open(Arc::new(Kernels(KernelCode::new(stored))))?))
        }
    }
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
