//! What the training loop needs of the thing that computes: weights, gradients and optimiser state behind one trait.

use std::error::Error;
use std::fmt;

use crate::data::Batch;
use crate::groups::WeightInfo;
use crate::recipe::Stage;

/// Computes losses and gradients and moves the weights. It owns weights, gradients and optimiser state, all f32.
///
/// A step is [`begin_step`](Engine::begin_step), [`accumulate`](Engine::accumulate) for every microbatch,
/// [`gradient_norm`](Engine::gradient_norm), [`update`](Engine::update). Equal calls on equal state give equal bits, whatever the number
/// of threads.
pub trait Engine {
    /// Names and shapes of the weights under training.
    fn weights(&self) -> Vec<WeightInfo>;

    /// The steps to come are of this stage: batches have its size, routing its capacity factors. Comes before the first step, after a
    /// resumption too; weights and state are untouched.
    ///
    /// # Errors
    /// The model cannot be built with the stage's settings.
    fn begin_stage(&mut self, stage: &Stage) -> Result<(), EngineError>;

    /// Gradients become zero.
    ///
    /// # Errors
    /// The engine failed.
    fn begin_step(&mut self) -> Result<(), EngineError>;

    /// gradient ← gradient + scale · ∇loss(batch). The losses are those of the batch, not scaled.
    ///
    /// # Errors
    /// The batch does not fit the model, or the engine failed.
    fn accumulate(&mut self, batch: &Batch, scale: f64) -> Result<Losses, EngineError>;

    /// √Σ gradient², over all weights.
    ///
    /// # Errors
    /// The engine failed.
    fn gradient_norm(&mut self) -> Result<f64, EngineError>;

    /// One step of the optimisers: learning rates times `lr_factor`, gradients times `gradient_scale`. `step` counts from 1, as Adam's
    /// bias correction does. A weight that the loss does not reach has a zero gradient, and decays.
    ///
    /// # Errors
    /// The engine failed.
    fn update(&mut self, step: u64, lr_factor: f64, gradient_scale: f64) -> Result<(), EngineError>;

    /// Where a loss or gradient stopped being finite: what was given comes before what was made of it. Asked once one did, before the gradients
    /// are touched again.
    ///
    /// # Errors
    /// The engine failed.
    fn first_non_finite(&mut self) -> Result<Option<NonFinite>, EngineError>;

    /// Brings what [`state`](Engine::state) shows up to date, where it is computed elsewhere.
    ///
    /// # Errors
    /// The engine failed.
    fn fetch(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Everything that a checkpoint keeps, as of the last [`fetch`](Engine::fetch).
    fn state(&self) -> State<'_>;

    /// The same, to be overwritten when a run goes on. What the engine derives from the weights it must derive again afterwards.
    fn state_mut(&mut self) -> StateMut<'_>;
}

/// The losses of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// What is minimised.
    pub total: f64,
    /// Its parts by name, with their coefficients: they add up to the total.
    pub parts: Vec<(String, f64)>,
}

/// The first thing that is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// An element of a weight, by its name.
    Weight(String),
    /// An element of a tensor of the batch, by its name.
    Input(String),
    /// A part of the loss, by its name.
    Loss(String),
    /// The gradient of a weight, by the weight's name.
    Gradient(String),
}

/// A tensor of a run where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor<V> {
    /// A weight's checkpoint name, or a name that is unique among the optimisers' tensors.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: V,
}

/// What a checkpoint keeps of an engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State<'a> {
    /// The weights, those that are not trained too.
    pub weights: Vec<StateTensor<&'a [f32]>>,
    /// Moments and whatever else the optimisers remember.
    pub optimizer: Vec<StateTensor<&'a [f32]>>,
}

/// What a checkpoint gives back to an engine: the tensors of [`State`], in the same order.
#[derive(Debug, Default, PartialEq)]
pub struct StateMut<'a> {
    /// The weights.
    pub weights: Vec<StateTensor<&'a mut [f32]>>,
    /// The optimisers' tensors.
    pub optimizer: Vec<StateTensor<&'a mut [f32]>>,
}

/// Why an engine failed.
#[derive(Debug)]
pub struct EngineError(Box<dyn Error + Send + Sync>);

impl EngineError {
    /// Wraps an error, or a message.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> EngineError {
        EngineError(source.into())
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
