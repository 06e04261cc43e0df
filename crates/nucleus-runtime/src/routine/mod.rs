//! Routines: plans that run on memory of the caller, for training.
//!
//! A [`Session`](crate::Session) owns its weights, which never change. A routine owns none: weights under training, inputs and
//! outputs are the caller's, who keeps them from run to run. An output that has the name and type of an input is that input's next value; give
//! its memory once, as the output, and it is updated in place.

use std::collections::BTreeMap;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use nucleus_cpu::buffer::{AlignedBuffer, OutOfMemory};
use nucleus_cpu::threads::Threads;
use nucleus_cpu::{
    BindError, BoundPlan, BufferPointer, BufferTable, CompileError, CpuProgram, ExecuteError, Options,
    Profile,
};
use nucleus_ir::{Bindings, DType, Rate, TensorType};
use nucleus_plan::{Place, Plan, in_place, next_values};
use thiserror::Error;

use crate::inputs::{InputError, Signature, evaluated_shape};
use crate::machine::physical_memory;
use crate::peak::peak_flops;
use crate::sizes::bind_sizes;
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;

/// For how many sizes what depends on them alone is kept.
const KEPT_SIZES: usize = 8;

/// Why a routine could not be made or run.
#[derive(Debug, Error)]
pub enum RoutineError {
    /// The plan has something that does not change at every step.
    #[error("{what} `{name}` of `{entry}` is {rate}; a routine takes everything at every step")]
    Slow {
        /// The entry.
        entry: String,
        /// An input or a weight.
        what: &'static str,
        /// Its name.
        name: String,
        /// How often it may change.
        rate: Rate,
    },
    /// An argument is not given.
    #[error("{what} `{name}` of `{entry}` ({ty}) is not given")]
    Missing {
        /// The entry.
        entry: String,
        /// An input, a weight or an output.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// An argument that the routine does not take.
    #[error("`{entry}` takes no {what} `{name}`")]
    Unknown {
        /// The entry.
        entry: String,
        /// An input, a weight or an output.
        what: &'static str,
        /// The name given.
        name: String,
    },
    /// An argument of another type or size.
    #[error(
        "{what} `{name}` is {ty}, which is {wanted} bytes at these sizes; given are {given} bytes of {dtype}"
    )]
    Argument {
        /// An input, a weight or an output.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        ty: TensorType,
        /// Its bytes.
        wanted: usize,
        /// Bytes given.
        given: usize,
        /// Element type given.
        dtype: DType,
    },
    /// The plan could not be compiled for this machine.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The sizes do not fit.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The inputs do not fit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A tensor is too large.
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
    /// A launch failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// Memory that a routine reads: elements in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    dtype: DType,
    /// If the shape is known, sizes follow from it.
    shape: Option<&'a [usize]>,
    bytes: &'a [u8],
}

impl<'a> From<&'a HostTensor> for TensorRef<'a> {
    fn from(tensor: &'a HostTensor) -> TensorRef<'a> {
        TensorRef { dtype: tensor.dtype(), shape: Some(tensor.shape()), bytes: tensor.bytes() }
    }
}

impl<'a> From<&'a [f32]> for TensorRef<'a> {
    fn from(elements: &'a [f32]) -> TensorRef<'a> {
        TensorRef { dtype: DType::F32, shape: None, bytes: cast_slice(elements) }
    }
}

impl<'a> From<&'a f32> for TensorRef<'a> {
    fn from(element: &'a f32) -> TensorRef<'a> {
        TensorRef { dtype: DType::F32, shape: Some(&[]), bytes: bytemuck::bytes_of(element) }
    }
}

/// Memory that a routine writes.
#[derive(Debug)]
pub struct TensorMut<'a> {
    dtype: DType,
    bytes: &'a mut [u8],
}

impl<'a> From<&'a mut HostTensor> for TensorMut<'a> {
    fn from(tensor: &'a mut HostTensor) -> TensorMut<'a> {
        TensorMut { dtype: tensor.dtype(), bytes: tensor.bytes_mut() }
    }
}

impl<'a> From<&'a mut [f32]> for TensorMut<'a> {
    fn from(elements: &'a mut [f32]) -> TensorMut<'a> {
        TensorMut { dtype: DType::F32, bytes: typed(elements) }
    }
}

impl<'a> From<&'a mut f32> for TensorMut<'a> {
    fn from(element: &'a mut f32) -> TensorMut<'a> {
        TensorMut { dtype: DType::F32, bytes: bytemuck::bytes_of_mut(element) }
    }
}

fn typed<T: Pod>(elements: &mut [T]) -> &mut [u8] {
    cast_slice_mut(elements)
}

