//! A session on this computer's processor.
//!
//! Weights are packed one after the other when the session is made, and what they are packed from is given back as that goes on, so a
//! session never holds more than one copy of them and a second of one.

use nucleus_cpu::buffer::{AlignedBuffer, OutOfMemory};
use nucleus_cpu::{BufferPointer, BufferTable, CpuBound, CpuProgram, ExecuteError, Options, PackSource};
use nucleus_ir::{Bindings, DType, Rate, TensorType};
use nucleus_plan::{BufferId, Place, Plan, Profile};

use super::weights::Weights;
use super::{Inputs, MemoryUse, SessionError, SessionOptions};
use crate::machine::physical_memory;
use crate::tensor::HostTensor;
use crate::weights::{WeightSource, WeightSpec};

/// A weight that launches read where it lies, in the plan's element type.
struct PlainWeight {
    name: String,
    tensor: HostTensor,
}

/// See the [module documentation](self).
pub(super) struct CpuSession {
    program: CpuProgram,
    weights: Weights,
    plain: Vec<PlainWeight>,
    table: BufferTable,
    model_arena: AlignedBuffer,
    step_arena: AlignedBuffer,
    /// The values of stage `model` are in their arena and everything is packed.
    loaded: bool,
}

/// What depends on a prompt and on sizes alone, in host memory.
pub(super) struct CpuPrompt {
    bound: CpuBound,
    arena: AlignedBuffer,
    /// Those that are not given at every step.
    inputs: Inputs,
}

impl CpuPrompt {
    /// Bytes of its values.
    pub(super) fn bytes(&self) -> u64 {
        self.arena.len() as u64
    }
}

