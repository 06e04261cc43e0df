//! A routine on a GPU: launches work on the caller's device memory, and on copies of what lies in host memory.

use std::collections::HashMap;
use std::ops::Range;

use nucleus_cuda::driver::{DeviceMemory, Graph};
use nucleus_cuda::{CudaBound, CudaProgram, DevicePointer, DeviceTable, RunError};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{BufferId, Place, Plan, Profile};

use super::{Call, Given, KEPT_SIZES, RoutineError, Source, Target};
use crate::gpu::{Exchange, Gpu, lay_out};

/// For how many places of the caller's memory a graph is kept: an optimiser goes over the same few pieces in every step.
const KEPT_GRAPHS: usize = 256;

/// What depends on sizes alone.
struct Prepared {
    bindings: Bindings,
    bound: CudaBound,
    arena: DeviceMemory,
    /// The latest last.
    graphs: Vec<Captured>,
}

/// A graph and where everything lay when it was captured.
struct Captured {
    graph: Graph,
    table: DeviceTable,
    scratch: DevicePointer,
}

/// See the [module documentation](self).
pub(super) struct CudaRoutine {
    gpu: Gpu,
    program: CudaProgram,
    /// The values of stage `model`.
    table: DeviceTable,
    model_arena: DeviceMemory,
    step_arena: DeviceMemory,
    scratch: DeviceMemory,
    /// Arguments in host memory, and outputs that are copied.
    exchange: Exchange,
    /// The latest last.
    prepared: Vec<Prepared>,
    loaded: bool,
}

/// Where the arguments of a run lie on the device.
struct Arguments {
    /// By buffer.
    pointers: Vec<(BufferId, DevicePointer)>,
    /// Outputs in host memory: position and place in the exchange.
    downloads: Vec<(usize, Range<usize>)>,
    /// Outputs in device memory that are written to the exchange first: position and place there.
    copies: Vec<(usize, Range<usize>)>,
}

impl CudaRoutine {
    pub(super) fn new(plan: Plan, gpu: &Gpu) -> Result<CudaRoutine, RoutineError> {
        let _turn = gpu.turn();
        let device = gpu.device();
        let program = CudaProgram::load(plan, device, gpu.cubins(), gpu.tuning(), &|_, _| {})?;
        let empty = || DeviceMemory::empty(device);
        Ok(CudaRoutine {
            gpu: gpu.clone(),
            table: DeviceTable::new(program.plan()),
            model_arena: empty(),
            step_arena: empty(),
            scratch: empty(),
            exchange: Exchange::new(device)?,
            prepared: Vec::new(),
            loaded: false,
            program,
        })
    }

    pub(super) fn program(&self) -> &CudaProgram {
        &self.program
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The sizes of the last run.
    pub(super) fn bindings(&self) -> Option<&Bindings> {
        self.prepared.last().map(|prepared| &prepared.bindings)
    }

    /// Bytes of the arenas as they are now, with scratch memory and copies of arguments.
    pub(super) fn arena_bytes(&self) -> u64 {
        let kept: usize = self.prepared.iter().map(|prepared| prepared.arena.len()).sum();
        let own = self.model_arena.len() + self.step_arena.len() + self.scratch.len() + self.exchange.len();
        (own + kept) as u64
    }

    pub(super) fn run(
        &mut self,
        mut call: Call<'_, '_>,
        mut profile: Option<&mut Profile>,
    ) -> Result<(), RoutineError> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn();
        let stream = gpu.stream();
        self.prepare(call.bindings.clone(), profile.as_deref_mut())?;
        let Some(mut prepared) = self.prepared.pop() else { return Ok(()) };
        let ran = self.run_prepared(&mut prepared, &mut call, profile);
        self.prepared.push(prepared);
        let arguments = ran?;
        for (output, place) in &arguments.copies {
            if let Target::Device(part) = call.output(self.program.plan(), *output)? {
                stream.copy(self.exchange.memory(), place.clone(), part.memory, part.offset)?;
            }
        }
        if arguments.downloads.is_empty() {
            return Ok(());
        }
        for (_, place) in &arguments.downloads {
            self.exchange.download(place.clone(), stream)?;
        }
        stream.synchronize().map_err(RunError::Stage)?;
        for (output, place) in &arguments.downloads {
            if let Target::Host(bytes) = call.output(self.program.plan(), *output)? {
                bytes.copy_from_slice(self.exchange.read(place)?);
            }
        }
        Ok(())
    }

