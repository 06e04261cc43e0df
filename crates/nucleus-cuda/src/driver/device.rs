//! A device and its context.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;
use sys::CUdevice_attribute as Attribute;

use super::error::{CudaError, check};
use super::library::probe;
use crate::architecture::Architecture;

/// The environment variable that chooses the device.
const VARIABLE: &str = "NUCLEUS_CUDA_DEVICE";

/// A GPU. Copies share its context, which goes when the last copy and all memory, modules and streams are gone.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    ordinal: i32,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    architecture: Architecture,
    multiprocessors: u32,
    total: u64,
    /// Bytes of dynamic shared memory that a block may have.
    shared: u32,
}

// SAFETY: a context may be used from any thread that makes it current, as every call here does.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Inner {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self.inner.ordinal, self.inner.name)
    }
}

impl Device {
    /// The device that `NUCLEUS_CUDA_DEVICE` names, or the first.
    ///
    /// # Errors
    /// There is no driver, no such device, or no kernel for its architecture.
    pub fn open() -> Result<Device, CudaError> {
        probe()?;
        // SAFETY: the library was found with all functions. Each call writes what its out-parameter points at.
        unsafe {
            check(sys::cuInit(0), || "starting the CUDA driver".to_owned())?;
            let mut count = 0;
            check(sys::cuDeviceGetCount(&mut count), || "counting CUDA devices".to_owned())?;
            let ordinal = choose(std::env::var(VARIABLE).ok().as_deref(), count)?;
            Device::of_ordinal(ordinal)
        }
    }

    /// # Safety
    /// The driver was started.
    unsafe fn of_ordinal(ordinal: i32) -> Result<Device, CudaError> {
        let doing = || format!("opening CUDA device {ordinal}");
        let mut handle = 0;
        let mut name = [0; 256];
        let mut total = 0;
        // SAFETY: every out-parameter is as large as the driver is told.
        let name = unsafe {
            check(sys::cuDeviceGet(&mut handle, ordinal), doing)?;
            check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, handle), doing)?;
            check(sys::cuDeviceTotalMem_v2(&mut total, handle), doing)?;
            name[name.len() - 1] = 0;
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        let attribute = |attribute: Attribute| {
            let mut value = 0;
            // SAFETY: as above.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, handle) }, doing)?;
            Ok::<u32, CudaError>(value.max(0) as u32)
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let Some(architecture) = Architecture::for_device(major, minor) else {
            return Err(CudaError::Architecture { name, major, minor });
        };
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: as above; the context is given back when the last copy of the device goes.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) }, doing)?;
        let device = Device {
            inner: Arc::new(Inner {
                ordinal,
                handle,
                context,
                name,
                architecture,
                multiprocessors,
                total: total as u64,
                shared,
            }),
        };
        device.make_current()?;
        Ok(device)
    }

    /// Makes the context that of the calling thread, as calls of the driver want it.
    pub(super) fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        check(unsafe { sys::cuCtxSetCurrent(self.inner.context) }, || format!("using {}", self.name()))
    }

    /// What the vendor calls it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its number.
    pub fn ordinal(&self) -> i32 {
        self.inner.ordinal
    }

    /// The architecture whose kernels it runs.
    pub fn architecture(&self) -> Architecture {
        self.inner.architecture
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// Bytes of its memory.
    pub fn total_memory(&self) -> u64 {
        self.inner.total
    }

    /// Bytes of dynamic shared memory that a block may ask for.
    pub fn shared_memory(&self) -> u32 {
        self.inner.shared
    }

    /// Bytes of its memory that nobody uses at this moment.
    ///
    /// # Errors
    /// The driver failed.
    pub fn free_memory(&self) -> Result<u64, CudaError> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both out-parameters are there.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, || format!("asking {} for its free memory", self.name()))?;
        Ok(free as u64)
    }

    /// The version of CUDA that the driver is of: 13000 for 13.0.
    ///
    /// # Errors
    /// The driver failed.
    pub fn driver_version(&self) -> Result<i32, CudaError> {
        let mut version = 0;
        // SAFETY: the out-parameter is there.
        let result = unsafe { sys::cuDriverGetVersion(&mut version) };
        check(result, || "asking for the driver's version".to_owned())?;
        Ok(version)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: retained once, when the device was opened; everything made with it holds a copy of the device and is gone.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

/// The device to use, from what the environment says.
fn choose(variable: Option<&str>, count: i32) -> Result<i32, CudaError> {
    let (wanted, source_of_number) = match variable {
        Some(text) => (text.trim(), "NUCLEUS_CUDA_DEVICE names it"),
        None => ("0", "the first is taken"),
    };
    match wanted.parse::<i32>() {
        Ok(number) if (0..count).contains(&number) => Ok(number),
        _ => Err(CudaError::NoSuchDevice { wanted: wanted.to_owned(), source_of_number, count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_one_of_the_devices() {
        assert_eq!(choose(None, 1), Ok(0));
        assert_eq!(choose(Some(" 2 "), 3), Ok(2));
        let message = |variable, count| choose(variable, count).unwrap_err().to_string();
        assert_eq!(
            message(Some("3"), 3),
            "there is no CUDA device 3: NUCLEUS_CUDA_DEVICE names it, and there are 3, counted from 0"
        );
        assert!(message(Some("first"), 3).contains("no CUDA device first"));
        assert!(message(None, 0).contains("the first is taken, and there are 0"));
    }
}
