//! What gives velocities: a session with a prompt for the text and one for the empty text.

use nucleus_runtime::{HostTensor, Prompt, Session, TensorMap};

use super::SamplingError;

/// Which text a velocity is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// The caption.
    Given,
    /// No text: what guidance moves away from.
    Empty,
}

/// A model that gives velocities x0 − noise.
pub trait Denoiser {
    /// The model's outputs for latents `[images, tokens, channels]` at a time between 1 (noise) and 0 (the picture).
    ///
    /// # Errors
    /// The model refuses its inputs, or has no such text.
    fn denoise(&mut self, text: Text, latents: &HostTensor, time: f32) -> Result<TensorMap, SamplingError>;

    /// The name of the output that is the velocity.
    fn output(&self) -> &str;
}

/// What an entry calls the inputs and the output of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputNames {
    /// The latents, `[B, S, C]`.
    pub latents: String,
    /// The time, `[B]`.
    pub time: String,
    /// The output with the velocity, `[B, S, C]`.
    pub velocity: String,
}

impl Default for InputNames {
    /// Those of diffusers' transformers.
    fn default() -> InputNames {
        InputNames {
            latents: "hidden_states".to_owned(),
            time: "timestep".to_owned(),
            velocity: "sample".to_owned(),
        }
    }
}

/// A session with its texts prepared: what depends on them is computed once, not at every step.
pub struct SessionDenoiser<'a> {
    session: &'a mut Session,
    given: Prompt,
    empty: Option<Prompt>,
    names: InputNames,
}

impl<'a> SessionDenoiser<'a> {
    /// Prepares the texts. `given` and `empty` hold the inputs of the entry that do not change from step to step, in whatever form the
    /// entry takes text; `dims` has the sizes that their shapes do not decide. The empty text may be of another length.
    ///
    /// # Errors
    /// Inputs or sizes do not fit the session's entry.
    pub fn new(
        session: &'a mut Session,
        given: &TensorMap,
        empty: Option<&TensorMap>,
        dims: &[(String, i64)],
        names: InputNames,
    ) -> Result<SessionDenoiser<'a>, SamplingError> {
        let given = session.prepare(given, dims)?;
        let empty = empty.map(|inputs| session.prepare(inputs, dims)).transpose()?;
        Ok(SessionDenoiser { session, given, empty, names })
    }
}

impl Denoiser for SessionDenoiser<'_> {
    fn denoise(&mut self, text: Text, latents: &HostTensor, time: f32) -> Result<TensorMap, SamplingError> {
        let prompt = match text {
            Text::Given => &self.given,
            Text::Empty => self.empty.as_ref().ok_or(SamplingError::NoEmptyText)?,
        };
        let images = latents.shape().first().copied().unwrap_or(0);
        let mut inputs = TensorMap::new();
        inputs.insert(self.names.time.clone(), HostTensor::from_f32(&[images], &vec![time; images])?);
        inputs.insert(self.names.latents.clone(), latents.clone());
        Ok(self.session.step(prompt, &inputs)?)
    }

    fn output(&self) -> &str {
        &self.names.velocity
    }
}
