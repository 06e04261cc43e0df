//! The engine of real training: the entry `loss` of a model, differentiated and compiled, and the optimisers, on flat parameters.

mod entry;

use nucleus_ir::DType;
use nucleus_passes::differentiate::gradient_name;
use nucleus_passes::elaborate::ConfigValue;
use nucleus_passes::remat::Remat;
use nucleus_runtime::gpu::{CudaError, Gpu};
use nucleus_runtime::routine::{Arguments, Backend, Routine, RoutineError};
use nucleus_runtime::{Model, ModelError, Profile, TensorError, Threads};
use thiserror::Error;

use self::entry::{inputs, is_finite, loss_plan, scalar_outputs, weight_infos};
use crate::data::Batch;
use crate::engine::{Engine, EngineError, Losses, NonFinite, State, StateMut, StateTensor};
use crate::groups::{Group, GroupError, Optimizer, WeightInfo, assign, matches};
use crate::optimizers::{OptimizerError, Optimizers};
use crate::parameters::{FreshError, ParameterMemoryError, Parameters, split};
use crate::recipe::Stage;

/// Compiled stages that are kept.
const KEPT_PROGRAMS: usize = 4;

/// Why the engine could not be made or run.
#[derive(Debug, Error)]
pub enum GraphEngineError {
    /// The model does not compile.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A weight whose size is not known, or not a float.
    #[error("weight `{name}` is {ty}: only floats of constant sizes are trained")]
    Weight {
        /// Its name.
        name: String,
        /// Its type.
        ty: String,
    },
    /// The weights cannot be divided into groups.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] ParameterMemoryError),
    /// An optimiser failed.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The loss failed.
    #[error("the loss: {0}")]
    Loss(#[source] Box<RoutineError>),
    /// An input cannot be converted.
    #[error("input `{name}`: {source}")]
    Input {
        /// Its name.
        name: String,
        /// Why.
        source: TensorError,
    },
    /// An output that is neither a scalar nor a gradient.
    #[error(
        "output `{name}` of entry `loss` is {ty}: its outputs are scalars, the loss first and then its parts"
    )]
    Output {
        /// Its name.
        name: String,
        /// Its type.
        ty: String,
    },
    /// The GPU failed, or its memory is too small.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The capacity factors of a stage do not fit the model.
    #[error("{0}")]
    Capacity(String),
}

impl From<RoutineError> for GraphEngineError {
    fn from(error: RoutineError) -> GraphEngineError {
        GraphEngineError::Loss(Box::new(error))
    }
}

impl From<FreshError> for GraphEngineError {
    fn from(error: FreshError) -> GraphEngineError {
        match error {
            FreshError::Host(error) => error.into(),
            FreshError::Device(error) => error.into(),
        }
    }
}

impl From<GraphEngineError> for EngineError {
    fn from(error: GraphEngineError) -> EngineError {
        EngineError::new(error)
    }
}

/// What is minimised, and how it is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOptions {
    /// The element type of products.
    pub dtype: DType,
    /// What the backward pass recomputes; `None` for nothing.
    pub remat: Option<Remat>,
    /// Values of scalar inputs of the entry that batches do not give: the coefficients of the parts of the loss that are outputs of the same
    /// name. Parts without one count once.
    pub coefficients: Vec<(String, f64)>,
    /// Coefficient of the routers' orthogonality update; 0 for none.
    pub orthogonality: f64,
    /// Patterns of the names of routers, whose rows the orthogonality update pushes apart.
    pub routers: Vec<String>,
}

/// A compiled loss with its gradients.
struct Program {
    /// The capacity factors that it was compiled for.
    capacity: Option<Vec<f64>>,
    routine: Routine,
}

/// See the [module documentation](self).
pub struct GraphEngine {
    model: Model,
    groups: Vec<Group>,
    options: LossOptions,
    threads: Threads,
    backend: Backend,
    parameters: Parameters,
    optimizers: Optimizers,
    /// The one in use last.
    programs: Vec<Program>,
    /// Gradients of a microbatch, where a step has several.
    fresh: Vec<f32>,
    /// No microbatch of this step has been seen.
    untouched: bool,
    last_losses: Losses,
    /// A tensor of the last batch that is not finite, looked for where its losses are not.
    broken_input: Option<String>,
    /// What the gradients of the weights are called, in the order of memory.
    gradient_names: Vec<String>,
}

impl GraphEngine {
    /// Compiles the loss of a model and what its groups need. All weights are zero.
    ///
    /// # Errors
    /// The model has no entry `loss` or does not compile, groups do not fit the weights, or there is not enough memory.
    pub fn new(
        model: Model,
        groups: &[Group],
        options: LossOptions,
        threads: Option<usize>,
    ) -> Result<GraphEngine, GraphEngineError> {
        GraphEngine::with_gpu(model, groups, options, threads, None)
    }

