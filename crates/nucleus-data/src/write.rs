//! The folder of a data set while it is made: pixels gather in one file per bucket, and become shards when the vocabulary is known.
//!
//! Everything happens in a temporary folder beside the one that is wanted, which is renamed when it is complete. So no more than a
//! batch of pictures is held in memory, and no reader sees half a data set.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_runtime::safetensors_write::{TensorSpec, write_safetensors};
use serde::Serialize;
use tempfile::TempDir;

use crate::fit::BucketSize;
use crate::format::{BucketDescription, DESCRIPTION, ShardDescription, digest};
use crate::report::BuildError;

/// A folder that appears when it is complete; dropped before that, it leaves nothing.
pub(crate) struct Folder {
    target: PathBuf,
    temporary: TempDir,
    content: PathBuf,
}

impl Folder {
    /// Starts a folder that will be `target`. A data set of that name is only in the way if it may not be replaced, anything else always.
    pub(crate) fn create(target: &Path, replace: bool) -> Result<Folder, BuildError> {
        let failed = |action| move |source| BuildError::Io { path: target.to_path_buf(), action, source };
        let refuse =
            |message: &str| BuildError::Text { path: target.to_path_buf(), message: message.to_owned() };
        if target.symlink_metadata().is_ok() {
            if !replace {
                return Err(refuse(
                    "already exists: remove it, write elsewhere, or say that it may be replaced",
                ));
            }
            if !target.join(DESCRIPTION).is_file() {
                return Err(refuse("already exists and is no data set: it is not replaced"));
            }
        }
        let Some(name) = target.file_name() else {
            return Err(refuse("names no folder that could be written"));
        };
        let parent = match target.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        std::fs::create_dir_all(parent).map_err(failed("create the folder of"))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .tempdir_in(parent)
            .map_err(failed("create"))?;
        // The temporary folder is private; the one inside it has the permissions that folders have here.
        let content = temporary.path().join("content");
        std::fs::create_dir_all(content.join("shards")).map_err(failed("create"))?;
        Ok(Folder { target: target.to_path_buf(), temporary, content })
    }

    /// A file that is gone when the folder is complete.
    fn scratch(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    /// An error about a file of this folder, named as it will be.
    fn error(&self, name: &str, source: io::Error) -> BuildError {
        BuildError::Io { path: self.target.join(name), action: "write", source }
    }

    /// Writes one file, whatever `fill` writes to it.
    pub(crate) fn file(
        &self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), BuildError> {
        let write = || {
            let mut out = BufWriter::new(File::create_new(self.content.join(name))?);
            fill(&mut out)?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        };
        write().map_err(|source| self.error(name, source))
    }

    /// Writes one JSON value per line.
    pub(crate) fn lines<T: Serialize>(
        &self,
        name: &str,
        values: impl Iterator<Item = T>,
    ) -> Result<(), BuildError> {
        self.file(name, |out| {
            for value in values {
                serde_json::to_writer(&mut *out, &value)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })
    }

    /// Gives the folder its name; an older data set of that name is removed.
    pub(crate) fn commit(self) -> Result<(), BuildError> {
        let failed = |source| BuildError::Io { path: self.target.clone(), action: "create", source };
        let old = self.scratch("old");
        if self.target.symlink_metadata().is_ok() {
            std::fs::rename(&self.target, &old).map_err(failed)?;
        }
        if let Err(source) = std::fs::rename(&self.content, &self.target) {
            // Put back what was there; the first error is the one to tell.
            let _ = std::fs::rename(&old, &self.target);
            return Err(failed(source));
        }
        Ok(())
    }
}

/// The pixels of one bucket, in the order of its items.
pub(crate) struct Spill {
    size: BucketSize,
    path: PathBuf,
    out: BufWriter<File>,
    count: usize,
}

impl Spill {
    /// An empty bucket.
    pub(crate) fn create(folder: &Folder, size: BucketSize) -> Result<Spill, BuildError> {
        let path = folder.scratch(&format!("{size}.rgb"));
        let file = File::create_new(&path).map_err(|source| folder.error("shards", source))?;
        Ok(Spill { size, path, out: BufWriter::new(file), count: 0 })
    }

    /// Appends an item: u8 [height, width, 3].
    pub(crate) fn push(&mut self, folder: &Folder, rgb: &[u8]) -> Result<(), BuildError> {
        self.out.write_all(rgb).map_err(|source| folder.error("shards", source))?;
        self.count += 1;
        Ok(())
    }

    /// Writes the bucket's shards. `tokens` gives those of every item, `token_length` each.
    pub(crate) fn finish(
        self,
        folder: &Folder,
        token_length: usize,
        shard_bytes: u64,
        tokens: &[i32],
    ) -> Result<BucketDescription, BuildError> {
        let Spill { size: BucketSize { width, height }, path, out, count } = self;
        let failed = |source| folder.error("shards", source);
        out.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut pixels = BufReader::new(File::open(&path).map_err(failed)?);
        let item_bytes = (width * height * 3 + token_length * 4) as u64;
        let per_shard = usize::try_from(shard_bytes / item_bytes).unwrap_or(usize::MAX).max(1);
        let mut shards = Vec::new();
        for start in (0..count).step_by(per_shard) {
            let items = per_shard.min(count - start);
            let file = format!("shards/{width}x{height}-{:05}.safetensors", shards.len());
            let specs = [
                TensorSpec {
                    name: "pixels".to_owned(),
                    dtype: StoredDType::U8,
                    shape: vec![items, height, width, 3],
                },
                TensorSpec {
                    name: "tokens".to_owned(),
                    dtype: StoredDType::I32,
                    shape: vec![items, token_length],
                },
            ];
            let tokens = &tokens[start * token_length..(start + items) * token_length];
            let path = folder.content.join(&file);
            write_safetensors(&path, &specs, &Default::default(), &mut |spec, sink| {
                if spec.name == "pixels" {
                    let bytes = (items * height * width * 3) as u64;
                    return io::copy(&mut pixels.by_ref().take(bytes), sink).map(drop);
                }
                tokens.iter().try_for_each(|token| sink.write_all(&token.to_le_bytes()))
            })?;
            shards.push(ShardDescription { file, count: items, blake3: digest(&path).map_err(failed)? });
        }
        // Gives its space back before the next bucket needs as much.
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(BucketDescription { height, width, count, shards })
    }
}
