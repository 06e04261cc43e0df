//! Where the buffers of a plan lie in memory.

use nucleus_ir::DType;
use nucleus_plan::{BufferId, Plan};

/// One buffer's memory.
#[derive(Clone, Copy, Debug)]
pub struct BufferPointer {
    /// The first byte.
    pub data: *mut u8,
    /// How many there are.
    pub bytes: usize,
    /// The type of the elements. For a weight that is only packed it may be another float type than the plan's.
    pub dtype: DType,
}

/// The memory of every buffer of one plan. Who fills it keeps the memory alive and unshared while a program runs.
#[derive(Clone, Debug, Default)]
pub struct BufferTable {
    entries: Vec<Option<BufferPointer>>,
}

// SAFETY: a list of addresses; whoever runs a program with it vouches for them.
unsafe impl Send for BufferTable {}
// SAFETY: as above.
unsafe impl Sync for BufferTable {}

impl BufferTable {
    /// A table with no memory yet.
    pub fn new(plan: &Plan) -> BufferTable {
        BufferTable { entries: vec![None; plan.buffers.len()] }
    }

    /// Gives a buffer its memory.
    pub fn set(&mut self, buffer: BufferId, pointer: BufferPointer) {
        let position = buffer.0 as usize;
        if self.entries.len() <= position {
            self.entries.resize(position + 1, None);
        }
        self.entries[position] = Some(pointer);
    }

    /// Takes a buffer's memory away.
    pub fn clear(&mut self, buffer: BufferId) {
        if let Some(entry) = self.entries.get_mut(buffer.0 as usize) {
            *entry = None;
        }
    }

    /// A buffer's memory.
    pub fn get(&self, buffer: BufferId) -> Option<BufferPointer> {
        self.entries.get(buffer.0 as usize).copied().flatten()
    }
}