    /// [`GraphEngine::new`] on a GPU, if one is given: weights, gradients and state lie in its memory.
    ///
    /// # Errors
    /// As for [`GraphEngine::new`], or the GPU fails.
    pub fn with_gpu(
        model: Model,
        groups: &[Group],
        options: LossOptions,
        threads: Option<usize>,
        gpu: Option<&Gpu>,
    ) -> Result<GraphEngine, GraphEngineError> {
        let threads =
            Threads::new(threads.unwrap_or(0)).map_err(|source| RoutineError::Compile(source.into()))?;
        let backend = gpu.map_or_else(|| Backend::from(&threads), Backend::from);
        let plan = loss_plan(&model, &options)?;
        let weights = weight_infos(&plan)?;
        let assignment = assign(groups, &weights)?;
        let mut parameters = Parameters::new(&weights, groups, &assignment)?;
        if let Some(gpu) = gpu {
            parameters.move_to(gpu)?;
        }
        let optimizers = Optimizers::new(&parameters, groups, &backend)?;
        let routine = Routine::new(plan, &backend, None)?;
        let gradient_names =
            parameters.by_memory().iter().map(|parameter| gradient_name(&parameter.info.name)).collect();
        Ok(GraphEngine {
            model,
            groups: groups.to_vec(),
            options,
            threads,
            backend,
            parameters,
            optimizers,
            programs: vec![Program { capacity: None, routine }],
            fresh: Vec::new(),
            untouched: true,
            last_losses: Losses::default(),
            broken_input: None,
            gradient_names,
        })
    }

    /// The parameters. On a GPU what they hold in host memory is of the last [`Engine::fetch`].
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The same, to be set.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        self.parameters.touch();
        &mut self.parameters
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model as the stage has it: with the stage's capacity factors.
    ///
    /// # Errors
    /// The text was read before, so none that a user could cause.
    pub fn model_of_stage(&self) -> Result<Model, ModelError> {
        let mut model = Model::from_text(self.model.text())?;
        model.set_config(self.model.config().clone());
        if let Some(factors) = self.programs.last().and_then(|program| program.capacity.as_ref()) {
            set_capacity(&mut model, factors);
        }
        Ok(model)
    }