    fn run_prepared(
        &mut self,
        prepared: &mut Prepared,
        call: &mut Call<'_, '_>,
        profile: Option<&mut Profile>,
    ) -> Result<Arguments, RoutineError> {
        let gpu = self.gpu.clone();
        let stream = gpu.stream();
        let arguments = self.place_arguments(&prepared.bound, call)?;
        self.reserve(&prepared.bound)?;
        let mut table = self.table.clone();
        table.place_arena(&prepared.bound, Rate::Step, &self.step_arena)?;
        table.place_arena(&prepared.bound, Rate::Prompt, &prepared.arena)?;
        for (buffer, pointer) in &arguments.pointers {
            table.set(*buffer, *pointer);
        }
        let scratch = DevicePointer::inside(&self.scratch, 0, self.scratch.len())?;
        let bound = &prepared.bound;
        if let Some(profile) = profile {
            // SAFETY: the table points at this routine's memory and at memory that the call borrows, each as large as binding says; the
            // stream is waited for before this returns. Where an input is read from the memory of an output, the plan allows it, or the
            // output is written to a copy.
            unsafe {
                self.program.execute_timed(bound, Rate::Step, &table, scratch, stream, profile)?;
            }
        } else if self.program.is_watched() {
            // SAFETY: as above.
            unsafe { self.program.execute(bound, Rate::Step, &table, scratch, stream)? };
        } else {
            let graphs = &mut prepared.graphs;
            let known = graphs.iter().position(|old| old.table == table && old.scratch == scratch);
            let mut captured = match known {
                Some(position) => graphs.remove(position),
                None => {
                    // SAFETY: as above; the graph is launched only while everything lies where it did.
                    let graph = unsafe { self.program.capture(bound, Rate::Step, &table, scratch, stream)? };
                    Captured { graph, table, scratch }
                }
            };
            // SAFETY: the memory is that of the table, and what frees device memory waits for launches that use it.
            unsafe { captured.graph.launch(stream)? };
            if graphs.len() >= KEPT_GRAPHS {
                graphs.remove(0);
            }
            graphs.push(captured);
        }
        Ok(arguments)
    }

