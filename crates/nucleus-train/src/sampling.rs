//! From noise to a picture: Euler steps along the velocity, guided by a text.
//!
//! The schedule is linear: σ = 1, …, 1/N, then 0. At each step the model gives the velocity for the text and, where guidance is more than
//! one, for an empty text; both answers make v = u + g·(c − u), whose tokens are brought back to the length that they have in c; then
//! x ← x + (σ − σ′)·v. It is what diffusers' pipeline of Nucleus-Image does (Euler for flow matching, shift 1), in f32.

mod denoiser;
mod noise;

use nucleus_runtime::{HostTensor, SessionError, TensorError, TensorMap};
use thiserror::Error;

pub use denoiser::{Denoiser, InputNames, SessionDenoiser, Text};
pub use noise::noise;

/// The scale of times in the scheduler, by which they are multiplied and divided again: that rounding is part of what a model sees.
const TRAIN_TIMESTEPS: f32 = 1000.0;

/// How a picture is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Euler steps.
    pub steps: usize,
    /// How far to go from the empty text's velocity to the text's and beyond it; up to 1 only the text's is computed.
    pub guidance: f32,
}

impl Default for SamplerOptions {
    /// Those of the released pipeline: 50 steps, guidance 4.
    fn default() -> SamplerOptions {
        SamplerOptions { steps: 50, guidance: 4.0 }
    }
}

/// Why nothing was sampled.
#[derive(Debug, Error)]
pub enum SamplingError {
    /// Steps or guidance that make no sense.
    #[error("{problem}")]
    Options {
        /// Which, and what would.
        problem: String,
    },
    /// The noise is not `[images, tokens, channels]` of f32.
    #[error("the noise is {given}: it must be f32[images, tokens, channels]")]
    Noise {
        /// Type and shape.
        given: String,
    },
    /// Guidance without an empty text.
    #[error("guidance needs the velocity for an empty text: give its inputs, or a guidance of at most 1")]
    NoEmptyText,
    /// An output of the model that is no velocity.
    #[error("output `{name}` of the model is {given}: sampling needs a velocity like its input, {wanted}")]
    Velocity {
        /// The output.
        name: String,
        /// What it is.
        given: String,
        /// What it should be.
        wanted: String,
    },
    /// The model's answer is not finite.
    #[error(
        "at step {step} of {steps} (σ = {sigma}) the model's velocity for image {image} is not finite: its weights are damaged or have diverged"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The noise level.
        sigma: f32,
        /// The image in the batch, from 0.
        image: usize,
    },
    /// The session refused.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Not enough memory.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// One step, seen after it.
#[derive(Debug)]
pub struct Step<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are.
    pub steps: usize,
    /// The noise level before it.
    pub sigma: f32,
    /// Where it led: `[images, tokens, channels]`.
    pub latents: &'a HostTensor,
    /// All outputs of the model for the text, such as routing decisions where the entry has them as outputs.
    pub outputs: &'a TensorMap,
}

/// The noise levels of that many steps: 1, …, 1/steps, and 0 at the end.
pub fn sigmas(steps: usize) -> Vec<f32> {
    let last = 1.0 / steps.max(1) as f64;
    let pace = if steps > 1 { (last - 1.0) / (steps - 1) as f64 } else { 0.0 };
    let mut sigmas: Vec<f32> = (0..steps).map(|index| (1.0 + index as f64 * pace) as f32).collect();
    if steps > 1 {
        sigmas[steps - 1] = last as f32;
    }
    sigmas.push(0.0);
    sigmas
}

/// The time that a model is given at a noise level.
pub fn timestep(sigma: f32) -> f32 {
    sigma * TRAIN_TIMESTEPS / TRAIN_TIMESTEPS
}

