//! Do the weights of a checkpoint fit a model? Everything that does not is reported at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use nucleus_ir::DType;

use super::{Checkpoint, CheckpointError};
use crate::safetensors_file::{StoredDType, shown, stored_dtype};

/// Problems that are written out; the rest is counted.
const REPORTED: usize = 20;

/// Candidates looked at for a near miss, so that a hostile file cannot make the search long.
const SUGGESTION_CANDIDATES: usize = 20_000;

/// A weight that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its element type; `None` accepts f32, bf16 and f16.
    pub dtype: Option<DType>,
}

impl Expected {
    /// A weight of any float dtype.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Expected {
        Expected { name: name.into(), shape: shape.into(), dtype: None }
    }
}

/// What to say of weights that the model does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extras {
    /// They are a mistake: the checkpoint is another model's.
    Refuse,
    /// They are left alone.
    Allow,
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The checkpoint lacks a weight.
    Missing {
        /// The weight.
        name: String,
        /// An unused weight of the checkpoint that may be the one meant.
        suggestion: Option<String>,
    },
    /// A weight of another shape.
    Shape {
        /// The weight.
        name: String,
        /// Its shape in the checkpoint.
        stored: Vec<usize>,
        /// The shape that the model needs.
        needed: Vec<usize>,
    },
    /// A weight of an element type that cannot be used.
    DType {
        /// The weight.
        name: String,
        /// Its element type in the checkpoint.
        stored: StoredDType,
        /// The type that the model needs; `None` for any float.
        needed: Option<DType>,
    },
    /// A weight that the model does not use.
    Extra {
        /// The weight.
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { name, suggestion: None } => write!(f, "weight `{}` is missing", shown(name)),
            Problem::Missing { name, suggestion: Some(other) } => write!(
                f,
                "weight `{}` is missing; the checkpoint has `{}`, which the model does not use",
                shown(name),
                shown(other)
            ),
            Problem::Shape { name, stored, needed } => write!(
                f,
                "weight `{}` has shape {}, the model needs {}",
                shown(name),
                shown_shape(stored),
                shown_shape(needed)
            ),
            Problem::DType { name, stored, needed: Some(needed) } => {
                write!(f, "weight `{}` is stored as {stored}, the model needs {needed}", shown(name))
            }
            Problem::DType { name, stored: stored @ StoredDType::I8, needed: None } => write!(
                f,
                "weight `{}` is stored as {stored}, the model needs f32, bf16 or f16: compile it with `--quantize int8`",
                shown(name)
            ),
            Problem::DType { name, stored, needed: None } => {
                write!(f, "weight `{}` is stored as {stored}, the model needs f32, bf16 or f16", shown(name))
            }
            Problem::Extra { name } => write!(f, "weight `{}` is not used by the model", shown(name)),
        }
    }
}

/// A shape of a file may have any rank: its first extents say enough.
fn shown_shape(shape: &[usize]) -> String {
    if shape.len() <= 16 {
        return format!("{shape:?}");
    }
    let first: Vec<String> = shape[..16].iter().map(usize::to_string).collect();
    format!("[{}, …] of rank {}", first.join(", "), shape.len())
}