/// What one run of a routine reads and writes.
#[derive(Debug, Default)]
pub struct Arguments<'a> {
    inputs: BTreeMap<&'a str, TensorRef<'a>>,
    weights: BTreeMap<&'a str, TensorRef<'a>>,
    outputs: BTreeMap<&'a str, TensorMut<'a>>,
}

impl<'a> Arguments<'a> {
    /// No arguments.
    pub fn new() -> Arguments<'a> {
        Arguments::default()
    }

    /// Gives an input.
    pub fn input(&mut self, name: &'a str, tensor: impl Into<TensorRef<'a>>) -> &mut Arguments<'a> {
        self.inputs.insert(name, tensor.into());
        self
    }

    /// Gives every tensor of a map as the input of its name.
    pub fn inputs(&mut self, tensors: &'a TensorMap) -> &mut Arguments<'a> {
        self.inputs.extend(tensors.iter().map(|(name, tensor)| (name.as_str(), TensorRef::from(tensor))));
        self
    }

    /// Gives a weight.
    pub fn weight(&mut self, name: &'a str, tensor: impl Into<TensorRef<'a>>) -> &mut Arguments<'a> {
        self.weights.insert(name, tensor.into());
        self
    }

    /// Gives the memory of an output; if there is an input of that name and type that is not given, its value is read from here.
    pub fn output(&mut self, name: &'a str, tensor: impl Into<TensorMut<'a>>) -> &mut Arguments<'a> {
        self.outputs.insert(name, tensor.into());
        self
    }
}

/// What depends on sizes alone.
struct Prepared {
    bindings: Bindings,
    bound: BoundPlan,
    arena: AlignedBuffer,
}

/// A plan compiled for this machine that runs on the caller's memory. See the [module documentation](self).
pub struct Routine {
    program: CpuProgram,
    signature: Signature,
    /// For every output the input whose next value it is.
    next: Vec<Option<u32>>,
    /// The same, where they may share memory.
    shared: Vec<Option<u32>>,
    table: BufferTable,
    model_arena: AlignedBuffer,
    step_arena: AlignedBuffer,
    /// The latest last.
    prepared: Vec<Prepared>,
    loaded: bool,
}