/// Turns noise `[images, tokens, channels]` (f32) into pictures of the same shape; `observe` sees every step.
///
/// The same model and noise give the same bits, whatever the number of threads.
///
/// # Errors
/// Steps are none, guidance is no number, the model refuses its inputs or answers with what is not finite.
pub fn sample(
    model: &mut dyn Denoiser,
    noise: HostTensor,
    options: &SamplerOptions,
    observe: &mut dyn FnMut(&Step<'_>),
) -> Result<HostTensor, SamplingError> {
    let SamplerOptions { steps, guidance } = *options;
    if steps == 0 {
        return Err(SamplingError::Options { problem: "sampling needs at least one step".to_owned() });
    }
    if !guidance.is_finite() || guidance < 0.0 {
        return Err(SamplingError::Options {
            problem: format!("guidance {guidance} is not a number from 0: 1 is none, 4 is usual"),
        });
    }
    let shape: [usize; 3] = match noise.shape().try_into() {
        Ok(shape) if noise.as_f32().is_ok() => shape,
        _ => return Err(SamplingError::Noise { given: format!("{noise:?}") }),
    };
    let [_, tokens, channels] = shape;
    let mut latents = noise;
    let sigmas = sigmas(steps);
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let outputs = model.denoise(Text::Given, &latents, timestep(sigma))?;
        let mut velocity = taken(model.output(), &outputs, &latents)?.to_vec();
        if guidance > 1.0 {
            let empty = model.denoise(Text::Empty, &latents, timestep(sigma))?;
            let empty = taken(model.output(), &empty, &latents)?;
            guide(&mut velocity, empty, guidance, channels);
        }
        if let Some(position) = velocity.iter().position(|value| !value.is_finite()) {
            let image = position / (tokens * channels);
            return Err(SamplingError::NotFinite { step: index + 1, steps, sigma, image });
        }
        // The scheduler steps along the negative velocity from σ to the smaller σ′.
        let change = next - sigma;
        for (value, velocity) in latents.as_f32_mut()?.iter_mut().zip(&velocity) {
            *value += change * -velocity;
        }
        observe(&Step { number: index + 1, steps, sigma, latents: &latents, outputs: &outputs });
    }
    Ok(latents)
}

/// The velocity among the outputs.
fn taken<'a>(name: &str, outputs: &'a TensorMap, latents: &HostTensor) -> Result<&'a [f32], SamplingError> {
    let refuse = |given: String| SamplingError::Velocity {
        name: name.to_owned(),
        given,
        wanted: format!("{latents:?}"),
    };
    let tensor = outputs.get(name).ok_or_else(|| refuse("missing".to_owned()))?;
    match tensor.as_f32() {
        Ok(values) if tensor.shape() == latents.shape() => Ok(values),
        _ => Err(refuse(format!("{tensor:?}"))),
    }
}

/// Moves the text's velocity away from the empty text's, and brings every token (a row of `channels` numbers) back to its length.
fn guide(velocity: &mut [f32], empty: &[f32], guidance: f32, channels: usize) {
    let length = |token: &[f32]| token.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    for (token, empty) in velocity.chunks_mut(channels.max(1)).zip(empty.chunks(channels.max(1))) {
        let before = length(token);
        for (value, &empty) in token.iter_mut().zip(empty) {
            *value = empty + guidance * (*value - empty);
        }
        let after = length(token);
        // A token of zeros has no direction and stays one. In f64 neither length can be too large or too small for its square.
        if after > 0.0 {
            let scale = before / after;
            token.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_length() {
        let mut velocity = [3.0, 4.0, 0.0, 0.0, 1e-30, 0.0];
        guide(&mut velocity, &[0.0, 0.0, 0.0, 0.0, 1e30, 0.0], 4.0, 2);
        assert_eq!(velocity[..4], [3.0, 4.0, 0.0, 0.0]);
        // Away from what is huge, at its own length.
        assert!((velocity[4] + 1e-30).abs() < 1e-36 && velocity[5] == 0.0, "{velocity:?}");
    }

    #[test]
    fn a_guided_token_of_zeros_stays_finite() {
        // u + 2·(c − u) is zero for u = 2·c: the length of c has no direction to go.
        let mut velocity = [1.5, -2.0];
        guide(&mut velocity, &[3.0, -4.0], 2.0, 2);
        assert_eq!(velocity, [0.0, 0.0]);
    }

    #[test]
    fn noise_levels_fall_to_zero() {
        assert_eq!(sigmas(1), [1.0, 0.0]);
        assert_eq!(sigmas(4), [1.0, 0.75, 0.5, 0.25, 0.0]);
        let fifty = sigmas(50);
        assert_eq!((fifty.len(), fifty[0], fifty[49], fifty[50]), (51, 1.0, 0.02, 0.0));
        assert!(fifty.is_sorted_by(|a, b| a > b));
    }
}
