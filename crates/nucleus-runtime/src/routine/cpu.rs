//! A routine on this computer's processor: launches work on the caller's memory itself.

use std::collections::BTreeMap;

use nucleus_cpu::buffer::AlignedBuffer;
use nucleus_cpu::threads::Threads;
use nucleus_cpu::{BufferPointer, BufferTable, CpuBound, CpuProgram, Options};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{BufferId, Place, Plan, Profile};

use super::{Call, Given, KEPT_SIZES, RoutineError, Source, Target};
use crate::inputs::{InputError, evaluated_shape};
use crate::machine::physical_memory;
use crate::tensor::HostTensor;

/// What depends on sizes alone.
struct Prepared {
    bindings: Bindings,
    bound: CpuBound,
    arena: AlignedBuffer,
}

/// See the [module documentation](self).
pub(super) struct CpuRoutine {
    program: CpuProgram,
    table: BufferTable,
    model_arena: AlignedBuffer,
    step_arena: AlignedBuffer,
    /// The latest last.
    prepared: Vec<Prepared>,
    loaded: bool,
}

impl CpuRoutine {
    pub(super) fn new(
        plan: Plan,
        threads: &Threads,
        memory_limit: Option<u64>,
    ) -> Result<CpuRoutine, RoutineError> {
        let memory_limit = memory_limit.unwrap_or_else(physical_memory);
        let options = Options { threads: threads.count(), memory_limit, ..Options::default() };
        let program = CpuProgram::compile_on(threads.clone(), plan, options)?;
        let table = BufferTable::new(program.plan());
        Ok(CpuRoutine {
            program,
            table,
            model_arena: AlignedBuffer::default(),
            step_arena: AlignedBuffer::default(),
            prepared: Vec::new(),
            loaded: false,
        })
    }

    pub(super) fn program(&self) -> &CpuProgram {
        &self.program
    }

    /// The sizes of the last run.
    pub(super) fn bindings(&self) -> Option<&Bindings> {
        self.prepared.last().map(|prepared| &prepared.bindings)
    }

    /// Bytes of the arenas as they are now.
    pub(super) fn arena_bytes(&self) -> u64 {
        let kept: usize = self.prepared.iter().map(|prepared| prepared.arena.len()).sum();
        (self.model_arena.len() + self.step_arena.len() + kept) as u64
    }

    pub(super) fn run(
        &mut self,
        mut call: Call<'_, '_>,
        mut profile: Option<&mut Profile>,
    ) -> Result<(), RoutineError> {
        let mut copies = copies(self.program.plan(), &call)?;
        self.prepare(call.bindings.clone(), profile.as_deref_mut())?;
        let Some(prepared) = self.prepared.last() else { return Ok(()) };
        place(&mut self.step_arena, Rate::Step, &prepared.bound, &self.program, &mut self.table)?;
        let (memory, bytes) = (prepared.arena.as_ptr(), prepared.arena.len());
        let plan = self.program.plan();
        self.table.place_arena(plan, prepared.bound.sizes(), Rate::Prompt, memory, bytes)?;
        point_at_outputs(plan, &mut self.table, &mut call, &mut copies)?;
        point_at_inputs(plan, &mut self.table, &mut call)?;
        // The table now points at memory that the call borrows and at this routine's own.
        // SAFETY: inputs and weights are borrowed for reading and outputs exclusively, for as long as this call lasts; each has the
        // bytes of its type at these sizes. Where an input is read from the memory of an output, the plan allows it, or the output is
        // written to a copy. The arenas are this routine's.
        let outcome = unsafe { self.program.execute(&prepared.bound, Rate::Step, &self.table, profile) };
        self.forget_call();
        outcome?;
        for (output, copy) in copies {
            if let Target::Host(bytes) = call.output(self.program.plan(), output)? {
                bytes.copy_from_slice(copy.bytes());
            }
        }
        Ok(())
    }

