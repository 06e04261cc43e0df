//! `nucleusc train`: a run by its recipe.

mod bench;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use indicatif::ProgressBar;
use nucleus_runtime::Gpu;
use nucleus_train::assemble::{Assembled, assemble_on, checkpoints};
use nucleus_train::current::CurrentWeights;
use nucleus_train::engine::Engine;
use nucleus_train::graph_engine::GraphEngine;
use nucleus_train::log::StepRecord;
use nucleus_train::recipe::{Recipe, RunRecipe, Stage};
use nucleus_train::samples::Painter;
use nucleus_train::sampling::SamplerOptions;
use nucleus_train::trainer::{BoxError, Observer, Trainer};
use serde_json::json;

use crate::arguments::TrainArguments;
use crate::progress::training_bar;
use crate::{gpu, report};

/// Runs the command.
pub fn train(arguments: &TrainArguments) -> anyhow::Result<()> {
    let recipe = Recipe::read(&arguments.recipe)?;
    let start = Instant::now();
    let gpu = gpu::open(arguments.backend, None, arguments.tuning.as_deref())?;
    let Assembled { mut engine, mut source, config } = assemble_on(&recipe, gpu.as_ref())?;
    let elements = engine.parameters().elements();
    if !arguments.json {
        let (parameters, _) = engine.memory();
        report::note(&format!(
            "{elements} parameters, {} with gradients and state; compiled in {}",
            report::bytes(parameters),
            report::duration(start.elapsed())
        ));
    }
    if let Some(repeat) = arguments.bench {
        return bench::bench(arguments, &recipe, &mut engine, &mut *source, repeat);
    }
    let sampler = Sampler::new(&recipe, &engine, gpu)?;
    let mut trainer = Trainer::new(&recipe, &mut engine, &mut *source)?;
    if arguments.check {
        return report::print(&format!(
            "{}: {} steps in {} stage{}, {elements} parameters: ready",
            arguments.recipe.display(),
            recipe.stages.steps(),
            recipe.stages.iter().count(),
            if recipe.stages.iter().count() == 1 { "" } else { "s" }
        ));
    }
    let mut checkpoints = checkpoints(&recipe, config)?;
    for path in checkpoints.store().recovered() {
        report::note(&format!("cleared away what a stopped run left: {}", path.display()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    // Without a handler an interrupt ends the process at once; nothing but the steps since the last checkpoint is lost.
    let _ = ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        report::note("stopping after this step, with a checkpoint; again to stop at once");
    });
    let mut watch =
        Watch { json: arguments.json, bar: training_bar(), stop, started: Instant::now(), sampler };
    let summary = trainer.run(&mut checkpoints, &mut watch)?;
    watch.bar.finish_and_clear();
    if arguments.json {
        let value = json!({ "from": summary.from, "reached": summary.reached, "stopped": summary.stopped, "out": recipe.run.out });
        return report::print(&value.to_string());
    }
    report::print(&format!(
        "{} step {} in {}: {}",
        if summary.stopped { "stopped after" } else { "reached" },
        summary.reached,
        report::duration(watch.started.elapsed()),
        recipe.run.out.display()
    ))
}

/// Shows how a run goes.
struct Watch {
    json: bool,
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    started: Instant,
    sampler: Option<Sampler>,
}

/// Draws the samples of a run into its folder.
struct Sampler {
    painter: Painter,
    run: RunRecipe,
}

impl Sampler {
    /// What draws samples, if the recipe asks for them; that it can is checked now rather than hours later.
    fn new(recipe: &Recipe, engine: &GraphEngine, gpu: Option<Gpu>) -> anyhow::Result<Option<Sampler>> {
        if recipe.run.sample_every.is_none() {
            return Ok(None);
        }
        let painter = Painter::new(recipe)?.on(gpu);
        painter.check(engine.model(), &recipe.run.samples, false)?;
        Ok(Some(Sampler { painter, run: recipe.run.clone() }))
    }

    fn draw(&self, step: u64, engine: &mut GraphEngine) -> anyhow::Result<()> {
        engine.fetch()?;
        let weights = Box::new(CurrentWeights::new(engine.parameters()));
        let model = engine.model_of_stage()?;
        let options = sampler_options(&self.run);
        let samples = self.painter.paint(&model, weights, &self.run.samples, &options, false)?;
        let folder = self.run.out.join("samples");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        Ok(samples.grid()?.save(&folder.join(format!("step-{step}.png")))?)
    }
}

/// How the samples of a run are drawn.
pub fn sampler_options(run: &RunRecipe) -> SamplerOptions {
    SamplerOptions { steps: run.sample_steps as usize, guidance: run.guidance as f32 }
}

impl Observer<GraphEngine> for Watch {
    fn started(&mut self, from: u64, to: u64) {
        self.bar.set_length(to);
        self.bar.set_position(from);
        self.bar.reset_eta();
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| report::note(text));
    }

    fn stage(&mut self, number: usize, stage: &Stage) {
        if !self.json && number > 1 {
            self.note(&format!("stage {number}: {} steps of {} pictures", stage.steps, stage.batch));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        let rate = record.tokens as f64 / record.seconds.max(1e-9);
        self.bar.set_message(format!(
            "loss {:.4} |g| {:.3} lr {:.2e} {:.0} tokens/s",
            record.loss, record.grad_norm, record.lr, rate
        ));
        self.bar.set_position(record.step);
        if self.json {
            let value = json!({
                "step": record.step, "loss": record.loss, "grad_norm": record.grad_norm, "lr": record.lr, "seconds": record.seconds,
            });
            // A closed pipe ends the run where it next writes; the log has the line anyway.
            let _ = report::print(&value.to_string());
        }
    }

    fn saved(&mut self, step: u64) {
        if !self.json && self.bar.is_hidden() {
            report::note(&format!("step {step}: checkpoint written"));
        }
    }

    fn sample(&mut self, step: u64, engine: &mut GraphEngine) -> Result<(), BoxError> {
        match &self.sampler {
            Some(sampler) => Ok(sampler.draw(step, engine)?),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