impl CpuSession {
    /// Compiles a plan and binds its weights; they are packed where the plan fits `ones`.
    pub(super) fn new(
        plan: Plan,
        source: Box<dyn WeightSource>,
        specs: Vec<WeightSpec>,
        options: &SessionOptions,
        ones: &Bindings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<CpuSession, SessionError> {
        let memory_limit = options.memory_limit.unwrap_or_else(physical_memory);
        let program = CpuProgram::compile(
            plan,
            Options { threads: options.threads.unwrap_or(0), memory_limit, ..Options::default() },
        )?;
        let table = BufferTable::new(program.plan());
        let weights = Weights { source, specs, threads: program.threads().count() };
        let mut session = CpuSession {
            program,
            weights,
            plain: Vec::new(),
            table,
            model_arena: AlignedBuffer::default(),
            step_arena: AlignedBuffer::default(),
            loaded: false,
        };
        session.bind_weights(memory_limit)?;
        if let Ok(bound) = session.program.bind(ones) {
            session.load(&bound, progress)?;
        }
        Ok(session)
    }

    pub(super) fn program(&self) -> &CpuProgram {
        &self.program
    }

    /// What memory is used for, but for prompts.
    pub(super) fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            packed: self.program.packed_bytes() as u64,
            plain: self.plain.iter().map(|weight| weight.tensor.bytes().len() as u64).sum(),
            arenas: (self.model_arena.len() + self.step_arena.len()) as u64,
        }
    }

    /// Runs the stage `prompt`, in the memory of an earlier prompt if there is one; the flag says whether that is of the same sizes.
    pub(super) fn prepare(
        &mut self,
        bindings: &Bindings,
        inputs: &dyn Fn() -> Result<Inputs, SessionError>,
        again: Option<(CpuPrompt, bool)>,
        profile: Option<&mut Profile>,
    ) -> Result<CpuPrompt, SessionError> {
        let (bound, mut arena) = match again {
            Some((prompt, true)) => (prompt.bound, prompt.arena),
            Some((prompt, false)) => (self.program.bind(bindings)?, prompt.arena),
            None => (self.program.bind(bindings)?, AlignedBuffer::default()),
        };
        if !self.loaded {
            self.load(&bound, &mut |_, _| {})?;
        }
        reserve(&mut arena, Rate::Prompt, &bound)?;
        let inputs = inputs()?;
        self.place(Rate::Step, &bound, None)?;
        self.place(Rate::Prompt, &bound, Some(&arena))?;
        for (position, tensor) in inputs.iter().enumerate() {
            self.point_at(&Place::Input(position as u32), tensor.as_ref().map(read_only));
        }
        // SAFETY: as in `step`; this stage writes the arenas of prompt and steps and, where an output does not depend on a step, nothing:
        // outputs are written per step.
        let outcome = unsafe { self.program.execute(&bound, Rate::Prompt, &self.table, profile) };
        self.forget_call();
        outcome?;
        Ok(CpuPrompt { bound, arena, inputs })
    }

    /// Runs the stage `step`. `inputs` has those that are given at every step.
    pub(super) fn step(
        &mut self,
        prompt: &CpuPrompt,
        inputs: &[Option<HostTensor>],
        outputs: &mut [HostTensor],
        profile: Option<&mut Profile>,
    ) -> Result<(), SessionError> {
        self.place(Rate::Step, &prompt.bound, None)?;
        self.place(Rate::Prompt, &prompt.bound, Some(&prompt.arena))?;
        for (position, kept) in prompt.inputs.iter().enumerate() {
            let tensor = kept.as_ref().or(inputs[position].as_ref());
            self.point_at(&Place::Input(position as u32), tensor.map(read_only));
        }
        for (position, tensor) in outputs.iter_mut().enumerate() {
            let (dtype, bytes) = (tensor.dtype(), tensor.bytes_mut());
            let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype };
            self.point_at(&Place::Output(position as u32), Some(pointer));
        }
        // SAFETY: the table points at the weights and arenas of this session, at the prompt's values and inputs, which are only read, and
        // at the inputs and outputs of this call; nothing else uses what is written until the call returns. Plans come from the compiler
        // or are verified when an artifact is opened.
        let outcome = unsafe { self.program.execute(&prompt.bound, Rate::Step, &self.table, profile) };
        self.forget_call();
        Ok(outcome?)
    }

    /// Gives the buffers of an arena their places: in `memory`, or in the session's own arena of that rate, grown if need be.
    fn place(
        &mut self,
        rate: Rate,
        bound: &CpuBound,
        memory: Option<&AlignedBuffer>,
    ) -> Result<(), SessionError> {
        let own = if rate == Rate::Model { &mut self.model_arena } else { &mut self.step_arena };
        let memory = match memory {
            Some(memory) => memory,
            None => {
                reserve(own, rate, bound)?;
                own
            }
        };
        Ok(self.table.place_arena(self.program.plan(), bound.sizes(), rate, memory.as_ptr(), memory.len())?)
    }

    /// Packs right factors, gives back what they are packed from, and runs the stage `model`.
    fn load(&mut self, bound: &CpuBound, progress: &mut dyn FnMut(usize, usize)) -> Result<(), SessionError> {
        self.place(Rate::Step, bound, None)?;
        self.place(Rate::Model, bound, None)?;
        let uses = self.program.weight_uses();
        let total = uses.iter().filter(|weight| weight.packed).count();
        let mut source = Packing {
            weights: &self.weights,
            plain: &mut self.plain,
            loaded: None,
            progress: &mut |done| progress(done, total),
            done: 0,
        };
        // SAFETY: as in `step`; weights that are packed point into the source's mapped memory, which this session owns, at a plain
        // copy, or at a tensor that the source of the packing keeps until the next one. They are only read, and so are the copies, which
        // the packing fills with scales while no launch runs. The weights come first: the stage may read those scales.
        unsafe {
            self.program.pack_weights(&self.table, &mut source)?;
            self.program.execute(bound, Rate::Model, &self.table, None)?;
            self.program.pack_values(&self.table)?;
        }
        for weight in uses.iter().filter(|weight| !weight.plain) {
            self.table.clear(weight.buffer);
        }
        self.loaded = true;
        Ok(())
    }

    /// Points the table at the weights: plain ones at copies in the plan's element type, packed ones where they lie, if they do as the plan
    /// wants them. What is left is loaded when its turn to be packed comes.
    fn bind_weights(&mut self, memory_limit: u64) -> Result<(), SessionError> {
        let uses = self.program.weight_uses();
        // A source may make up weights of any size that the plan names.
        let bytes = uses.iter().filter(|weight| weight.plain).fold(0u64, |total, weight| {
            let buffer = self.program.plan().buffer(weight.buffer);
            let bytes = TensorType::new(buffer.dtype, buffer.shape.clone()).bytes().ok();
            total.saturating_add(bytes.and_then(|bytes| bytes.as_constant()).unwrap_or(i64::MAX) as u64)
        });
        if bytes > memory_limit {
            return Err(ExecuteError::from(OutOfMemory { bytes: bytes as usize }).into());
        }
        for weight in &uses {
            let wanted = self.program.plan().buffer(weight.buffer).dtype;
            if !weight.plain {
                if let Some(pointer) = view(&self.weights, &weight.name, wanted, weight.any_float) {
                    self.table.set(weight.buffer, pointer);
                }
                continue;
            }
            // The scales of a weight that is packed come with it.
            let later = self.weights.spec(&weight.name).filter(|spec| {
                spec.name != weight.name
                    && uses.iter().any(|other| other.name == spec.name && other.packed && !other.plain)
                    && view(&self.weights, &spec.name, spec.dtype, false).is_none()
            });
            let mut tensor = match later {
                Some(spec) => HostTensor::zeros(wanted, &spec.scale_shape())?,
                None => self.weights.load(&weight.name)?.0,
            };
            self.weights.source.release(&weight.name);
            let bytes = tensor.bytes_mut();
            let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype: wanted };
            self.table.set(weight.buffer, pointer);
            self.plain.push(PlainWeight { name: weight.name.clone(), tensor });
        }
        Ok(())
    }

    /// Points the table at the memory of the buffers that lie at `place`.
    fn point_at(&mut self, place: &Place, pointer: Option<BufferPointer>) {
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            if buffer.place == *place {
                match pointer {
                    Some(pointer) => self.table.set(BufferId(position as u32), pointer),
                    None => self.table.clear(BufferId(position as u32)),
                }
            }
        }
    }

    /// Takes the inputs and outputs of a finished call out of the table.
    fn forget_call(&mut self) {
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            if matches!(buffer.place, Place::Input(_) | Place::Output(_)) {
                self.table.clear(BufferId(position as u32));
            }
        }
    }
}