/// Everything in which a checkpoint and a model differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The checkpoint.
    pub path: PathBuf,
    /// The first problems: the expected weights in their order, then the unused ones.
    pub problems: Vec<Problem>,
    /// How many there are in all.
    pub total: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.total == 1 { "" } else { "s" };
        write!(
            f,
            "checkpoint `{}` does not fit the model ({} problem{plural}):",
            self.path.display(),
            self.total
        )?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        if self.total > self.problems.len() {
            write!(f, "\n  and {} more", self.total - self.problems.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for Mismatch {}

impl Checkpoint {
    /// Compares the weights with those that a model needs.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] with the first 20 problems and the count of all: missing weights, wrong
    /// shapes and dtypes and, unless `extras` allows them, weights that nobody asked for.
    pub fn check(&self, expected: &[Expected], extras: Extras) -> Result<(), CheckpointError> {
        let wanted: BTreeSet<&str> = expected.iter().map(|weight| weight.name.as_str()).collect();
        let unused: Vec<&str> = self.names().filter(|name| !wanted.contains(name)).collect();
        let mut problems = Vec::new();
        let mut total = 0;
        let mut report = |problem: &dyn Fn() -> Problem| {
            total += 1;
            if problems.len() < REPORTED {
                problems.push(problem());
            }
        };
        let by_suffix = suffixes(&unused);
        for Expected { name, shape, dtype } in expected {
            let Some(weight) = self.get(name) else {
                report(&|| Problem::Missing {
                    name: name.clone(),
                    suggestion: suggest(name, &unused, &by_suffix).map(str::to_owned),
                });
                continue;
            };
            if weight.shape != shape {
                report(&|| Problem::Shape {
                    name: name.clone(),
                    stored: weight.shape.to_vec(),
                    needed: shape.clone(),
                });
            }
            let fits = match dtype {
                Some(dtype) => weight.stored_dtype == stored_dtype(*dtype),
                None => weight.dtype().is_some_and(DType::is_float),
            };
            if !fits {
                report(&|| Problem::DType {
                    name: name.clone(),
                    stored: weight.stored_dtype,
                    needed: *dtype,
                });
            }
        }
        if extras == Extras::Refuse {
            for name in &unused {
                report(&|| Problem::Extra { name: (*name).to_owned() });
            }
        }
        if total == 0 {
            return Ok(());
        }
        Err(Mismatch { path: self.path().to_path_buf(), problems, total }.into())
    }
}

/// Unused names by what follows a leading component or two: wrappers prefix every name (`transformer.…`).
fn suffixes<'a>(unused: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let mut map = BTreeMap::new();
    for name in unused.iter().take(SUGGESTION_CANDIDATES) {
        for (at, _) in name.match_indices('.').take(2) {
            map.entry(&name[at + 1..]).or_insert(*name);
        }
    }
    map
}

/// The unused name that `missing` was most likely meant to be.
fn suggest<'a>(missing: &str, unused: &[&'a str], by_suffix: &BTreeMap<&str, &'a str>) -> Option<&'a str> {
    if let Some(name) = by_suffix.get(missing) {
        return Some(name);
    }
    let limit = (missing.len() / 4).clamp(1, 8);
    unused
        .iter()
        .take(SUGGESTION_CANDIDATES)
        .filter(|name| name.len().abs_diff(missing.len()) <= limit)
        .filter_map(|name| Some((edit_distance(missing.as_bytes(), name.as_bytes(), limit)?, *name)))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance in bytes, or `None` above `limit`. Only a band of that width is computed.
fn edit_distance(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[common..], &b[common..]);
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    let mut current = vec![usize::MAX / 2; b.len() + 1];
    for (i, x) in a.iter().enumerate() {
        let (from, to) = (i.saturating_sub(limit), (i + limit + 1).min(b.len()));
        current.fill(usize::MAX / 2);
        if from == 0 {
            current[0] = i + 1;
        }
        for j in from..to {
            let substitute = previous[j] + usize::from(*x != b[j]);
            current[j + 1] = substitute.min(previous[j + 1] + 1).min(current[j] + 1);
        }
        if current.iter().all(|&distance| distance > limit) {
            return None;
        }
        std::mem::swap(&mut previous, &mut current);
    }
    Some(previous[b.len()]).filter(|&distance| distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_is_banded_but_right() {
        let d = |a: &str, b: &str, limit| edit_distance(a.as_bytes(), b.as_bytes(), limit);
        assert_eq!(d("kitten", "sitting", 8), Some(3));
        assert_eq!(d("kitten", "sitting", 3), Some(3));
        assert_eq!(d("kitten", "sitting", 2), None);
        assert_eq!(d("", "abc", 3), Some(3));
        assert_eq!(d("abc", "", 3), Some(3));
        assert_eq!(d("abc", "abc", 1), Some(0));
        assert_eq!(d("abcdef", "badcfe", 8), Some(4));
    }
}
