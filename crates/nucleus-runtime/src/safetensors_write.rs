//! Writes `.safetensors` files: streamed, deterministic, and never visible half-written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nucleus_ir::DType;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::safetensors_file::{MAX_HEADER_BYTES, StoredDType, shown, stored_dtype};

/// Why a file or folder could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The source of a tensor's data failed or gave too few bytes.
    #[error("cannot write tensor `{}` to `{}`: {source}", shown(.tensor), .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the source said.
        source: io::Error,
    },
    /// A shape whose bytes cannot be counted or are not whole.
    #[error("tensor `{}` of shape {shape:?} and dtype {dtype} has no valid size", shown(.tensor))]
    Size {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its dtype.
        dtype: StoredDType,
    },
    /// Two tensors of one name, or a name that the format reserves.
    #[error("tensor name `{}` is {problem}", shown(.tensor))]
    Name {
        /// The tensor.
        tensor: String,
        /// Why it cannot be used.
        problem: &'static str,
    },
    /// Readers would refuse the header.
    #[error("the header of `{}` would have {header} bytes; at most {MAX_HEADER_BYTES} are allowed: write more, smaller files", .path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it would have.
        header: usize,
    },
    /// The folder holds weights that the new ones would mix with.
    #[error("`{}` already holds weights (`{file}`): remove them or write to a new folder", .dir.display())]
    FolderInUse {
        /// The folder.
        dir: PathBuf,
        /// A weight file in it.
        file: String,
    },
    /// A shard limit that no tensor could respect.
    #[error("max_shard_bytes is 0: give the largest size that a shard file may have")]
    ZeroShard,
}

/// Name, dtype and shape of a tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Its stored element type.
    pub dtype: StoredDType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of a graph dtype.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: stored_dtype(dtype), shape: shape.into() }
    }

    /// The bytes of its data.
    ///
    /// # Errors
    /// The count overflows, or elements smaller than a byte do not fill whole ones.
    pub fn bytes(&self) -> Result<u64, WriteError> {
        let elements = self.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        match elements.and_then(|elements| elements.checked_mul(self.dtype.bitsize())) {
            Some(bits) if bits % 8 == 0 => Ok(bits as u64 / 8),
            _ => Err(WriteError::Size {
                tensor: self.name.clone(),
                shape: self.shape.clone(),
                dtype: self.dtype,
            }),
        }
    }
}

/// Refuses names that readers would confuse.
pub(crate) fn check_names(tensors: &[TensorSpec]) -> Result<(), WriteError> {
    let mut seen = BTreeSet::new();
    for TensorSpec { name, .. } in tensors {
        let problem = if name == "__metadata__" {
            "reserved by the format"
        } else if !seen.insert(name) {
            "given twice"
        } else {
            continue;
        };
        return Err(WriteError::Name { tensor: name.clone(), problem });
    }
    Ok(())
}

/// Where the data of the tensors comes from: called once per tensor, in the order of the file, with a sink
/// that takes exactly the tensor's bytes (little-endian, row-major), in as many writes as convenient.
pub type Fill<'a> = &'a mut dyn FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>;

/// Writes one `.safetensors` file: to a temporary name in the same folder, then renamed over `path`.
///
/// Tensors are stored in the given order, wider element types first so that each is aligned to its size; the
/// data starts at a multiple of 64 bytes. Equal arguments give equal bytes.
///
/// # Errors
/// A bad name or size, a source that gives too many or too few bytes, or the file system.
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    fill: Fill<'_>,
) -> Result<(), WriteError> {
    check_names(tensors)?;
    let mut file = AtomicFile::create(path)?;
    write_tensors(&mut file, &tensors.iter().collect::<Vec<_>>(), metadata, fill)?;
    file.finish()?;
    file.commit()
}

/// Writes header and data to `out`.
pub(crate) fn write_tensors(
    out: &mut AtomicFile,
    tensors: &[&TensorSpec],
    metadata: &BTreeMap<String, String>,
    fill: Fill<'_>,
) -> Result<(), WriteError> {
    let mut tensors = tensors.to_vec();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    let header = header_bytes(out.target(), &tensors, metadata)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        let failed = |path: &Path, source| WriteError::Tensor {
            path: path.to_path_buf(),
            tensor: tensor.name.clone(),
            source,
        };
        let size = tensor.bytes()?;
        let mut sink = ExactSink { file: out, left: size };
        let filled = fill(tensor, &mut sink);
        let left = sink.left;
        filled.map_err(|source| failed(out.target(), source))?;
        if left != 0 {
            let message = format!("its source gave {} of {size} bytes", size - left);
            return Err(failed(out.target(), io::Error::new(io::ErrorKind::UnexpectedEof, message)));
        }
    }
    Ok(())
}

fn header_bytes(
    path: &Path,
    tensors: &[&TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WriteError> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let end = offset.checked_add(tensor.bytes()?).ok_or_else(|| WriteError::Size {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
        })?;
        let entry = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [offset, end]
        });
        map.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    // Trailing spaces are the format's own padding; with the length field the data starts on a cache line.
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(WriteError::HeaderTooLarge { path: path.to_path_buf(), header: text.len() });
    }
    Ok(text)
}

/// Passes on at most `left` bytes.
struct ExactSink<'a> {
    file: &'a mut AtomicFile,
    left: u64,
}

impl Write for ExactSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let message =
                format!("its source gave at least {} bytes too many", bytes.len() as u64 - self.left);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let written = self.file.writer()?.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that appears under its name only when it is complete; dropped before that, it leaves nothing.
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    /// `None` once finished.
    writer: Option<BufWriter<File>>,
    committed: bool,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `target`.
    pub(crate) fn create(target: &Path) -> Result<AtomicFile, WriteError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let io_error = |source| WriteError::Io { path: target.to_path_buf(), action: "write", source };
        let Some(name) = target.file_name() else {
            return Err(io_error(io::Error::new(io::ErrorKind::InvalidInput, "it names no file")));
        };
        loop {
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}-{number}.tmp", std::process::id()));
            let temporary = target.with_file_name(temporary);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let writer = Some(BufWriter::with_capacity(1 << 20, file));
                    return Ok(AtomicFile {
                        target: target.to_path_buf(),
                        temporary,
                        writer,
                        committed: false,
                    });
                }
                // Left by a process of the same number that was killed: the next counter is free.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error(error)),
            }
        }
    }

    /// The name under which the file will appear.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    fn writer(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.writer.as_mut().ok_or_else(|| io::Error::other("the file is already finished"))
    }

    fn io_error(&self, source: io::Error) -> WriteError {
        WriteError::Io { path: self.target.clone(), action: "write", source }
    }

    /// Appends `bytes`.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.writer().and_then(|writer| writer.write_all(bytes)).map_err(|error| self.io_error(error))
    }

    /// Brings everything to the disk and closes the temporary file.
    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let file = writer.into_inner().map_err(|error| self.io_error(error.into_error()))?;
        file.sync_all().map_err(|error| self.io_error(error))
    }

    /// Gives the finished file its name.
    pub(crate) fn commit(mut self) -> Result<(), WriteError> {
        self.finish()?;
        std::fs::rename(&self.temporary, &self.target).map_err(|error| self.io_error(error))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a temporary file that cannot be removed.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