    /// Finds a place on the device for every argument, and copies those there that lie in host memory.
    fn place_arguments(
        &mut self,
        bound: &CudaBound,
        call: &mut Call<'_, '_>,
    ) -> Result<Arguments, RoutineError> {
        let CudaRoutine { program, exchange, gpu, .. } = self;
        let plan = program.plan();
        let buffers: Vec<(BufferId, usize)> = (0..plan.buffers.len() as u32)
            .map(BufferId)
            .filter(|id| !matches!(plan.buffer(*id).place, Place::Arena { .. }))
            .map(|id| (id, bound.sizes().buffer_bytes(id)))
            .collect();
        // Every buffer that needs one has a place in the exchange: what is uploaded first.
        let (mut uploads, mut others) = (Vec::new(), Vec::new());
        for (id, bytes) in &buffers {
            match plan.buffer(*id).place {
                Place::Output(output) => {
                    let output = output as usize;
                    let copied = call.is_copied(plan, output);
                    let on_host = matches!(call.output(plan, output)?, Target::Host(_));
                    if copied || on_host {
                        // The old value of what is updated in place is read from here.
                        let in_place = on_host && !copied && call.next[output].is_some();
                        let list = if in_place { &mut uploads } else { &mut others };
                        list.push((*id, *bytes));
                    }
                }
                _ => match call.input(plan, plan.buffer(*id))? {
                    Some((_, _, Given::Tensor(tensor))) if matches!(tensor.source, Source::Host(_)) => {
                        uploads.push((*id, *bytes));
                    }
                    // What is read from an output that is copied and lies in host memory.
                    Some((_, name, Given::Next)) => {
                        let output = plan.outputs.iter().position(|output| output.name == name);
                        if let Some(output) = output
                            && call.is_copied(plan, output)
                            && matches!(call.output(plan, output)?, Target::Host(_))
                        {
                            uploads.push((*id, *bytes));
                        }
                    }
                    _ => {}
                },
            }
        }
        let listed = uploads.iter().chain(&others);
        let (ranges, total) = lay_out(listed.clone().map(|(_, bytes)| *bytes));
        let upload_end = ranges[..uploads.len()].last().map_or(0, |last| last.end);
        if total > exchange.len() {
            gpu.account(&[("arguments", total as u64)], exchange.len() as u64)?;
        }
        exchange.reserve(total)?;
        let places: HashMap<BufferId, Range<usize>> = listed.map(|(id, _)| *id).zip(ranges).collect();
        let mut arguments = Arguments { pointers: Vec::new(), downloads: Vec::new(), copies: Vec::new() };
        for (id, _) in &buffers {
            let range = places.get(id).cloned();
            let pointer = match plan.buffer(*id).place {
                Place::Output(output) => {
                    let output = output as usize;
                    match (call.output(plan, output)?, range) {
                        (Target::Host(bytes), Some(range)) => {
                            if range.end <= upload_end {
                                exchange.write(&range, bytes)?;
                            }
                            arguments.downloads.push((output, range.clone()));
                            Some(exchange.pointer(&range)?)
                        }
                        (Target::Device(_), Some(range)) => {
                            arguments.copies.push((output, range.clone()));
                            Some(exchange.pointer(&range)?)
                        }
                        (Target::Device(part), None) => Some(part.pointer()?),
                        (Target::Host(_), None) => None,
                    }
                }
                _ => place_input(program, exchange, bound, call, *id, &places)?,
            };
            arguments.pointers.extend(pointer.map(|pointer| (*id, pointer)));
        }
        exchange.upload(0..upload_end, gpu.stream())?;
        Ok(arguments)
    }

    /// Takes the memory of runs at these sizes, having counted it.
    fn reserve(&mut self, bound: &CudaBound) -> Result<(), RoutineError> {
        let step = bound.sizes().arena_extent(Rate::Step);
        let needed = [(self.step_arena.len(), step), (self.scratch.len(), bound.scratch_bytes())];
        let grown = |at: usize| if needed[at].1 > needed[at].0 { needed[at].1 as u64 } else { 0 };
        if grown(0) + grown(1) > 0 {
            let growing = needed.iter().filter(|(has, needs)| needs > has);
            let given_back = growing.map(|(has, _)| *has as u64).sum();
            let parts = [("the arena of steps", grown(0)), ("scratch memory", grown(1))];
            self.gpu.account(&parts, given_back)?;
        }
        self.step_arena.reserve(step, "the arena of steps")?;
        Ok(self.scratch.reserve(bound.scratch_bytes(), "scratch memory")?)
    }