impl Routine {
    /// Compiles a plan.
    ///
    /// # Errors
    /// The plan has weights that never change or inputs that are not per step, or the machine cannot run it.
    pub fn new(plan: Plan, threads: &Threads, memory_limit: Option<u64>) -> Result<Routine, RoutineError> {
        let slow = |what, name: &str, rate| RoutineError::Slow {
            entry: plan.entry.clone(),
            what,
            name: name.to_owned(),
            rate,
        };
        if let Some(input) = plan.inputs.iter().find(|input| input.rate != Rate::Step) {
            return Err(slow("input", &input.name, input.rate));
        }
        if let Some(name) = plan.buffers.iter().find_map(|buffer| match &buffer.place {
            Place::Weight(name) => Some(name),
            _ => None,
        }) {
            return Err(slow("weight", name, Rate::Model));
        }
        let (next, shared) = (next_values(&plan), in_place(&plan));
        let signature = Signature::from(&plan);
        let memory_limit = memory_limit.unwrap_or_else(physical_memory);
        let options = Options { threads: threads.count(), isa: None, memory_limit };
        let program = CpuProgram::compile_on(threads.clone(), plan, options)?;
        let table = BufferTable::new(program.plan());
        Ok(Routine {
            program,
            signature,
            next,
            shared,
            table,
            model_arena: AlignedBuffer::default(),
            step_arena: AlignedBuffer::default(),
            prepared: Vec::new(),
            loaded: false,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.program.plan()
    }

    /// What the entry takes besides weights.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The sizes of the last run.
    pub fn bindings(&self) -> Option<&Bindings> {
        self.prepared.last().map(|prepared| &prepared.bindings)
    }

    /// FLOP/s that this machine reaches at this moment on all threads with multiply-adds that touch no memory: the limit of every product.
    /// Takes about 20 ms.
    pub fn peak_flops(&self) -> f64 {
        peak_flops(&self.program)
    }

    /// Bytes of the arenas as they are now.
    pub fn arena_bytes(&self) -> u64 {
        let kept: usize = self.prepared.iter().map(|prepared| prepared.arena.len()).sum();
        (self.model_arena.len() + self.step_arena.len() + kept) as u64
    }

    /// Runs the entry once. Sizes follow from `dims` and from the shapes of inputs that have one.
    ///
    /// # Errors
    /// An argument is missing, unknown, or of another type or size; or there is not enough memory. Outputs are then undefined.
    pub fn run(
        &mut self,
        dims: &[(String, i64)],
        arguments: &mut Arguments<'_>,
        mut profile: Option<&mut Profile>,
    ) -> Result<(), RoutineError> {
        self.refuse_unknown(arguments)?;
        let bindings = self.sizes(dims, arguments)?;
        let defaults = self.defaults(arguments, &bindings)?;
        let mut copies = self.copies(arguments, &bindings)?;
        self.prepare(bindings, profile.as_deref_mut())?;
        let Some(prepared) = self.prepared.last() else { return Ok(()) };
        place(&mut self.step_arena, Rate::Step, &prepared.bound, &self.program, &mut self.table)?;
        let (memory, bytes) = (prepared.arena.as_ptr(), prepared.arena.len());
        prepared.bound.place_arena(self.program.plan(), Rate::Prompt, memory, bytes, &mut self.table)?;
        let bindings = prepared.bindings.clone();
        self.point_at_outputs(arguments, &mut copies, &bindings)?;
        self.point_at_inputs(arguments, &defaults, &bindings)?;
        // The table now points at memory that `arguments` borrows and at this routine's own.
        let prepared = self.prepared.last().map(|prepared| &prepared.bound);
        let outcome = match prepared {
            // SAFETY: inputs and weights are borrowed for reading and outputs exclusively, for as long as this call lasts; each has the
            // bytes of its type at these sizes. Where an input is read from the memory of an output, the plan allows it, or the output is
            // written to a copy. The arenas are this routine's.
            Some(bound) => unsafe { self.program.execute(bound, Rate::Step, &self.table, profile) },
            None => Ok(()),
        };
        self.forget_call();
        outcome?;
        for (name, copy) in copies {
            if let Some(output) = arguments.outputs.get_mut(name.as_str()) {
                output.bytes.copy_from_slice(copy.bytes());
            }
        }
        Ok(())
    }

    fn entry(&self) -> String {
        self.program.plan().entry.clone()
    }

    fn refuse_unknown(&self, arguments: &Arguments<'_>) -> Result<(), RoutineError> {
        let plan = self.program.plan();
        let unknown = |what, name: &str| {
            Err(RoutineError::Unknown { entry: plan.entry.clone(), what, name: name.to_owned() })
        };
        let input = |name: &&&str| plan.inputs.iter().all(|input| input.name != **name);
        if let Some(name) = arguments.inputs.keys().find(input) {
            return unknown("input", name);
        }
        let output = |name: &&&str| plan.outputs.iter().all(|output| output.name != **name);
        if let Some(name) = arguments.outputs.keys().find(output) {
            return unknown("output", name);
        }
        let weight = |name: &&&str| plan.weights.iter().all(|(known, _)| known != **name);
        match arguments.weights.keys().find(weight) {
            Some(name) => unknown("weight", name),
            None => Ok(()),
        }
    }

    fn sizes(&self, dims: &[(String, i64)], arguments: &Arguments<'_>) -> Result<Bindings, RoutineError> {
        let mut shapes: Vec<(&str, &TensorType, &[usize])> = Vec::new();
        for spec in &self.signature.inputs {
            if let Some(shape) = arguments.inputs.get(spec.name.as_str()).and_then(|tensor| tensor.shape) {
                shapes.push((&spec.name, &spec.ty, shape));
            }
        }
        Ok(bind_sizes(&self.signature.dims, dims, &shapes).map_err(InputError::from)?)
    }

    /// True if an input that is not given is read from the memory of its next value.
    fn is_updated(&self, arguments: &Arguments<'_>, input: &str) -> bool {
        let mut outputs = self.program.plan().outputs.iter().zip(&self.next);
        arguments.outputs.contains_key(input)
            && outputs.any(|(output, next)| output.name == input && next.is_some())
    }

    /// Optional inputs that are not given.
    fn defaults(
        &self,
        arguments: &Arguments<'_>,
        bindings: &Bindings,
    ) -> Result<BTreeMap<String, HostTensor>, RoutineError> {
        let mut defaults = BTreeMap::new();
        for spec in &self.signature.inputs {
            let name = spec.name.as_str();
            if !arguments.inputs.contains_key(name)
                && !self.is_updated(arguments, name)
                && spec.default.is_some()
            {
                let tensor = Signature::convert(spec, &TensorMap::new(), bindings)?;
                defaults.insert(spec.name.clone(), tensor);
            }
        }
        Ok(defaults)
    }

    /// Memory for outputs that cannot be written where their inputs are read from.
    fn copies(
        &self,
        arguments: &Arguments<'_>,
        bindings: &Bindings,
    ) -> Result<BTreeMap<String, HostTensor>, RoutineError> {
        let plan = self.program.plan();
        let mut copies = BTreeMap::new();
        for (output, (next, shared)) in plan.outputs.iter().zip(self.next.iter().zip(&self.shared)) {
            if next.is_some() && shared.is_none() && !arguments.inputs.contains_key(output.name.as_str()) {
                let shape = evaluated_shape(&output.ty, bindings).map_err(InputError::from)?;
                copies.insert(output.name.clone(), HostTensor::zeros(output.ty.dtype, &shape)?);
            }
        }
        Ok(copies)
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

    fn point_at_outputs(
        &mut self,
        arguments: &mut Arguments<'_>,
        copies: &mut BTreeMap<String, HostTensor>,
        bindings: &Bindings,
    ) -> Result<(), RoutineError> {
        let entry = self.entry();
        let plan = self.program.plan();
        for (position, buffer) in plan.buffers.iter().enumerate() {
            let Place::Output(output) = buffer.place else { continue };
            let output = &plan.outputs[output as usize];
            let Some(given) = arguments.outputs.get_mut(output.name.as_str()) else {
                let (name, ty) = (output.name.clone(), output.ty.clone());
                return Err(RoutineError::Missing { entry, what: "output", name, ty });
            };
            check(("output", &output.name), &output.ty, bindings, given.dtype, given.bytes.len())?;
            let bytes = match copies.get_mut(&output.name) {
                Some(copy) => copy.bytes_mut(),
                None => &mut *given.bytes,
            };
            let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype: given.dtype };
            self.table.set(nucleus_plan::BufferId(position as u32), pointer);
        }
        Ok(())
    }

    fn point_at_inputs(
        &mut self,
        arguments: &mut Arguments<'_>,
        defaults: &BTreeMap<String, HostTensor>,
        bindings: &Bindings,
    ) -> Result<(), RoutineError> {
        let entry = self.entry();
        let plan = self.program.plan();
        for (position, buffer) in plan.buffers.iter().enumerate() {
            let (what, name, ty, given) = match &buffer.place {
                Place::Input(input) => {
                    let input = &plan.inputs[*input as usize];
                    let name = input.name.as_str();
                    let given = arguments.inputs.get(name).copied();
                    ("input", name, &input.ty, given.or_else(|| defaults.get(name).map(TensorRef::from)))
                }
                Place::State(name) => {
                    let Some((name, ty)) = plan.weights.iter().find(|(known, _)| known == name) else {
                        continue;
                    };
                    ("weight", name.as_str(), ty, arguments.weights.get(name.as_str()).copied())
                }
                _ => continue,
            };
            let next = || plan.outputs.iter().position(|output| output.name == name);
            let pointer =
                match given {
                    Some(given) => {
                        check((what, name), ty, bindings, given.dtype, given.bytes.len())?;
                        let data = given.bytes.as_ptr().cast_mut();
                        BufferPointer { data, bytes: given.bytes.len(), dtype: given.dtype }
                    }
                    // Its next value is an output, whose memory holds it until then.
                    None => match arguments.outputs.get_mut(name).filter(|_| {
                        what == "input" && next().is_some_and(|output| self.next[output].is_some())
                    }) {
                        Some(output) => BufferPointer {
                            data: output.bytes.as_mut_ptr(),
                            bytes: output.bytes.len(),
                            dtype: output.dtype,
                        },
                        None => {
                            let (name, ty) = (name.to_owned(), ty.clone());
                            return Err(RoutineError::Missing { entry, what, name, ty });
                        }
                    },
                };
            self.table.set(nucleus_plan::BufferId(position as u32), pointer);
        }
        Ok(())
    }

    /// Takes the caller's memory out of the table.
    fn forget_call(&mut self) {
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            if !matches!(buffer.place, Place::Arena { .. }) {
                self.table.clear(nucleus_plan::BufferId(position as u32));
            }
        }
    }
}

fn check(
    (what, name): (&'static str, &str),
    ty: &TensorType,
    bindings: &Bindings,
    dtype: DType,
    given: usize,
) -> Result<(), RoutineError> {
    let shape = evaluated_shape(ty, bindings).map_err(InputError::from)?;
    let elements = shape.iter().try_fold(1usize, |total, size| total.checked_mul(*size));
    let wanted = elements.and_then(|elements| elements.checked_mul(ty.dtype.size())).unwrap_or(usize::MAX);
    if dtype == ty.dtype && given == wanted {
        return Ok(());
    }
    Err(RoutineError::Argument { what, name: name.to_owned(), ty: ty.clone(), wanted, given, dtype })
}

/// Grows an arena to what sizes need, and gives its buffers their places.
fn place(
    arena: &mut AlignedBuffer,
    rate: Rate,
    bound: &BoundPlan,
    program: &CpuProgram,
    table: &mut BufferTable,
) -> Result<(), RoutineError> {
    let full = |source| RoutineError::Arena { rate: rate.name(), source };
    arena.try_reserve(bound.arena_bytes(rate)).map_err(full)?;
    Ok(bound.place_arena(program.plan(), rate, arena.as_ptr(), arena.len(), table)?)
}
