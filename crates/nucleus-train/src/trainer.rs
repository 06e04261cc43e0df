//! The loop: stages, accumulation, clipping, the log, checkpoints and samples, around an [`Engine`].

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use thiserror::Error;

use crate::curve;
use crate::data::{DataError, Place, Source};
use crate::engine::{Engine, EngineError, Losses, NonFinite};
use crate::groups::{GroupError, assign};
use crate::log::{Log, LogError, StepRecord, read_losses};
use crate::recipe::{Recipe, Stage};

/// An error of a part that the loop does not know.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Where a run stands: with the recipe and the data, all that is needed to go on, besides the engine's tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPosition {
    /// Steps done.
    pub step: u64,
    /// The run's seed.
    pub seed: u64,
    /// [`Recipe::fingerprint`].
    pub recipe: String,
}

/// Where checkpoints lie.
pub trait Checkpoints {
    /// The step of the newest complete checkpoint.
    ///
    /// # Errors
    /// The file system refuses.
    fn latest(&mut self) -> Result<Option<u64>, BoxError>;

    /// Gives a checkpoint's tensors to the engine.
    ///
    /// # Errors
    /// The checkpoint is broken or of another model. The engine is then not to be used.
    fn load(&mut self, step: u64, engine: &mut dyn Engine) -> Result<RunPosition, BoxError>;

    /// Writes a checkpoint: it is there as a whole when this returns, and not at all before.
    ///
    /// # Errors
    /// The file system refuses. Earlier checkpoints are as they were.
    fn save(&mut self, position: &RunPosition, engine: &dyn Engine) -> Result<(), BoxError>;
}

/// Looks on, and says when to stop. Every method may be left out.
pub trait Observer<E> {
    /// Training begins after step `from` and ends with step `to`.
    fn started(&mut self, from: u64, to: u64) {
        let _ = (from, to);
    }

    /// Something that a person should know, and that does not stop the run.
    fn note(&mut self, text: &str) {
        let _ = text;
    }

    /// A stage begins; `number` counts from 1.
    fn stage(&mut self, number: usize, stage: &Stage) {
        let _ = (number, stage);
    }

    /// A step was done, and its line written.
    fn step(&mut self, record: &StepRecord) {
        let _ = record;
    }

    /// A checkpoint was written.
    fn saved(&mut self, step: u64) {
        let _ = step;
    }

    /// It is time for sample pictures.
    ///
    /// # Errors
    /// They cannot be drawn or written; the run stops. The checkpoint of the step, if it has one, is already written.
    fn sample(&mut self, step: u64, engine: &mut E) -> Result<(), BoxError> {
        let _ = (step, engine);
        Ok(())
    }

    /// Asked after every step: true ends the run with a checkpoint.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Looks away.
impl<E> Observer<E> for () {}

/// Why training stopped.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The weights cannot be divided into groups.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// There is no batch for a stage.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The batch of a step cannot be read. The weights are those of the step before.
    #[error("step {step}: {source}. The step was not taken, {}", kept(*.checkpoint))]
    Batch {
        /// The step, from 1.
        step: u64,
        /// What is wrong, by file and tensor.
        source: DataError,
        /// Step of the last checkpoint, which is untouched.
        checkpoint: Option<u64>,
    },
    /// The log cannot be kept.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The folder of the run cannot be made.
    #[error("cannot make folder `{}`: {source}", .path.display())]
    Out {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine failed.
    #[error("step {step}: {source}")]
    Engine {
        /// The step, from 1.
        step: u64,
        /// What the engine said.
        source: EngineError,
    },
    /// A checkpoint cannot be read or written.
    #[error("cannot {action} the checkpoint of step {step}: {source}")]
    Checkpoint {
        /// What was tried.
        action: &'static str,
        /// The step.
        step: u64,
        /// Why.
        source: BoxError,
    },
    /// The folder of the run cannot be searched for checkpoints.
    #[error("cannot look for checkpoints in `{}`: {source}", .path.display())]
    Search {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: BoxError,
    },
    /// A recipe without `resume` finds a run.
    #[error("`{}` holds a run that reached step {step}: choose another `out`, or go on with it by `resume = true`", .path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
        /// Step of its newest checkpoint.
        step: u64,
    },
    /// Samples cannot be drawn.
    #[error("cannot draw the samples of step {step}: {source}")]
    Sample {
        /// The step.
        step: u64,
        /// Why.
        source: BoxError,
    },
    /// A loss or gradient is not finite. The weights are those of the step before.
    #[error("{}", non_finite(*.step, .what, .found.as_ref(), *.checkpoint))]
    NonFinite {
        /// The step, from 1.
        step: u64,
        /// What was seen first: the loss or the norm of the gradient, and its value.
        what: String,
        /// Where it comes from, if the engine knows.
        found: Option<NonFinite>,
        /// Step of the last checkpoint, which is untouched.
        checkpoint: Option<u64>,
    },
}

