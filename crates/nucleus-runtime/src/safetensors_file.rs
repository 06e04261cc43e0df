//! One `.safetensors` file: mapped read-only, its header checked before a byte of data is looked at.
//!
//! Layout: a little-endian `u64` header length, that many bytes of JSON (name → dtype, shape, byte offsets),
//! then the tensors' data, which the offsets must cover without gap, overlap or rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use nucleus_ir::DType;
pub use safetensors::Dtype as StoredDType;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};
use thiserror::Error;

/// Largest header that is parsed, in bytes: about 100,000 tensors. The format allows six times as much, but a
/// parsed header takes some thirty times its length in memory.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;

const LENGTH_BYTES: usize = 8;

/// Why a `.safetensors` file was refused.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, device or pipe.
    #[error("`{}` is not a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// There is not even a header length.
    #[error("`{}` has {len} bytes: too short for a safetensors file, which starts with an 8-byte header length", .path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        len: u64,
    },
    /// The header would end after the file.
    #[error("`{}` declares a header of {header} bytes, but only {available} follow: the file is truncated or no safetensors file", .path.display())]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The declared length, in bytes.
        header: u64,
        /// Bytes after the length field.
        available: u64,
    },
    /// The header is larger than [`MAX_HEADER_BYTES`].
    #[error("`{}` declares a header of {header} bytes; at most {MAX_HEADER_BYTES} are accepted", .path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// The declared length, in bytes.
        header: u64,
    },
    /// The header is not the JSON it should be.
    #[error("the header of `{}` is broken: {message}", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// The header's entry for one tensor is wrong.
    #[error("the header of `{}` is broken: tensor `{}`: {message}", .path.display(), shown(.tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with its entry.
        message: String,
    },
    /// The data section is not as long as the tensors.
    #[error(
        "`{}` has {available} bytes of tensor data, its header describes {described}: the file is {}",
        .path.display(),
        if available < described { "truncated" } else { "followed by something else" }
    )]
    DataLength {
        /// The file.
        path: PathBuf,
        /// Bytes the header describes.
        described: u64,
        /// Bytes after the header.
        available: u64,
    },
}

/// A name from a file, fit for a message: control characters escaped, length bounded.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 160;
    let mut out: String = name.chars().take(LIMIT).flat_map(escape_control).collect();
    if name.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}

fn escape_control(c: char) -> impl Iterator<Item = char> {
    let (escaped, plain) = if c.is_control() { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escaped.into_iter().flatten().chain(plain)
}

/// The format's tag of a dtype.
pub fn stored_dtype(dtype: DType) -> StoredDType {
    match dtype {
        DType::F32 => StoredDType::F32,
        DType::Bf16 => StoredDType::BF16,
        DType::F16 => StoredDType::F16,
        DType::I32 => StoredDType::I32,
        DType::Bool => StoredDType::BOOL,
        DType::I8 => StoredDType::I8,
    }
}

/// The dtype of a tag, where the graph has one.
pub fn graph_dtype(stored: StoredDType) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| stored_dtype(dtype) == stored)
}

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEntry {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub dtype: StoredDType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file, counted from the file's start.
    pub range: Range<usize>,
}

/// A checked header: every range lies inside the file and is as long as dtype and shape say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their data.
    pub tensors: Vec<HeaderEntry>,
    /// Free text that the writer attached (`__metadata__`).
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of a whole file in memory; `path` is named in errors.
///
/// # Errors
/// Anything but a complete, consistent file.
pub fn parse_header(path: &Path, bytes: &[u8]) -> Result<Header, SafetensorsError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(SafetensorsError::TooShort { path: path.to_path_buf(), len: bytes.len() as u64 });
    };
    let header = u64::from_le_bytes(*length);
    if header > rest.len() as u64 {
        return Err(SafetensorsError::HeaderLength {
            path: path.to_path_buf(),
            header,
            available: rest.len() as u64,
        });
    }
    if header > MAX_HEADER_BYTES {
        return Err(SafetensorsError::HeaderTooLarge { path: path.to_path_buf(), header });
    }
    // The length is compared here and not by `SafeTensors::read_metadata`, whose sum can overflow.
    let (json, data) = rest.split_at(header as usize);
    let metadata: Metadata = serde_json::from_slice(json).map_err(|error| explain(path, json, &error))?;
    if metadata.data_len() != data.len() {
        return Err(SafetensorsError::DataLength {
            path: path.to_path_buf(),
            described: metadata.data_len() as u64,
            available: data.len() as u64,
        });
    }
    let start = LENGTH_BYTES + json.len();
    let tensors = metadata.offset_keys().into_iter().filter_map(|name| {
        let info = metadata.info(&name)?;
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        Some(HeaderEntry { dtype: info.dtype, shape: info.shape.clone(), range, name })
    });
    Ok(Header {
        tensors: tensors.collect(),
        metadata: metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
    })
}

