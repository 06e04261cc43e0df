//! Host memory that a device copies from and to by itself.

use std::ops::Range;

use cudarc::driver::sys;

use super::device::Device;
use super::error::{CudaError, check};
use super::memory::DeviceMemory;
use super::stream::{Event, Stream};

/// Page-locked host memory. Copies run behind the caller's back; its bytes can be looked at once they are done.
#[derive(Debug)]
pub struct Pinned {
    device: Device,
    data: *mut u8,
    bytes: usize,
    /// Behind the last copy.
    copied: Event,
    in_flight: bool,
}

// SAFETY: memory that is owned, like that of a vector.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Allocates `bytes` bytes of zeros.
    ///
    /// # Errors
    /// There is not enough memory that can be locked.
    pub fn new(device: &Device, bytes: usize) -> Result<Pinned, CudaError> {
        let copied = Event::new(device, false)?;
        let mut data = std::ptr::null_mut();
        if bytes > 0 {
            // SAFETY: the out-parameter is there; a context is current, as an event was just made.
            let result = unsafe { sys::cuMemHostAlloc(&mut data, bytes, 0) };
            check(result, || format!("allocating {bytes} bytes of page-locked memory"))?;
            // SAFETY: allocated with that many bytes.
            unsafe { std::ptr::write_bytes(data.cast::<u8>(), 0, bytes) };
        }
        Ok(Pinned { device: device.clone(), data: data.cast(), bytes, copied, in_flight: false })
    }

    /// How much it is.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Makes it at least `bytes` large; where it grows, its contents are lost.
    ///
    /// # Errors
    /// As for [`Pinned::new`].
    pub fn reserve(&mut self, bytes: usize) -> Result<(), CudaError> {
        if bytes > self.bytes {
            *self = Pinned::new(&self.device, bytes)?;
        }
        Ok(())
    }

    /// Waits for copies, then gives the bytes.
    ///
    /// # Errors
    /// A copy, or something before it in its stream, failed.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], CudaError> {
        self.wait()?;
        if self.bytes == 0 {
            return Ok(&mut []);
        }
        // SAFETY: allocated with that many bytes, which were written; nothing copies at this moment, as copies take `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) })
    }

    /// Copies a part to the device's memory at `to`, in the order of the stream.
    ///
    /// # Errors
    /// The part is not inside of either, or the driver failed.
    pub fn upload(
        &mut self,
        part: Range<usize>,
        target: &DeviceMemory,
        to: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (source, bytes) = self.part(&part, "a copy from page-locked memory")?;
        let address = target.part(to..to.saturating_add(bytes), "a copy to device memory")?;
        if bytes == 0 {
            return Ok(());
        }
        self.device.make_current()?;
        // SAFETY: both places are inside their memory, which is kept: the pinned one waits for the copy before it is used or freed, and
        // freeing device memory waits by itself.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(address, source.cast_const().cast(), bytes, stream.handle()) };
        check(result, || format!("copying {bytes} bytes to {}", self.device.name()))?;
        self.note(stream)
    }

    /// Copies device memory from `from` into a part, in the order of the stream.
    ///
    /// # Errors
    /// As for [`Pinned::upload`].
    pub fn download(
        &mut self,
        source: &DeviceMemory,
        from: usize,
        part: Range<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (target, bytes) = self.part(&part, "a copy to page-locked memory")?;
        let address = source.part(from..from.saturating_add(bytes), "a copy from device memory")?;
        if bytes == 0 {
            return Ok(());
        }
        self.device.make_current()?;
        // SAFETY: as for `upload`.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(target.cast(), address, bytes, stream.handle()) };
        check(result, || format!("copying {bytes} bytes from {}", self.device.name()))?;
        self.note(stream)
    }

    fn part(&self, part: &Range<usize>, what: &'static str) -> Result<(*mut u8, usize), CudaError> {
        if part.start > part.end || part.end > self.bytes {
            let (bytes, offset) = (part.len(), part.start);
            return Err(CudaError::Range { what, bytes, offset, size: self.bytes });
        }
        Ok((self.data.wrapping_add(part.start), part.len()))
    }

    /// A copy is on its way. Where its end cannot be marked, it is waited for.
    fn note(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.in_flight = true;
        self.copied.record(stream).or_else(|_| stream.synchronize())
    }

    fn wait(&mut self) -> Result<(), CudaError> {
        if std::mem::take(&mut self.in_flight) {
            self.copied.synchronize()?;
        }
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A device that failed copies nothing any more.
        let _ = self.wait();
        if !self.data.is_null() && self.device.make_current().is_ok() {
            // SAFETY: allocated once and freed once; no copy is on its way.
            let _ = unsafe { sys::cuMemFreeHost(self.data.cast()) };
        }
    }
}