/// The layer of a weight: its name up to the first number, `blocks.3` of `blocks.3.attn.to_q.weight`, else its first part.
pub fn layer_of(weight: &str) -> &str {
    let mut end = 0;
    for part in weight.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return &weight[..end];
        }
        end += 1;
    }
    weight.split('.').next().unwrap_or(weight)
}

fn non_finite(step: u64, what: &str, found: Option<&NonFinite>, checkpoint: Option<u64>) -> String {
    let place = match found {
        Some(NonFinite::Weight(weight)) => {
            format!("; the first that is not finite is the weight `{weight}` in layer `{}`", layer_of(weight))
        }
        Some(NonFinite::Input(input)) => {
            format!(
                "; the first that is not finite is tensor `{input}` of the batch, the input of every layer"
            )
        }
        Some(NonFinite::Loss(part)) => format!("; the first that is not finite is part `{part}` of the loss"),
        Some(NonFinite::Gradient(weight)) => format!(
            "; the first that is not finite is the gradient of `{weight}` in layer `{}`",
            layer_of(weight)
        ),
        None => String::new(),
    };
    let kept = kept(checkpoint);
    format!(
        "step {step}: {what}{place}. The step was not taken, {kept}; a smaller lr or a longer warm-up may help"
    )
}

fn kept(checkpoint: Option<u64>) -> String {
    match checkpoint {
        Some(step) => format!("the checkpoint of step {step} is kept"),
        None => "there is no checkpoint yet".to_owned(),
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The step that it went on from, 0 for a new run.
    pub from: u64,
    /// The last step that is done.
    pub reached: u64,
    /// Whether the observer ended it before its last step.
    pub stopped: bool,
}

/// A run and its parts.
pub struct Trainer<'a, E: Engine> {
    recipe: &'a Recipe,
    engine: &'a mut E,
    source: &'a mut dyn Source,
    /// Learning rate of the first group that has weights.
    lr: f64,
    /// Notes to pass on when the run starts.
    notes: Vec<String>,
    /// The stage that the engine is in.
    stage: Option<usize>,
    checkpoint: Option<u64>,
}