/// Names the tensor behind an error that the library reports without one.
fn explain(path: &Path, json: &[u8], error: &serde_json::Error) -> SafetensorsError {
    let path = path.to_path_buf();
    let map: Map<String, Value> = match serde_json::from_slice(json) {
        Ok(map) => map,
        Err(error) => return SafetensorsError::Header { path, message: error.to_string() },
    };
    let mut infos = Vec::new();
    for (name, value) in map {
        if name == "__metadata__" {
            continue;
        }
        match serde_json::from_value::<TensorInfo>(value) {
            Ok(info) => infos.push((name, info)),
            Err(error) => {
                return SafetensorsError::Tensor { path, tensor: name, message: error.to_string() };
            }
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (tensor, info) in infos {
        if let Some(message) = fault(&info, end) {
            return SafetensorsError::Tensor { path, tensor, message };
        }
        end = info.data_offsets.1;
    }
    SafetensorsError::Header { path, message: error.to_string() }
}

/// What is wrong with an entry whose predecessor's data ended at `end`.
fn fault(info: &TensorInfo, end: usize) -> Option<String> {
    let TensorInfo { dtype, shape, data_offsets: (from, to) } = info;
    if to < from {
        return Some(format!("its data ends at byte {to}, before it starts at byte {from}"));
    }
    if *from != end {
        let kind = if *from < end { "overlaps" } else { "leaves a gap after" };
        return Some(format!("its data starts at byte {from} and {kind} what ends at byte {end}"));
    }
    let elements = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let Some(bits) = elements.and_then(|elements| elements.checked_mul(dtype.bitsize())) else {
        return Some(format!("shape {shape:?} of {dtype} overflows"));
    };
    let span = to - from;
    let needs = bits.div_ceil(8);
    if needs != span {
        return Some(format!(
            "shape {shape:?} of {dtype} needs {needs} bytes, its offsets {from}..{to} span {span}"
        ));
    }
    if bits % 8 != 0 {
        return Some(format!("shape {shape:?} of {dtype} has {bits} bits, which are not whole bytes"));
    }
    None
}

/// A `.safetensors` file mapped into memory.
///
/// The file must not change while it is open: a process that truncates it makes later reads fault (SIGBUS),
/// as for every program that maps files. Writers that rename a finished file over it are safe.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl MappedFile {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, or is no complete, consistent safetensors file.
    pub fn open(path: &Path) -> Result<MappedFile, SafetensorsError> {
        let io_error =
            |action| move |source| SafetensorsError::Io { path: path.to_path_buf(), action, source };
        // Opening a pipe would wait for its writer, so the kind is looked at first.
        if !std::fs::metadata(path).map_err(io_error("open"))?.is_file() {
            return Err(SafetensorsError::NotAFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(io_error("open"))?;
        // SAFETY: the mapping is read-only, lives as long as this value and is only read as plain bytes, for
        // which every value is valid; that no one truncates the file meanwhile is this type's documented condition.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("map"))?;
        let header = parse_header(path, &map)?;
        Ok(MappedFile { path: path.to_path_buf(), map, header })
    }

    /// The path the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the kernel that the pages of `range` are not needed any more. They come back from the file when
    /// they are read again, so this never changes what a reader sees. It is a hint: failure is ignored.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() && range.end <= self.map.len() {
            // SAFETY: the mapping is shared, read-only and file-backed: dropped pages are read again from the
            // file with the same contents, so no reference into the mapping can observe a difference.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the kernel that the file is about to be read from front to back. It is a hint: failure is ignored.
    pub fn advise_sequential(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::Sequential);
    }

    /// Asks the kernel to start reading the pages of `range`. It is a hint: failure is ignored.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() && range.end <= self.map.len() {
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
