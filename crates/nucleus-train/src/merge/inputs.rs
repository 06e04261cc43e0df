//! Which checkpoints are merged, in which order, and whether they go together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nucleus_runtime::Checkpoint;

use super::{MergeError, Order};
use crate::checkpoint::{RunState, TRAINER, list};

/// A checkpoint's folder and its step, where it says so.
pub(super) type Found = (PathBuf, Option<u64>);

/// Puts the checkpoints of a run in the place of its folder.
pub(super) fn expand(inputs: &[PathBuf]) -> Result<Vec<Found>, MergeError> {
    let mut found = Vec::new();
    for input in inputs {
        let of_run = if input.is_dir() { list(input)? } else { Vec::new() };
        if of_run.is_empty() {
            found.push((input.clone(), step(input)?));
        } else {
            found.extend(of_run.into_iter().map(|(step, path)| (path, Some(step))));
        }
    }
    Ok(found)
}

/// The step of `checkpoint-<step>`, or of the run's checkpoint whose subfolder `transformer` this is.
fn step(path: &Path) -> Result<Option<u64>, MergeError> {
    for folder in [Some(path), path.parent()].into_iter().flatten() {
        let file = folder.join(TRAINER);
        if file.is_file() {
            return Ok(Some(RunState::read(&file)?.step));
        }
    }
    Ok(None)
}

/// Oldest first.
pub(super) fn in_order(mut found: Vec<Found>, order: Order) -> Vec<Found> {
    match order {
        Order::NewestFirst => found.reverse(),
        // A shell lists `checkpoint-1000` before `checkpoint-200`, so what checkpoints say goes before the order of their names.
        Order::ByStep if found.iter().all(|(_, step)| step.is_some()) => {
            found.sort_by_key(|&(_, step)| step);
        }
        Order::ByStep => {}
    }
    found
}

/// Opens the checkpoints and compares them with the last.
pub(super) fn open_all(found: &[Found]) -> Result<Vec<Checkpoint>, MergeError> {
    let opened = found.iter().map(|(path, _)| Checkpoint::open(path)).collect::<Result<Vec<_>, _>>()?;
    let Some((newest, others)) = opened.split_last() else { return Err(MergeError::Nothing) };
    for (name, view) in newest.iter() {
        if view.dtype().is_none_or(|dtype| !dtype.is_float()) {
            return Err(MergeError::NotFloat {
                path: newest.path().to_path_buf(),
                name: name.to_owned(),
                dtype: view.stored_dtype.to_string(),
            });
        }
    }
    for other in others {
        if let Some(problem) = difference(other, newest) {
            return Err(MergeError::Different {
                first: other.path().to_path_buf(),
                second: newest.path().to_path_buf(),
                problem,
            });
        }
    }
    Ok(opened)
}

fn difference(first: &Checkpoint, second: &Checkpoint) -> Option<String> {
    for (name, view) in first.iter() {
        let Some(other) = second.get(name) else {
            return Some(format!("only the first has weight `{name}`"));
        };
        if view.shape != other.shape {
            return Some(format!(
                "weight `{name}` has shape {:?} in the first and {:?} in the second",
                view.shape, other.shape
            ));
        }
        if view.stored_dtype != other.stored_dtype {
            return Some(format!(
                "weight `{name}` is stored as {} in the first and as {} in the second",
                view.stored_dtype, other.stored_dtype
            ));
        }
    }
    let name = second.names().find(|name| first.get(name).is_none())?;
    Some(format!("only the second has weight `{name}`"))
}

/// Configuration keys whose values are not the same everywhere, but for notes such as `_diffusers_version`.
pub(super) fn differing_keys(opened: &[Checkpoint]) -> Vec<String> {
    let Some((newest, others)) = opened.split_last() else { return Vec::new() };
    let keys: BTreeSet<&String> =
        opened.iter().filter_map(Checkpoint::config).flat_map(|map| map.keys()).collect();
    let value = |checkpoint: &Checkpoint, key: &str| checkpoint.config()?.get(key).cloned();
    let differs = |key: &str| others.iter().any(|other| value(other, key) != value(newest, key));
    keys.into_iter().filter(|key| !key.starts_with('_') && differs(key)).cloned().collect()
}
