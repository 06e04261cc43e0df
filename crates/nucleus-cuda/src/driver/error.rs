//! What the driver says when something fails.

use std::ffi::CStr;

use cudarc::driver::sys;
use thiserror::Error;

/// Why the GPU cannot be used, or stopped being usable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "no CUDA driver: none of {looked_for} was found; install NVIDIA's driver (R580 or newer), or use `--backend cpu`"
    )]
    NoLibrary {
        /// The names that were tried.
        looked_for: String,
    },
    /// The driver lacks a function.
    #[error(
        "the CUDA driver has no `{symbol}`: install a newer NVIDIA driver (R580), or use `--backend cpu`"
    )]
    OldLibrary {
        /// The function.
        symbol: &'static str,
    },
    /// There is no device of that number.
    #[error("there is no CUDA device {wanted}: {source_of_number}, and there are {count}, counted from 0")]
    NoSuchDevice {
        /// The number.
        wanted: String,
        /// Where it comes from.
        source_of_number: &'static str,
        /// How many devices there are.
        count: i32,
    },
    /// No kernel is written for the device.
    #[error("{name} has compute capability {major}.{minor}; kernels are written for 8.0 and newer")]
    Architecture {
        /// The device.
        name: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// There is not enough memory.
    #[error(
        "not enough memory on {device} for {what}: {bytes} bytes are needed and {free} are free, {} are missing",
        bytes.saturating_sub(*free)
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// What it was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
        /// How much there was.
        free: u64,
    },
    /// A kernel needs more than the device has.
    #[error("kernel {kernel} cannot run on {device}: {why}")]
    Kernel {
        /// The kernel's function.
        kernel: String,
        /// The device.
        device: String,
        /// What it lacks.
        why: String,
    },
    /// A copy that does not fit.
    #[error("{what}: {bytes} bytes at {offset} of {size}")]
    Range {
        /// What was copied.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// Where to.
        offset: usize,
        /// How much there is.
        size: usize,
    },
    /// The driver refused.
    #[error("{doing}: {name} ({explanation})")]
    Driver {
        /// What was being done.
        doing: String,
        /// The error's name: `CUDA_ERROR_…`.
        name: String,
        /// What the driver says of it.
        explanation: String,
    },
}

/// What a call of the driver returned, as a value.
pub(super) fn check(result: sys::CUresult, doing: impl FnOnce() -> String) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    // SAFETY: both take an error and write the address of a constant string, or leave null.
    let text = |function: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| unsafe {
        let mut text = std::ptr::null();
        let found = function(result, &mut text) == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        found.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("CUDA error {}", result as u32));
    let explanation = text(sys::cuGetErrorString).unwrap_or_else(|| "the driver says no more".to_owned());
    Err(CudaError::Driver { doing: doing(), name, explanation })
}
