//! The tables that occur once: `[model]`, `[data]`, `[objective]`, `[schedule]`, `[run]`.

use std::ops::Bound;

use super::error::RecipeError;
use super::reader::Table;
use super::{
    ComputeDType, DataKind, DataRecipe, ModelRecipe, Objective, Recompute, RunRecipe, SampleRecipe, Start,
};
use crate::schedule::Schedule;
use crate::timesteps::TimestepSampling;

/// Above zero, of any size.
pub(super) const POSITIVE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Unbounded);

/// Microbatches of a step, items of a batch.
pub(super) const COUNT: std::ops::RangeInclusive<i64> = 1..=65_536;

/// Steps: so many that no run reaches them, so few that sums of them do not overflow.
pub(super) const STEPS: std::ops::RangeInclusive<i64> = 1..=1_000_000_000;

pub(super) const MODEL_KEYS: &[&str] =
    &["ir", "checkpoint", "config", "seed", "zero_init", "dtype", "remat", "memory"];

/// Every block starts as the identity, and the model by predicting no velocity (adaLN-zero, arXiv 2212.09748).
const ZERO_WEIGHTS: [&str; 3] = ["*.img_mod.1.weight", "norm_out.linear.weight", "proj_out.weight"];

pub(super) fn model(table: &Table<'_>) -> Result<ModelRecipe, RecipeError> {
    let ir = table.get("ir").map(|value| value.path()).transpose()?;
    let checkpoint = table.get("checkpoint");
    let config = table.get("config");
    let (seed, zero_init) = (table.get("seed"), table.get("zero_init"));
    let start = match (checkpoint, config) {
        (Some(checkpoint), None) => {
            for (key, value) in [("seed", seed), ("zero_init", zero_init)] {
                if let Some(value) = value {
                    let message = format!(
                        "`{key}` in [model] is of random weights, but `checkpoint` gives the weights"
                    );
                    return Err(value.error(message));
                }
            }
            Start::Checkpoint(checkpoint.path()?)
        }
        (None, Some(config)) => {
            let usual = || ZERO_WEIGHTS.iter().map(|pattern| (*pattern).to_owned()).collect();
            Start::Fresh {
                config: config.path()?,
                seed: seed.map_or(Ok(0), |seed| seed.integer(0..))?,
                zero_init: zero_init.map_or_else(|| Ok(usual()), |patterns| patterns.strings())?,
            }
        }
        (Some(_), Some(config)) => {
            return Err(
                config.error("[model] has both `checkpoint` and `config`: one of them says where to start")
            );
        }
        (None, None) => {
            return Err(table.error(
                "[model] needs `checkpoint`, a diffusers folder to start from, or `config`, a config.json to start afresh",
            ));
        }
    };
    let dtype = table.get("dtype").map_or(Ok(ComputeDType::F32), |value| {
        value.choice(&[("f32", ComputeDType::F32), ("bf16", ComputeDType::Bf16)])
    })?;
    let choices = [("none", Recompute::Nothing), ("auto", Recompute::Cheap), ("full", Recompute::Everything)];
    let remat = match (table.get("remat"), table.get("memory")) {
        (Some(_), Some(memory)) => {
            return Err(memory
                .error("[model] has both `remat` and `memory`: one of them says what is computed again"));
        }
        (Some(remat), None) => remat.choice(&choices)?,
        (None, Some(memory)) => Recompute::Within(memory.bytes()?),
        (None, None) => Recompute::Nothing,
    };
    Ok(ModelRecipe { ir, start, dtype, remat })
}

pub(super) const DATA_KEYS: &[&str] = &["kind", "path", "batch", "text_dropout", "flip"];

/// The section and the number of items in a batch.
pub(super) fn data(table: &Table<'_>) -> Result<(DataRecipe, usize), RecipeError> {
    let shards = table.require("kind")?.choice(&[("batches", false), ("shards", true)])?;
    let path = table.require("path")?.path()?;
    let batch = table.get("batch");
    let text_dropout = table.get("text_dropout");
    let flip = table.get("flip");
    if !shards {
        for (key, value) in [("batch", &batch), ("text_dropout", &text_dropout), ("flip", &flip)] {
            if let Some(value) = value {
                return Err(value.error(format!(
                    "`{key}` in [data] is for kind \"shards\"; batches are used as they are"
                )));
            }
        }
    }
    let kind = if shards {
        DataKind::Shards {
            text_dropout: text_dropout.map_or(Ok(0.1), |value| value.number(0.0..=1.0))?,
            flip: flip.map_or(Ok(false), |value| value.bool())?,
        }
    } else {
        DataKind::Batches
    };
    let batch = batch.map_or(Ok(8), |value| value.integer(COUNT))? as usize;
    Ok((DataRecipe { kind, path }, batch))
}

/// The routers of Nucleus-Image.
const ROUTERS: &str = "*.img_mlp.gate.weight";

pub(super) const OBJECTIVE_KEYS: &[&str] = &[
    "z_loss",
    "wavelet",
    "orthogonality",
    "routers",
    "logit_std",
    "uniform",
    "base_shift",
    "max_shift",
    "base_tokens",
    "max_tokens",
];