/// Grows an arena to what sizes need. Where it has to grow, its contents are lost.
fn reserve(arena: &mut AlignedBuffer, rate: Rate, bound: &CpuBound) -> Result<(), SessionError> {
    let full = |source| SessionError::Arena { rate: rate.name(), source };
    arena.try_reserve(bound.sizes().arena_bytes(rate)).map_err(full)
}

/// The memory of a tensor that launches only read.
fn read_only(tensor: &HostTensor) -> BufferPointer {
    let bytes = tensor.bytes();
    BufferPointer { data: bytes.as_ptr().cast_mut(), bytes: bytes.len(), dtype: tensor.dtype() }
}

/// Where a weight lies that can be packed from there: aligned, in the wanted type or in a float that will do.
fn view(weights: &Weights, name: &str, wanted: DType, any_float: bool) -> Option<BufferPointer> {
    let view = weights.source.view(name)?;
    let dtype = view.dtype()?;
    let aligned = (view.bytes.as_ptr() as usize).is_multiple_of(dtype.size());
    let fits = dtype == wanted || any_float && dtype.is_float();
    (aligned && fits).then_some(BufferPointer {
        data: view.bytes.as_ptr().cast_mut(),
        bytes: view.bytes.len(),
        dtype,
    })
}

/// Gives weights to be packed, one at a time.
struct Packing<'a> {
    weights: &'a Weights,
    plain: &'a mut [PlainWeight],
    loaded: Option<HostTensor>,
    progress: &'a mut dyn FnMut(usize),
    done: usize,
}

impl PackSource for Packing<'_> {
    type Error = SessionError;

    fn load(&mut self, _buffer: BufferId, weight: &str) -> Result<BufferPointer, SessionError> {
        self.loaded = None;
        let (tensor, scales) = self.weights.load(weight)?;
        if let Some((name, scales)) = scales
            && let Some(plain) = self.plain.iter_mut().find(|plain| plain.name == name)
        {
            plain.tensor.bytes_mut().copy_from_slice(scales.bytes());
        }
        self.weights.source.release(weight);
        let tensor = self.loaded.insert(tensor);
        let dtype = tensor.dtype();
        let bytes = tensor.bytes_mut();
        Ok(BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype })
    }

    fn packed(&mut self, weight: &str) {
        self.loaded = None;
        self.weights.source.release(weight);
        self.done += 1;
        (self.progress)(self.done);
    }
}
