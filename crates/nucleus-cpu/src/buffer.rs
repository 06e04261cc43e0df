//! Memory for packed weights, arenas and scratch: aligned, growing only, on huge pages where they help.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// A cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

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
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(bytes);
        buffer
    }

    /// Makes the buffer at least `bytes` long. When it has to grow, its contents are lost.
    pub fn reserve(&mut self, bytes: usize) {
        if bytes <= self.len() {
            return;
        }
        *self = Self::default();
        let Ok(layout) = Layout::from_size_align(bytes.next_multiple_of(ALIGNMENT), ALIGNMENT) else {
            handle_alloc_error(self.layout)
        };
        // SAFETY: the layout is not empty, because `bytes` exceeds a length.
        let Some(data) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        *self = Self { data, layout };
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
