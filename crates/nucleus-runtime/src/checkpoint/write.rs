//! Writes a diffusers-style folder, streaming: no more than a buffer of any tensor is ever held here.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::safetensors_write::{AtomicFile, Fill, TensorSpec, WriteError, check_names, write_tensors};

const BASE: &str = "diffusion_pytorch_model";

/// Writes `config.json` and the weights to folder `dir`, which is made if need be.
///
/// The weights go to `diffusion_pytorch_model.safetensors`, or, where they have more than `max_shard_bytes`
/// bytes of data, to numbered shards with `diffusion_pytorch_model.safetensors.index.json`. Tensors fill the
/// shards in the given order; one that is larger than a shard gets its own. `fill` is called once per tensor
/// with a sink that takes exactly its bytes; in a file, wider element types come first.
///
/// All files are written under temporary names and renamed when complete, the index last, so a reader sees
/// no folder or a whole checkpoint.
///
/// # Errors
/// The folder already holds weights, a name or size is bad, a source gives too many or too few bytes, or the
/// file system refuses. Nothing but temporary files has been made until the last byte is on the disk.
pub fn write_checkpoint(
    dir: &Path,
    config: Option<&Map<String, Value>>,
    tensors: &[TensorSpec],
    max_shard_bytes: u64,
    fill: Fill<'_>,
) -> Result<(), WriteError> {
    if max_shard_bytes == 0 {
        return Err(WriteError::ZeroShard);
    }
    check_names(tensors)?;
    let shards = split(tensors, max_shard_bytes)?;
    std::fs::create_dir_all(dir).map_err(|source| io_error(dir, "create folder", source))?;
    refuse_weights(dir)?;

    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut finished = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = if shards.len() == 1 {
            format!("{BASE}.safetensors")
        } else {
            format!("{BASE}-{:05}-of-{:05}.safetensors", number + 1, shards.len())
        };
        let mut file = AtomicFile::create(&dir.join(&name))?;
        write_tensors(&mut file, shard, &metadata, &mut *fill)?;
        file.finish()?;
        finished.push(file);
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
    }
    if let Some(config) = config {
        finished.insert(0, json_file(&dir.join("config.json"), config)?);
    }
    if shards.len() > 1 {
        let total_size = tensors.iter().map(TensorSpec::bytes).sum::<Result<u64, _>>()?;
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        finished.push(json_file(&dir.join(format!("{BASE}.safetensors.index.json")), &index)?);
    }
    finished.into_iter().try_for_each(AtomicFile::commit)
}

/// Consecutive tensors whose bytes together stay within `max_bytes`.
fn split(tensors: &[TensorSpec], max_bytes: u64) -> Result<Vec<Vec<&TensorSpec>>, WriteError> {
    let mut shards: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let mut size = 0u64;
    for tensor in tensors {
        let bytes = tensor.bytes()?;
        if size.saturating_add(bytes) > max_bytes && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    Ok(shards)
}

/// Old shards beside new ones would be neither checkpoint.
fn refuse_weights(dir: &Path) -> Result<(), WriteError> {
    let read_error = |source| io_error(dir, "read folder", source);
    for entry in std::fs::read_dir(dir).map_err(read_error)? {
        let file = entry.map_err(read_error)?.file_name().to_string_lossy().into_owned();
        if !file.starts_with('.') && (file.ends_with(".safetensors") || file.contains(".safetensors.index."))
        {
            return Err(WriteError::FolderInUse { dir: dir.to_path_buf(), file });
        }
    }
    Ok(())
}

fn json_file(path: &Path, value: &impl serde::Serialize) -> Result<AtomicFile, WriteError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| io_error(path, "write", error.into()))?;
    text.push(b'\n');
    let mut file = AtomicFile::create(path)?;
    file.write_all(&text)?;
    file.finish()?;
    Ok(file)
}

fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> WriteError {
    WriteError::Io { path: path.to_path_buf(), action, source }
}
