//! Tensors that go to a device and come back: the same layout in page-locked host memory and on the device.

use std::ops::Range;

use nucleus_cuda::driver::{DeviceMemory, Pinned, Stream};
use nucleus_cuda::{CudaError, Device, DevicePointer};

/// Every tensor begins at a multiple of this, so that kernels may load vectors.
const ALIGNMENT: usize = 256;

/// Places behind one another for tensors of these sizes, and the end of the last.
pub(crate) fn lay_out(sizes: impl IntoIterator<Item = usize>) -> (Vec<Range<usize>>, usize) {
    let mut end = 0usize;
    let places = sizes.into_iter().map(|bytes| {
        let start = end;
        end = end.saturating_add(bytes).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        start..start.saturating_add(bytes)
    });
    let places = places.collect();
    (places, end)
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Exchange {
    device: DeviceMemory,
    host: Pinned,
}

impl Exchange {
    /// Nothing.
    pub(crate) fn new(device: &Device) -> Result<Exchange, CudaError> {
        Ok(Exchange { device: DeviceMemory::empty(device), host: Pinned::new(device, 0)? })
    }

    /// Makes both at least `bytes` large; where they grow, their contents are lost and the device's address is another.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<(), CudaError> {
        self.device.reserve(bytes, "inputs and outputs")?;
        self.host.reserve(bytes)
    }

    /// Bytes on the device.
    pub(crate) fn len(&self) -> usize {
        self.device.len()
    }

    /// The device's memory.
    pub(crate) fn memory(&self) -> &DeviceMemory {
        &self.device
    }

    /// A place on the device.
    pub(crate) fn pointer(&self, place: &Range<usize>) -> Result<DevicePointer, CudaError> {
        DevicePointer::inside(&self.device, place.start, place.len())
    }

    /// Puts a tensor into host memory.
    pub(crate) fn write(&mut self, place: &Range<usize>, bytes: &[u8]) -> Result<(), CudaError> {
        let what = "a tensor that goes to the device";
        let size = self.host.len();
        match self.host.bytes_mut()?.get_mut(place.clone()) {
            Some(target) if target.len() == bytes.len() => {
                target.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(CudaError::Range { what, bytes: bytes.len(), offset: place.start, size }),
        }
    }

    /// The bytes of a tensor in host memory, once copies are done.
    pub(crate) fn read(&mut self, place: &Range<usize>) -> Result<&[u8], CudaError> {
        let what = "a tensor that comes from the device";
        let (bytes, offset, size) = (place.len(), place.start, self.host.len());
        self.host.bytes_mut()?.get(place.clone()).ok_or(CudaError::Range { what, bytes, offset, size })
    }

    /// Copies a part to the device.
    pub(crate) fn upload(&mut self, part: Range<usize>, stream: &Stream) -> Result<(), CudaError> {
        let to = part.start;
        self.host.upload(part, &self.device, to, stream)
    }

    /// Copies a part from the device.
    pub(crate) fn download(&mut self, part: Range<usize>, stream: &Stream) -> Result<(), CudaError> {
        self.host.download(&self.device, part.start, part, stream)
    }
}

#[cfg(test)]
mod tests {
    use super::lay_out;

    #[test]
    fn places_are_aligned_and_apart() {
        assert_eq!(lay_out([4, 0, 300, 1]), (vec![0..4, 256..256, 256..556, 768..769], 1024));
        assert_eq!(lay_out([]), (vec![], 0));
    }
}
