//! One number for the contents of many tensors, in whatever order and however many files they are stored.

use std::collections::BTreeMap;
use std::path::Path;

use nucleus_runtime::safetensors_file::StoredDType;

use super::CheckpointError;

/// Digests tensors: names, types, shapes and bytes.
#[derive(Default)]
pub(super) struct Digest {
    done: BTreeMap<String, blake3::Hash>,
    current: Option<(String, blake3::Hasher)>,
}

impl Digest {
    /// Begins the next tensor, whose bytes follow.
    pub(super) fn tensor(&mut self, name: &str, dtype: StoredDType, shape: &[usize]) {
        self.end();
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{dtype} {shape:?}\n").as_bytes());
        self.current = Some((name.to_owned(), hasher));
    }

    /// The next bytes of the tensor.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if let Some((_, hasher)) = &mut self.current {
            hasher.update(bytes);
        }
    }

    fn end(&mut self) {
        if let Some((name, hasher)) = self.current.take() {
            self.done.insert(name, hasher.finalize());
        }
    }

    /// The digest, in hexadecimal.
    pub(super) fn finish(mut self) -> String {
        self.end();
        let mut all = blake3::Hasher::new();
        for (name, digest) in &self.done {
            // The length first: what a name ends with cannot be taken for a digest.
            all.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(digest.as_bytes());
        }
        all.finalize().to_hex().to_string()
    }
}

/// The digest of a small file.
pub(super) fn of_file(path: &Path) -> Result<String, CheckpointError> {
    let bytes = std::fs::read(path).map_err(CheckpointError::io(path, "read"))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}
