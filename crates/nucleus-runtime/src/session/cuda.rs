//! A session on a GPU.
//!
//! Weights lie in one piece of device memory, uploaded when the session is made. The stage `step` is captured as a graph once for every
//! prompt, and again where memory has moved since; a step then is a copy of its inputs, one launch and a copy of its outputs, and is waited
//! for once.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use nucleus_cuda::driver::{DeviceMemory, Graph};
use nucleus_cuda::transfer::Fill;
use nucleus_cuda::{CudaBound, CudaError, CudaProgram, DevicePointer, DeviceTable, RunError, Transfer};
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_plan::{BufferId, Place, Plan, Profile};

use super::weights::Weights;
use super::{Inputs, MemoryUse, SessionError, SessionOptions};
use crate::convert;
use crate::gpu::{Exchange, Gpu, lay_out};
use crate::tensor::HostTensor;
use crate::weights::{WeightError, WeightSource, WeightSpec};

/// See the [module documentation](self).
pub(super) struct CudaSession {
    gpu: Gpu,
    program: CudaProgram,
    weights: DeviceMemory,
    model_arena: DeviceMemory,
    step_arena: DeviceMemory,
    scratch: DeviceMemory,
    /// Inputs of steps, then outputs.
    exchange: Exchange,
    /// Points at weights and at the values of stage `model`.
    table: DeviceTable,
    loaded: bool,
}

/// What depends on a prompt and on sizes alone, in device memory.
pub(super) struct CudaPrompt {
    bound: CudaBound,
    arena: DeviceMemory,
    /// Inputs that are not given at every step.
    exchange: Exchange,
    places: Places,
    graph: Mutex<Option<Captured>>,
}

/// Where inputs and outputs lie at some sizes.
#[derive(Default)]
struct Places {
    /// Of the inputs that are not given at every step, by position, in the prompt's memory.
    kept: Vec<Range<usize>>,
    kept_bytes: usize,
    /// Of the others, in the session's.
    inputs: Vec<Range<usize>>,
    input_bytes: usize,
    /// Behind them.
    outputs: Vec<Range<usize>>,
    bytes: usize,
}

/// A graph and where everything lay when it was captured.
struct Captured {
    graph: Graph,
    table: DeviceTable,
    scratch: DevicePointer,
}

impl CudaPrompt {
    /// Bytes of its values and inputs.
    pub(super) fn bytes(&self) -> u64 {
        (self.arena.len() + self.exchange.len()) as u64
    }
}

