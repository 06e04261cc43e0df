//! Large copies between host and device, through two page-locked buffers: one is filled while the other is on its way.

use std::ops::Range;

use crate::driver::{CudaError, Device, DeviceMemory, Pinned, Stream};

/// Bytes of each of the two buffers at most; a multiple of every element's size.
const CHUNK: usize = 32 << 20;

/// Writes a part of what is uploaded; the range is its place among all bytes.
pub type Fill<'a, E> = dyn FnMut(Range<usize>, &mut [u8]) -> Result<(), E> + 'a;

/// Copies to and from a device. See the [module documentation](self).
#[derive(Debug)]
pub struct Transfer {
    buffers: [Pinned; 2],
    /// The buffer that is used next.
    turn: usize,
}

impl Transfer {
    /// Buffers for copies of up to `largest` bytes; larger ones go in pieces.
    ///
    /// # Errors
    /// There is not enough memory that can be locked.
    pub fn new(device: &Device, largest: usize) -> Result<Transfer, CudaError> {
        let bytes = largest.next_multiple_of(64).min(CHUNK);
        Ok(Transfer { buffers: [Pinned::new(device, bytes)?, Pinned::new(device, bytes)?], turn: 0 })
    }

    /// Copies `bytes` bytes to the device's memory from `to` on. `fill` writes a part of them, whose place among all bytes is given and
    /// begins at a multiple of 64. When this returns the last parts are still on their way.
    ///
    /// # Errors
    /// What `fill` says; the place is not inside the memory, or the driver failed.
    pub fn upload<E: From<CudaError>>(
        &mut self,
        target: &DeviceMemory,
        to: usize,
        bytes: usize,
        stream: &Stream,
        fill: &mut Fill<'_, E>,
    ) -> Result<(), E> {
        for part in parts(bytes, self.chunk(bytes)?) {
            let buffer = self.next();
            fill(part.clone(), &mut buffer.bytes_mut()?[..part.len()])?;
            buffer.upload(0..part.len(), target, to + part.start, stream)?;
        }
        Ok(())
    }

    /// Copies from the device's memory from `from` on, and waits for it.
    ///
    /// # Errors
    /// The place is not inside the memory, or something in the stream failed.
    pub fn download(
        &mut self,
        source: &DeviceMemory,
        from: usize,
        into: &mut [u8],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        // The part that is on its way, and its buffer.
        let mut coming: Option<(Range<usize>, usize)> = None;
        for part in parts(into.len(), self.chunk(into.len())?) {
            let turn = self.turn;
            self.next().download(source, from + part.start, 0..part.len(), stream)?;
            if let Some((before, turn)) = coming.replace((part, turn)) {
                let length = before.len();
                into[before].copy_from_slice(&self.buffers[turn].bytes_mut()?[..length]);
            }
        }
        if let Some((last, turn)) = coming {
            let length = last.len();
            into[last].copy_from_slice(&self.buffers[turn].bytes_mut()?[..length]);
        }
        Ok(())
    }

    fn next(&mut self) -> &mut Pinned {
        let turn = self.turn;
        self.turn = 1 - turn;
        &mut self.buffers[turn]
    }

    /// The size of the pieces for copies of `bytes` bytes.
    fn chunk(&mut self, bytes: usize) -> Result<usize, CudaError> {
        let wanted = bytes.next_multiple_of(64).min(CHUNK);
        for buffer in &mut self.buffers {
            buffer.reserve(wanted)?;
        }
        Ok(self.buffers[0].len().min(self.buffers[1].len()).max(1))
    }
}

fn parts(bytes: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    (0..bytes).step_by(chunk).map(move |start| start..(start + chunk).min(bytes))
}
