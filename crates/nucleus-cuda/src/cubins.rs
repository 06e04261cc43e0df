//! Where a program's machine code comes from: a compiler with its cache, an artifact.

use std::error::Error;
use std::sync::{Arc, OnceLock};

use nucleus_plan::KernelId;
use thiserror::Error;

use crate::architecture::Architecture;
use crate::compile::{Compiler, DistinctKernel};
use crate::cubin::StoredCubins;
use crate::nvrtc::NvrtcError;
use crate::source::KernelSource;

/// A kernel without machine code.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct NoCubin {
    /// Why.
    #[from]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Gives the machine code of kernels.
pub trait Cubins: Send + Sync {
    /// The cubins of kernels, in their order. `progress` hears, from any thread, how many of how many are done.
    ///
    /// # Errors
    /// One is missing and cannot be made.
    fn cubins(
        &self,
        sources: &[&KernelSource],
        architecture: Architecture,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, NoCubin>;

    /// The cubin of one kernel.
    ///
    /// # Errors
    /// As for [`Cubins::cubins`].
    fn cubin(&self, source: &KernelSource, architecture: Architecture) -> Result<Vec<u8>, NoCubin> {
        let mut list = self.cubins(&[source], architecture, &|_, _| {})?;
        list.pop().ok_or_else(|| NoCubin { source: "there is no cubin".into() })
    }
}

/// Machine code that an artifact carries, and for what it lacks NVRTC with the user's cache, which is looked for when it is first needed.
#[derive(Debug, Default)]
pub struct KernelCode {
    stored: StoredCubins,
    compiler: OnceLock<Result<Compiler, Arc<NvrtcError>>>,
}

impl KernelCode {
    /// What an artifact carries; nothing if there is none.
    pub fn new(stored: StoredCubins) -> KernelCode {
        KernelCode { stored, compiler: OnceLock::new() }
    }

    /// What went wrong with the cache, once.
    pub fn take_warning(&self) -> Option<String> {
        self.compiler.get()?.as_ref().ok()?.take_warning()
    }
}

impl Cubins for KernelCode {
    fn cubins(
        &self,
        sources: &[&KernelSource],
        architecture: Architecture,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, NoCubin> {
        let stored = |source: &&KernelSource| self.stored.get(source, architecture).map(<[u8]>::to_vec);
        let mut cubins: Vec<Option<Vec<u8>>> = sources.iter().map(stored).collect();
        let missing: Vec<usize> = (0..sources.len()).filter(|at| cubins[*at].is_none()).collect();
        if !missing.is_empty() {
            let compiler = self.compiler.get_or_init(|| Compiler::standard().map_err(Arc::new));
            let compiler = compiler.as_ref().map_err(|error| NoCubin { source: error.clone().into() })?;
            let kernel = |at: &usize| DistinctKernel {
                first: (0, KernelId(0)),
                anchor: "",
                source: sources[*at].clone(),
                architectures: vec![architecture],
            };
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let compiled = compiler
                .compile_kernels(missing.iter().map(kernel).collect(), threads, progress)
                .map_err(|error| NoCubin { source: error.into() })?;
            for (at, kernel) in missing.iter().zip(compiled) {
                cubins[*at] = kernel.images.into_iter().next().map(|image| image.cubin);
            }
        }
        let whole =
            |cubin: Option<Vec<u8>>| cubin.ok_or_else(|| NoCubin { source: "there is no cubin".into() });
        cubins.into_iter().map(whole).collect()
    }
}
