//! Sessions: a plan with its weights, ready to run again and again.

use nucleus_cpu::buffer::{AlignedBuffer, OutOfMemory};
use nucleus_cpu::{
    BindError, BoundPlan, BufferPointer, BufferTable, CompileError, CpuProgram, ExecuteError, Options,
    Profile,
};
use nucleus_ir::{Bindings, DType, Rate, TensorType};
use nucleus_plan::{BufferId, Place, Plan};
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, Expected, Extras, WeightView};
use crate::convert::{self, ConvertError};
use crate::inputs::{InputError, Signature, evaluated_shape};
use crate::machine::physical_memory;
use crate::sizes::SizeError;
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;

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
    /// A weight could not be converted.
    #[error("weight `{name}`: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        source: ConvertError,
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
    /// A launch failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

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
    buffer: BufferId,
    tensor: HostTensor,
}

/// A plan compiled for this machine, with its weights packed and the memory of its runs.
///
/// Weights are packed when the session is made, and the mapped pages of the checkpoint given back as that goes on, so a session holds
/// about one copy of them. Arenas are kept from run to run and grow when larger sizes come.
pub struct Session {
    program: CpuProgram,
    signature: Signature,
    checkpoint: Checkpoint,
    plain: Vec<PlainWeight>,
    table: BufferTable,
    arenas: [AlignedBuffer; 3],
    bound: Option<(Bindings, BoundPlan)>,
    /// The values of stage `model` are in their arena and everything is packed.
    loaded: bool,
}

impl Session {
    /// Compiles a plan and binds its weights, packing them on the way.
    ///
    /// # Errors
    /// The weights do not fit the plan, or the machine cannot run it.
    pub fn new(
        plan: Plan,
        checkpoint: Checkpoint,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        Session::with_progress(plan, checkpoint, options, &mut |_, _| {})
    }

