//! The values of arguments: choices, and what is read from their texts.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use nucleus_cuda::Architecture;
use nucleus_ir::DType;

/// The element type of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    /// IEEE binary32
    F32,
    /// bfloat16 factors, binary32 sums
    Bf16,
}

impl From<ComputeType> for DType {
    fn from(dtype: ComputeType) -> DType {
        match dtype {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::Bf16,
        }
    }
}

/// How large weights of products are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 8-bit integers with one scale per output channel
    Int8,
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// A folder or file.
    Path(PathBuf),
    /// Made up from this seed.
    Random(u64),
}

/// The machines to compile for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This computer's processor.
    Cpu,
    /// NVIDIA GPUs of these architectures, each once.
    Cuda(Vec<Architecture>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cpu => f.write_str("cpu"),
            Target::Cuda(architectures) => {
                let names: Vec<String> = architectures.iter().map(Architecture::to_string).collect();
                write!(f, "cuda:{}", names.join(","))
            }
        }
    }
}

/// `cpu`, or `cuda:` and architectures.
pub(super) fn target(text: &str) -> Result<Target, String> {
    if text == "cpu" {
        return Ok(Target::Cpu);
    }
    let Some(names) = text.strip_prefix("cuda:") else {
        return Err("expected `cpu`, or `cuda:` and architectures, as in `cuda:sm_80,sm_90`".to_owned());
    };
    let mut architectures = Vec::new();
    for name in names.split(',') {
        let architecture = name.parse::<Architecture>().map_err(|error| error.to_string())?;
        if !architectures.contains(&architecture) {
            architectures.push(architecture);
        }
    }
    Ok(Target::Cuda(architectures))
}

/// Which forward values a backward pass recomputes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Recompute {
    /// Those that are cheap for the memory that they take
    Auto,
    /// All but the inputs of layers
    Full,
}

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Compiled kernels on all cores
    Cpu,
    /// The reference evaluator: slow, the measure of what is right
    Interp,
    /// An NVIDIA GPU: the first, or the one that NUCLEUS_CUDA_DEVICE numbers
    Cuda,
}

/// What measures, differentiates, trains and draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Processor {
    /// All cores of this computer
    #[default]
    Cpu,
    /// An NVIDIA GPU: the first, or the one that NUCLEUS_CUDA_DEVICE numbers
    Cuda,
}

/// How weights of checkpoints fall from the heaviest to the lightest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MergeWeights {
    /// 1/√i
    InverseSqrt,
    /// All the same
    Uniform,
}

/// The checkpoint that weighs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeaviestEnd {
    /// The end of the run
    Newest,
    /// Its beginning
    Oldest,
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a number from 1")),
        Ok(number) => Ok(number),
    }
}

pub(super) fn size(text: &str) -> Result<(usize, usize), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=65_536).contains(side));
    let sides = text.split_once('x').and_then(|(height, width)| Some((side(height)?, side(width)?)));
    sides.ok_or_else(|| format!("`{text}` is no size: HEIGHTxWIDTH in pixels, for example 64x48"))
}

pub(super) fn sizes(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, list) = text.split_once('=').ok_or("expected NAME=SIZE,SIZE…, for example H=16,32,64")?;
    let size = |size: &str| size.trim().parse().map_err(|_| format!("`{size}` is not a whole number"));
    Ok((name.trim().to_owned(), list.split(',').map(size).collect::<Result<_, _>>()?))
}

/// A folder of that name is `./random`.
pub(super) fn weights_from(text: &str) -> Result<WeightsFrom, String> {
    match text.strip_prefix("random") {
        Some("") => Ok(WeightsFrom::Random(0)),
        Some(rest) if rest.starts_with(':') => {
            let seed = rest[1..].parse().map_err(|_| format!("`{}` is not a seed", &rest[1..]))?;
            Ok(WeightsFrom::Random(seed))
        }
        _ => Ok(WeightsFrom::Path(PathBuf::from(text))),
    }
}

pub(super) fn dim(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.split_once('=').ok_or("expected NAME=SIZE, for example H=64")?;
    let size = size.trim().parse().map_err(|_| format!("`{size}` is not a whole number"))?;
    Ok((name.trim().to_owned(), size))
}
