//! Weighted averages of checkpoints: the last act of warm-up, stable, merge.
//!
//! A run at a constant learning rate is finished by averaging its last checkpoints, which does what a decay of the learning rate would
//! have done (arXiv 2507.17634): where checkpoint `j` of `n` has the coefficient c_j, an update made between checkpoints `i−1` and `i`
//! is in the average with the factor c_i + … + c_n, which falls as `i` grows. With c_j ∝ 1/√j counted from the oldest that factor is about
//! 1 − √(i/n), the square-root decay; counted from the newest, the average stays closer to the end of the run.

mod error;
mod inputs;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::convert::{load_f32, store_f32};
use nucleus_runtime::safetensors_write::TensorSpec;
use nucleus_runtime::{Checkpoint, write_checkpoint};
use serde_json::{Map, Value, json};

pub use error::MergeError;
use inputs::{differing_keys, expand, in_order, open_all};

use crate::checkpoint::{remove_folder, sync_folder};

/// Elements that are averaged at a time: a buffer of f64 and one of f32 stay in the cache.
const PIECE: usize = 1 << 14;

/// Bytes of a tensor after which the pages that were read are given back. Tensors of experts are large, and checkpoints many.
const RELEASED: usize = 1 << 24;

/// How the coefficients fall from the heaviest checkpoint to the lightest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// The i-th has 1/√i, before the sum is made one.
    InverseSqrt,
    /// All weigh the same.
    Uniform,
}

/// The end of the run that weighs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heaviest {
    /// The newest checkpoint is the first of the series 1/√i.
    Newest,
    /// The oldest is.
    Oldest,
}

/// The order in which checkpoints are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the steps that they are of, if each says its own; else the oldest first.
    ByStep,
    /// The newest first, whatever they say.
    NewestFirst,
}

/// How checkpoints are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeOptions {
    /// How coefficients fall.
    pub weighting: Weighting,
    /// From which end.
    pub heaviest: Heaviest,
    /// The order of the inputs.
    pub order: Order,
    /// Merge only this many, the newest; `None` for all.
    pub last: Option<usize>,
    /// The most bytes of tensors in one file.
    pub max_shard_bytes: u64,
}

impl Default for MergeOptions {
    /// 1/√i from the newest, by step, all of them.
    fn default() -> MergeOptions {
        MergeOptions {
            weighting: Weighting::InverseSqrt,
            heaviest: Heaviest::Newest,
            order: Order::ByStep,
            last: None,
            max_shard_bytes: 5_000_000_000,
        }
    }
}

/// One checkpoint of an average.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Its folder.
    pub path: PathBuf,
    /// Its step, where it says so.
    pub step: Option<u64>,
    /// What it is multiplied by.
    pub coefficient: f64,
}

/// What was merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The checkpoints, oldest first. Coefficients add up to one.
    pub shares: Vec<Share>,
    /// The number of weights.
    pub weights: usize,
    /// Bytes of the result's weights.
    pub bytes: u64,
    /// Configuration keys whose values differ between the checkpoints; those of the newest are kept.
    pub differing_keys: Vec<String>,
}

/// Coefficients of `count` checkpoints, oldest first; they add up to one.
pub fn coefficients(count: usize, weighting: Weighting, heaviest: Heaviest) -> Vec<f64> {
    let raw = |rank: usize| match weighting {
        Weighting::InverseSqrt => 1.0 / ((rank + 1) as f64).sqrt(),
        Weighting::Uniform => 1.0,
    };
    let total: f64 = (0..count).map(raw).sum();
    let place = |index: usize| match heaviest {
        Heaviest::Newest => count - 1 - index,
        Heaviest::Oldest => index,
    };
    (0..count).map(|index| raw(place(index)) / total).collect()
}