    /// The worker threads.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The GPU, if it is on one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.backend {
            Backend::Cpu(_) => None,
            Backend::Cuda(gpu) => Some(gpu),
        }
    }

    /// Waits for what was put into the stream of a GPU.
    ///
    /// # Errors
    /// Something in it failed.
    pub fn wait(&self) -> Result<(), EngineError> {
        let waited = self.gpu().map_or(Ok(()), |gpu| gpu.stream().synchronize());
        Ok(waited.map_err(GraphEngineError::from)?)
    }

    /// The compiled loss in use, which knows the sizes that it ran at last and the machine's limit.
    pub fn routine(&self) -> Option<&Routine> {
        self.programs.last().map(|program| &program.routine)
    }

    /// As [`accumulate`](Engine::accumulate), and adds the time of every launch of the loss to a profile.
    ///
    /// # Errors
    /// As `accumulate`.
    pub fn accumulate_profiled(
        &mut self,
        batch: &Batch,
        scale: f64,
        profile: &mut Profile,
    ) -> Result<Losses, EngineError> {
        let losses = self.loss(batch, scale, Some(profile))?;
        self.last_losses = losses.clone();
        Ok(losses)
    }

    /// From now on the times of the optimisers' launches are added up.
    pub fn begin_optimizer_profile(&mut self) {
        self.optimizers.begin_profile();
    }

    /// The optimisers' programs that ran since, with the times of their launches.
    pub fn optimizer_profile(&self) -> impl Iterator<Item = &crate::optimizers::Program> {
        self.optimizers.profiled()
    }

    /// Bytes of parameters, gradients and state, and of the arenas of the loss.
    pub fn memory(&self) -> (u64, u64) {
        let arenas = self.programs.iter().map(|program| program.routine.arena_bytes()).sum();
        ((self.parameters.bytes() + 4 * self.fresh.len()) as u64, arenas)
    }

    fn loss(
        &mut self,
        batch: &Batch,
        scale: f64,
        profile: Option<&mut Profile>,
    ) -> Result<Losses, GraphEngineError> {
        let Some(program) = self.programs.last_mut() else { return Ok(Losses::default()) };
        let routine = &mut program.routine;
        let (inputs, scalars) = inputs(routine, batch, &self.options.coefficients)?;
        let dims: Vec<(String, i64)> = batch
            .dims
            .iter()
            .filter(|(name, _)| routine.signature().dims.iter().any(|dim| dim.as_str() == name))
            .cloned()
            .collect();
        let names = scalar_outputs(routine.plan())?;
        let mut values = vec![0.0f32; names.len()];
        // The first gradients of a step are written where they are summed.
        let direct = self.untouched && scale == 1.0;
        self.parameters.give()?;
        if !direct {
            self.parameters.reserve_fresh(&mut self.fresh)?;
        }
        let mut arguments = Arguments::new();
        for (name, tensor) in inputs.iter() {
            arguments.input(name, tensor);
        }
        for (name, value) in &scalars {
            arguments.input(name, value);
        }
        for (name, value) in names.iter().zip(&mut values) {
            arguments.output(name, value);
        }
        let slots = self.parameters.slots((!direct).then_some(&mut self.fresh));
        for (slot, gradient) in slots.into_iter().zip(&self.gradient_names) {
            arguments.weight(slot.name, slot.weight).output(gradient, slot.gradient);
        }
        routine.run(&dims, &mut arguments, profile)?;
        let finite = values.iter().all(|value| value.is_finite());
        self.broken_input =
            inputs.iter().find(|(_, tensor)| !finite && !is_finite(tensor)).map(|(name, _)| name.clone());
        if !direct {
            if self.untouched {
                self.parameters.clear_gradients()?;
            }
            let elements = self.parameters.total();
            let (sum, fresh) = self.parameters.sum_and_fresh(&self.fresh);
            self.optimizers.accumulate(sum, fresh, elements, scale as f32)?;
        }
        self.untouched = false;
        let coefficient = |name: &str| {
            let known = self.options.coefficients.iter().find(|(part, _)| part == name);
            known.map_or(1.0, |(_, value)| *value)
        };
        let mut losses = names.iter().zip(values).map(|(name, value)| (name.clone(), f64::from(value)));
        let total = losses.next().map_or(0.0, |(_, total)| total);
        let parts = losses.map(|(name, value)| (name.clone(), coefficient(&name) * value)).collect();
        Ok(Losses { total, parts })
    }

    /// Compiles the loss for capacity factors, unless that was done.
    fn select(&mut self, capacity: Option<Vec<f64>>) -> Result<(), GraphEngineError> {
        if let Some(position) = self.programs.iter().position(|program| program.capacity == capacity) {
            let program = self.programs.remove(position);
            self.programs.push(program);
            return Ok(());
        }
        let original = self.model.config().clone();
        if let Some(factors) = &capacity {
            set_capacity(&mut self.model, factors);
        }
        let plan = loss_plan(&self.model, &self.options);
        self.model.set_config(original);
        let routine = Routine::new(plan?, &self.backend, None)?;
        if self.programs.len() >= KEPT_PROGRAMS {
            self.programs.remove(0);
        }
        self.programs.push(Program { capacity, routine });
        Ok(())
    }

    fn push_routers_apart(&mut self, lr_factor: f64) -> Result<(), GraphEngineError> {
        if self.options.orthogonality == 0.0 {
            return Ok(());
        }
        let routers: Vec<_> = self
            .parameters
            .list()
            .iter()
            .filter(|parameter| {
                self.options.routers.iter().any(|router| matches(router, &parameter.info.name))
            })
            .map(|parameter| (parameter.range.clone(), parameter.info.shape.clone()))
            .collect();
        for (range, shape) in routers {
            let [rows, columns] = shape[..] else { continue };
            let router = self.parameters.bucket(range).weight;
            self.optimizers.orthogonalize(router, rows, columns, self.options.orthogonality * lr_factor)?;
        }
        Ok(())
    }
}

fn set_capacity(model: &mut Model, factors: &[f64]) {
    let list = factors.iter().map(|factor| ConfigValue::Float(*factor)).collect();
    model.apply_values(&[("capacity_factors".to_owned(), ConfigValue::List(list))]);
}

impl Engine for GraphEngine {
    fn weights(&self) -> Vec<WeightInfo> {
        self.parameters.list().iter().map(|parameter| parameter.info.clone()).collect()
    }

    fn begin_stage(&mut self, stage: &Stage) -> Result<(), EngineError> {
        let capacity = match &stage.capacity_factor {
            None => None,
            Some(factor) => {
                let layers = match self.model.config().get("num_layers") {
                    Some(ConfigValue::Int(layers)) => usize::try_from(*layers).unwrap_or(0),
                    _ => {
                        return Err(GraphEngineError::Capacity(
                            "`capacity_factor` needs a model with the config key num_layers".to_owned(),
                        )
                        .into());
                    }
                };
                Some(factor.per_layer(layers).map_err(GraphEngineError::Capacity)?)
            }
        };
        Ok(self.select(capacity)?)
    }

    fn begin_step(&mut self) -> Result<(), EngineError> {
        self.untouched = true;
        self.last_losses = Losses::default();
        Ok(())
    }

