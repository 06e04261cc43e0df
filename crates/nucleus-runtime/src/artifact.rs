//! Artifacts: compiled models in one file.
//!
//! A `.nuc` file is a valid safetensors file. Tensors whose names begin with `nucleus.` hold what the compiler made, as bytes: the
//! model's texts, one plan per entry and, for GPUs, the cubin of every kernel under the hash of its text and the measured tiles that kernels
//! were printed with. All other tensors are weights under their checkpoint names. The metadata says what the file is, for which dtype and target, with which config values, and the hash
//! of the compiler's tensors.
//!
//! An artifact is untrusted input: sizes are checked before anything is allocated, plans are verified before anything runs. A cubin is
//! machine code, of which only kind, architecture and completeness can be checked: an artifact for a GPU is to be trusted like a program.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use nucleus_cuda::{CubinKey, StoredCubins, Tuning};
use nucleus_ir::DType;
use nucleus_passes::elaborate::ConfigValue;
use nucleus_plan::Plan;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::checkpoint::Checkpoint;
use crate::convert;
use crate::model::{Model, ModelError, ModelText};
use crate::quantize;
use crate::safetensors_file::{MappedFile, SafetensorsError, StoredDType};
use crate::safetensors_write::{TensorSpec, WriteError, write_safetensors};
use crate::weights::{WeightSpec, stored_scales};

/// Names of tensors that are not weights begin with this.
pub const RESERVED: &str = "nucleus.";
/// The version of the format that this crate writes and reads.
pub const FORMAT_VERSION: &str = "6";
/// The most bytes that the compiler's tensors without cubins may have together. Decoded, a part takes up to some forty times its bytes.
pub const MAX_PART_BYTES: usize = 64 << 20;
/// The most bytes that all cubins may have together.
pub const MAX_CUBIN_BYTES: usize = 512 << 20;

/// What the name of a cubin begins with; the rest is that of its [`CubinKey`].
const CUBIN: &str = "nucleus.cubin.";
/// The part that holds measured tiles, as a table's text.
const TUNING: &str = "nucleus.tuning";

/// Why an artifact could not be read.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// The file is no safetensors file.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// A safetensors file that no compiler of ours wrote.
    #[error("`{}` is not a compiled model: its metadata has no `format: nucleus`; make one with `nucleusc compile MODEL.ir -o OUT.nuc`", .path.display())]
    NotAnArtifact {
        /// The file.
        path: PathBuf,
    },
    /// Another version of the format.
    #[error("`{}` has artifact format {found}, this program reads format {FORMAT_VERSION}: compile the model again", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A part is missing, too large, or does not decode.
    #[error("artifact `{}` is broken: {part}: {why}; compile the model again", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: String,
        /// What is wrong.
        why: String,
    },
    /// The texts inside have errors.
    #[error("artifact `{}`: {source}", .path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<ModelError>,
    },
    /// The artifact holds no plan for an entry.
    #[error("artifact `{}` has no entry `{entry}`; its entries are {}", .path.display(), .known.join(", "))]
    NoEntry {
        /// The file.
        path: PathBuf,
        /// The entry asked for.
        entry: String,
        /// The entries there are.
        known: Vec<String>,
    },
}

/// What the compiler made.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The model's texts.
    pub text: ModelText,
    /// The values given for config keys.
    pub config: Vec<(String, ConfigValue)>,
    /// The element type of the products.
    pub dtype: DType,
    /// The machine it was compiled for: `cpu`, or `cuda:` and architectures, e.g. `cuda:sm_80,sm_90`.
    pub target: String,
    /// One plan per entry.
    pub plans: Vec<Plan>,
    /// Machine code for GPUs: that of every kernel, for every architecture of the target.
    pub cubins: StoredCubins,
    /// Measured tiles that some of the cubins have: whoever loads them chooses by these, see [`crate::Gpu::tuned`].
    pub tuning: Tuning,
}

impl Compiled {
    /// Whether some weights are 8-bit integers with scales.
    pub fn is_quantised(&self) -> bool {
        self.plans.iter().flat_map(|plan| &plan.weights).any(|(_, ty)| ty.dtype == DType::I8)
    }

