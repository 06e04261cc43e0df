//! Sessions: a plan with its weights, ready to run again and again.

mod cpu;
mod cuda;
mod weights;

use std::sync::atomic::{AtomicU64, Ordering};

use nucleus_cpu::buffer::OutOfMemory;
use nucleus_cpu::{CompileError, ExecuteError};
use nucleus_cuda::{CudaBindError, CudaError, LoadError, RunError};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{BindError, Place, Plan, Profile};
use thiserror::Error;

use crate::checkpoint::{CheckpointError, Extras};
use crate::gpu::{Gpu, LimitError, TileCounts};
use crate::inputs::{InputError, Signature, evaluated_shape};
use crate::limits::{Limits, peak_flops, product_dtype};
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;
use crate::weights::{WeightError, WeightSource, WeightSpec};
use cpu::{CpuPrompt, CpuSession};
use cuda::{CudaPrompt, CudaSession};

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Worker threads; `None` for one per core. Results do not depend on it.
    pub threads: Option<usize>,
    /// The most bytes that a run's arenas may take in host memory; `None` for the machine's memory.
    pub memory_limit: Option<u64>,
    /// What to do with weights of the checkpoint that the model does not name.
    pub extras: Extras,
    /// A GPU to run on, in place of this computer's processor; measured tiles come with it, see [`Gpu::tuned`].
    pub gpu: Option<Gpu>,
    /// The sizes of runs to come, if they are known: on a GPU their memory is counted before weights are uploaded.
    pub sizes: Option<Bindings>,
}

impl Default for SessionOptions {
    /// All cores, the machine's memory, no unknown weights, no GPU.
    fn default() -> SessionOptions {
        SessionOptions { threads: None, memory_limit: None, extras: Extras::Refuse, gpu: None, sizes: None }
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
    /// The plan has weights that change from run to run.
    #[error(
        "weight `{name}` is under training in this plan, which computes gradients or updates: a session runs plans whose weights stay \
        as they are; compile the model without gradients"
    )]
    Training {
        /// One of those weights.
        name: String,
    },
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

/// The id of the next session.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(0);

/// What the memory of a session is used for, in bytes: that of the computer, or of the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights packed for the micro-kernels.
    pub packed: u64,
    /// Weights kept as they are: biases, norms; on a GPU all.
    pub plain: u64,
    /// The arenas of the last run; on a GPU with inputs, outputs and scratch memory.
    pub arenas: u64,
}

/// A plan compiled for a machine, with its weights in place and the memory of its runs.
///
/// Arenas are kept from run to run and grow when larger sizes come.
///
/// [`Session::run`] computes everything that inputs and sizes decide. Where the prompt stays the same over many steps,
/// [`Session::prepare`] computes its part once and [`Session::step`] the rest.
pub struct Session {
    /// Tells this session's prompts from those of others.
    id: u64,
    signature: Signature,
    backend: Backend,
    /// The prompt of the last [`Session::run`], whose sizes and memory the next one uses again.
    last: Option<Prompt>,
}

/// What runs a session.
enum Backend {
    Cpu(Box<CpuSession>),
    Cuda(Box<CudaSession>),
}

/// What depends on a prompt and on sizes alone, computed: text keys and values, rotary tables, masks.
///
/// It belongs to the session that prepared it. Several prompts, such as the two of classifier-free guidance, share the weights and the
/// memory of steps.
pub struct Prompt {
    session: u64,
    bindings: Bindings,
    values: Values,
}

/// The values of a prompt where they lie.
enum Values {
    Cpu(CpuPrompt),
    Cuda(Box<CudaPrompt>),
}

impl Prompt {
    /// The sizes it was prepared for.
    pub fn sizes(&self) -> &Bindings {
        &self.bindings
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        match &self.values {
            Values::Cpu(values) => values.bytes(),
            Values::Cuda(values) => values.bytes(),
        }
    }
}

impl Session {
    /// Compiles a plan and puts its weights in place.
    ///
    /// # Errors
    /// The weights do not fit the plan, some of them are under training, or the machine cannot run it.
    pub fn new(
        plan: Plan,
        weights: impl WeightSource + 'static,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        Session::with_source(plan, Box::new(weights), options, &mut |_, _| {})
    }

