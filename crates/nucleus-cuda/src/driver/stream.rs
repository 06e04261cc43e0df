//! Streams, which do one thing after the other, and events in them.

use std::ops::Range;

use cudarc::driver::sys;

use super::device::Device;
use super::error::{CudaError, check};
use super::memory::DeviceMemory;

/// A queue of work for a device. What is put in runs in that order, behind the caller's back.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    handle: sys::CUstream,
}

// SAFETY: a handle of the driver, which locks what threads share.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// An empty stream.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(device: &Device) -> Result<Stream, CudaError> {
        device.make_current()?;
        let mut handle = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the out-parameter is there; a context is current.
        let result = unsafe { sys::cuStreamCreate(&mut handle, flags) };
        check(result, || format!("making a stream on {}", device.name()))?;
        Ok(Stream { device: device.clone(), handle })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// Something in the stream failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.make_current()?;
        // SAFETY: the handle lives as long as `self`.
        let result = unsafe { sys::cuStreamSynchronize(self.handle) };
        check(result, || format!("running kernels on {}", self.device.name()))
    }

    /// Copies between two places of device memory, which do not overlap.
    ///
    /// # Errors
    /// A place is not inside its memory, or the driver failed.
    pub fn copy(
        &self,
        source: &DeviceMemory,
        from: Range<usize>,
        target: &DeviceMemory,
        to: usize,
    ) -> Result<(), CudaError> {
        let what = "a copy on the device";
        let bytes = from.len();
        let (source, target) = (source.part(from, what)?, target.part(to..to.saturating_add(bytes), what)?);
        if bytes == 0 {
            return Ok(());
        }
        self.device.make_current()?;
        // SAFETY: both places are inside allocations, whose freeing waits for the copy.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes, self.handle) };
        check(result, || format!("copying {bytes} bytes on {}", self.device.name()))
    }

    /// Sets every byte of a part.
    ///
    /// # Errors
    /// The part is not inside, or the driver failed.
    pub fn fill(&self, memory: &DeviceMemory, part: Range<usize>, byte: u8) -> Result<(), CudaError> {
        let bytes = part.len();
        let address = memory.part(part, "filling device memory")?;
        if bytes == 0 {
            return Ok(());
        }
        self.device.make_current()?;
        // SAFETY: the part is inside an allocation, whose freeing waits.
        let result = unsafe { sys::cuMemsetD8Async(address, byte, bytes, self.handle) };
        check(result, || format!("filling {bytes} bytes on {}", self.device.name()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: made once and destroyed once; what is still queued goes on without it.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event; `timed` ones can say when they came to pass.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(device: &Device, timed: bool) -> Result<Event, CudaError> {
        device.make_current()?;
        let mut handle = std::ptr::null_mut();
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the out-parameter is there; a context is current.
        let result = unsafe { sys::cuEventCreate(&mut handle, if timed { 0 } else { untimed }) };
        check(result, || format!("making an event on {}", device.name()))?;
        Ok(Event { device: device.clone(), handle })
    }

    /// Comes to pass when the stream gets here.
    ///
    /// # Errors
    /// The driver failed.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.device.make_current()?;
        // SAFETY: both handles live.
        let result = unsafe { sys::cuEventRecord(self.handle, stream.handle()) };
        check(result, || "marking a place in a stream".to_owned())
    }

    /// Waits until it comes to pass.
    ///
    /// # Errors
    /// Something before it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.make_current()?;
        // SAFETY: the handle lives as long as `self`.
        let result = unsafe { sys::cuEventSynchronize(self.handle) };
        check(result, || format!("waiting for {}", self.device.name()))
    }

    /// Seconds from `earlier` to this, both timed and come to pass.
    ///
    /// # Errors
    /// One has not come to pass, or is not timed.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64, CudaError> {
        self.device.make_current()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: the out-parameter is there, both handles live.
        let result = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.handle, self.handle) };
        check(result, || "reading the time between events".to_owned())?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: made once and destroyed once; the driver waits where it must.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
