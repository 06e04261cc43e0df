//! Memory for packed weights, arenas and scratch: aligned, growing only, on huge pages where they help.

use std::ptr::NonNull;

use memmap2::MmapMut;

/// A cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// Size and alignment of a huge page on the machines that have them.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes from which on a buffer gets pages of its own.
const MAPPED: usize = 2 * HUGE_PAGE;

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

/// A cache line, of zeros.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
#[expect(dead_code, reason = "the bytes are used through pointers")]
struct Line([u8; ALIGNMENT]);

/// Owns the bytes.
#[derive(Debug)]
#[expect(dead_code, reason = "the bytes are used through pointers")]
enum Memory {
    Heap(Vec<Line>),
    Mapped(MmapMut),
}

/// Owned bytes aligned to [`ALIGNMENT`], large ones to huge pages, which spare reading weights from memory most of the address
/// translations. New bytes are zero.
#[derive(Debug)]
pub struct AlignedBuffer {
    data: NonNull<u8>,
    len: usize,
    #[expect(dead_code, reason = "the bytes are used through `data`")]
    memory: Memory,
}

// SAFETY: the buffer owns its memory and gives out raw pointers only; whoever dereferences them from several
// threads vouches for that at the place where it happens.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; no method writes through a shared reference.
unsafe impl Sync for AlignedBuffer {}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self { data: NonNull::<Line>::dangling().cast(), len: 0, memory: Memory::Heap(Vec::new()) }
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
        let len = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(error)?;
        *self = if len < MAPPED { Self::on_heap(len) } else { Self::mapped(len) }.ok_or(error)?;
        Ok(())
    }

    fn on_heap(len: usize) -> Option<Self> {
        let count = len / ALIGNMENT;
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, Line([0; ALIGNMENT]));
        let data = NonNull::new(lines.as_mut_ptr())?.cast();
        Some(Self { data, len, memory: Memory::Heap(lines) })
    }

    fn mapped(len: usize) -> Option<Self> {
        let mut map = MmapMut::map_anon(len.checked_add(HUGE_PAGE)?).ok()?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            // Without huge pages everything works, a little slower.
            let _ = error;
        }
        let base = map.as_mut_ptr();
        let data = NonNull::new(base.wrapping_add(base.align_offset(HUGE_PAGE)))?;
        Some(Self { data, len, memory: Memory::Mapped(map) })
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
        self.len
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