pub(super) fn objective(table: &Table<'_>) -> Result<Objective, RecipeError> {
    let coefficient = |key, default| table.get(key).map_or(Ok(default), |value| value.number(0.0..));
    let (z_loss, wavelet, orthogonality) =
        (coefficient("z_loss", 5e-7)?, coefficient("wavelet", 0.0)?, coefficient("orthogonality", 0.0)?);
    let usual = TimestepSampling::default();
    let number = |key, default| table.get(key).map_or(Ok(default), |value| value.number(-20.0..=20.0));
    let tokens = |key, default| table.get(key).map_or(Ok(default), |value| value.integer(1..=1 << 40));
    let timesteps = TimestepSampling {
        logit_std: table.get("logit_std").map_or(Ok(usual.logit_std), |value| value.number(POSITIVE))?,
        uniform: table.get("uniform").map_or(Ok(usual.uniform), |value| value.number(0.0..=1.0))?,
        base_shift: number("base_shift", usual.base_shift)?,
        max_shift: number("max_shift", usual.max_shift)?,
        base_tokens: tokens("base_tokens", usual.base_tokens)?,
        max_tokens: tokens("max_tokens", usual.max_tokens)?,
    };
    if timesteps.base_tokens >= timesteps.max_tokens {
        return Err(table.error(format!(
            "`base_tokens` ({}) must be less than `max_tokens` ({})",
            timesteps.base_tokens, timesteps.max_tokens
        )));
    }
    let routers =
        table.get("routers").map_or_else(|| Ok(vec![ROUTERS.to_owned()]), |patterns| patterns.strings())?;
    Ok(Objective { z_loss, wavelet, orthogonality, routers, timesteps })
}

pub(super) const SCHEDULE_KEYS: &[&str] = &["kind", "warmup_steps"];

pub(super) fn schedule(table: &Table<'_>) -> Result<Schedule, RecipeError> {
    table.get("kind").map_or(Ok(()), |value| value.choice(&[("warmup-stable", ())]))?;
    let warmup_steps = table.get("warmup_steps").map_or(Ok(1000), |value| value.integer(0..=*STEPS.end()))?;
    Ok(Schedule { warmup_steps })
}

pub(super) const RUN_KEYS: &[&str] = &[
    "steps",
    "out",
    "clip_grad_norm",
    "accumulate",
    "seed",
    "threads",
    "checkpoint_every",
    "keep",
    "resume",
    "sample_every",
    "sample_steps",
    "guidance",
    "sample",
];

/// The section, the steps of the run where it says them, and the microbatches of a step.
pub(super) fn run(table: &Table<'_>) -> Result<(RunRecipe, Option<u64>, usize), RecipeError> {
    let integer = |key, range: std::ops::RangeInclusive<i64>| {
        table.get(key).map(|value| value.integer(range)).transpose()
    };
    let steps = integer("steps", STEPS)?;
    let out = table.require("out")?.path()?;
    let clip_grad_norm = table.get("clip_grad_norm").map(|value| value.number(POSITIVE)).transpose()?;
    let accumulate = integer("accumulate", COUNT)?.unwrap_or(1) as usize;
    let seed = integer("seed", 0..=i64::MAX)?.unwrap_or(0);
    let threads = integer("threads", 1..=1024)?.map(|threads| threads as usize);
    let checkpoint_every = integer("checkpoint_every", STEPS)?.unwrap_or(1000);
    let keep = integer("keep", COUNT)?.map(|keep| keep as usize);
    let resume = table.get("resume").map_or(Ok(true), |value| value.bool())?;
    let sample_every = integer("sample_every", STEPS)?;
    let sample_steps = integer("sample_steps", 1..=10_000)?.unwrap_or(50);
    let guidance = table.get("guidance").map_or(Ok(4.0), |value| value.number(0.0..=1e6))?;
    let samples = table.tables("sample", "[[run.sample]]")?;
    let samples = samples
        .iter()
        .enumerate()
        .map(|(number, table)| sample(table, number))
        .collect::<Result<Vec<_>, _>>()?;
    if sample_every.is_some() && samples.is_empty() {
        return Err(
            table.error("[run] has `sample_every`, but there is no [[run.sample]] that says what to draw")
        );
    }
    let run = RunRecipe {
        out,
        clip_grad_norm,
        seed,
        threads,
        checkpoint_every,
        keep,
        resume,
        sample_every,
        sample_steps,
        guidance,
        samples,
    };
    Ok((run, steps, accumulate))
}

fn sample(table: &Table<'_>, number: usize) -> Result<SampleRecipe, RecipeError> {
    table.only(&["caption", "height", "width", "seed"])?;
    let caption = table.require("caption")?.string()?.to_owned();
    let side = |key| table.get(key).map(|value| value.integer(1..=65_536)).transpose();
    let size = match (side("height")?, side("width")?) {
        (Some(height), Some(width)) => Some((height as usize, width as usize)),
        (None, None) => None,
        _ => return Err(table.error(format!("{} needs both `height` and `width`, or neither", table.name))),
    };
    let seed = table.get("seed").map_or(Ok(number as u64), |value| value.integer(0..))?;
    Ok(SampleRecipe { caption, size, seed })
}
