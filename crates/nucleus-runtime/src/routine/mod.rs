//! Routines: plans that run on memory of the caller, for training.
//!
//! A [`Session`](crate::Session) owns its weights, which never change. A routine owns none: weights under training, inputs and
//! outputs are the caller's, who keeps them from run to run. An output that has the name and type of an input is that input's next value; give
//! its memory once, as the output, and it is updated in place.
//!
//! On a GPU the caller's memory may be the GPU's: then nothing is copied, and a run without outputs in host memory is not waited for.
//! Arguments in host memory are copied there and back.

mod arguments;
mod cpu;
mod cuda;

use std::collections::BTreeMap;

use nucleus_cpu::buffer::OutOfMemory;
use nucleus_cpu::threads::Threads;
use nucleus_cpu::{CompileError, ExecuteError};
use nucleus_cuda::{CudaBindError, CudaError, LoadError, RunError};
use nucleus_ir::{Bindings, DType, Rate, TensorType};
use nucleus_plan::{BindError, Buffer, Place, Plan, Profile, in_place, next_values};
use thiserror::Error;

use crate::gpu::{Gpu, LimitError};
use crate::inputs::{InputError, Signature, evaluated_shape};
use crate::limits::{Limits, peak_flops, product_dtype};
use crate::sizes::bind_sizes;
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;
pub use arguments::{Arguments, TensorMut, TensorRef};
use arguments::{Source, Target};
use cpu::CpuRoutine;
use cuda::CudaRoutine;

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
    /// An argument in the memory of another machine.
    #[error("{what} `{name}` lies in a GPU's memory, and `{entry}` runs on the processor")]
    Elsewhere {
        /// The entry.
        entry: String,
        /// An input, a weight or an output.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The plan could not be loaded onto the GPU.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The sizes do not fit the GPU.
    #[error(transparent)]
    CudaBind(#[from] CudaBindError),
    /// The GPU failed, or its memory is too small.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A run on the GPU failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The limits of the GPU could not be measured.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// What a routine runs on.
#[derive(Clone, Debug)]
pub enum Backend {
    /// This computer's processor, on these workers.
    Cpu(Threads),
    /// A GPU.
    Cuda(Gpu),
}

impl From<&Threads> for Backend {
    fn from(threads: &Threads) -> Backend {
        Backend::Cpu(threads.clone())
    }
}

impl From<&Gpu> for Backend {
    fn from(gpu: &Gpu) -> Backend {
        Backend::Cuda(gpu.clone())
    }
}

impl From<&Backend> for Backend {
    fn from(backend: &Backend) -> Backend {
        backend.clone()
    }
}

/// A plan compiled for a machine that runs on the caller's memory. See the [module documentation](self).
pub struct Routine {
    signature: Signature,
    /// For every output the input whose next value it is.
    next: Vec<Option<u32>>,
    /// The same, where they may share memory.
    shared: Vec<Option<u32>>,
    machine: Machine,
}

/// What runs a routine.
enum Machine {
    Cpu(Box<CpuRoutine>),
    Cuda(Box<CudaRoutine>),
}

impl Routine {
    /// Compiles a plan. `memory_limit` is the most bytes that its arenas may take in host memory; `None` for the machine's memory.
    ///
    /// # Errors
    /// The plan has weights that never change or inputs that are not per step, or the machine cannot run it.
    pub fn new(
        plan: Plan,
        backend: impl Into<Backend>,
        memory_limit: Option<u64>,
    ) -> Result<Routine, RoutineError> {
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
        let machine = match backend.into() {
            Backend::Cpu(threads) => Machine::Cpu(Box::new(CpuRoutine::new(plan, &threads, memory_limit)?)),
            Backend::Cuda(gpu) => Machine::Cuda(Box::new(CudaRoutine::new(plan, &gpu)?)),
        };
        Ok(Routine { signature, next, shared, machine })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        match &self.machine {
            Machine::Cpu(routine) => routine.program().plan(),
            Machine::Cuda(routine) => routine.program().plan(),
        }
    }

    /// What the entry takes besides weights.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The sizes of the last run.
    pub fn bindings(&self) -> Option<&Bindings> {
        match &self.machine {
            Machine::Cpu(routine) => routine.bindings(),
            Machine::Cuda(routine) => routine.bindings(),
        }
    }

    /// What the machine reaches at this moment, which no run can exceed. Takes about 20 ms, on a GPU 100 ms.
    ///
    /// # Errors
    /// A GPU cannot be measured.
    pub fn limits(&self) -> Result<Limits, RoutineError> {
        match &self.machine {
            Machine::Cpu(routine) => Ok(Limits { flops: peak_flops(routine.program()), copy_bytes: None }),
            Machine::Cuda(routine) => Ok(routine.gpu().limits(product_dtype(self.plan()))?),
        }
    }

    /// Bytes of the arenas as they are now.
    pub fn arena_bytes(&self) -> u64 {
        match &self.machine {
            Machine::Cpu(routine) => routine.arena_bytes(),
            Machine::Cuda(routine) => routine.arena_bytes(),
        }
    }

    /// Runs the entry once. Sizes follow from `dims` and from the shapes of inputs that have one.
    ///
    /// On a GPU a run whose outputs all lie there is not waited for; what fails in it shows when something later is.
    ///
    /// # Errors
    /// An argument is missing, unknown, or of another type or size; or there is not enough memory. Outputs are then undefined.
    pub fn run(
        &mut self,
        dims: &[(String, i64)],
        arguments: &mut Arguments<'_>,
        profile: Option<&mut Profile>,
    ) -> Result<(), RoutineError> {
        self.refuse_unknown(arguments)?;
        let bindings = self.sizes(dims, arguments)?;
        let defaults = self.defaults(arguments, &bindings)?;
        let call = Call { next: &self.next, shared: &self.shared, bindings, defaults: &defaults, arguments };
        match &mut self.machine {
            Machine::Cpu(routine) => routine.run(call, profile),
            Machine::Cuda(routine) => routine.run(call, profile),
        }
    }

    fn refuse_unknown(&self, arguments: &Arguments<'_>) -> Result<(), RoutineError> {
        let plan = self.plan();
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
        let mut outputs = self.plan().outputs.iter().zip(&self.next);
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
}

/// What one run is given.
struct Call<'a, 'b> {
    next: &'b [Option<u32>],
    shared: &'b [Option<u32>],
    bindings: Bindings,
    /// Optional inputs that are not given.
    defaults: &'b BTreeMap<String, HostTensor>,
    arguments: &'b mut Arguments<'a>,
}

/// Where an input or a weight is read from.
enum Given<'b> {
    /// The caller's memory, or a default.
    Tensor(TensorRef<'b>),
    /// The memory of its next value, the output of its name.
    Next,
}

impl Call<'_, '_> {
    /// Whether an output is to be written elsewhere and copied: its memory holds the input whose next value it is, and launches read that
    /// after they begin to write.
    fn is_copied(&self, plan: &Plan, output: usize) -> bool {
        self.next[output].is_some()
            && self.shared[output].is_none()
            && !self.arguments.inputs.contains_key(plan.outputs[output].name.as_str())
    }

    /// The memory of an output.
    fn output(&mut self, plan: &Plan, output: usize) -> Result<Target<'_>, RoutineError> {
        let output = &plan.outputs[output];
        let Some(given) = self.arguments.outputs.get_mut(output.name.as_str()) else {
            let (entry, name, ty) = (plan.entry.clone(), output.name.clone(), output.ty.clone());
            return Err(RoutineError::Missing { entry, what: "output", name, ty });
        };
        check(("output", &output.name), &output.ty, &self.bindings, given.dtype, given.bytes())?;
        Ok(match &mut given.target {
            Target::Host(bytes) => Target::Host(bytes),
            Target::Device(part) => Target::Device(*part),
        })
    }

    /// What a buffer holds when a run begins, and its name: an input or a weight. `None` for other buffers.
    fn input<'s, 'p>(
        &'s self,
        plan: &'p Plan,
        buffer: &'p Buffer,
    ) -> Result<Option<(&'static str, &'p str, Given<'s>)>, RoutineError> {
        let (what, name, ty, given) = match &buffer.place {
            Place::Input(input) => {
                let input = &plan.inputs[*input as usize];
                let name = input.name.as_str();
                let given = self.arguments.inputs.get(name).copied();
                let given = given.or_else(|| self.defaults.get(name).map(TensorRef::from));
                ("input", name, &input.ty, given)
            }
            Place::State(name) => {
                let Some((name, ty)) = plan.weights.iter().find(|(known, _)| known == name) else {
                    return Ok(None);
                };
                ("weight", name.as_str(), ty, self.arguments.weights.get(name.as_str()).copied())
            }
            _ => return Ok(None),
        };
        if let Some(given) = given {
            check((what, name), ty, &self.bindings, given.dtype, given.bytes())?;
            return Ok(Some((what, name, Given::Tensor(given))));
        }
        // Its next value is an output, whose memory holds it until then.
        let next = plan.outputs.iter().position(|output| output.name == name);
        let has_next = what == "input" && next.is_some_and(|output| self.next[output].is_some());
        if has_next && self.arguments.outputs.contains_key(name) {
            return Ok(Some((what, name, Given::Next)));
        }
        let (entry, name, ty) = (plan.entry.clone(), name.to_owned(), ty.clone());
        Err(RoutineError::Missing { entry, what, name, ty })
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