    /// [`Session::new`]; `progress` hears how many of the packed weights are done, and how many there are.
    ///
    /// # Errors
    /// As for [`Session::new`].
    pub fn with_progress(
        plan: Plan,
        checkpoint: Checkpoint,
        options: &SessionOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session, SessionError> {
        checkpoint.check(&expected(&plan), options.extras)?;
        let signature = Signature::from(&plan);
        let program = CpuProgram::compile(
            plan,
            Options {
                threads: options.threads.unwrap_or(0),
                isa: None,
                memory_limit: options.memory_limit.unwrap_or_else(physical_memory),
            },
        )?;
        let table = BufferTable::new(program.plan());
        let mut session = Session {
            program,
            signature,
            checkpoint,
            plain: Vec::new(),
            table,
            arenas: Default::default(),
            bound: None,
            loaded: false,
        };
        session.bind_weights()?;
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

    /// What memory is used for.
    pub fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            packed: self.program.packed_bytes() as u64,
            plain: self.plain.iter().map(|weight| weight.tensor.bytes().len() as u64).sum(),
            arenas: self.arenas.iter().map(|arena| arena.len() as u64).sum(),
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
        self.bind(&bindings)?;
        let mut tensors = Vec::with_capacity(self.signature.inputs.len());
        for spec in &self.signature.inputs {
            tensors.push(Signature::convert(spec, inputs, &bindings)?);
        }
        let mut outputs = Vec::with_capacity(self.plan().outputs.len());
        for output in &self.program.plan().outputs {
            let shape = evaluated_shape(&output.ty, &bindings).map_err(InputError::from)?;
            outputs.push(HostTensor::zeros(output.ty.dtype, &shape)?);
        }
        self.point_at(&mut tensors, &mut outputs);
        let Some((_, bound)) = self.bound.take() else {
            return Err(InputError::from(SizeError::from(nucleus_ir::DimError::Overflow)).into());
        };
        let mut outcome = if self.loaded { Ok(()) } else { self.load(&bound, &mut |_, _| {}) };
        for stage in [Rate::Prompt, Rate::Step] {
            outcome = outcome.and_then(|()| {
                // SAFETY: the table points at the weights, arenas, inputs and outputs that this session and this call own; nothing else
                // uses them until the call returns. Inputs are only read. Plans come from the compiler or are verified when an artifact
                // is opened.
                let ran = unsafe { self.program.execute(&bound, stage, &self.table, profile.as_deref_mut()) };
                Ok(ran?)
            });
        }
        self.bound = Some((bindings, bound));
        self.forget_call();
        outcome?;
        let names = self.plan().outputs.iter().map(|output| output.name.clone());
        let mut map = TensorMap::new();
        for (name, tensor) in names.zip(outputs) {
            map.insert(name, tensor);
        }
        Ok(map)
    }

    /// Evaluates the plan's sizes unless the last run had the same, and gives the arenas memory.
    fn bind(&mut self, bindings: &Bindings) -> Result<(), SessionError> {
        if self.bound.as_ref().is_some_and(|(known, _)| known == bindings) {
            return Ok(());
        }
        let bound = self.program.bind(bindings)?;
        self.place_arenas(&bound)?;
        self.bound = Some((bindings.clone(), bound));
        Ok(())
    }

    fn place_arenas(&mut self, bound: &BoundPlan) -> Result<(), SessionError> {
        for rate in Rate::ALL {
            let arena = &mut self.arenas[rate as usize];
            let needed = bound.arena_bytes(rate);
            if arena.len() < needed {
                // The values of stage `model` are computed again where their arena moves; its size never changes once it is loaded.
                self.loaded &= rate != Rate::Model;
                let full = |source| SessionError::Arena { rate: rate.name(), source };
                arena.try_reserve(needed).map_err(full)?;
            }
            bound.place_arena(self.program.plan(), rate, arena.as_ptr(), arena.len(), &mut self.table)?;
        }
        Ok(())
    }

    /// Runs the stage `model`, packs right factors and gives the checkpoint's pages back.
    fn load(
        &mut self,
        bound: &BoundPlan,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), SessionError> {
        self.place_arenas(bound)?;
        let uses = self.program.weight_uses();
        let total = uses.iter().filter(|weight| weight.packed).count();
        let mut done = 0;
        let checkpoint = &self.checkpoint;
        let mut packed = |name: &str| {
            checkpoint.release(name);
            done += 1;
            progress(done, total);
        };
        // SAFETY: as in `run_profiled`; weights that are packed point into the mapped checkpoint, which this session owns, or at a
        // converted copy, and are only read.
        unsafe {
            self.program.execute(bound, Rate::Model, &self.table, None)?;
            self.program.prepare(&self.table, &mut packed)?;
        }
        for weight in uses.iter().filter(|weight| !weight.plain) {
            self.table.clear(weight.buffer);
        }
        self.plain.retain(|kept| uses.iter().any(|weight| weight.plain && weight.buffer == kept.buffer));
        self.loaded = true;
        Ok(())
    }

    /// Points the table at the weights: plain ones at copies in the plan's element type, packed ones into the mapped checkpoint.
    fn bind_weights(&mut self) -> Result<(), SessionError> {
        for weight in self.program.weight_uses() {
            let wanted = self.program.plan().buffer(weight.buffer).dtype;
            let Some(view) = self.checkpoint.get(&weight.name) else { continue };
            let stored = view.dtype().unwrap_or(wanted);
            let aligned = (view.bytes.as_ptr() as usize).is_multiple_of(stored.size());
            if !weight.plain && aligned && (stored == wanted || weight.any_float) {
                let pointer = BufferPointer {
                    data: view.bytes.as_ptr().cast_mut(),
                    bytes: view.bytes.len(),
                    dtype: stored,
                };
                self.table.set(weight.buffer, pointer);
                continue;
            }
            let mut tensor = plain_copy(&weight.name, &view, stored, wanted)?;
            self.checkpoint.release(&weight.name);
            let bytes = tensor.bytes_mut();
            let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype: wanted };
            self.table.set(weight.buffer, pointer);
            self.plain.push(PlainWeight { buffer: weight.buffer, tensor });
        }
        Ok(())
    }

    /// Points the table at the inputs and outputs of one call.
    fn point_at(&mut self, inputs: &mut [HostTensor], outputs: &mut [HostTensor]) {
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            let tensor = match buffer.place {
                Place::Input(index) => inputs.get_mut(index as usize),
                Place::Output(index) => outputs.get_mut(index as usize),
                _ => None,
            };
            if let Some(tensor) = tensor {
                let dtype = tensor.dtype();
                let bytes = tensor.bytes_mut();
                let pointer = BufferPointer { data: bytes.as_mut_ptr(), bytes: bytes.len(), dtype };
                self.table.set(BufferId(position as u32), pointer);
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

/// What a plan needs of a checkpoint: every weight that the model names, used or not.
fn expected(plan: &Plan) -> Vec<Expected> {
    let shape = |ty: &TensorType| evaluated_shape(ty, &Bindings::new()).unwrap_or_default();
    plan.weights.iter().map(|(name, ty)| Expected::new(name.as_str(), shape(ty))).collect()
}

fn plain_copy(
    name: &str,
    view: &WeightView<'_>,
    stored: DType,
    wanted: DType,
) -> Result<HostTensor, SessionError> {
    let mut tensor = HostTensor::zeros(wanted, view.shape)?;
    convert::convert(stored, view.bytes, wanted, tensor.bytes_mut())
        .map_err(|source| SessionError::Weight { name: name.to_owned(), source })?;
    Ok(tensor)
}
