//! `nucleusc sample`: pictures of captions, with the weights of a run.

use anyhow::Context;
use nucleus_runtime::Checkpoint;
use nucleus_train::assemble::model;
use nucleus_train::checkpoint::latest;
use nucleus_train::recipe::{Recipe, SampleRecipe};
use nucleus_train::samples::Painter;

use crate::arguments::SampleArguments;
use crate::train::sampler_options;
use crate::{gpu, report};

/// Runs the command.
pub fn sample(arguments: &SampleArguments) -> anyhow::Result<()> {
    let recipe = Recipe::read(&arguments.recipe)?;
    let samples = samples(arguments, &recipe)?;
    let gpu = gpu::open(arguments.backend, None, arguments.tuning.as_deref())?;
    let painter = Painter::new(&recipe)?.on(gpu);
    let weights = match &arguments.weights {
        Some(path) => path.clone(),
        None => {
            let newest = latest(&recipe.run.out)?.map(|(_, path)| path);
            newest.with_context(|| {
                format!("`{}` holds no checkpoint: train first, or give --weights", recipe.run.out.display())
            })?
        }
    };
    let checkpoint = Checkpoint::open(&weights)?;
    let mut model = model(recipe.model.ir.as_deref())?;
    let config = checkpoint.config_path().zip(checkpoint.config());
    let (path, map) = config.with_context(|| format!("`{}` has no config.json", weights.display()))?;
    model.apply_json(path, map)?;
    let mut options = sampler_options(&recipe.run);
    options.steps = arguments.steps.unwrap_or(options.steps);
    options.guidance = arguments.guidance.unwrap_or(options.guidance);
    let trace = arguments.routing.is_some();
    let drawn = painter.paint(&model, Box::new(checkpoint), &samples, &options, trace)?;
    drawn.grid()?.save(&arguments.output)?;
    if let Some(folder) = &arguments.routing {
        drawn.write_routing(folder)?;
    }
    report::print(&format!(
        "{} pictures by `{}`: {}",
        samples.len(),
        weights.display(),
        arguments.output.display()
    ))
}

/// The captions of the command line, or the recipe's.
fn samples(arguments: &SampleArguments, recipe: &Recipe) -> anyhow::Result<Vec<SampleRecipe>> {
    let captions = arguments.caption.iter().flat_map(|caption| std::iter::repeat_n(caption, arguments.count));
    let of_command = captions.zip(arguments.seed..).map(|(caption, seed)| SampleRecipe {
        caption: caption.clone(),
        size: arguments.size,
        seed,
    });
    let samples =
        if arguments.caption.is_empty() { recipe.run.samples.clone() } else { of_command.collect() };
    anyhow::ensure!(
        !samples.is_empty(),
        "there is nothing to draw: give a --caption, or the recipe a [[run.sample]]"
    );
    Ok(samples)
}
