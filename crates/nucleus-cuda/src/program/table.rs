//! Where the buffers of a plan lie in device memory.

use nucleus_ir::Rate;
use nucleus_plan::{BufferId, Plan};

use super::bind::CudaBound;
use crate::driver::{CudaError, DeviceMemory};

/// One buffer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePointer {
    /// The address of the first byte.
    pub address: u64,
    /// How many there are.
    pub bytes: usize,
}

impl DevicePointer {
    /// A part of a piece of memory.
    ///
    /// # Errors
    /// It is not inside.
    pub fn inside(memory: &DeviceMemory, offset: usize, bytes: usize) -> Result<DevicePointer, CudaError> {
        let range = offset..offset.saturating_add(bytes);
        Ok(DevicePointer { address: memory.part(range, "a buffer in device memory")?, bytes })
    }
}

/// The memory of every buffer of one plan. Who fills it keeps the memory while a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceTable {
    entries: Vec<Option<DevicePointer>>,
}

impl DeviceTable {
    /// A table with no memory yet.
    pub fn new(plan: &Plan) -> DeviceTable {
        DeviceTable { entries: vec![None; plan.buffers.len()] }
    }

    /// Gives a buffer its memory.
    pub fn set(&mut self, buffer: BufferId, pointer: DevicePointer) {
        if let Some(entry) = self.entries.get_mut(buffer.0 as usize) {
            *entry = Some(pointer);
        }
    }

    /// A buffer's memory.
    pub fn get(&self, buffer: BufferId) -> Option<DevicePointer> {
        self.entries.get(buffer.0 as usize).copied().flatten()
    }

    /// Gives every buffer of one arena its place.
    ///
    /// # Errors
    /// The memory is too small for the arena.
    pub fn place_arena(
        &mut self,
        bound: &CudaBound,
        rate: Rate,
        memory: &DeviceMemory,
    ) -> Result<(), CudaError> {
        for position in 0..self.entries.len() as u32 {
            let id = BufferId(position);
            if let Some((_, offset)) = bound.sizes().arena_place(id).filter(|(of, _)| *of == rate) {
                self.set(id, DevicePointer::inside(memory, offset, bound.sizes().buffer_bytes(id))?);
            }
        }
        Ok(())
    }
}
