//! Whether there is a driver. cudarc panics where it is missing, so it is probed first, once.

use std::ffi::c_void;
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::error::CudaError;

/// Every function that this module calls.
const SYMBOLS: [&str; 42] = [
    "cuInit",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuFuncGetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuEventDestroy_v2",
];

/// Finds the driver's library and every function that is used of it.
pub(super) fn probe() -> Result<(), CudaError> {
    static PROBED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    PROBED.get_or_init(find).clone()
}

fn find() -> Result<(), CudaError> {
    // SAFETY: loads the driver's library, whose initialisers are the vendor's; nothing of it is called.
    if !unsafe { sys::is_culib_present() } {
        let mut names = cudarc::get_lib_name_candidates("cuda");
        names.retain(|name| name.ends_with(std::env::consts::DLL_SUFFIX) || name.ends_with(".1"));
        names.truncate(1);
        names.extend((!cfg!(windows)).then(|| "libcuda.so.1".to_owned()));
        return Err(CudaError::NoLibrary { looked_for: names.join(", ") });
    }
    for symbol in SYMBOLS {
        // SAFETY: the library was found just now, so that loading it does not panic; the symbol's address is not used.
        let found = unsafe { sys::culib().get::<*const c_void>(symbol.as_bytes()).is_ok() };
        if !found {
            return Err(CudaError::OldLibrary { symbol });
        }
    }
    Ok(())
}