impl<'a, E: Engine> Trainer<'a, E> {
    /// Puts the parts together and checks that they fit.
    ///
    /// # Errors
    /// The weights cannot be divided into the recipe's groups, or a stage has no data.
    pub fn new(
        recipe: &'a Recipe,
        engine: &'a mut E,
        source: &'a mut dyn Source,
    ) -> Result<Trainer<'a, E>, TrainError> {
        let assignment = assign(&recipe.groups, &engine.weights())?;
        let first = assignment.weights.iter().map(|weight| weight.group).min();
        let lr = first.map_or(0.0, |group| recipe.groups[group].optimizer.lr());
        let note = |(group, pattern): &(usize, String)| {
            format!("pattern `{pattern}` of [[group]] number {} names no weight", group + 1)
        };
        let notes = assignment.unused.iter().map(note).collect();
        source.check(&recipe.stages)?;
        Ok(Trainer { recipe, engine, source, lr, notes, stage: None, checkpoint: None })
    }

    /// One step (from 1), without log and checkpoints. Stages begin by themselves; `observer` hears of them.
    ///
    /// # Errors
    /// No batch, a failure of the engine, or a loss or gradient that is not finite: then the weights are untouched.
    pub fn step(&mut self, step: u64, observer: &mut dyn Observer<E>) -> Result<StepRecord, TrainError> {
        let start = Instant::now();
        let failed = |source| TrainError::Engine { step, source };
        let at = self.recipe.stages.at(step);
        if self.stage != Some(at.number) {
            self.engine.begin_stage(at.stage).map_err(failed)?;
            self.stage = Some(at.number);
            observer.stage(at.number + 1, at.stage);
        }
        let count = at.stage.accumulate;
        let scale = 1.0 / count as f64;
        let mut record = StepRecord { step, stage: at.number + 1, ..StepRecord::default() };
        self.engine.begin_step().map_err(failed)?;
        for microbatch in 0..count as u64 {
            let batch = self.source.batch(&Place::of(&self.recipe.stages, step, microbatch));
            let checkpoint = self.checkpoint;
            let batch = batch.map_err(|source| TrainError::Batch { step, source, checkpoint })?;
            let losses = self.engine.accumulate(&batch, scale).map_err(failed)?;
            if !losses.total.is_finite() {
                return Err(self.not_finite(step, format!("the loss is {}", losses.total), &losses));
            }
            record.tokens += (batch.items * batch.image_tokens) as u64;
            record.loss += losses.total * scale;
            for (name, value) in losses.parts {
                match record.parts.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value * scale,
                    None => record.parts.push((name, value * scale)),
                }
            }
        }
        record.grad_norm = self.engine.gradient_norm().map_err(failed)?;
        if !record.grad_norm.is_finite() {
            let what = format!("the norm of the gradient is {}", record.grad_norm);
            return Err(self.not_finite(step, what, &Losses::default()));
        }
        let factor = self.recipe.schedule.factor(step);
        record.lr = self.lr * factor;
        let scale = clip_scale(self.recipe.run.clip_grad_norm, record.grad_norm);
        self.engine.update(step, factor, scale).map_err(failed)?;
        record.seconds = start.elapsed().as_secs_f64();
        Ok(record)
    }

    fn not_finite(&mut self, step: u64, what: String, losses: &Losses) -> TrainError {
        let part = losses.parts.iter().find(|(_, value)| !value.is_finite());
        let found = match self.engine.first_non_finite() {
            Ok(found) => found.or_else(|| Some(NonFinite::Loss(part?.0.clone()))),
            Err(source) => return TrainError::Engine { step, source },
        };
        TrainError::NonFinite { step, what, found, checkpoint: self.checkpoint }
    }

    /// Trains from the newest checkpoint, or from the start, to the last step.
    ///
    /// # Errors
    /// As [`Trainer::step`], and whatever log and checkpoints meet. Checkpoints written before stay.
    pub fn run(
        &mut self,
        checkpoints: &mut dyn Checkpoints,
        observer: &mut dyn Observer<E>,
    ) -> Result<Summary, TrainError> {
        let (run, to) = (&self.recipe.run, self.recipe.stages.steps());
        std::fs::create_dir_all(&run.out)
            .map_err(|source| TrainError::Out { path: run.out.clone(), source })?;
        for note in self.notes.drain(..) {
            observer.note(&note);
        }
        let from = self.resume(checkpoints, observer)?;
        observer.started(from, to);
        if from >= to {
            observer.note(&format!("step {from} is reached already, the recipe has {to}: nothing to do"));
            return Ok(Summary { from, reached: from, stopped: false });
        }
        let mut log = Log::open(&run.out, from)?;
        for step in from + 1..=to {
            let record = self.step(step, observer)?;
            log.append(&record)?;
            observer.step(&record);
            let stopped = step < to && observer.stop();
            if step == to || stopped || step % run.checkpoint_every == 0 {
                // The log must not be behind the checkpoint that a crash of the system leaves.
                log.sync()?;
                self.save(step, checkpoints)?;
                observer.saved(step);
                let drawn = read_losses(log.path()).map_err(BoxError::from);
                if let Err(error) = drawn.and_then(|losses| Ok(curve::write(&run.out, &losses)?)) {
                    observer.note(&format!("no loss curve: {error}"));
                }
            }
            if run.sample_every.is_some_and(|every| step % every == 0 || step == to) {
                observer.sample(step, self.engine).map_err(|source| TrainError::Sample { step, source })?;
            }
            if stopped {
                return Ok(Summary { from, reached: step, stopped });
            }
        }
        Ok(Summary { from, reached: to, stopped: false })
    }

    /// Loads the newest checkpoint; the steps that are done.
    fn resume(
        &mut self,
        checkpoints: &mut dyn Checkpoints,
        observer: &mut dyn Observer<E>,
    ) -> Result<u64, TrainError> {
        let out = &self.recipe.run.out;
        let searched = checkpoints.latest();
        let latest = searched.map_err(|source| TrainError::Search { path: out.clone(), source })?;
        let Some(step) = latest else { return Ok(0) };
        if !self.recipe.run.resume {
            return Err(TrainError::Exists { path: out.clone(), step });
        }
        let loaded = checkpoints.load(step, self.engine);
        let position = loaded.map_err(|source| TrainError::Checkpoint { action: "read", step, source })?;
        if position.recipe != self.recipe.fingerprint() {
            observer.note(&format!(
                "the recipe is not the one that reached step {step}: the run goes on, but no recipe gives it as a whole"
            ));
        }
        self.checkpoint = Some(step);
        Ok(step)
    }

    fn save(&mut self, step: u64, checkpoints: &mut dyn Checkpoints) -> Result<(), TrainError> {
        self.engine.fetch().map_err(|source| TrainError::Engine { step, source })?;
        let position = RunPosition { step, seed: self.recipe.run.seed, recipe: self.recipe.fingerprint() };
        checkpoints.save(&position, self.engine).map_err(|source| TrainError::Checkpoint {
            action: "write",
            step,
            source,
        })?;
        self.checkpoint = Some(step);
        Ok(())
    }
}

/// What gradients are multiplied by so that their norm is at most `limit`, as PyTorch's `clip_grad_norm_`.
pub fn clip_scale(limit: Option<f64>, norm: f64) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_scaled_down_to_the_limit_only() {
        assert_eq!(clip_scale(None, 1e9), 1.0);
        assert_eq!(clip_scale(Some(1.0), 0.5), 1.0);
        assert_eq!(clip_scale(Some(1.0), 4.0), 1.0 / 4.000_001);
        assert_eq!(clip_scale(Some(1.0), 0.0), 1.0);
    }

    #[test]
    fn layers_are_the_numbered_part_of_a_name() {
        assert_eq!(layer_of("transformer_blocks.3.attn.to_out.0.weight"), "transformer_blocks.3");
        assert_eq!(layer_of("img_in.weight"), "img_in");
        assert_eq!(layer_of("x"), "x");
        assert_eq!(layer_of("..3"), "..3");
    }
}