    /// The weights that some plan needs, by name. One that some plans want as floats and others as 8-bit integers is listed as floats, which
    /// the others quantise when they load it.
    pub fn weight_specs(&self) -> Vec<WeightSpec> {
        let mut wanted: BTreeMap<String, WeightSpec> = BTreeMap::new();
        for plan in &self.plans {
            for weight in WeightSpec::list(plan.weights.iter().map(|(name, ty)| (name.as_str(), ty))) {
                let known = wanted.get(&weight.name);
                if known.is_none_or(|known| known.channel_axis.is_some()) {
                    wanted.insert(weight.name.clone(), weight);
                }
            }
        }
        wanted.into_values().collect()
    }
}

/// An opened artifact.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    compiled: Compiled,
    weights: Option<Checkpoint>,
}

impl Artifact {
    /// Opens and verifies an artifact.
    ///
    /// # Errors
    /// The file is broken, of another version, or holds plans that do not verify.
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        let file = MappedFile::open(path)?;
        let metadata = &file.header().metadata;
        if metadata.get("format").map(String::as_str) != Some("nucleus") {
            return Err(ArtifactError::NotAnArtifact { path: path.to_path_buf() });
        }
        let version = metadata.get("version").cloned().unwrap_or_default();
        if version != FORMAT_VERSION {
            return Err(ArtifactError::Version { path: path.to_path_buf(), found: version });
        }
        let reader = Reader { path, file: &file };
        let compiled = reader.compiled()?;
        let weights = Checkpoint::from_file(file, RESERVED);
        let weights = (!weights.is_empty()).then_some(weights);
        Ok(Artifact { path: path.to_path_buf(), compiled, weights })
    }

    /// True for a name that ends in `.nuc`; everything else is taken for a model's text or a checkpoint.
    pub fn is_artifact(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "nuc")
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the compiler made.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The weights it carries, if any.
    pub fn weights(&self) -> Option<&Checkpoint> {
        self.weights.as_ref()
    }

    /// What the compiler made and the weights it carries.
    pub fn into_parts(self) -> (Compiled, Option<Checkpoint>) {
        (self.compiled, self.weights)
    }

    /// The plan of an entry: the one named, or the first.
    ///
    /// # Errors
    /// There is no such entry.
    pub fn plan(&self, entry: Option<&str>) -> Result<&Plan, ArtifactError> {
        let found = match entry {
            Some(entry) => self.compiled.plans.iter().find(|plan| plan.entry == entry),
            None => self.compiled.plans.first(),
        };
        found.ok_or_else(|| ArtifactError::NoEntry {
            path: self.path.clone(),
            entry: entry.unwrap_or_default().to_owned(),
            known: self.compiled.plans.iter().map(|plan| plan.entry.clone()).collect(),
        })
    }

    /// The model, read back from the texts inside.
    ///
    /// # Errors
    /// The texts have errors.
    pub fn model(&self) -> Result<Model, ArtifactError> {
        let wrap = |source| ArtifactError::Model { path: self.path.clone(), source: Box::new(source) };
        let mut model = Model::from_text(&self.compiled.text).map_err(wrap)?;
        model.apply_values(&self.compiled.config);
        Ok(model)
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a MappedFile,
}

