//! Sessions: a plan with its weights, ready to run again and again.

use std::sync::atomic::{AtomicU64, Ordering};

use nucleus_cpu::buffer::{AlignedBuffer, OutOfMemory};
use nucleus_cpu::{
    BindError, BoundPlan, BufferPointer, BufferTable, CompileError, CpuProgram, ExecuteError, Options,
    PackSource, Profile,
};
use nucleus_ir::{Bindings, DType, Rate, TensorType};
use nucleus_plan::{BufferId, Place, Plan};
use thiserror::Error;

use crate::checkpoint::{CheckpointError, Extras};
use crate::inputs::{InputError, Signature, evaluated_shape};
use crate::machine::physical_memory;
use crate::peak::peak_flops;
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;
use crate::weights::{WeightError, WeightSource, WeightSpec};

/// How a session runs.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Worker threads; `None` for one per core. Results do not depend on it.
    pub threads: Option<usize>,
    /// The most bytes that a run's arenas may take; `None` for the machine's memory.
    pub memory_limit: Option<u64>,
    /// What to do with weights of the checkpoint that the model does not name.
    pub extras: Extras,
}

impl Default for SessionOptions {
    /// All cores, the machine's memory, no unknown weights.
    fn default() -> SessionOptions {
        SessionOptions { threads: None, memory_limit: None, extras: Extras::Refuse }
    }
}

/// Why a session could not be made or run.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The weights are not those of the model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight could not be given.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The plan could not be compiled for this machine.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The inputs do not fit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The sizes do not fit.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is not enough memory, or a tensor is too large.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The arenas do not fit into memory.
    #[error("the {rate} arena: {source}; use smaller sizes")]
    Arena {
        /// Whose arena.
        rate: &'static str,
        /// How much was missing.
        source: OutOfMemory,
    },
    /// A prompt that another session prepared.
    #[error("the prompt was prepared by another session; prepare it with this one")]
    OtherSession,
    /// A launch failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// The id of the next session.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(0);

/// What the memory of a session is used for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights packed for the micro-kernels.
    pub packed: u64,
    /// Weights kept as they are: biases, norms.
    pub plain: u64,
    /// The arenas of the last run.
    pub arenas: u64,
}

/// A weight that launches read where it lies, in the plan's element type.
struct PlainWeight {
    name: String,
    tensor: HostTensor,
}

/// A plan compiled for this machine, with its weights packed and the memory of its runs.
///
/// Weights are packed one after the other when the session is made, and what they are packed from is given back as that goes on, so a
/// session never holds more than one copy of them and a second of one. Arenas are kept from run to run and grow when larger sizes come.
///
/// [`Session::run`] computes everything that inputs and sizes decide. Where the prompt stays the same over many steps,
/// [`Session::prepare`] computes its part once and [`Session::step`] the rest.
pub struct Session {
    /// Tells this session's prompts from those of others.
    id: u64,
    program: CpuProgram,
    signature: Signature,
    weights: Weights,
    plain: Vec<PlainWeight>,
    table: BufferTable,
    model_arena: AlignedBuffer,
    step_arena: AlignedBuffer,
    /// The prompt of the last [`Session::run`], whose sizes and memory the next one uses again.
    last: Option<Prompt>,
    /// The values of stage `model` are in their arena and everything is packed.
    loaded: bool,
}

/// What depends on a prompt and on sizes alone, computed: text keys and values, rotary tables, masks.
///
/// It belongs to the session that prepared it. Several prompts, such as the two of classifier-free guidance, share the weights and the
/// memory of steps.
pub struct Prompt {
    session: u64,
    bindings: Bindings,
    bound: BoundPlan,
    arena: AlignedBuffer,
    /// By position: the inputs that are not given at every step.
    inputs: Vec<Option<HostTensor>>,
}

impl Prompt {
    /// The sizes it was prepared for.
    pub fn sizes(&self) -> &Bindings {
        &self.bindings
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.arena.len() as u64
    }
}