    fn accumulate(&mut self, batch: &Batch, scale: f64) -> Result<Losses, EngineError> {
        let losses = self.loss(batch, scale, None)?;
        self.last_losses = losses.clone();
        Ok(losses)
    }

    fn gradient_norm(&mut self) -> Result<f64, EngineError> {
        self.parameters.give().map_err(GraphEngineError::from)?;
        let sum = self.optimizers.sum_of_squares(&self.parameters).map_err(GraphEngineError::from)?;
        Ok(sum.sqrt())
    }

    fn update(&mut self, step: u64, lr_factor: f64, gradient_scale: f64) -> Result<(), EngineError> {
        self.parameters.give().map_err(GraphEngineError::from)?;
        self.optimizers
            .update(&mut self.parameters, &self.groups, step, lr_factor, gradient_scale)
            .map_err(GraphEngineError::from)?;
        Ok(self.push_routers_apart(lr_factor)?)
    }

    fn first_non_finite(&mut self) -> Result<Option<NonFinite>, EngineError> {
        self.fetch()?;
        if let Some(name) = self.parameters.first_non_finite_weight() {
            return Ok(Some(NonFinite::Weight(name.to_owned())));
        }
        if let Some(name) = &self.broken_input {
            return Ok(Some(NonFinite::Input(name.clone())));
        }
        let part = self.last_losses.parts.iter().find(|(_, value)| !value.is_finite());
        if let Some((part, _)) = part {
            return Ok(Some(NonFinite::Loss(part.clone())));
        }
        Ok(self.parameters.first_non_finite_gradient().map(|name| NonFinite::Gradient(name.to_owned())))
    }

    fn fetch(&mut self) -> Result<(), EngineError> {
        Ok(self.parameters.fetch().map_err(GraphEngineError::from)?)
    }

    fn state(&self) -> State<'_> {
        let parameters = &self.parameters;
        let mut state = State::default();
        for parameter in parameters.list() {
            let (name, shape) = (parameter.info.name.clone(), parameter.info.shape.clone());
            state.weights.push(StateTensor {
                name,
                shape,
                values: &parameters.values[parameter.range.clone()],
            });
        }
        for (name, parameter, second) in state_names(parameters, &self.groups) {
            let memory = if second { &parameters.second } else { &parameters.first };
            let shape = parameters.list()[parameter].info.shape.clone();
            let values = &memory[parameters.list()[parameter].range.clone()];
            state.optimizer.push(StateTensor { name, shape, values });
        }
        state
    }

    fn state_mut(&mut self) -> StateMut<'_> {
        self.parameters.touch();
        let names = state_names(&self.parameters, &self.groups);
        let list = self.parameters.list().to_vec();
        let Parameters { values, first, second, .. } = &mut self.parameters;
        let mut weights = by_parameter(&list, values);
        let (mut first, mut second) = (by_parameter(&list, first), by_parameter(&list, second));
        let mut state = StateMut::default();
        for (parameter, values) in list.iter().zip(&mut weights) {
            let (name, shape) = (parameter.info.name.clone(), parameter.info.shape.clone());
            state.weights.extend(values.take().map(|values| StateTensor { name, shape, values }));
        }
        for (name, parameter, of_second) in names {
            let memory = if of_second { &mut second } else { &mut first };
            let shape = list[parameter].info.shape.clone();
            state.optimizer.extend(memory[parameter].take().map(|values| StateTensor {
                name,
                shape,
                values,
            }));
        }
        state
    }
}

/// The optimisers' tensors in the order of the weights: name, weight, and whether it lies among the second moments.
fn state_names(parameters: &Parameters, groups: &[Group]) -> Vec<(String, usize, bool)> {
    let mut names = Vec::new();
    for (position, parameter) in parameters.list().iter().enumerate() {
        let name = &parameter.info.name;
        match groups[parameter.group].optimizer {
            Optimizer::Muon(_) => names.push((format!("momentum_buffer/{name}"), position, false)),
            Optimizer::AdamW(_) => {
                names.push((format!("first_moment/{name}"), position, false));
                names.push((format!("second_moment/{name}"), position, true));
            }
        }
    }
    names
}

/// The part of a piece of memory that belongs to each weight; `None` where the memory ends before it.
fn by_parameter<'a>(
    list: &[crate::parameters::Parameter],
    memory: &'a mut [f32],
) -> Vec<Option<&'a mut [f32]>> {
    let mut order: Vec<usize> = (0..list.len()).filter(|at| list[*at].range.end <= memory.len()).collect();
    order.sort_by_key(|at| list[*at].range.start);
    let slices = split(memory, order.iter().map(|at| list[*at].range.len()));
    let mut result: Vec<Option<&mut [f32]>> = list.iter().map(|_| None).collect();
    for (at, slice) in order.into_iter().zip(slices) {
        result[at] = Some(slice);
    }
    result
}
