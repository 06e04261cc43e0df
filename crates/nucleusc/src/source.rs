//! What a command works on: a model's text or an artifact, a checkpoint, and the config values that go with them.

use std::path::Path;

use nucleus_ir::DType;
use nucleus_passes::CompileOptions;
use nucleus_passes::quantize::Quantize;
use nucleus_runtime::{Artifact, Checkpoint, Compiled, Model, NoWeights, RandomWeights, WeightSource};

use crate::arguments::{ConfigArguments, Quantization, SessionArguments, WeightsFrom};
use crate::report;

/// Reads a model and applies config values: those of the checkpoint, or of `--config` in their place, then `--set`.
pub fn model(path: &Path, config: &ConfigArguments, weights: Option<&Checkpoint>) -> anyhow::Result<Model> {
    let mut model = Model::open(path)?;
    let warnings = model.warnings(report::interactive());
    if !warnings.is_empty() {
        report::note(&warnings);
    }
    apply_config(&mut model, config, weights)?;
    Ok(model)
}

fn apply_config(
    model: &mut Model,
    config: &ConfigArguments,
    weights: Option<&Checkpoint>,
) -> anyhow::Result<()> {
    if let Some(path) = &config.config {
        let map = nucleus_runtime::config_json::read_config(path)?;
        model.apply_json(path, &map)?;
    } else if let Some((path, map)) = weights.and_then(|weights| weights.config_path().zip(weights.config()))
    {
        model.apply_json(path, map)?;
    }
    for setting in &config.set {
        model.set(setting)?;
    }
    Ok(())
}

/// What `run` and `bench` work on.
pub struct Source {
    /// The model; for an artifact, read back from the texts inside.
    pub model: Model,
    /// What the artifact holds, if it is one.
    pub compiled: Option<Compiled>,
    /// The weights.
    pub weights: Box<dyn WeightSource>,
    /// The element type of products, and what is quantised.
    pub options: CompileOptions,
}

/// How to compile for products in `dtype`.
pub fn options(dtype: DType, quantization: Option<Quantization>) -> CompileOptions {
    let quantize = quantization.map(|Quantization::Int8| Quantize::default());
    CompileOptions { dtype, quantize, ..CompileOptions::default() }
}

/// Opens everything that `run` and `bench` need.
pub fn open(arguments: &SessionArguments) -> anyhow::Result<Source> {
    let (mut given, mut random) = (None, None);
    match &arguments.weights {
        Some(WeightsFrom::Path(path)) => given = Some(Checkpoint::open(path)?),
        Some(WeightsFrom::Random(seed)) => random = Some(RandomWeights { seed: *seed }),
        None => {}
    }
    if Artifact::is_artifact(&arguments.model) {
        anyhow::ensure!(
            arguments.config.config.is_none() && arguments.config.set.is_empty(),
            "`{}` is compiled: its config values are fixed; use the model's text to change them",
            arguments.model.display()
        );
        let artifact = Artifact::open(&arguments.model)?;
        let model = artifact.model()?;
        let (compiled, inside) = artifact.into_parts();
        let dtype = compiled.dtype;
        if let Some(wanted) = arguments.dtype.map(DType::from) {
            anyhow::ensure!(wanted == dtype, "the artifact is compiled for {dtype}, not {wanted}");
        }
        let quantised = compiled.is_quantised();
        anyhow::ensure!(
            quantised || arguments.quantize.is_none(),
            "`{}` is compiled without quantisation; compile it again with --quantize int8",
            arguments.model.display()
        );
        let quantization = quantised.then_some(Quantization::Int8);
        let weights = boxed(given.or(inside), random);
        let options = options(dtype, quantization);
        return Ok(Source { model, compiled: Some(compiled), weights, options });
    }
    let model = model(&arguments.model, &arguments.config, given.as_ref())?;
    let default = if random.is_some() { DType::Bf16 } else { default_dtype(given.as_ref()) };
    let dtype = arguments.dtype.map_or(default, DType::from);
    let weights = boxed(given, random);
    let options = options(dtype, arguments.quantize);
    Ok(Source { model, compiled: None, weights, options })
}

/// Random weights where they are asked for, else those of the checkpoint. That neither is given is an error for models that have weights.
fn boxed(checkpoint: Option<Checkpoint>, random: Option<RandomWeights>) -> Box<dyn WeightSource> {
    match (random, checkpoint) {
        (Some(random), _) => Box::new(random),
        (None, Some(checkpoint)) => Box::new(checkpoint),
        (None, None) => Box::new(NoWeights),
    }
}

/// The element type of products where none is asked for: that of the checkpoint. f16 checkpoints run in f32, which holds their values.
pub fn default_dtype(weights: Option<&Checkpoint>) -> DType {
    match weights.and_then(Checkpoint::dtype) {
        Some(DType::Bf16) => DType::Bf16,
        _ => DType::F32,
    }
}