impl Session {
    /// Compiles a plan and binds its weights, packing them on the way.
    ///
    /// # Errors
    /// The weights do not fit the plan, or the machine cannot run it.
    pub fn new(
        plan: Plan,
        weights: impl WeightSource + 'static,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        Session::with_source(plan, Box::new(weights), options, &mut |_, _| {})
    }

    /// [`Session::new`] for any source; `progress` hears how many of the packed weights are done, and how many there are.
    ///
    /// # Errors
    /// As for [`Session::new`].
    pub fn with_source(
        plan: Plan,
        weights: Box<dyn WeightSource>,
        options: &SessionOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session, SessionError> {
        let specs = WeightSpec::list(plan.weights.iter().map(|(name, ty)| (name.as_str(), ty)));
        weights.check(&specs, options.extras)?;
        let signature = Signature::from(&plan);
        let memory_limit = options.memory_limit.unwrap_or_else(physical_memory);
        let program = CpuProgram::compile(
            plan,
            Options { threads: options.threads.unwrap_or(0), isa: None, memory_limit },
        )?;
        let table = BufferTable::new(program.plan());
        let weights = Weights { source: weights, specs, threads: program.threads().count() };
        let mut session = Session {
            id: NEXT_SESSION.fetch_add(1, Ordering::Relaxed),
            program,
            signature,
            weights,
            plain: Vec::new(),
            table,
            model_arena: AlignedBuffer::default(),
            step_arena: AlignedBuffer::default(),
            last: None,
            loaded: false,
        };
        session.bind_weights(memory_limit)?;
        // What depends on weights alone has the same sizes whatever the dims are; where ones fit, it is computed here rather than in the
        // first run.
        let ones: Bindings = session.signature.dims.iter().map(|dim| (dim.as_str(), 1)).collect();
        if let Ok(bound) = session.program.bind(&ones) {
            session.load(&bound, progress)?;
        }
        Ok(session)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.program.plan()
    }

    /// What the entry takes.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The number of worker threads.
    pub fn threads(&self) -> usize {
        self.program.threads().count()
    }

    /// FLOP/s that this machine reaches at this moment on all threads with multiply-adds that touch no memory: the limit of every product.
    /// Takes about 20 ms.
    pub fn peak_flops(&self) -> f64 {
        peak_flops(&self.program)
    }

    /// What memory is used for.
    pub fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            packed: self.program.packed_bytes() as u64,
            plain: self.plain.iter().map(|weight| weight.tensor.bytes().len() as u64).sum(),
            arenas: (self.model_arena.len() + self.step_arena.len()) as u64
                + self.last.as_ref().map_or(0, Prompt::bytes),
        }
    }

    /// Runs the entry. `dims` gives the sizes that the inputs' shapes do not decide.
    ///
    /// # Errors
    /// Inputs or sizes do not fit, or there is not enough memory.
    pub fn run(&mut self, inputs: &TensorMap, dims: &[(String, i64)]) -> Result<TensorMap, SessionError> {
        self.run_profiled(inputs, dims, None)
    }

    /// [`Session::run`], adding the wall time of every launch to `profile`.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn run_profiled(
        &mut self,
        inputs: &TensorMap,
        dims: &[(String, i64)],
        mut profile: Option<&mut Profile>,
    ) -> Result<TensorMap, SessionError> {
        let bindings = self.signature.bind(inputs, dims)?;
        let again = self.last.take();
        let prompt = self.prepare_at(inputs, bindings, again, profile.as_deref_mut())?;
        let outputs = self.step_profiled(&prompt, inputs, profile);
        self.last = Some(prompt);
        outputs
    }

    /// Checks inputs and sizes without running anything: evaluates the plan's formulas and proves every access to stay inside its
    /// buffer, which is all that new sizes cost.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn check_sizes(&self, inputs: &TensorMap, dims: &[(String, i64)]) -> Result<Bindings, SessionError> {
        let bindings = self.signature.bind(inputs, dims)?;
        self.program.bind(&bindings)?;
        Ok(bindings)
    }

    /// Computes what depends on the prompt and on sizes alone. `inputs` holds the inputs that are not `per step`; `dims` gives the sizes
    /// that their shapes do not decide.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn prepare(&mut self, inputs: &TensorMap, dims: &[(String, i64)]) -> Result<Prompt, SessionError> {
        let bindings = self.signature.slower_than(Rate::Step).bind(inputs, dims)?;
        self.prepare_at(inputs, bindings, None, None)
    }

    /// Runs the rest of the entry for a prepared prompt. `inputs` holds the inputs that are `per step`; others are ignored.
    ///
    /// # Errors
    /// The prompt is another session's, inputs do not fit its sizes, or there is not enough memory.
    pub fn step(&mut self, prompt: &Prompt, inputs: &TensorMap) -> Result<TensorMap, SessionError> {
        self.step_profiled(prompt, inputs, None)
    }

    /// [`Session::step`], adding the wall time of every launch to `profile`.
    ///
    /// # Errors
    /// As for [`Session::step`].
    pub fn step_profiled(
        &mut self,
        prompt: &Prompt,
        inputs: &TensorMap,
        profile: Option<&mut Profile>,
    ) -> Result<TensorMap, SessionError> {
        if prompt.session != self.id {
            return Err(SessionError::OtherSession);
        }
        self.signature.check(inputs, Rate::Step, &prompt.bindings)?;
        let mut tensors = Vec::with_capacity(self.signature.inputs.len());
        for spec in &self.signature.inputs {
            let given = spec.rate == Rate::Step;
            tensors.push(given.then(|| Signature::convert(spec, inputs, &prompt.bindings)).transpose()?);
        }
        let mut outputs = Vec::with_capacity(self.plan().outputs.len());
        for output in &self.program.plan().outputs {
            let shape = evaluated_shape(&output.ty, &prompt.bindings).map_err(InputError::from)?;
            outputs.push(HostTensor::zeros(output.ty.dtype, &shape)?);
        }
        self.place(Rate::Step, &prompt.bound, None)?;
        self.place(Rate::Prompt, &prompt.bound, Some(&prompt.arena))?;
        for (position, kept) in prompt.inputs.iter().enumerate() {
            let tensor = kept.as_ref().or(tensors[position].as_ref());
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
        outcome?;
        let names = self.plan().outputs.iter().map(|output| output.name.clone());
        let mut map = TensorMap::new();
        for (name, tensor) in names.zip(outputs) {
            map.insert(name, tensor);
        }
        Ok(map)
    }

    /// Runs the stage `prompt` at sizes that fit the inputs, in the memory of an earlier prompt if there is one.
    fn prepare_at(
        &mut self,
        inputs: &TensorMap,
        bindings: Bindings,
        again: Option<Prompt>,
        profile: Option<&mut Profile>,
    ) -> Result<Prompt, SessionError> {
        let (bound, mut arena) = match again {
            Some(prompt) if prompt.bindings == bindings => (prompt.bound, prompt.arena),
            Some(prompt) => (self.program.bind(&bindings)?, prompt.arena),
            None => (self.program.bind(&bindings)?, AlignedBuffer::default()),
        };
        if !self.loaded {
            self.load(&bound, &mut |_, _| {})?;
        }
        reserve(&mut arena, Rate::Prompt, &bound)?;
        let mut kept = Vec::with_capacity(self.signature.inputs.len());
        for spec in &self.signature.inputs {
            let slower = spec.rate < Rate::Step;
            kept.push(slower.then(|| Signature::convert(spec, inputs, &bindings)).transpose()?);
        }
        self.place(Rate::Step, &bound, None)?;
        self.place(Rate::Prompt, &bound, Some(&arena))?;
        for (position, tensor) in kept.iter().enumerate() {
            self.point_at(&Place::Input(position as u32), tensor.as_ref().map(read_only));
        }
        // SAFETY: as in `step_profiled`; this stage writes the arenas of prompt and steps and, where an output does not depend on a step,
        // nothing: outputs are written per step.
        let outcome = unsafe { self.program.execute(&bound, Rate::Prompt, &self.table, profile) };
        self.forget_call();
        outcome?;
        Ok(Prompt { session: self.id, bindings, bound, arena, inputs: kept })
    }

    /// Gives the buffers of an arena their places: in `memory`, or in the session's own arena of that rate, grown if need be.
    fn place(
        &mut self,
        rate: Rate,
        bound: &BoundPlan,
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
        Ok(bound.place_arena(self.program.plan(), rate, memory.as_ptr(), memory.len(), &mut self.table)?)
    }

    /// Packs right factors, gives back what they are packed from, and runs the stage `model`.
    fn load(
        &mut self,
        bound: &BoundPlan,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), SessionError> {
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
        // SAFETY: as in `step_profiled`; weights that are packed point into the source's mapped memory, which this session owns, at a plain
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
                if let Some(pointer) = self.weights.view(&weight.name, wanted, weight.any_float) {
                    self.table.set(weight.buffer, pointer);
                }
                continue;
            }
            // The scales of a weight that is packed come with it.
            let later = self.weights.spec(&weight.name).filter(|spec| {
                spec.name != weight.name
                    && uses.iter().any(|other| other.name == spec.name && other.packed && !other.plain)
                    && self.weights.view(&spec.name, spec.dtype, false).is_none()
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
fn reserve(arena: &mut AlignedBuffer, rate: Rate, bound: &BoundPlan) -> Result<(), SessionError> {
    let full = |source| SessionError::Arena { rate: rate.name(), source };
    arena.try_reserve(bound.arena_bytes(rate)).map_err(full)
}

/// The memory of a tensor that launches only read.
fn read_only(tensor: &HostTensor) -> BufferPointer {
    let bytes = tensor.bytes();
    BufferPointer { data: bytes.as_ptr().cast_mut(), bytes: bytes.len(), dtype: tensor.dtype() }
}

/// A session's weights: what the plan lists and who gives it.
struct Weights {
    source: Box<dyn WeightSource>,
    specs: Vec<WeightSpec>,
    threads: usize,
}

impl Weights {
    /// The weight of that name, or the one whose scales have it.
    fn spec(&self, name: &str) -> Option<&WeightSpec> {
        let known = |spec: &&WeightSpec| spec.name == name || spec.scale_name().as_deref() == Some(name);
        self.specs.iter().find(known)
    }

    /// A weight or the scales of one; for a quantised weight its scales too.
    fn load(&self, name: &str) -> Result<(HostTensor, Option<(String, HostTensor)>), WeightError> {
        let spec = self.spec(name).ok_or_else(|| WeightError::Missing { name: name.to_owned() })?;
        let Some(scale) = spec.scale_name() else {
            return Ok((self.source.load(spec, self.threads)?, None));
        };
        let quantised = self.source.view(&spec.name).is_some_and(|view| view.dtype() == Some(DType::I8));
        if scale == name && quantised {
            let shape = spec.scale_shape();
            let stored = WeightSpec { name: scale, dtype: DType::F32, shape, channel_axis: None };
            return Ok((self.source.load(&stored, self.threads)?, None));
        }
        let scaled = self.source.load_scaled(spec, self.threads)?;
        if scale == name {
            Ok((scaled.scales, None))
        } else {
            Ok((scaled.values, Some((scale, scaled.scales))))
        }
    }

    /// Where a weight lies that can be packed from there: aligned, in the wanted type or in a float that will do.
    fn view(&self, name: &str, wanted: DType, any_float: bool) -> Option<BufferPointer> {
        let view = self.source.view(name)?;
        let dtype = view.dtype()?;
        let aligned = (view.bytes.as_ptr() as usize).is_multiple_of(dtype.size());
        let fits = dtype == wanted || any_float && dtype.is_float();
        (aligned && fits).then_some(BufferPointer {
            data: view.bytes.as_ptr().cast_mut(),
            bytes: view.bytes.len(),
            dtype,
        })
    }
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
