//! The weights that a run starts with: those of a checkpoint, or random ones.

use std::path::PathBuf;

use nucleus_runtime::{Checkpoint, CheckpointError, Expected, Extras};
use thiserror::Error;

use crate::initial::fill;
use crate::parameters::Parameters;

/// Why a checkpoint's weights cannot be taken.
#[derive(Debug, Error)]
pub enum StartError {
    /// It is not a checkpoint of this model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight that is not finite, or of a type that is no float.
    #[error("weight `{name}` of `{}`: {why}", .checkpoint.display())]
    Value {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The weight.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// Sets all weights to those of a checkpoint, in f32.
///
/// # Errors
/// The checkpoint is not one of this model. The weights are then undefined.
pub fn from_checkpoint(parameters: &mut Parameters, checkpoint: &Checkpoint) -> Result<(), StartError> {
    let expected: Vec<Expected> = parameters
        .list()
        .iter()
        .map(|parameter| Expected::new(parameter.info.name.clone(), parameter.info.shape.clone()))
        .collect();
    checkpoint.check(&expected, Extras::Refuse)?;
    for parameter in parameters.list().to_vec() {
        let name = parameter.info.name;
        let Some(view) = checkpoint.get(&name) else { continue };
        let values = &mut parameters.values[parameter.range];
        let wrong = |why: String| StartError::Value {
            checkpoint: checkpoint.path().to_path_buf(),
            name: name.clone(),
            why,
        };
        view.load_f32(values).map_err(|error| wrong(error.to_string()))?;
        if let Some(position) = values.iter().position(|value| !value.is_finite()) {
            return Err(wrong(format!("element {position} is {}", values[position])));
        }
        checkpoint.release(&name);
    }
    Ok(())
}

/// Draws all weights: see [`fill`].
pub fn fresh(parameters: &mut Parameters, zero_init: &[String], seed: u64) {
    for parameter in parameters.list().to_vec() {
        fill(&parameter.info, zero_init, seed, &mut parameters.values[parameter.range]);
    }
}