    /// [`Session::new`] for any source; `progress` hears how many of the weights that are packed or uploaded are done, and how many there
    /// are.
    ///
    /// # Errors
    /// As for [`Session::new`].
    pub fn with_source(
        plan: Plan,
        weights: Box<dyn WeightSource>,
        options: &SessionOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session, SessionError> {
        let state = plan.buffers.iter().find_map(|buffer| match &buffer.place {
            Place::State(name) => Some(name.clone()),
            _ => None,
        });
        if let Some(name) = state {
            return Err(SessionError::Training { name });
        }
        let specs = WeightSpec::list(plan.weights.iter().map(|(name, ty)| (name.as_str(), ty)));
        weights.check(&specs, options.extras)?;
        let signature = Signature::from(&plan);
        // What depends on weights alone has the same sizes whatever the dims are; where ones fit, it is computed now rather than in the
        // first run.
        let ones: Bindings = signature.dims.iter().map(|dim| (dim.as_str(), 1)).collect();
        let backend = match &options.gpu {
            None => Backend::Cpu(Box::new(CpuSession::new(plan, weights, specs, options, &ones, progress)?)),
            Some(gpu) => {
                let session = CudaSession::new(plan, weights, specs, gpu, options, &ones, progress)?;
                Backend::Cuda(Box::new(session))
            }
        };
        let id = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
        Ok(Session { id, signature, backend, last: None })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        match &self.backend {
            Backend::Cpu(session) => session.program().plan(),
            Backend::Cuda(session) => session.program().plan(),
        }
    }

    /// What the entry takes.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The number of worker threads; on a GPU 1, the thread that launches.
    pub fn threads(&self) -> usize {
        match &self.backend {
            Backend::Cpu(session) => session.program().threads().count(),
            Backend::Cuda(_) => 1,
        }
    }

    /// The GPU that it runs on.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.backend {
            Backend::Cpu(_) => None,
            Backend::Cuda(session) => Some(session.gpu()),
        }
    }

    /// Who chose the tiles of its products on a GPU, the cost model or a table; `None` on the processor.
    pub fn tiles(&self) -> Option<TileCounts> {
        match &self.backend {
            Backend::Cpu(_) => None,
            Backend::Cuda(session) => Some(session.program().tiles()),
        }
    }

    /// What the machine reaches at this moment, which no run can exceed. Takes about 20 ms, on a GPU 100 ms.
    ///
    /// # Errors
    /// A GPU cannot be measured.
    pub fn limits(&self) -> Result<Limits, SessionError> {
        match &self.backend {
            Backend::Cpu(session) => Ok(Limits { flops: peak_flops(session.program()), copy_bytes: None }),
            Backend::Cuda(session) => Ok(session.gpu().limits(product_dtype(self.plan()))?),
        }
    }

    /// What memory is used for.
    pub fn memory_use(&self) -> MemoryUse {
        let mut memory = match &self.backend {
            Backend::Cpu(session) => session.memory_use(),
            Backend::Cuda(session) => session.memory_use(),
        };
        memory.arenas += self.last.as_ref().map_or(0, Prompt::bytes);
        memory
    }

    /// Runs the entry. `dims` gives the sizes that the inputs' shapes do not decide.
    ///
    /// # Errors
    /// Inputs or sizes do not fit, or there is not enough memory.
    pub fn run(&mut self, inputs: &TensorMap, dims: &[(String, i64)]) -> Result<TensorMap, SessionError> {
        self.run_profiled(inputs, dims, None)
    }

    /// [`Session::run`], adding the time of every launch to `profile`: wall time, or on a GPU that between events.
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
        match &self.backend {
            Backend::Cpu(session) => drop(session.program().bind(&bindings)?),
            Backend::Cuda(session) => drop(session.program().bind(&bindings)?),
        }
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

    /// [`Session::step`], adding the time of every launch to `profile`.
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
        let tensors = converted(&self.signature, inputs, &prompt.bindings, |rate| rate == Rate::Step)?;
        let mut outputs = Vec::with_capacity(self.plan().outputs.len());
        for output in &self.plan().outputs {
            let shape = evaluated_shape(&output.ty, &prompt.bindings).map_err(InputError::from)?;
            outputs.push(HostTensor::zeros(output.ty.dtype, &shape)?);
        }
        match (&mut self.backend, &prompt.values) {
            (Backend::Cpu(session), Values::Cpu(values)) => {
                session.step(values, &tensors, &mut outputs, profile)?;
            }
            (Backend::Cuda(session), Values::Cuda(values)) => {
                session.step(values, &tensors, &mut outputs, profile)?;
            }
            _ => return Err(SessionError::OtherSession),
        }
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
        // Once the sizes are known to fit.
        let signature = &self.signature;
        let kept = || converted(signature, inputs, &bindings, |rate| rate < Rate::Step);
        let same = again.as_ref().is_some_and(|prompt| prompt.bindings == bindings);
        let values = match (&mut self.backend, again.map(|prompt| prompt.values)) {
            (Backend::Cpu(session), again) => {
                let again = match again {
                    Some(Values::Cpu(values)) => Some((values, same)),
                    _ => None,
                };
                Values::Cpu(session.prepare(&bindings, &kept, again, profile)?)
            }
            (Backend::Cuda(session), again) => {
                let again = match again {
                    Some(Values::Cuda(values)) => Some((*values, same)),
                    _ => None,
                };
                Values::Cuda(Box::new(session.prepare(&bindings, &kept, again, profile)?))
            }
        };
        Ok(Prompt { session: self.id, bindings, values })
    }
}

/// Inputs by position; `None` for those of other rates.
type Inputs = Vec<Option<HostTensor>>;

/// The inputs of some rates as the entry takes them.
fn converted(
    signature: &Signature,
    inputs: &TensorMap,
    bindings: &Bindings,
    of: impl Fn(Rate) -> bool,
) -> Result<Inputs, SessionError> {
    let mut tensors = Vec::with_capacity(signature.inputs.len());
    for spec in &signature.inputs {
        let given = of(spec.rate);
        tensors.push(given.then(|| Signature::convert(spec, inputs, bindings)).transpose()?);
    }
    Ok(tensors)
}
