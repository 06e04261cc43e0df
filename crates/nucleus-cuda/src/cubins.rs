//! Where a program's machine code comes from: a compiler, a cache, an artifact.

use std::error::Error;

use thiserror::Error;

use crate::architecture::Architecture;
use crate::source::KernelSource;

/// A kernel without machine code.
#[derive(Debug, Error)]
#[error("kernel {kernel} for {architecture}: {source}")]
pub struct CubinError {
    /// The kernel's name.
    pub kernel: String,
    /// What it was to run on.
    pub architecture: Architecture,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

/// Gives the machine code of kernels.
pub trait Cubins: Send + Sync {
    /// The cubin of a kernel, with all its functions.
    ///
    /// # Errors
    /// There is none, and none can be made.
    fn cubin(&self, source: &KernelSource, architecture: Architecture) -> Result<Vec<u8>, CubinError>;

    /// The cubins of many kernels; `progress` hears how many there are. Who compiles them may do so at a time.
    ///
    /// # Errors
    /// As for [`Cubins::cubin`].
    fn cubins(
        &self,
        sources: &[&KernelSource],
        architecture: Architecture,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u8>>, CubinError> {
        let numbered = sources.iter().enumerate();
        numbered
            .map(|(position, source)| {
                let cubin = self.cubin(source, architecture)?;
                progress(position + 1);
                Ok(cubin)
            })
            .collect()
    }
}
