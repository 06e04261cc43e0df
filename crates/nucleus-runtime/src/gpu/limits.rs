//! The limits of a GPU, measured.

use nucleus_cuda::driver::{DeviceMemory, Event, Module};
use nucleus_cuda::source::{LimitKind, limit_source};
use nucleus_cuda::{CudaError, NoCubin, SourceError};
use nucleus_ir::DType;
use thiserror::Error;

use super::Gpu;
use crate::limits::Limits;

/// Why the limits could not be measured.
#[derive(Debug, Error)]
pub enum LimitError {
    /// The kernel that measures cannot be printed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no machine code for it.
    #[error(transparent)]
    Cubin(#[from] NoCubin),
    /// The driver failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A measurement goes on until it takes this long.
const SECONDS: f64 = 0.02;
/// Bytes that are copied at most: more than caches hold.
const COPIED: u64 = 512 << 20;

impl Gpu {
    /// What the device reaches at this moment: multiply-adds in registers, of matrix instructions for products in `bf16` and of plain
    /// ones for others, and copying from one place of its memory to another. Takes some 50 ms.
    ///
    /// # Errors
    /// There is no machine code for the kernel, or the driver failed.
    pub fn limits(&self, products: DType) -> Result<Limits, LimitError> {
        let _turn = self.turn();
        Ok(Limits { flops: self.flops(products)?, copy_bytes: Some(self.copied_bytes()?) })
    }

    fn flops(&self, products: DType) -> Result<f64, LimitError> {
        let device = self.device();
        let kind = if products == DType::Bf16 { LimitKind::Matrix } else { LimitKind::Plain };
        let limit = limit_source(kind)?;
        let cubin = self.cubins().cubin(&limit.source, device.architecture())?;
        let module = Module::load(device, &limit.source.name, &cubin)?;
        let function = &limit.source.functions[0];
        let kernel = module.function(function.name, function.threads, function.shared_bytes)?;
        // As many blocks as fill every multiprocessor with threads.
        let resident = (device.architecture().threads_per_multiprocessor() / function.threads).max(1);
        let blocks = device.multiprocessors().max(1) * resident;
        let memory = DeviceMemory::new(device, 4 * (blocks * function.threads) as usize, "a measurement")?;
        let mut iterations = 1u32;
        loop {
            let arguments = [memory.address(), u64::from(iterations), 0];
            let seconds = self.timed(&|| {
                // SAFETY: the kernel's parameter is one operand, one size and the scratch address; it writes a float for every thread.
                unsafe { kernel.launch([blocks, 1, 1], &arguments, self.stream()) }
            })?;
            let rate = limit.flops_per_thread * f64::from(iterations) * f64::from(blocks * function.threads);
            if seconds >= SECONDS || iterations >= 1 << 24 {
                return Ok(rate / seconds.max(1e-9));
            }
            iterations *= 4;
        }
    }

    /// Bytes read and written per second by copies.
    fn copied_bytes(&self) -> Result<f64, CudaError> {
        let bytes = (self.device().free_memory()? / 4).clamp(256, COPIED) as usize;
        let source = DeviceMemory::new(self.device(), bytes, "a measurement")?;
        let target = DeviceMemory::new(self.device(), bytes, "a measurement")?;
        self.stream().fill(&source, 0..bytes, 1)?;
        let copy = || self.stream().copy(&source, 0..bytes, &target, 0);
        let first = self.timed(&copy)?;
        let mut best = first;
        for _ in 0..4 {
            best = best.min(self.timed(&copy)?);
        }
        Ok(2.0 * bytes as f64 / best.max(1e-9))
    }

    fn timed(&self, work: &dyn Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let (start, end) = (Event::new(self.device(), true)?, Event::new(self.device(), true)?);
        start.record(self.stream())?;
        work()?;
        end.record(self.stream())?;
        end.synchronize()?;
        end.seconds_since(&start)
    }
}