impl CudaSession {
    /// Loads a plan onto a GPU and uploads its weights; the stage `model` runs where the plan fits `ones`.
    pub(super) fn new(
        plan: Plan,
        source: Box<dyn WeightSource>,
        specs: Vec<WeightSpec>,
        gpu: &Gpu,
        options: &SessionOptions,
        ones: &Bindings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<CudaSession, SessionError> {
        let _turn = gpu.turn();
        let device = gpu.device();
        let program = CudaProgram::load(plan, device, gpu.cubins(), gpu.tuning(), &|_, _| {})?;
        let table = DeviceTable::new(program.plan());
        let empty = || DeviceMemory::empty(device);
        let mut session = CudaSession {
            gpu: gpu.clone(),
            weights: empty(),
            model_arena: empty(),
            step_arena: empty(),
            scratch: empty(),
            exchange: Exchange::new(device)?,
            table,
            loaded: false,
            program,
        };
        let threads = options.threads.or_else(cores).unwrap_or(1);
        let weights = Weights { source, specs, threads };
        session.upload(&weights, options.sizes.as_ref().unwrap_or(ones), progress)?;
        if let Ok(bound) = session.program.bind(ones) {
            session.load(&bound)?;
        }
        Ok(session)
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn program(&self) -> &CudaProgram {
        &self.program
    }

    /// What device memory is used for, but for prompts.
    pub(super) fn memory_use(&self) -> MemoryUse {
        let arenas =
            self.model_arena.len() + self.step_arena.len() + self.scratch.len() + self.exchange.len();
        MemoryUse { packed: 0, plain: self.weights.len() as u64, arenas: arenas as u64 }
    }

    /// Counts what weights and a first run at these sizes take, then uploads the weights.
    fn upload(
        &mut self,
        weights: &Weights,
        sizes: &Bindings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), SessionError> {
        let list = used_weights(self.program.plan());
        let (places, bytes) = lay_out(list.iter().map(|weight| weight.bytes));
        let mut parts = vec![("weights", bytes as u64)];
        if let Ok(bound) = self.program.bind(sizes) {
            let places = Places::new(self.program.plan(), &bound);
            let arena = |rate: Rate| bound.sizes().arena_extent(rate) as u64;
            parts.push(("arenas", Rate::ALL.into_iter().map(arena).fold(0, u64::saturating_add)));
            parts.push(("inputs and outputs", places.bytes.saturating_add(places.kept_bytes) as u64));
            parts.push(("scratch memory", bound.scratch_bytes() as u64));
        }
        self.gpu.account(&parts, 0)?;
        self.weights = DeviceMemory::new(self.gpu.device(), bytes, "weights")?;
        for (weight, place) in list.iter().zip(&places) {
            self.table.set(weight.buffer, DevicePointer::inside(&self.weights, place.start, place.len())?);
        }
        let largest = list.iter().map(|weight| weight.bytes).max().unwrap_or(0);
        let mut upload = Upload {
            weights,
            target: &self.weights,
            places: list.iter().zip(&places).map(|(weight, place)| (weight.name.clone(), place)).collect(),
            transfer: Transfer::new(self.gpu.device(), largest)?,
            gpu: &self.gpu,
            done: HashSet::new(),
        };
        // Scales come with what they scale, and last where they lie by themselves.
        let is_scale =
            |weight: &&UsedWeight| weights.spec(&weight.name).is_some_and(|s| s.name != weight.name);
        let (scales, values): (Vec<&UsedWeight>, Vec<&UsedWeight>) = list.iter().partition(is_scale);
        for weight in values.into_iter().chain(scales) {
            upload.weight(&weight.name, weight.dtype)?;
            progress(upload.done.len(), list.len());
        }
        Ok(self.gpu.stream().synchronize()?)
    }

    /// Runs the stage `model`.
    fn load(&mut self, bound: &CudaBound) -> Result<(), SessionError> {
        let arena = |rate| bound.sizes().arena_extent(rate);
        self.model_arena.reserve(arena(Rate::Model), "the arena of the stage `model`")?;
        self.step_arena.reserve(arena(Rate::Step), "the arena of steps")?;
        self.scratch.reserve(bound.scratch_bytes(), "scratch memory")?;
        self.table.place_arena(bound, Rate::Model, &self.model_arena)?;
        let mut table = self.table.clone();
        table.place_arena(bound, Rate::Step, &self.step_arena)?;
        let scratch = DevicePointer::inside(&self.scratch, 0, self.scratch.len())?;
        // SAFETY: as in `step`; this stage reads weights and writes arenas.
        unsafe { self.program.execute(bound, Rate::Model, &table, scratch, self.gpu.stream())? };
        self.gpu.stream().synchronize().map_err(RunError::Stage)?;
        self.loaded = true;
        Ok(())
    }

    /// Takes the memory of runs at these sizes, having counted it.
    fn reserve(&mut self, bound: &CudaBound, places: &Places, prompt: u64) -> Result<(), SessionError> {
        let step = bound.sizes().arena_extent(Rate::Step);
        let needed = [
            (self.step_arena.len(), step),
            (self.scratch.len(), bound.scratch_bytes()),
            (self.exchange.len(), places.bytes),
        ];
        // What grows is given back first.
        let growing = needed.iter().filter(|(has, needs)| needs > has);
        let given_back: u64 = growing.clone().map(|(has, _)| *has as u64).sum();
        let grown = |at: usize| if needed[at].1 > needed[at].0 { needed[at].1 as u64 } else { 0 };
        if growing.count() > 0 || prompt > 0 {
            let parts = [
                ("the arena of steps", grown(0)),
                ("scratch memory", grown(1)),
                ("inputs and outputs", grown(2)),
                ("the prompt's values and inputs", prompt),
            ];
            self.gpu.account(&parts, given_back)?;
        }
        self.step_arena.reserve(step, "the arena of steps")?;
        self.scratch.reserve(bound.scratch_bytes(), "scratch memory")?;
        Ok(self.exchange.reserve(places.bytes)?)
    }

    /// Runs the stage `prompt`, in the memory of an earlier prompt if there is one; the flag says whether that is of the same sizes.
    pub(super) fn prepare(
        &mut self,
        bindings: &Bindings,
        inputs: &dyn Fn() -> Result<Inputs, SessionError>,
        again: Option<(CudaPrompt, bool)>,
        profile: Option<&mut Profile>,
    ) -> Result<CudaPrompt, SessionError> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn();
        let mut prompt = match again {
            Some((prompt, true)) => prompt,
            other => {
                // Memory of other sizes is given back before new memory is taken.
                drop(other);
                self.prompt(bindings)?
            }
        };
        if !self.loaded {
            self.load(&prompt.bound)?;
        }
        self.reserve(&prompt.bound, &prompt.places, 0)?;
        let inputs = inputs()?;
        for (position, tensor) in inputs.iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            self.check_indices(&prompt.bound, position, tensor)?;
            prompt.exchange.write(&prompt.places.kept[position], tensor.bytes())?;
        }
        prompt.exchange.upload(0..prompt.places.kept_bytes, gpu.stream())?;
        let (table, scratch) = (self.table(&prompt)?, self.scratch()?);
        // SAFETY: as in `step`.
        unsafe { self.run(&prompt.bound, Rate::Prompt, &table, scratch, profile)? };
        gpu.stream().synchronize().map_err(RunError::Stage)?;
        Ok(prompt)
    }

