//! A folder of `*.safetensors` files, one batch each, in the order of their names, begun again after the last.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::safetensors_file::{MappedFile, StoredDType};
use nucleus_runtime::{HostTensor, TensorMap};

use super::{Batch, DataError, Draws, Place, Source, grid_dims, sizes};
use crate::recipe::Stages;

/// A tensor of a batch file.
struct Known {
    name: &'static str,
    rank: usize,
    optional: bool,
}

const LATENTS: &str = "latents";
const TEXT: &str = "encoder_hidden_states";
const GRID: &str = "grid";
const NOISE: &str = "noise";
const TIMESTEP: &str = "timestep";
const MASK: &str = "encoder_hidden_states_mask";

const KNOWN: [Known; 6] = [
    Known { name: LATENTS, rank: 3, optional: false },
    Known { name: TEXT, rank: 3, optional: false },
    Known { name: GRID, rank: 1, optional: false },
    Known { name: NOISE, rank: 3, optional: true },
    Known { name: TIMESTEP, rank: 1, optional: true },
    Known { name: MASK, rank: 2, optional: true },
];

/// Batches that lie in files. `docs/training.md` lists their tensors.
#[derive(Debug)]
pub struct Batches {
    files: Vec<PathBuf>,
    draws: Draws,
}

impl Batches {
    /// Lists the files of a folder and checks their headers: names, element types and shapes.
    ///
    /// # Errors
    /// There are no files, or one is not a batch.
    pub fn open(folder: &Path, draws: Draws) -> Result<Batches, DataError> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
            let path = entry.map_err(DataError::io(folder))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension().is_some_and(|extension| extension == "safetensors") {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(DataError::folder(folder, "the folder holds no batches (*.safetensors)"));
        }
        files.sort();
        for path in &files {
            check_header(&MappedFile::open(path)?)?;
        }
        Ok(Batches { files, draws })
    }

    /// The sizes of the batch with the most tokens.
    ///
    /// # Errors
    /// Its file is no batch any more.
    pub fn largest(&self) -> Result<Vec<(String, i64)>, DataError> {
        let mut largest = (0, Vec::new());
        for path in &self.files {
            let file = MappedFile::open(path)?;
            let shape = |name: &str| {
                let entry = file.header().tensors.iter().find(|entry| entry.name == name);
                entry.map(|entry| entry.shape.as_slice())
            };
            let (Some([items, image, _]), Some([_, text, _])) = (shape(LATENTS), shape(TEXT)) else {
                continue;
            };
            let tokens = items.saturating_mul(image.saturating_add(*text));
            if tokens > largest.0 {
                let tensors = TensorMap::read(path)?;
                let (height, width) = grid(path, tensors.get(GRID), *image)?;
                largest = (tokens, sizes(*items, (height, width), *text));
            }
        }
        Ok(largest.1)
    }

    /// The files, in the order of their use.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl Source for Batches {
    fn batch(&mut self, place: &Place<'_>) -> Result<Batch, DataError> {
        let path = &self.files[(place.index % self.files.len() as u64) as usize];
        // The file may be another one than when the folder was opened.
        check_header(&MappedFile::open(path)?)?;
        let mut given = TensorMap::read(path)?;
        let mut tensors = TensorMap::new();
        for name in [LATENTS, TEXT, NOISE, TIMESTEP] {
            if let Some(tensor) = given.remove(name) {
                let tensor = tensor.to_dtype(DType::F32)?;
                check_finite(path, name, tensor.as_f32()?)?;
                tensors.insert(name, tensor);
            }
        }
        if let Some(mask) = given.remove(MASK) {
            tensors.insert(MASK, mask);
        }
        let shape = tensors.get(LATENTS).map_or(Vec::new(), |latents| latents.shape().to_vec());
        let [items, image_tokens, _] = shape[..] else {
            return Err(DataError::tensor(path, LATENTS, "is missing"));
        };
        let (height, width) = grid(path, given.get(GRID), image_tokens)?;
        match tensors.get(TIMESTEP) {
            None => {
                tensors.insert(TIMESTEP, self.draws.timestep(place, items, image_tokens)?);
            }
            Some(levels) => {
                let outside = |level: &&f32| !(0.0..=1.0).contains(*level);
                if let Some(level) = levels.as_f32()?.iter().find(outside) {
                    let problem = format!("holds {level}; noise levels lie in 0 … 1");
                    return Err(DataError::tensor(path, TIMESTEP, problem));
                }
            }
        }
        if tensors.get(NOISE).is_none() {
            tensors.insert(NOISE, self.draws.noise(place, &shape)?);
        }
        Ok(Batch { tensors, dims: grid_dims(height, width), items, image_tokens })
    }

    fn check(&self, _stages: &Stages) -> Result<(), DataError> {
        Ok(())
    }
}