impl Reader<'_> {
    fn broken(&self, part: &str, why: impl ToString) -> ArtifactError {
        ArtifactError::Broken { path: self.path.to_path_buf(), part: part.to_owned(), why: why.to_string() }
    }

    fn metadata(&self, key: &str) -> Result<&str, ArtifactError> {
        let value = self.file.header().metadata.get(key);
        value.map(String::as_str).ok_or_else(|| self.broken(&format!("metadata `{key}`"), "it is missing"))
    }

    fn compiled(&self) -> Result<Compiled, ArtifactError> {
        let dtype = DType::from_name(self.metadata("dtype")?).filter(|dtype| dtype.is_float());
        let dtype = dtype.ok_or_else(|| self.broken("metadata `dtype`", "it is not a float type"))?;
        let target = self.metadata("target")?.to_owned();
        let config = self.config()?;
        let mut hasher = blake3::Hasher::new();
        let mut text = None;
        let mut plans = Vec::new();
        let mut cubins = StoredCubins::new();
        let mut tuning = Tuning::default();
        let (mut total, mut cubin_total) = (0usize, 0usize);
        let mut parts: Vec<_> =
            self.file.header().tensors.iter().filter(|entry| entry.name.starts_with(RESERVED)).collect();
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in parts {
            let bytes = &self.file.bytes()[entry.range.clone()];
            if entry.dtype != StoredDType::U8 {
                return Err(self.broken(&entry.name, "it is not a list of bytes"));
            }
            let cubin = entry.name.strip_prefix(CUBIN);
            let (total, what, most) = match cubin {
                Some(_) => (&mut cubin_total, "cubins", MAX_CUBIN_BYTES),
                None => (&mut total, "parts", MAX_PART_BYTES),
            };
            *total = total.saturating_add(bytes.len());
            if *total > most {
                return Err(self.broken(&entry.name, format!("the {what} have more than {most} bytes")));
            }
            hash_part(&mut hasher, &entry.name, bytes);
            if let Some(name) = cubin {
                let key = CubinKey::from_name(name);
                let key = key.ok_or_else(|| {
                    self.broken(&entry.name, "it is not named after an architecture and a hash")
                })?;
                cubins.insert(key, bytes.to_vec()).map_err(|error| self.broken(&entry.name, error))?;
                continue;
            }
            match entry.name.strip_prefix("nucleus.plan.") {
                Some(name) => plans.push(self.plan(name, &entry.name, bytes)?),
                None if entry.name == "nucleus.model" => {
                    let decoded = postcard::from_bytes(bytes);
                    text = Some(decoded.map_err(|error| self.broken(&entry.name, error))?);
                }
                None if entry.name == TUNING => {
                    tuning = self.tuning(bytes).map_err(|why| self.broken(&entry.name, why))?;
                }
                None => return Err(self.broken(&entry.name, "it is not a part of this format")),
            }
        }
        if self.metadata("blake3")? != hasher.finalize().to_hex().as_str() {
            return Err(self.broken("metadata `blake3`", "the hash does not fit the content"));
        }
        let text = text.ok_or_else(|| self.broken("nucleus.model", "it is missing"))?;
        // Entries keep the order of the model's text.
        let order: Vec<&str> = self.metadata("entries")?.split(',').collect();
        plans.sort_by_key(|plan: &Plan| order.iter().position(|entry| *entry == plan.entry));
        if plans.is_empty() {
            return Err(self.broken("nucleus.plan", "there is no plan"));
        }
        Ok(Compiled { text, config, dtype, target, plans, cubins, tuning })
    }

    fn tuning(&self, bytes: &[u8]) -> Result<Tuning, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let origin = format!("in `{}`", self.path.display());
        Tuning::parse(text, &origin).map_err(|error| error.to_string())
    }

    fn plan(&self, entry: &str, part: &str, bytes: &[u8]) -> Result<Plan, ArtifactError> {
        let plan: Plan = postcard::from_bytes(bytes).map_err(|error| self.broken(part, error))?;
        if plan.entry != entry {
            return Err(self.broken(part, "it is the plan of another entry"));
        }
        nucleus_plan::verify_plan(&plan).map_err(|errors| {
            self.broken(
                part,
                errors.first().map_or_else(|| "it does not verify".to_owned(), ToString::to_string),
            )
        })?;
        Ok(plan)
    }

    fn config(&self) -> Result<Vec<(String, ConfigValue)>, ArtifactError> {
        let part = "metadata `config`";
        let map: Map<String, Value> =
            serde_json::from_str(self.metadata("config")?).map_err(|error| self.broken(part, error))?;
        map.iter()
            .map(|(key, value)| {
                let value = crate::model::config_value(value, 0).map_err(|why| self.broken(part, why))?;
                Ok((key.clone(), value))
            })
            .collect()
    }
}