/// Averages checkpoints into folder `output`, which must not exist yet, in the element types that they have.
///
/// Each of `inputs` is a diffusers folder, a `checkpoint-<step>` of a run, or a run's folder, which stands for all its checkpoints. Sums
/// are made in f64, in the order from the oldest to the newest; a tensor at a time is streamed from the mapped inputs to the output, a
/// piece at a time. `progress` hears how many bytes of how many have been written.
///
/// The output appears when it is complete: until then it is a hidden folder beside it.
///
/// # Errors
/// An input cannot be opened, inputs differ in names, shapes or types, an element is not finite, or the file system refuses.
pub fn merge(
    inputs: &[PathBuf],
    output: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Merged, MergeError> {
    if output.symlink_metadata().is_ok() {
        return Err(MergeError::OutputExists { path: output.to_path_buf() });
    }
    let mut found = in_order(expand(inputs)?, options.order);
    if let Some(last) = options.last {
        found.drain(..found.len().saturating_sub(last));
    }
    let opened = open_all(&found)?;
    let Some(newest) = opened.last() else { return Err(MergeError::Nothing) };
    let coefficients = coefficients(opened.len(), options.weighting, options.heaviest);
    let shares: Vec<Share> = found
        .into_iter()
        .zip(&coefficients)
        .map(|((path, step), &coefficient)| Share { path, step, coefficient })
        .collect();

    // In the order of the newest one's files: the others' are most likely the same, and disks like to be read from front to back.
    let specs: Vec<TensorSpec> = newest
        .names_in_file_order()
        .into_iter()
        .filter_map(|name| newest.get(name).map(|view| (name, view)))
        .map(|(name, view)| TensorSpec {
            name: name.to_owned(),
            dtype: view.stored_dtype,
            shape: view.shape.to_vec(),
        })
        .collect();
    let merged = Merged {
        weights: specs.len(),
        bytes: newest.total_bytes(),
        differing_keys: differing_keys(&opened),
        shares,
    };
    let partial = partial_path(output)?;
    remove_folder(&partial)?;
    let mut average =
        Average { opened: &opened, coefficients: &coefficients, done: 0, total: merged.bytes, progress };
    let written =
        write_checkpoint(&partial, newest.config(), &specs, options.max_shard_bytes, &mut |spec, sink| {
            average.write(&spec.name, sink)
        })
        .map_err(MergeError::from)
        .and_then(|()| describe(&merged, options, &partial.join("merge.json")))
        .and_then(|()| {
            sync_folder(&partial)?;
            std::fs::rename(&partial, output).map_err(MergeError::io(output, "write"))?;
            let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(sync_folder(parent.unwrap_or(Path::new(".")))?)
        });
    if written.is_err() {
        // The first failure is the one to report.
        let _ = remove_folder(&partial);
    }
    written.map(|()| merged)
}

/// A hidden folder beside the output, on the same file system.
fn partial_path(output: &Path) -> Result<PathBuf, MergeError> {
    let Some(name) = output.file_name() else {
        return Err(MergeError::OutputExists { path: output.to_path_buf() });
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    Ok(output.with_file_name(hidden))
}

/// Where the average came from, for people.
fn describe(merged: &Merged, options: &MergeOptions, path: &Path) -> Result<(), MergeError> {
    let shares: Vec<Value> = merged
        .shares
        .iter()
        .map(|share| json!({ "path": share.path, "step": share.step, "coefficient": share.coefficient }))
        .collect();
    let mut value = Map::new();
    value.insert(
        "weighting".to_owned(),
        json!(match options.weighting {
            Weighting::InverseSqrt => "inverse-sqrt",
            Weighting::Uniform => "uniform",
        }),
    );
    value.insert(
        "heaviest".to_owned(),
        json!(match options.heaviest {
            Heaviest::Newest => "newest",
            Heaviest::Oldest => "oldest",
        }),
    );
    value.insert("checkpoints".to_owned(), json!(shares));
    let write = || -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&value)?;
        text.push(b'\n');
        let mut file = std::fs::File::create(path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    write().map_err(MergeError::io(path, "write"))
}

/// Gives the averaged weights, one after the other.
struct Average<'a> {
    opened: &'a [Checkpoint],
    coefficients: &'a [f64],
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Average<'_> {
    fn write(&mut self, name: &str, sink: &mut dyn Write) -> io::Result<()> {
        // `open_all` has compared names, shapes and types.
        let views: Vec<_> = self.opened.iter().filter_map(|checkpoint| checkpoint.get(name)).collect();
        let Some(dtype) = views.first().and_then(|view| view.dtype()) else { return Ok(()) };
        let bytes = views.first().map_or(0, |view| view.bytes.len());
        let piece = PIECE * dtype.size();
        let (mut sum, mut values, mut out) = (vec![0f64; PIECE], vec![0f32; PIECE], vec![0u8; piece]);
        for start in (0..bytes).step_by(piece) {
            let range = start..bytes.min(start + piece);
            let count = range.len() / dtype.size();
            let (sum, values, out) = (&mut sum[..count], &mut values[..count], &mut out[..range.len()]);
            sum.fill(0.0);
            for (number, (view, &coefficient)) in views.iter().zip(self.coefficients).enumerate() {
                load_f32(dtype, &view.bytes[range.clone()], values).map_err(io::Error::other)?;
                self.check_finite(values, start / dtype.size(), number)?;
                for (sum, &value) in sum.iter_mut().zip(values.iter()) {
                    *sum += coefficient * f64::from(value);
                }
            }
            round(sum, values, dtype);
            store_f32(values, dtype, out).map_err(io::Error::other)?;
            sink.write_all(out)?;
            self.done += range.len() as u64;
            (self.progress)(self.done, self.total);
            if range.end == bytes || range.end % RELEASED == 0 {
                self.opened.iter().for_each(|checkpoint| checkpoint.release(name));
            }
        }
        Ok(())
    }

    fn check_finite(&self, values: &[f32], first: usize, checkpoint: usize) -> io::Result<()> {
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(io::Error::other(format!(
                "element {} is {} in `{}`: leave that checkpoint out",
                first + index,
                values[index],
                self.opened[checkpoint].path().display()
            ))),
            None => Ok(()),
        }
    }
}