fn listed(shape: &[usize]) -> String {
    if shape.len() > 8 { format!("with {} axes", shape.len()) } else { format!("{shape:?}") }
}

fn check_header(file: &MappedFile) -> Result<(), DataError> {
    let (path, entries) = (file.path(), &file.header().tensors);
    if let Some(other) = entries.iter().find(|entry| KNOWN.iter().all(|known| known.name != entry.name)) {
        let name: String = other.name.chars().take(100).flat_map(char::escape_debug).collect();
        let known = KNOWN.map(|known| format!("`{}`", known.name)).join(", ");
        return Err(DataError::tensor(path, &name, format!("is none of a batch, which has {known}")));
    }
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    for known in &KNOWN {
        let Some(entry) = find(known.name) else {
            if known.optional {
                continue;
            }
            return Err(DataError::tensor(path, known.name, "is missing"));
        };
        let (right, wanted) = match known.name {
            MASK => (entry.dtype == StoredDType::BOOL, "BOOL"),
            GRID => (matches!(entry.dtype, StoredDType::I32 | StoredDType::I64), "I64 or I32"),
            _ => {
                use StoredDType::{BF16, F16, F32, F64};
                (matches!(entry.dtype, F32 | BF16 | F16 | F64), "F32, BF16, F16 or F64")
            }
        };
        if !right {
            let problem = format!("is stored as {}, it must be {wanted}", entry.dtype);
            return Err(DataError::tensor(path, known.name, problem));
        }
        if entry.shape.len() != known.rank || entry.shape.contains(&0) {
            let problem =
                format!("has shape {}, it must have {} axes and elements", listed(&entry.shape), known.rank);
            return Err(DataError::tensor(path, known.name, problem));
        }
    }
    let shape = |name| find(name).map(|entry| entry.shape.as_slice());
    let (Some(latents), Some(text)) = (shape(LATENTS), shape(TEXT)) else { return Ok(()) };
    let expected = [
        (TEXT, vec![latents[0], text[1], text[2]]),
        (GRID, vec![2]),
        (NOISE, latents.to_vec()),
        (TIMESTEP, vec![latents[0]]),
        (MASK, text[..2].to_vec()),
    ];
    for (name, wanted) in expected {
        if let Some(given) = shape(name).filter(|given| *given != wanted) {
            let problem = format!(
                "has shape {given:?}; beside `{LATENTS}` {latents:?} and `{TEXT}` {text:?} it must be {wanted:?}"
            );
            return Err(DataError::tensor(path, name, problem));
        }
    }
    Ok(())
}

/// The grid of image tokens, rows and columns.
fn grid(path: &Path, grid: Option<&HostTensor>, image_tokens: usize) -> Result<(usize, usize), DataError> {
    let values = grid.map_or(Ok(&[][..]), |grid| grid.as_i32())?;
    let sides = match values {
        [height, width] => usize::try_from(*height).ok().zip(usize::try_from(*width).ok()),
        _ => None,
    };
    match sides.filter(|(height, width)| height.checked_mul(*width) == Some(image_tokens)) {
        Some(sides) => Ok(sides),
        None => {
            let problem = format!(
                "holds {values:?}; rows times columns must be the {image_tokens} tokens of `{LATENTS}`"
            );
            Err(DataError::tensor(path, GRID, problem))
        }
    }
}

/// Refuses NaN and infinity, which would spoil every weight.
fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<(), DataError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(DataError::tensor(path, name, format!("is not finite: element {index} is {}", values[index])))
        }
    }
}
