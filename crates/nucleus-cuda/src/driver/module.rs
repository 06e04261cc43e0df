//! Compiled kernels on a device.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys;
use sys::CUfunction_attribute as Attribute;

use super::device::Device;
use super::error::{CudaError, check};
use super::stream::Stream;

/// Bytes of dynamic shared memory that a function may have without asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// The functions of a cubin.
#[derive(Clone, Debug)]
pub struct Module {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: Device,
    name: String,
    handle: sys::CUmodule,
}

// SAFETY: a handle of the driver, which locks what threads share.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A function of a module, ready to be launched.
#[derive(Clone, Debug)]
pub struct KernelFunction {
    /// Keeps the code.
    module: Module,
    handle: sys::CUfunction,
    threads: u32,
    shared_bytes: u32,
}

// SAFETY: as for modules.
unsafe impl Send for KernelFunction {}
// SAFETY: as above.
unsafe impl Sync for KernelFunction {}

impl Module {
    /// Loads a cubin; `name` names it in errors.
    ///
    /// # Errors
    /// It is no cubin, or not for this device.
    pub fn load(device: &Device, name: &str, cubin: &[u8]) -> Result<Module, CudaError> {
        let doing = || format!("loading kernel {name} on {}", device.name());
        // The driver takes an address alone and finds the end from the file's tables: what is no whole ELF file must not get there.
        let Some(end) = elf_end(cubin).filter(|end| *end <= cubin.len()) else {
            let (name, explanation) =
                ("CUDA_ERROR_INVALID_IMAGE".to_owned(), "it is no whole ELF file".to_owned());
            return Err(CudaError::Driver { doing: doing(), name, explanation });
        };
        device.make_current()?;
        // Tables are read as words.
        let words: Vec<u64> = cubin[..end]
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the image is a whole ELF file, which the driver checks and copies.
        let result = unsafe { sys::cuModuleLoadData(&mut handle, words.as_ptr().cast()) };
        check(result, doing)?;
        Ok(Module { inner: Arc::new(Inner { device: device.clone(), name: name.to_owned(), handle }) })
    }

    /// A function of that name, to be launched with blocks of `threads` threads and `shared_bytes` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// There is none, or the device cannot run it so.
    pub fn function(&self, name: &str, threads: u32, shared_bytes: u32) -> Result<KernelFunction, CudaError> {
        let Inner { device, name: module, handle: module_handle } = &*self.inner;
        let doing = || format!("finding function `{name}` of kernel {module}");
        device.make_current()?;
        let symbol = CString::new(name).unwrap_or_default();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with 0, the out-parameter is there.
        check(unsafe { sys::cuModuleGetFunction(&mut handle, *module_handle, symbol.as_ptr()) }, doing)?;
        // SAFETY: the function was found just now. What is loaded at its first launch may not be captured.
        check(unsafe { sys::cuFuncLoad(handle) }, doing)?;
        let lacks = |why: String| {
            let kernel = format!("{module} (`{name}`)");
            Err(CudaError::Kernel { kernel, device: device.name().to_owned(), why })
        };
        let attribute = |attribute: Attribute| {
            let mut value = 0;
            // SAFETY: as above.
            check(unsafe { sys::cuFuncGetAttribute(&mut value, attribute, handle) }, doing)?;
            Ok::<u32, CudaError>(value.max(0) as u32)
        };
        let most = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        if threads > most {
            let registers = attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
            return lacks(format!(
                "a block has {threads} threads, and with {registers} registers each only {most} fit"
            ));
        }
        if shared_bytes > device.shared_memory() {
            return lacks(format!(
                "a block asks for {shared_bytes} bytes of shared memory, and there are {}",
                device.shared_memory()
            ));
        }
        if shared_bytes > DEFAULT_SHARED {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            check(unsafe { sys::cuFuncSetAttribute(handle, attribute, shared_bytes as i32) }, || {
                format!("asking for {shared_bytes} bytes of shared memory for `{name}` of kernel {module}")
            })?;
        }
        Ok(KernelFunction { module: self.clone(), handle, threads, shared_bytes })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: loaded once and unloaded once; functions keep the module.
            let _ = unsafe { sys::cuModuleUnload(self.handle) };
        }
    }
}

impl KernelFunction {
    /// Puts a launch into the stream. `arguments` is the function's one parameter.
    ///
    /// # Errors
    /// The driver refuses the launch. What goes wrong inside shows when the stream is waited for.
    ///
    /// # Safety
    /// `arguments` has the layout and size of the function's parameter, and every address in it leads to memory as large as the function
    /// takes it to be, which lives until the launch is done.
    pub unsafe fn launch(
        &self,
        blocks: [u32; 3],
        arguments: &[u64],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.module.inner.device.make_current()?;
        let [x, y, z] = blocks;
        let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the one parameter before it returns; the rest is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(
                self.handle,
                x,
                y,
                z,
                self.threads,
                1,
                1,
                self.shared_bytes,
                stream.handle(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(result, || format!("launching kernel {}", self.module.inner.name))
    }
}

/// Where the last table of a 64-bit ELF file ends.
fn elf_end(image: &[u8]) -> Option<usize> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = image.get(at..at + bytes)?;
        let value = field
            .iter()
            .rev()
            .try_fold(0u64, |value, byte| value.checked_mul(256).map(|value| value + u64::from(*byte)));
        usize::try_from(value?).ok()
    };
    if image.get(..5)? != [0x7f, b'E', b'L', b'F', 2] {
        return None;
    }
    // Program headers: offset at 32, size and count of entries at 54 and 56. Section headers: at 40, 58 and 60.
    let table = |offset: usize, size: usize, count: usize| {
        number(size, 2)?.checked_mul(number(count, 2)?)?.checked_add(number(offset, 8)?)
    };
    let mut end = table(32, 54, 56)?.max(table(40, 58, 60)?);
    // A section's bytes: their place at 24, their number at 32 of its header; type 8 has none in the file.
    let (first, size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    if end > image.len() {
        return None;
    }
    for section in 0..count {
        let header = first + section * size;
        if size >= 40 && number(header + 4, 4)? != 8 {
            end = end.max(number(header + 24, 8)?.checked_add(number(header + 32, 8)?)?);
        }
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::elf_end;

    #[test]
    fn only_whole_elf_files_reach_the_driver() {
        let mut image = vec![0u8; 64 + 64 + 10];
        image[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2]);
        // One section header behind the file's, whose section has ten bytes behind it.
        image[40] = 64;
        image[58] = 64;
        image[60] = 1;
        image[64 + 4] = 1;
        image[64 + 24] = 128;
        image[64 + 32] = 10;
        assert_eq!(elf_end(&image), Some(138));
        image[64 + 32] = 11;
        assert_eq!(elf_end(&image), Some(139), "longer than the image: the caller refuses it");
        image[60] = 2;
        assert_eq!(elf_end(&image), None, "the table itself is cut off");
        assert_eq!(elf_end(b"// Generated by NVIDIA NVVM Compiler"), None);
        assert_eq!(elf_end(&[]), None);
    }
}
