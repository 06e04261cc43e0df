//! Memory of a device.

use std::ops::Range;

use cudarc::driver::sys;

use super::device::Device;
use super::error::{CudaError, check};

/// A piece of a device's memory, aligned to 256 bytes. Its contents are undefined at first.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Device,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes; none of them take no memory. `what` names them in errors.
    ///
    /// # Errors
    /// There is not enough memory, or the driver failed.
    pub fn new(device: &Device, bytes: usize, what: &str) -> Result<DeviceMemory, CudaError> {
        let mut memory = DeviceMemory { device: device.clone(), address: 0, bytes };
        if bytes == 0 {
            return Ok(memory);
        }
        device.make_current()?;
        let mut address = 0;
        // SAFETY: the out-parameter is there; a context is current.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            memory.bytes = 0;
            return Err(CudaError::OutOfMemory {
                device: device.name().to_owned(),
                what: what.to_owned(),
                bytes: bytes as u64,
                free: device.free_memory().unwrap_or(0),
            });
        }
        check(result, || format!("allocating {bytes} bytes for {what}")).inspect_err(|_| memory.bytes = 0)?;
        memory.address = address;
        Ok(memory)
    }

    /// Nothing.
    pub fn empty(device: &Device) -> DeviceMemory {
        DeviceMemory { device: device.clone(), address: 0, bytes: 0 }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How much it is.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address of its first byte; 0 of nothing.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address of a part.
    ///
    /// # Errors
    /// The part is not inside.
    pub fn part(&self, range: Range<usize>, what: &'static str) -> Result<u64, CudaError> {
        if range.start > range.end || range.end > self.bytes {
            return Err(CudaError::Range { what, bytes: range.len(), offset: range.start, size: self.bytes });
        }
        Ok(self.address + range.start as u64)
    }

    /// Makes it at least `bytes` large. Where it grows, its contents are lost and its address is another.
    ///
    /// # Errors
    /// As for [`DeviceMemory::new`]; it is then empty.
    pub fn reserve(&mut self, bytes: usize, what: &str) -> Result<(), CudaError> {
        if bytes > self.bytes {
            // Given back first: both may not fit.
            *self = DeviceMemory::empty(&self.device);
            *self = DeviceMemory::new(&self.device, bytes, what)?;
        }
        Ok(())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 && self.device.make_current().is_ok() {
            // SAFETY: allocated above and freed once; the driver waits for what uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}