    /// Sees to it that the last of `prepared` is for these sizes.
    fn prepare(&mut self, bindings: Bindings, profile: Option<&mut Profile>) -> Result<(), RoutineError> {
        if let Some(position) = self.prepared.iter().position(|prepared| prepared.bindings == bindings) {
            let prepared = self.prepared.remove(position);
            self.prepared.push(prepared);
            return Ok(());
        }
        let gpu = self.gpu.clone();
        let stream = gpu.stream();
        let bound = self.program.bind(&bindings)?;
        self.reserve(&bound)?;
        let arena = |rate| bound.sizes().arena_extent(rate);
        let prompt = DeviceMemory::new(gpu.device(), arena(Rate::Prompt), "the arena of sizes")?;
        self.model_arena.reserve(arena(Rate::Model), "the arena of the stage `model`")?;
        self.table.place_arena(&bound, Rate::Model, &self.model_arena)?;
        let mut table = self.table.clone();
        table.place_arena(&bound, Rate::Step, &self.step_arena)?;
        table.place_arena(&bound, Rate::Prompt, &prompt)?;
        let scratch = DevicePointer::inside(&self.scratch, 0, self.scratch.len())?;
        // SAFETY: these stages read and write arenas alone, which are this routine's: there are no weights that never change, inputs are
        // per step and so are outputs.
        unsafe {
            if !self.loaded {
                self.program.execute(&bound, Rate::Model, &table, scratch, stream)?;
                self.loaded = true;
            }
            match profile {
                Some(profile) => {
                    self.program.execute_timed(&bound, Rate::Prompt, &table, scratch, stream, profile)?;
                }
                None => self.program.execute(&bound, Rate::Prompt, &table, scratch, stream)?,
            }
        }
        if self.prepared.len() >= KEPT_SIZES {
            self.prepared.remove(0);
        }
        self.prepared.push(Prepared { bindings, bound, arena: prompt, graphs: Vec::new() });
        Ok(())
    }
}

/// Where an input or a weight lies on the device; what lies in host memory is written to its place in the exchange.
fn place_input(
    program: &CudaProgram,
    exchange: &mut Exchange,
    bound: &CudaBound,
    call: &mut Call<'_, '_>,
    id: BufferId,
    places: &HashMap<BufferId, Range<usize>>,
) -> Result<Option<DevicePointer>, RoutineError> {
    let plan = program.plan();
    let Some((_, name, given)) = call.input(plan, plan.buffer(id))? else { return Ok(None) };
    match (given, places.get(&id)) {
        (Given::Tensor(tensor), range) => match (tensor.source, range) {
            (Source::Host(bytes), Some(range)) => {
                if let Place::Input(input) = plan.buffer(id).place {
                    check_indices(program, bound, input, bytes)?;
                }
                exchange.write(range, bytes)?;
                Ok(Some(exchange.pointer(range)?))
            }
            (Source::Device(part), _) => Ok(Some(part.pointer()?)),
            (Source::Host(_), None) => Ok(None),
        },
        (Given::Next, range) => {
            let Some(output) = plan.outputs.iter().position(|output| output.name == name) else {
                return Ok(None);
            };
            match (call.output(plan, output)?, range) {
                (Target::Device(part), _) => Ok(Some(part.pointer()?)),
                (Target::Host(bytes), Some(range)) => {
                    exchange.write(range, bytes)?;
                    Ok(Some(exchange.pointer(range)?))
                }
                // Updated in place: it is where the output is.
                (Target::Host(_), None) => {
                    let place = Place::Output(output as u32);
                    let buffer = plan.buffers.iter().position(|buffer| buffer.place == place);
                    let range = buffer.and_then(|buffer| places.get(&BufferId(buffer as u32)));
                    Ok(range.map(|range| exchange.pointer(range)).transpose()?)
                }
            }
        }
    }
}

/// Checks an input that is used as indices. One in device memory was made by whoever gives it.
fn check_indices(
    program: &CudaProgram,
    bound: &CudaBound,
    input: u32,
    bytes: &[u8],
) -> Result<(), RoutineError> {
    if bound.index_inputs().any(|other| other == input) {
        let element = |bytes: &[u8]| {
            let mut element = [0; 4];
            element.copy_from_slice(bytes);
            i32::from_ne_bytes(element)
        };
        let elements: Vec<i32> = bytes.chunks_exact(4).map(element).collect();
        bound.check_indices(program, input, &elements)?;
    }
    Ok(())
}