    /// Memory for a prompt of these sizes.
    fn prompt(&mut self, bindings: &Bindings) -> Result<CudaPrompt, SessionError> {
        let bound = self.program.bind(bindings)?;
        let places = Places::new(self.program.plan(), &bound);
        let values = bound.sizes().arena_extent(Rate::Prompt);
        self.reserve(&bound, &places, values.saturating_add(places.kept_bytes) as u64)?;
        let arena = DeviceMemory::new(self.gpu.device(), values, "the prompt's values")?;
        let mut exchange = Exchange::new(self.gpu.device())?;
        exchange.reserve(places.kept_bytes)?;
        Ok(CudaPrompt { bound, arena, exchange, places, graph: Mutex::new(None) })
    }

    /// Runs the stage `step`. `inputs` has those that are given at every step.
    pub(super) fn step(
        &mut self,
        prompt: &CudaPrompt,
        inputs: &Inputs,
        outputs: &mut [HostTensor],
        profile: Option<&mut Profile>,
    ) -> Result<(), SessionError> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn();
        let stream = gpu.stream();
        self.reserve(&prompt.bound, &prompt.places, 0)?;
        for (position, tensor) in inputs.iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            self.check_indices(&prompt.bound, position, tensor)?;
            self.exchange.write(&prompt.places.inputs[position], tensor.bytes())?;
        }
        self.exchange.upload(0..prompt.places.input_bytes, stream)?;
        let (table, scratch) = (self.table(prompt)?, self.scratch()?);
        if profile.is_some() || self.program.is_watched() {
            // SAFETY: the table points at memory of this session and of the prompt, as large as binding says; neither frees or moves it
            // before the stream is waited for below, and the driver waits where that fails. Plans come from the compiler or are verified
            // when an artifact is opened.
            unsafe { self.run(&prompt.bound, Rate::Step, &table, scratch, profile)? };
        } else {
            let mut captured = prompt.graph.lock().unwrap_or_else(PoisonError::into_inner);
            let current = captured.take().filter(|old| old.table == table && old.scratch == scratch);
            let captured = captured.insert(match current {
                Some(current) => current,
                None => {
                    // SAFETY: as above; the graph is launched only while everything lies where it did.
                    let graph =
                        unsafe { self.program.capture(&prompt.bound, Rate::Step, &table, scratch, stream)? };
                    Captured { graph, table, scratch }
                }
            });
            // SAFETY: the memory is that of the table, which was compared.
            unsafe { captured.graph.launch(stream)? };
        }
        self.exchange.download(prompt.places.input_bytes..prompt.places.bytes, stream)?;
        stream.synchronize().map_err(RunError::Stage)?;
        for (tensor, place) in outputs.iter_mut().zip(&prompt.places.outputs) {
            let bytes = self.exchange.read(place)?;
            let target = tensor.bytes_mut();
            if target.len() != bytes.len() {
                let (what, size) = ("an output", target.len());
                return Err(CudaError::Range { what, bytes: bytes.len(), offset: 0, size }.into());
            }
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// # Safety
    /// As for [`CudaProgram::execute`].
    unsafe fn run(
        &self,
        bound: &CudaBound,
        stage: Rate,
        table: &DeviceTable,
        scratch: DevicePointer,
        profile: Option<&mut Profile>,
    ) -> Result<(), RunError> {
        let stream = self.gpu.stream();
        match profile {
            // SAFETY: passed on.
            Some(profile) => unsafe {
                self.program.execute_timed(bound, stage, table, scratch, stream, profile)
            },
            // SAFETY: passed on.
            None => unsafe { self.program.execute(bound, stage, table, scratch, stream) },
        }
    }

    fn scratch(&self) -> Result<DevicePointer, CudaError> {
        DevicePointer::inside(&self.scratch, 0, self.scratch.len())
    }

    /// Where everything lies in a run for a prompt.
    fn table(&self, prompt: &CudaPrompt) -> Result<DeviceTable, CudaError> {
        let mut table = self.table.clone();
        table.place_arena(&prompt.bound, Rate::Step, &self.step_arena)?;
        table.place_arena(&prompt.bound, Rate::Prompt, &prompt.arena)?;
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            let pointer = match buffer.place {
                Place::Input(input) => {
                    let input = input as usize;
                    let slower = self.program.plan().inputs[input].rate < Rate::Step;
                    if slower {
                        prompt.exchange.pointer(&prompt.places.kept[input])?
                    } else {
                        self.exchange.pointer(&prompt.places.inputs[input])?
                    }
                }
                Place::Output(output) => self.exchange.pointer(&prompt.places.outputs[output as usize])?,
                _ => continue,
            };
            table.set(BufferId(position as u32), pointer);
        }
        Ok(table)
    }

    fn check_indices(
        &self,
        bound: &CudaBound,
        position: usize,
        tensor: &HostTensor,
    ) -> Result<(), SessionError> {
        if bound.index_inputs().any(|input| input as usize == position) {
            bound.check_indices(&self.program, position as u32, tensor.as_i32()?)?;
        }
        Ok(())
    }
}

