//! Where the buffers of a plan lie in memory.

use nucleus_ir::{DType, Rate};
use nucleus_plan::{BoundPlan, BufferId, Plan};

use super::error::ExecuteError;

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

    /// Gives every buffer of one arena its place in `data`, memory of `bytes` bytes aligned to 64.
    ///
    /// # Errors
    /// The memory is too small for the arena, or a buffer does not fit into it.
    pub fn place_arena(
        &mut self,
        plan: &Plan,
        bound: &BoundPlan,
        rate: Rate,
        data: *mut u8,
        bytes: usize,
    ) -> Result<(), ExecuteError> {
        let needed = bound.arena_extent(rate);
        if bytes < needed {
            return Err(ExecuteError::Arena { rate: rate.name(), bytes, needed });
        }
        for (position, buffer) in plan.buffers.iter().enumerate() {
            let id = BufferId(position as u32);
            if let Some((_, offset)) = bound.arena_place(id).filter(|(of, _)| *of == rate) {
                let bytes = bound.buffer_bytes(id);
                let pointer = BufferPointer { data: data.wrapping_add(offset), bytes, dtype: buffer.dtype };
                self.set(id, pointer);
            }
        }
        Ok(())
    }
}