fn hash_part(hasher: &mut blake3::Hasher, name: &str, bytes: &[u8]) {
    for piece in [name.as_bytes(), bytes] {
        hasher.update(&(piece.len() as u64).to_le_bytes());
        hasher.update(piece);
    }
}

fn config_json(value: &ConfigValue) -> Value {
    match value {
        ConfigValue::Null => Value::Null,
        ConfigValue::Bool(value) => json!(value),
        ConfigValue::Int(value) => json!(value),
        ConfigValue::Float(value) => json!(value),
        ConfigValue::Str(value) => json!(value),
        ConfigValue::List(items) => items.iter().map(config_json).collect(),
    }
}

/// Writes an artifact: atomically, a temporary file in the same folder renamed over `path`. With `weights`, the weights that the plans use
/// are stored beside them as the plans want them: floats in the compute dtype, quantised ones as 8-bit integers with their scales. The
/// weights pass through one at a time; `progress` is told the bytes written so far and in all.
///
/// # Errors
/// The file system, or weights that are missing.
pub fn write_artifact(
    path: &Path,
    compiled: &Compiled,
    weights: Option<&Checkpoint>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WriteError> {
    let encode = |part: &str, bytes: Result<Vec<u8>, postcard::Error>| {
        bytes.map_err(|error| WriteError::Tensor {
            path: path.to_path_buf(),
            tensor: part.to_owned(),
            source: std::io::Error::other(error),
        })
    };
    let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    parts.insert("nucleus.model".to_owned(), encode("nucleus.model", postcard::to_stdvec(&compiled.text))?);
    for plan in &compiled.plans {
        let name = format!("nucleus.plan.{}", plan.entry);
        let bytes = encode(&name, postcard::to_stdvec(plan))?;
        parts.insert(name, bytes);
    }
    if !compiled.tuning.is_empty() {
        parts.insert(TUNING.to_owned(), compiled.tuning.to_string().into_bytes());
    }
    let cubins: BTreeMap<String, &[u8]> =
        compiled.cubins.iter().map(|(key, cubin)| (format!("{CUBIN}{}", key.name()), cubin)).collect();
    let parts: BTreeMap<&str, &[u8]> = parts
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .chain(cubins.iter().map(|(name, cubin)| (name.as_str(), *cubin)))
        .collect();
    let mut hasher = blake3::Hasher::new();
    let mut specs = Vec::new();
    for (&name, &bytes) in &parts {
        hash_part(&mut hasher, name, bytes);
        specs.push(TensorSpec { name: name.to_owned(), dtype: StoredDType::U8, shape: vec![bytes.len()] });
    }
    let mut sources = BTreeMap::new();
    if let Some(checkpoint) = weights {
        sources = stored_weights(compiled, checkpoint);
        let mut order: Vec<&str> = checkpoint.names_in_file_order();
        // Scales that are computed have no place in the file: they come with their weights.
        order.extend(sources.keys().map(String::as_str).filter(|name| checkpoint.get(name).is_none()));
        specs.extend(order.into_iter().filter_map(|name| Some(sources.get(name)?.stored(name))));
    }
    let entries: Vec<&str> = compiled.plans.iter().map(|plan| plan.entry.as_str()).collect();
    let config: Map<String, Value> =
        compiled.config.iter().map(|(key, value)| (key.clone(), config_json(value))).collect();
    let metadata = BTreeMap::from(
        [
            ("format", "nucleus".to_owned()),
            ("version", FORMAT_VERSION.to_owned()),
            ("producer", concat!("nucleus ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("dtype", compiled.dtype.name().to_owned()),
            ("target", compiled.target.clone()),
            ("entries", entries.join(",")),
            ("config", Value::Object(config).to_string()),
            ("blake3", hasher.finalize().to_hex().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let total = specs.iter().map(TensorSpec::bytes).sum::<Result<u64, _>>()?;
    let mut done = 0;
    write_safetensors(path, &specs, &metadata, &mut |spec, out| {
        match parts.get(spec.name.as_str()) {
            Some(bytes) => out.write_all(bytes)?,
            None => write_weight(weights, &sources, spec, out)?,
        }
        done += spec.bytes().unwrap_or(0);
        progress(done, total);
        Ok(())
    })
}

/// Where the data of a stored weight comes from.
enum WeightData {
    /// A weight of the checkpoint, as it is or as another float type.
    Converted(WeightSpec),
    /// The bytes of a weight that is quantised now.
    Quantised(WeightSpec),
    /// Its scales.
    Scales(WeightSpec),
}

impl WeightData {
    fn stored(&self, name: &str) -> TensorSpec {
        match self {
            WeightData::Converted(weight) => TensorSpec::new(name, weight.dtype, weight.shape.clone()),
            WeightData::Quantised(weight) => TensorSpec::new(name, DType::I8, weight.shape.clone()),
            WeightData::Scales(weight) => TensorSpec::new(name, DType::F32, weight.scale_shape()),
        }
    }
}

/// The weights that some plan declares and the checkpoint has, and the scales of those that are quantised on the way, by name.
fn stored_weights(compiled: &Compiled, checkpoint: &Checkpoint) -> BTreeMap<String, WeightData> {
    let mut sources = BTreeMap::new();
    for weight in compiled.weight_specs() {
        let Some(view) = checkpoint.get(&weight.name) else { continue };
        let quantised = view.dtype() == Some(DType::I8);
        match weight.scale_name() {
            Some(scale) if quantised => {
                let (dtype, shape) = (DType::F32, weight.scale_shape());
                let scales = WeightSpec { name: scale.clone(), dtype, shape, channel_axis: None };
                sources.insert(scale, WeightData::Converted(scales));
                sources.insert(weight.name.clone(), WeightData::Converted(weight));
            }
            Some(scale) => {
                sources.insert(scale, WeightData::Scales(weight.clone()));
                sources.insert(weight.name.clone(), WeightData::Quantised(weight));
            }
            None => {
                sources.insert(weight.name.clone(), WeightData::Converted(weight));
            }
        }
    }
    sources
}

fn write_weight(
    weights: Option<&Checkpoint>,
    sources: &BTreeMap<String, WeightData>,
    spec: &TensorSpec,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let other = |why: &str| std::io::Error::other(why.to_owned());
    let checkpoint = weights.ok_or_else(|| other("there are no weights"))?;
    let source = sources.get(&spec.name).ok_or_else(|| other("no plan needs it"))?;
    let (WeightData::Converted(weight) | WeightData::Quantised(weight) | WeightData::Scales(weight)) = source;
    let view = checkpoint.get(&weight.name).ok_or_else(|| other("the checkpoint lacks it"))?;
    let from = view.dtype().ok_or_else(|| other("it is stored in a type that the language lacks"))?;
    let failed = |error: convert::ConvertError| other(&error.to_string());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match source {
        WeightData::Converted(weight) if from == weight.dtype => out.write_all(view.bytes)?,
        WeightData::Converted(weight) => {
            // Converted in pieces, so that a large expert weight needs no second copy.
            let to = weight.dtype;
            let mut piece = vec![0; (1 << 20) * to.size()];
            for source in view.bytes.chunks((1 << 20) * from.size()) {
                let target = &mut piece[..source.len() / from.size() * to.size()];
                convert::convert(from, source, to, target).map_err(failed)?;
                out.write_all(target)?;
            }
        }
        WeightData::Scales(weight) => {
            let scales = stored_scales(&view, weight, threads).map_err(failed)?;
            out.write_all(bytemuck::cast_slice(&scales))?;
        }
        WeightData::Quantised(weight) => {
            let scales = stored_scales(&view, weight, threads).map_err(failed)?;
            let mut bytes = vec![0; view.elements()];
            let channels = weight.channels().ok_or_else(|| other("it has no channels"))?;
            quantize::quantize(from, view.bytes, channels, &scales, threads, &mut bytes).map_err(failed)?;
            out.write_all(&bytes)?;
        }
    }
    checkpoint.release(&weight.name);
    Ok(())
}