    /// Sees to it that the last of `prepared` is for these sizes.
    fn prepare(&mut self, bindings: Bindings, profile: Option<&mut Profile>) -> Result<(), RoutineError> {
        if let Some(position) = self.prepared.iter().position(|prepared| prepared.bindings == bindings) {
            let prepared = self.prepared.remove(position);
            self.prepared.push(prepared);
            return Ok(());
        }
        let bound = self.program.bind(&bindings)?;
        let mut prepared = Prepared { bindings, bound, arena: AlignedBuffer::default() };
        place(&mut self.step_arena, Rate::Step, &prepared.bound, &self.program, &mut self.table)?;
        place(&mut self.model_arena, Rate::Model, &prepared.bound, &self.program, &mut self.table)?;
        place(&mut prepared.arena, Rate::Prompt, &prepared.bound, &self.program, &mut self.table)?;
        if !self.loaded {
            // SAFETY: these stages read and write arenas alone, which are this routine's: there are no weights that never change, inputs are
            // per step and so are outputs.
            unsafe {
                self.program.execute(&prepared.bound, Rate::Model, &self.table, None)?;
                self.program.pack_values(&self.table)?;
            }
            self.loaded = true;
        }
        // SAFETY: as above.
        unsafe { self.program.execute(&prepared.bound, Rate::Prompt, &self.table, profile)? };
        if self.prepared.len() >= KEPT_SIZES {
            self.prepared.remove(0);
        }
        self.prepared.push(prepared);
        Ok(())
    }

    /// Takes the caller's memory out of the table.
    fn forget_call(&mut self) {
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            if !matches!(buffer.place, Place::Arena { .. }) {
                self.table.clear(BufferId(position as u32));
            }
        }
    }
}

/// Memory for outputs that cannot be written where their inputs are read from, by position.
fn copies(plan: &Plan, call: &Call<'_, '_>) -> Result<BTreeMap<usize, HostTensor>, RoutineError> {
    let mut copies = BTreeMap::new();
    for (position, output) in plan.outputs.iter().enumerate() {
        if call.is_copied(plan, position) {
            let shape = evaluated_shape(&output.ty, &call.bindings).map_err(InputError::from)?;
            copies.insert(position, HostTensor::zeros(output.ty.dtype, &shape)?);
        }
    }
    Ok(copies)
}

fn elsewhere(plan: &Plan, what: &'static str, name: &str) -> RoutineError {
    RoutineError::Elsewhere { entry: plan.entry.clone(), what, name: name.to_owned() }
}

fn point_at_outputs(
    plan: &Plan,
    table: &mut BufferTable,
    call: &mut Call<'_, '_>,
    copies: &mut BTreeMap<usize, HostTensor>,
) -> Result<(), RoutineError> {
    for (position, buffer) in plan.buffers.iter().enumerate() {
        let Place::Output(output) = buffer.place else { continue };
        let output = output as usize;
        let Target::Host(given) = call.output(plan, output)? else {
            return Err(elsewhere(plan, "output", &plan.outputs[output].name));
        };
        let bytes = match copies.get_mut(&output) {
            Some(copy) => copy.bytes_mut(),
            None => given,
        };
        let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype: buffer.dtype };
        table.set(BufferId(position as u32), pointer);
    }
    Ok(())
}

fn point_at_inputs(
    plan: &Plan,
    table: &mut BufferTable,
    call: &mut Call<'_, '_>,
) -> Result<(), RoutineError> {
    for (position, buffer) in plan.buffers.iter().enumerate() {
        let Some((what, name, given)) = call.input(plan, buffer)? else { continue };
        let (data, bytes) = match given {
            Given::Tensor(tensor) => match tensor.source {
                Source::Host(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
                Source::Device(_) => return Err(elsewhere(plan, what, name)),
            },
            Given::Next => {
                let Some(output) = plan.outputs.iter().position(|output| output.name == name) else {
                    continue;
                };
                match call.output(plan, output)? {
                    Target::Host(bytes) => (bytes.as_mut_ptr(), bytes.len()),
                    Target::Device(_) => return Err(elsewhere(plan, "output", name)),
                }
            }
        };
        table.set(BufferId(position as u32), BufferPointer { data, bytes, dtype: buffer.dtype });
    }
    Ok(())
}

/// Grows an arena to what sizes need, and gives its buffers their places.
fn place(
    arena: &mut AlignedBuffer,
    rate: Rate,
    bound: &CpuBound,
    program: &CpuProgram,
    table: &mut BufferTable,
) -> Result<(), RoutineError> {
    let full = |source| RoutineError::Arena { rate: rate.name(), source };
    arena.try_reserve(bound.sizes().arena_bytes(rate)).map_err(full)?;
    Ok(table.place_arena(program.plan(), bound.sizes(), rate, arena.as_ptr(), arena.len())?)
}
