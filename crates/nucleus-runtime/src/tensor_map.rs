//! Named host tensors, read from and written to `.safetensors` files.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::io::Write;
use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use thiserror::Error;

use crate::safetensors_file::{HeaderEntry, MappedFile, SafetensorsError, StoredDType, graph_dtype, shown};
use crate::safetensors_write::{TensorSpec, WriteError, write_safetensors};
use crate::tensor::{HostTensor, TensorError};

/// Why a file of tensors could not be read.
#[derive(Debug, Error)]
pub enum TensorFileError {
    /// No complete, consistent safetensors file.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// An element type that tensors do not have.
    #[error(
        "tensor `{}` in `{}` is stored as {dtype}; F32, BF16, F16, F64, I8, I32, I64 and BOOL can be read",
        shown(.tensor), .path.display()
    )]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its stored dtype.
        dtype: StoredDType,
    },
    /// An I64 element that i32 does not hold.
    #[error("tensor `{}` in `{}`: element {index} is {value}, which i32 cannot hold", shown(.tensor), .path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major index of the first such element.
        index: usize,
        /// The element.
        value: i64,
    },
    /// The tensor cannot be made.
    #[error("tensor `{}` in `{}`: {source}", shown(.tensor), .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
}

/// Tensors by name, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorMap {
    tensors: BTreeMap<String, HostTensor>,
}

impl TensorMap {
    /// An empty map.
    pub fn new() -> TensorMap {
        TensorMap::default()
    }

    /// Adds a tensor and returns the one that had its name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: HostTensor) -> Option<HostTensor> {
        self.tensors.insert(name.into(), tensor)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.get(name)
    }

    /// The tensor of that name, to be overwritten.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut HostTensor> {
        self.tensors.get_mut(name)
    }

    /// Takes the tensor of that name out.
    pub fn remove(&mut self, name: &str) -> Option<HostTensor> {
        self.tensors.remove(name)
    }

    /// Name and tensor, in the order of the names.
    pub fn iter(&self) -> btree_map::Iter<'_, String, HostTensor> {
        self.tensors.iter()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Reads every tensor of a `.safetensors` file. F64 is rounded to `f32`, I64 becomes `i32` where it fits.
    ///
    /// # Errors
    /// The file is missing or broken, a stored dtype is none of F32, BF16, F16, F64, I8, I32, I64 and BOOL, or a
    /// value does not fit.
    pub fn read(path: &Path) -> Result<TensorMap, TensorFileError> {
        let file = MappedFile::open(path)?;
        file.advise_sequential();
        let mut tensors = BTreeMap::new();
        for entry in &file.header().tensors {
            let tensor = read_tensor(path, entry, &file.bytes()[entry.range.clone()])?;
            tensors.insert(entry.name.clone(), tensor);
        }
        Ok(TensorMap { tensors })
    }

    /// Writes every tensor to a `.safetensors` file, under a temporary name that is renamed at the end.
    ///
    /// # Errors
    /// The file system refuses, or a tensor is called `__metadata__`, which the format reserves.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let specs: Vec<TensorSpec> = self
            .iter()
            .map(|(name, tensor)| TensorSpec::new(name.clone(), tensor.dtype(), tensor.shape()))
            .collect();
        write_safetensors(path, &specs, &BTreeMap::new(), &mut |spec, sink: &mut dyn Write| {
            self.get(&spec.name).map_or(Ok(()), |tensor| sink.write_all(tensor.bytes()))
        })
    }
}

impl FromIterator<(String, HostTensor)> for TensorMap {
    fn from_iter<I: IntoIterator<Item = (String, HostTensor)>>(iter: I) -> TensorMap {
        TensorMap { tensors: iter.into_iter().collect() }
    }
}

impl IntoIterator for TensorMap {
    type Item = (String, HostTensor);
    type IntoIter = btree_map::IntoIter<String, HostTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

impl<'a> IntoIterator for &'a TensorMap {
    type Item = (&'a String, &'a HostTensor);
    type IntoIter = btree_map::Iter<'a, String, HostTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn read_tensor(path: &Path, entry: &HeaderEntry, bytes: &[u8]) -> Result<HostTensor, TensorFileError> {
    let failed =
        |source| TensorFileError::Tensor { path: path.to_path_buf(), tensor: entry.name.clone(), source };
    if let Some(dtype) = graph_dtype(entry.dtype) {
        return HostTensor::from_bytes(dtype, &entry.shape, bytes).map_err(failed);
    }
    let (words, _) = bytes.as_chunks::<8>();
    match entry.dtype {
        StoredDType::F64 => {
            let mut tensor = HostTensor::zeros(DType::F32, &entry.shape).map_err(failed)?;
            for (to, word) in tensor.as_f32_mut().map_err(failed)?.iter_mut().zip(words) {
                *to = f64::from_le_bytes(*word) as f32;
            }
            Ok(tensor)
        }
        StoredDType::I64 => {
            let mut tensor = HostTensor::zeros(DType::I32, &entry.shape).map_err(failed)?;
            let (to, _) = tensor.bytes_mut().as_chunks_mut::<4>();
            for (index, (to, word)) in to.iter_mut().zip(words).enumerate() {
                let value = i64::from_le_bytes(*word);
                let narrow = i32::try_from(value).map_err(|_| TensorFileError::Range {
                    path: path.to_path_buf(),
                    tensor: entry.name.clone(),
                    index,
                    value,
                })?;
                *to = narrow.to_le_bytes();
            }
            Ok(tensor)
        }
        dtype => Err(TensorFileError::DType { path: path.to_path_buf(), tensor: entry.name.clone(), dtype }),
    }
}