impl Places {
    fn new(plan: &Plan, bound: &CudaBound) -> Places {
        let bytes = |place: Place| {
            let position = plan.buffers.iter().position(|buffer| buffer.place == place);
            position.map_or(0, |position| bound.sizes().buffer_bytes(BufferId(position as u32)))
        };
        let input = |of_step: bool| {
            plan.inputs.iter().enumerate().map(move |(position, input)| {
                if (input.rate == Rate::Step) == of_step { bytes(Place::Input(position as u32)) } else { 0 }
            })
        };
        let (kept, kept_bytes) = lay_out(input(false));
        let given: Vec<usize> = input(true).collect();
        let written = (0..plan.outputs.len()).map(|output| bytes(Place::Output(output as u32)));
        let (mut inputs, bytes) = lay_out(given.iter().copied().chain(written));
        let outputs = inputs.split_off(given.len());
        let input_bytes = outputs.first().map_or(bytes, |first| first.start);
        Places { kept, kept_bytes, inputs, input_bytes, outputs, bytes }
    }
}

/// A weight that launches read.
struct UsedWeight {
    name: String,
    buffer: BufferId,
    dtype: DType,
    bytes: usize,
}

/// The weights that launches read, in the order of the plan's buffers.
fn used_weights(plan: &Plan) -> Vec<UsedWeight> {
    let used: HashSet<BufferId> =
        plan.launches.iter().flat_map(|launch| launch.operands.iter().copied()).collect();
    let buffers = plan.buffers.iter().enumerate();
    let weights = buffers.filter_map(|(position, buffer)| {
        let Place::Weight(name) = &buffer.place else { return None };
        let id = BufferId(position as u32);
        let size = |dim: &nucleus_ir::Dim| usize::try_from(dim.as_constant()?).ok();
        let elements = buffer.shape.iter().try_fold(1usize, |total, dim| total.checked_mul(size(dim)?));
        // Weights have constant sizes: the verifier sees to it.
        let bytes =
            elements.and_then(|elements| elements.checked_mul(buffer.dtype.size())).unwrap_or(usize::MAX);
        let weight = UsedWeight { name: name.clone(), buffer: id, dtype: buffer.dtype, bytes };
        used.contains(&id).then_some(weight)
    });
    weights.collect()
}