/// Rounds sums to f32 so that rounding them further to `dtype` gives what one rounding would have.
fn round(sum: &[f64], values: &mut [f32], dtype: DType) {
    for (value, &sum) in values.iter_mut().zip(sum) {
        let nearest = sum as f32;
        *value = if dtype == DType::F32 || f64::from(nearest) == sum {
            nearest
        } else {
            // Round to odd: of the two neighbours the one whose last bit is set, which is no tie for a shorter type.
            let bits = nearest.to_bits();
            let towards_zero = if f64::from(nearest).abs() > sum.abs() { bits - 1 } else { bits };
            f32::from_bits(towards_zero | 1)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_fall_as_one_over_the_root() {
        let newest = coefficients(4, Weighting::InverseSqrt, Heaviest::Newest);
        let total = 1.0 + 0.5f64.sqrt() + (1.0f64 / 3.0).sqrt() + 0.5;
        for (index, expected) in [0.5, (1.0f64 / 3.0).sqrt(), 0.5f64.sqrt(), 1.0].into_iter().enumerate() {
            assert!((newest[index] - expected / total).abs() < 1e-15, "{newest:?}");
        }
        let mut oldest = coefficients(4, Weighting::InverseSqrt, Heaviest::Oldest);
        oldest.reverse();
        assert_eq!(newest, oldest);
        assert_eq!(coefficients(5, Weighting::Uniform, Heaviest::Newest), [0.2; 5]);
        assert_eq!(coefficients(1, Weighting::InverseSqrt, Heaviest::Oldest), [1.0]);
    }

    #[test]
    fn weighing_the_oldest_most_is_a_square_root_decay() {
        // The factor of the updates before checkpoint i is the sum of the coefficients from there on.
        let count = 10_000;
        let shares = coefficients(count, Weighting::InverseSqrt, Heaviest::Oldest);
        for i in [100, 2500, 6400] {
            let factor: f64 = shares[i..].iter().sum();
            assert!((factor - (1.0 - (i as f64 / count as f64).sqrt())).abs() < 0.01, "{i}: {factor}");
        }
    }

    #[test]
    fn a_sum_is_rounded_once() {
        // Just above the middle of the bf16 numbers 1 and 1 + 2⁻⁷: rounding to f32 first would make it a tie, which goes down to 1.
        let middle = 1.0 + 2f64.powi(-8);
        let sums = [middle + 2f64.powi(-40), middle - 2f64.powi(-40), -middle - 2f64.powi(-40), middle];
        let mut values = [0.0; 4];
        round(&sums, &mut values, DType::Bf16);
        let mut bytes = [0; 8];
        store_f32(&values, DType::Bf16, &mut bytes).unwrap();
        let mut rounded = [0.0; 4];
        load_f32(DType::Bf16, &bytes, &mut rounded).unwrap();
        assert_eq!(rounded, [1.0078125, 1.0, -1.0078125, 1.0]);
        round(&sums, &mut values, DType::F32);
        assert_eq!(values, sums.map(|sum| sum as f32));
    }
}
