//! Memory for packed weights, arenas and scratch: aligned, growing only, on huge pages where they help.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// A cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// There is not enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no memory for another {bytes} bytes")]
pub struct OutOfMemory {
    /// How much was asked for.
    pub bytes: usize,
}

impl OutOfMemory {
    /// Unwinds with this as the payload; nothing is printed.
    pub(crate) fn unwind(self) -> ! {
        std::panic::resume_unwind(Box::new(self))
    }
}

/// Nothing, aligned like everything here.
#[repr(align(64))]
struct Line;

/// Owned bytes aligned to [`ALIGNMENT`]. New bytes are zero.
#[derive(Debug)]
pub struct AlignedBuffer {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory and gives out raw pointers only; whoever dereferences them from several
// threads vouches for that at the place where it happens.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; no method writes through a shared reference.
unsafe impl Sync for AlignedBuffer {}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self { data: NonNull::<Line>::dangling().cast(), layout: Layout::new::<Line>() }
    }
}

impl AlignedBuffer {
    /// `bytes` zero bytes.
    ///
    /// # Panics
    /// As [`AlignedBuffer::reserve`].
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(bytes);
        buffer
    }

    /// Makes the buffer at least `bytes` long. When it has to grow, its contents are lost.
    ///
    /// # Errors
    /// There is not that much memory; the buffer is empty then.
    pub fn try_reserve(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        if bytes <= self.len() {
            return Ok(());
        }
        *self = Self::default();
        let error = OutOfMemory { bytes };
        let size = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(error)?;
        let layout = Layout::from_size_align(size, ALIGNMENT).map_err(|_| error)?;
        // SAFETY: the layout is not empty, because `bytes` exceeds a length.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(error)?;
        *self = Self { data, layout };
        Ok(())
    }

    /// [`AlignedBuffer::try_reserve`] for the depths of a launch.
    ///
    /// # Panics
    /// Unwinds with an [`OutOfMemory`], without a message, where there is not that much memory; running a plan turns that into an error.
    pub fn reserve(&mut self, bytes: usize) {
        if let Err(error) = self.try_reserve(bytes) {
            error.unwind();
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether nothing is allocated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first byte. The pointer may be written through; the buffer does not track who does.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if !self.is_empty() {
            // SAFETY: `data` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.data.as_ptr(), self.layout) }
        }
    }
}
