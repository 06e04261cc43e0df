//! The weights that a run starts with: those of a checkpoint, or random ones.

use std::path::PathBuf;

use nucleus_runtime::{Checkpoint, CheckpointError, Expected, Extras};
use thiserror::Error;

use crate::groups::matches;
use crate::parameters::Parameters;
use crate::random::{Purpose, Streams};

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

/// How a fresh weight is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fresh {
    /// The same number everywhere.
    Constant(f32),
    /// Normal with that standard deviation.
    Normal(f32),
    /// Uniform in ±1/√(inputs), as PyTorch's linear layers.
    FanIn,
}

/// By name, first match. Modulation, the last norm's and the last projection begin at zero, so that every block begins as the identity
/// (Peebles and Xie, arXiv 2212.09748); norms begin at one.
const FRESH: &[(&str, Fresh)] = &[
    ("*.img_mod.1.*", Fresh::Constant(0.0)),
    ("norm_out.linear.*", Fresh::Constant(0.0)),
    ("proj_out.weight", Fresh::Constant(0.0)),
    ("*norm*.weight", Fresh::Constant(1.0)),
    ("*.bias", Fresh::Constant(0.0)),
    ("*embedding.weight", Fresh::Normal(0.02)),
    ("*", Fresh::FanIn),
];

/// Draws all weights. A weight depends on the seed, its name and its shape, and on no other weight.
pub fn fresh(parameters: &mut Parameters, seed: u64) {
    let streams = Streams::new(seed);
    for parameter in parameters.list().to_vec() {
        let (name, shape) = (&parameter.info.name, &parameter.info.shape);
        let hash = blake3::hash(name.as_bytes());
        let word = hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut stream = streams.stream(Purpose::Weights, &[word]);
        let kind =
            FRESH.iter().find(|(pattern, _)| matches(pattern, name)).map_or(Fresh::FanIn, |(_, kind)| *kind);
        // [out, in], or [experts, in, out].
        let inputs = shape.get(1).copied().unwrap_or(1).max(1);
        let values = &mut parameters.values[parameter.range];
        match kind {
            Fresh::Constant(value) => values.fill(value),
            Fresh::Normal(deviation) => {
                stream.fill_normal(values);
                values.iter_mut().for_each(|value| *value *= deviation);
            }
            Fresh::FanIn => {
                let bound = 1.0 / (inputs as f64).sqrt();
                values.iter_mut().for_each(|value| *value = ((stream.uniform() * 2.0 - 1.0) * bound) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::{AdamW, Group, Optimizer, WeightInfo, assign};

    fn parameters(names: &[(&str, &[usize])]) -> Parameters {
        let weights: Vec<WeightInfo> = names
            .iter()
            .map(|(name, shape)| WeightInfo { name: (*name).to_owned(), shape: shape.to_vec() })
            .collect();
        let groups = [Group {
            params: vec!["*".to_owned()],
            optimizer: Optimizer::AdamW(AdamW::default()),
            default: false,
        }];
        let assignment = assign(&groups, &weights).unwrap();
        Parameters::new(&weights, &groups, &assignment).unwrap()
    }

    #[test]
    fn fresh_weights_depend_on_seed_and_name_alone() {
        let of = |names: &[(&str, &[usize])], seed: u64, name: &str| {
            let mut made = parameters(names);
            fresh(&mut made, seed);
            let parameter = made.list().iter().find(|parameter| parameter.info.name == name).unwrap();
            made.values[parameter.range.clone()].to_vec()
        };
        let both: [(&str, &[usize]); 2] = [("a.to_q.weight", &[8, 16]), ("b.weight", &[4, 4])];
        let first = of(&both, 7, "a.to_q.weight");
        assert_eq!(first, of(&both[..1], 7, "a.to_q.weight"));
        assert_ne!(first, of(&both, 8, "a.to_q.weight"));
        assert!(first.iter().all(|value| value.abs() <= 0.25) && first.iter().any(|value| value.abs() > 0.2));
        for (name, value) in [("x.norm_q.weight", 1.0), ("x.img_mod.1.weight", 0.0), ("y.bias", 0.0)] {
            assert_eq!(of(&[(name, &[5])], 1, name), [value; 5], "{name}");
        }
    }
}
