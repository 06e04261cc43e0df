//! Denoises latents with a Nucleus-Image checkpoint: compile once, bind weights once, prepare the prompt once, then step.
//!
//! ```console
//! $ cargo run --release -p nucleus-runtime --example denoise -- tests/fixtures/parity/first_three_dense 4 4
//! ```
//!
//! Arguments: a diffusers folder, rows and columns of the packed latent grid, and the number of steps (4 if not given). Text embeddings and noise
//! are made up here; a service gets them from a text encoder and a random generator.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::Path;

use nucleus_runtime::{Checkpoint, HostTensor, Model, Session, SessionOptions, TensorMap};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "tests/fixtures/parity/first_three_dense".to_owned());
    let mut size = |default| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (rows, columns, steps) = (size(4)?, size(4)?, size(4)?);

    // The model is a text; its config is that of the checkpoint.
    let checkpoint = Checkpoint::open(&folder)?;
    let mut model = Model::open(Path::new("ir-specs/nucleus_image.ir"))?;
    if let (Some(path), Some(config)) = (checkpoint.config_path(), checkpoint.config()) {
        model.apply_json(path, config)?;
    }

    // One plan serves every batch, image and text size.
    let dtype = checkpoint.dtype().unwrap_or(nucleus_ir::DType::F32);
    let plan = model.compile("velocity", dtype, &mut ())?;
    println!("{} kernels, {} launches", plan.kernels.len(), plan.launches.len());
    let mut session = Session::new(plan, checkpoint, &SessionOptions::default())?;

    // Feature sizes are constants of the entry's types.
    let channels = |name: &str| {
        let spec = session.signature().inputs.iter().find(|spec| spec.name == name);
        spec.and_then(|spec| spec.ty.shape.last()?.as_constant()).ok_or(format!("no input `{name}`"))
    };
    let (latent_channels, text_channels) =
        (channels("hidden_states")? as usize, channels("encoder_hidden_states")? as usize);
    let (tokens, text_tokens) = (rows * columns, 8);
    let mut latents: Vec<f32> = wave(tokens * latent_channels, 0.7);
    let text =
        HostTensor::from_f32(&[1, text_tokens, text_channels], &wave(text_tokens * text_channels, 1.3))?;
    let dims = [("B".to_owned(), 1), ("H".to_owned(), rows as i64), ("W".to_owned(), columns as i64)];

    // Text keys and values, rotary tables and masks are computed once per prompt and size.
    let mut prompt_inputs = TensorMap::new();
    prompt_inputs.insert("encoder_hidden_states", text);
    let prompt = session.prepare(&prompt_inputs, &dims)?;

    for step in 0..steps {
        // Linear noise levels from 1 (pure noise) towards 0; the velocity points from noise to image.
        let level = 1.0 - step as f32 / steps as f32;
        let next = 1.0 - (step + 1) as f32 / steps as f32;
        let mut inputs = TensorMap::new();
        inputs.insert("hidden_states", HostTensor::from_f32(&[1, tokens, latent_channels], &latents)?);
        inputs.insert("timestep", HostTensor::from_f32(&[1], &[level])?);
        let outputs = session.step(&prompt, &inputs)?;
        let velocity = outputs.get("sample").ok_or("no output `sample`")?.to_f32_vec();
        for (latent, velocity) in latents.iter_mut().zip(&velocity) {
            *latent += (level - next) * velocity;
        }
        let rms = (velocity.iter().map(|v| v * v).sum::<f32>() / velocity.len() as f32).sqrt();
        println!("step {step}: noise level {level:.2}, velocity rms {rms:.4}");
    }
    Ok(())
}

/// A made-up signal.
fn wave(count: usize, frequency: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * frequency).sin()).collect()
}
