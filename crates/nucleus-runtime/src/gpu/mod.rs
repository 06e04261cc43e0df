//! A GPU that plans run on.

mod exchange;
mod limits;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nucleus_cuda::Device;
pub use nucleus_cuda::driver::DeviceMemory;
use nucleus_cuda::driver::Stream;
pub use nucleus_cuda::{Cubins, CudaError, KernelCode, NoCubin, TileCounts, Transfer, Tuning, TuningError};

pub(crate) use exchange::{Exchange, lay_out};
pub use limits::LimitError;

/// A GPU, the stream that all work goes into, where the machine code of kernels comes from, and the tiles that were measured for it. Copies
/// are the same GPU.
///
/// Sessions and routines on one GPU take turns: what one has put into the stream is done before what the next one puts in.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    tuning: Arc<Tuning>,
}

struct Inner {
    stream: Stream,
    cubins: Arc<dyn Cubins>,
    turn: Mutex<()>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({:?})", self.device())
    }
}

impl Gpu {
    /// The device that `NUCLEUS_CUDA_DEVICE` names, or the first.
    ///
    /// # Errors
    /// There is no driver, no such device, or no kernel for its architecture.
    pub fn open(cubins: Arc<dyn Cubins>) -> Result<Gpu, CudaError> {
        let stream = Stream::new(&Device::open()?)?;
        let inner = Arc::new(Inner { stream, cubins, turn: Mutex::new(()) });
        Ok(Gpu { inner, tuning: Arc::default() })
    }

    /// The same GPU with measured tiles for what is loaded from now on: those of an artifact ([`crate::Compiled::tuning`]), of a file, or both.
    /// With other tiles than an artifact's own, kernels are other kernels, which the artifact need not hold.
    #[must_use]
    pub fn tuned(self, tuning: Tuning) -> Gpu {
        Gpu { tuning: Arc::new(tuning), ..self }
    }

    /// The measured tiles.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.inner.stream.device()
    }

    /// The stream that all work goes into.
    pub fn stream(&self) -> &Stream {
        &self.inner.stream
    }

    /// Where machine code comes from.
    pub fn cubins(&self) -> &dyn Cubins {
        &*self.inner.cubins
    }

    /// Waits for other threads that put work into the stream, and keeps them from it.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        // Who panicked left nothing half done that matters to others: the stream goes on.
        self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that what is about to be taken fits into the memory that is free, before anything is taken.
    ///
    /// # Errors
    /// How much is missing, and what for.
    pub fn account(&self, parts: &[(&str, u64)], given_back: u64) -> Result<(), CudaError> {
        let bytes = parts.iter().fold(0u64, |total, (_, bytes)| total.saturating_add(*bytes));
        let free = self.device().free_memory()?.saturating_add(given_back);
        if bytes <= free {
            return Ok(());
        }
        let list: Vec<String> = parts
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(what, bytes)| format!("{what} ({bytes} bytes)"))
            .collect();
        let (device, what) = (self.device().name().to_owned(), list.join(", "));
        Err(CudaError::OutOfMemory { device, what, bytes, free })
    }
}
