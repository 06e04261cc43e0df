//! Which files make up a checkpoint: the layouts of a folder, and the index of shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CheckpointError, Opened, entries};
use crate::config_json::{parse_json, read_limited};
use crate::safetensors_file::{MappedFile, shown};

/// Largest shard index that is read, in bytes; about 100 bytes describe a weight.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// What [`locate`] found.
pub(super) struct Located {
    /// Where `config.json` would be.
    pub(super) folder: PathBuf,
    pub(super) weights: Weights,
}

pub(super) enum Weights {
    Single(PathBuf),
    /// The path of the index.
    Sharded(PathBuf),
}

/// Finds the weights that `path` means.
pub(super) fn locate(path: &Path) -> Result<Located, CheckpointError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| CheckpointError::Io { path: path.to_path_buf(), source })?;
    if metadata.is_dir() {
        return locate_in_folder(path);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let weights = match kind(&name) {
        Some(Kind::Index) => Weights::Sharded(path.to_path_buf()),
        Some(Kind::Single | Kind::Shard) => Weights::Single(path.to_path_buf()),
        None => return Err(CheckpointError::NotACheckpoint { path: path.to_path_buf() }),
    };
    Ok(Located { folder, weights })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Index,
    Shard,
    Single,
}

/// What a file's name says of it. Variants put a word before or after the `.index`: `model.safetensors.index.fp16.json`.
fn kind(name: &str) -> Option<Kind> {
    if name.starts_with('.') {
        return None; // Temporary files of a writer.
    }
    if name.ends_with(".json") && name.contains(".safetensors.index.") {
        return Some(Kind::Index);
    }
    let stem = name.strip_suffix(".safetensors")?;
    Some(if is_shard(stem) { Kind::Shard } else { Kind::Single })
}

/// True for `NAME-00001-of-00007`, also with a variant after it or before it.
fn is_shard(stem: &str) -> bool {
    stem.split('.').any(|part| {
        let mut words = part.rsplitn(4, '-');
        let total = words.next().unwrap_or_default();
        let of = words.next().unwrap_or_default();
        let number = words.next().unwrap_or_default();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        of == "of" && digits(total) && digits(number) && words.next().is_some()
    })
}

fn locate_in_folder(folder: &Path) -> Result<Located, CheckpointError> {
    let names = weight_files(folder)?;
    let transformer = folder.join("transformer");
    let has_transformer = transformer.is_dir();
    if has_transformer && folder.join("model_index.json").exists() {
        return locate_weights(&transformer, &weight_files(&transformer)?);
    }
    match standard_names(folder, &names)? {
        Some(located) => Ok(located),
        None if has_transformer => locate_weights(&transformer, &weight_files(&transformer)?),
        None => only_candidate(folder, &names),
    }
}

/// In a folder that must hold the weights itself.
fn locate_weights(folder: &Path, names: &BTreeMap<String, Kind>) -> Result<Located, CheckpointError> {
    match standard_names(folder, names)? {
        Some(located) => Ok(located),
        None => only_candidate(folder, names),
    }
}

/// The files of a folder whose names are those of weights or indexes.
fn weight_files(folder: &Path) -> Result<BTreeMap<String, Kind>, CheckpointError> {
    let io_error = |source| CheckpointError::Io { path: folder.to_path_buf(), source };
    let mut names = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name().to_string_lossy().into_owned();
        if let Some(kind) = kind(&name) {
            names.insert(name, kind);
        }
    }
    Ok(names)
}

fn standard_names(folder: &Path, names: &BTreeMap<String, Kind>) -> Result<Option<Located>, CheckpointError> {
    for base in ["diffusion_pytorch_model", "model"] {
        let single = format!("{base}.safetensors");
        let index = format!("{base}.safetensors.index.json");
        let located = match (names.contains_key(&single), names.contains_key(&index)) {
            (false, false) => continue,
            // Loaders disagree on which of the two wins, so a stale one could be taken unseen.
            (true, true) => {
                return Err(CheckpointError::Ambiguous {
                    path: folder.to_path_buf(),
                    candidates: vec![single, index],
                });
            }
            (true, false) => Weights::Single(folder.join(single)),
            (false, true) => Weights::Sharded(folder.join(index)),
        };
        return Ok(Some(Located { folder: folder.to_path_buf(), weights: located }));
    }
    Ok(None)
}

