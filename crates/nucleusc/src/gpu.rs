//! The GPU of `--backend cuda`.

use std::sync::Arc;

use nucleus_runtime::gpu::KernelCode;
use nucleus_runtime::{Compiled, Gpu};

use crate::arguments::Processor;

/// The GPU, where one is asked for. Machine code is what the artifact carries, and what NVRTC makes of the rest.
pub fn open(processor: Processor, artifact: Option<&Compiled>) -> anyhow::Result<Option<Gpu>> {
    match processor {
        Processor::Cpu => Ok(None),
        Processor::Cuda => {
            let stored = artifact.map(|compiled| compiled.cubins.clone()).unwrap_or_default();
            Ok(Some(Gpu::open(Arc::new(KernelCode::new(stored)))?))
        }
    }
}