/// Copies weights to the device, converted where they are stored in another type.
struct Upload<'a> {
    weights: &'a Weights,
    target: &'a DeviceMemory,
    places: Vec<(String, &'a Range<usize>)>,
    transfer: Transfer,
    gpu: &'a Gpu,
    done: HashSet<String>,
}

impl Upload<'_> {
    fn weight(&mut self, name: &str, wanted: DType) -> Result<(), SessionError> {
        if self.done.contains(name) {
            return Ok(());
        }
        let weights = self.weights;
        let quantised = weights.spec(name).is_some_and(|spec| spec.channel_axis.is_some());
        let stored = weights.source.view(name).and_then(|view| Some((view.dtype()?, view.bytes)));
        match stored {
            Some((dtype, bytes)) if dtype == wanted => {
                self.copy(name, bytes.len(), &mut |part, into| {
                    into.copy_from_slice(&bytes[part]);
                    Ok(())
                })?;
            }
            Some((dtype, bytes)) if dtype.is_float() && wanted.is_float() && !quantised => {
                let elements = bytes.len() / dtype.size();
                self.copy(name, elements.saturating_mul(wanted.size()), &mut |part, into| {
                    let at = |byte: usize| byte / wanted.size() * dtype.size();
                    convert::convert(dtype, &bytes[at(part.start)..at(part.end)], wanted, into)
                        .map_err(|source| WeightError::Convert { name: name.to_owned(), source }.into())
                })?;
            }
            _ => {
                let (tensor, scales) = weights.load(name)?;
                self.tensor(name, &tensor)?;
                if let Some((scale, tensor)) = scales {
                    self.tensor(&scale, &tensor)?;
                }
            }
        }
        weights.source.release(name);
        Ok(())
    }

    fn tensor(&mut self, name: &str, tensor: &HostTensor) -> Result<(), SessionError> {
        let bytes = tensor.bytes();
        self.copy(name, bytes.len(), &mut |part, into| {
            into.copy_from_slice(&bytes[part]);
            Ok(())
        })
    }

    /// Uploads a weight of which `fill` gives the parts.
    fn copy(
        &mut self,
        name: &str,
        bytes: usize,
        fill: &mut Fill<'_, SessionError>,
    ) -> Result<(), SessionError> {
        // The scales of a weight that no launch reads have no place.
        let Some((_, place)) = self.places.iter().find(|(known, _)| known == name) else { return Ok(()) };
        if bytes != place.len() {
            let (what, size) = ("a weight", place.len());
            return Err(CudaError::Range { what, bytes, offset: 0, size }.into());
        }
        let (target, stream) = (self.target, self.gpu.stream());
        self.transfer.upload(target, place.start, bytes, stream, fill)?;
        self.done.insert(name.to_owned());
        Ok(())
    }
}

/// The number of processor cores.
fn cores() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}