fn only_candidate(folder: &Path, names: &BTreeMap<String, Kind>) -> Result<Located, CheckpointError> {
    let path = folder.to_path_buf();
    let of_kind = |wanted: Kind| {
        names
            .iter()
            .filter(move |(_, kind)| **kind == wanted)
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    let mut candidates = of_kind(Kind::Index);
    let has_index = !candidates.is_empty();
    candidates.extend(of_kind(Kind::Single));
    if candidates.len() > 1 {
        return Err(CheckpointError::Ambiguous { path, candidates });
    }
    let Some(name) = candidates.pop() else {
        return Err(match of_kind(Kind::Shard).into_iter().next() {
            Some(shard) => CheckpointError::ShardWithoutIndex { path, shard },
            None => CheckpointError::NoWeights { path },
        });
    };
    let file = folder.join(name);
    let weights = if has_index { Weights::Sharded(file) } else { Weights::Single(file) };
    Ok(Located { folder: path, weights })
}

/// Opens every shard that the index names and checks that index and shards agree.
pub(super) fn open_shards(index: &Path) -> Result<Opened, CheckpointError> {
    let weight_map = read_index(index)?;
    let disagree = |message| CheckpointError::IndexShards { path: index.to_path_buf(), message };
    let folder = index.parent().unwrap_or(Path::new(""));
    let shards: BTreeSet<&String> = weight_map.values().collect();
    let mut files = Vec::new();
    let mut weights = BTreeMap::new();
    for shard in shards {
        let path = folder.join(shard);
        if !path.exists() {
            return Err(disagree(format!("shard `{}` is missing", shown(shard))));
        }
        let file = MappedFile::open(&path)?;
        for (name, weight) in entries(&file, files.len()) {
            match weight_map.get(&name) {
                Some(listed) if listed == shard => {}
                Some(listed) => {
                    return Err(disagree(format!(
                        "weight `{}` is in shard `{}`, the index places it in `{}`",
                        shown(&name),
                        shown(shard),
                        shown(listed)
                    )));
                }
                None => {
                    return Err(disagree(format!(
                        "weight `{}` is in shard `{}` but not in the index",
                        shown(&name),
                        shown(shard)
                    )));
                }
            }
            weights.insert(name, weight);
        }
        files.push(file);
    }
    match weight_map.iter().find(|(name, _)| !weights.contains_key(*name)) {
        Some((name, shard)) => {
            Err(disagree(format!("weight `{}` is not in its shard `{}`", shown(name), shown(shard))))
        }
        None => Ok((files, weights)),
    }
}

/// Weight name → shard file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let broken = |message: String| CheckpointError::Index { path: path.to_path_buf(), message };
    let index: Map<String, Value> = parse_json(path, &read_limited(path, MAX_INDEX_BYTES)?)?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(broken("it has no object `weight_map`".to_owned()));
    };
    let mut weight_map = BTreeMap::new();
    for (name, shard) in map {
        let Value::String(shard) = shard else {
            return Err(broken(format!("`weight_map` gives no file name for `{}`", shown(name))));
        };
        // An index must not reach files outside its folder.
        if shard.contains(['/', '\\', '\0']) || !shard.ends_with(".safetensors") {
            return Err(broken(format!(
                "`weight_map` places `{}` in `{}`, which is not the plain name of a `.safetensors` file",
                shown(name),
                shown(shard)
            )));
        }
        weight_map.insert(name.clone(), shard.clone());
    }
    if weight_map.is_empty() {
        return Err(broken("its `weight_map` is empty".to_owned()));
    }
    Ok(weight_map)
}
