//! The reference backend: a graph run by the evaluator. Slow, single-threaded, and the measure of every other backend.

use std::cell::Cell;
use std::collections::BTreeMap;

use nucleus_interp::{Data, EvalError, Options, Real, Tensor, evaluate};
use nucleus_ir::{DType, Graph};
use thiserror::Error;

use crate::checkpoint::{CheckpointError, Extras};
use crate::inputs::{InputError, Signature};
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;
use crate::weights::{WeightError, WeightSource, WeightSpec};

/// Why the reference backend gave no answer.
#[derive(Debug, Error)]
pub enum ReferenceError {
    /// The inputs do not fit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The weights do not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight could not be given.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// Evaluation failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// An output could not be stored.
    #[error("output `{name}`: {source}")]
    Output {
        /// The output.
        name: String,
        /// Why.
        source: TensorError,
    },
}

/// Evaluates `graph` in `F`, `f32` or `f64`, and returns its outputs in their declared types.
///
/// # Errors
/// Inputs or weights that do not fit, or sizes beyond the evaluator's memory limit.
pub fn run_reference<F: Real>(
    graph: &Graph,
    weights: &dyn WeightSource,
    inputs: &TensorMap,
    given: &[(String, i64)],
) -> Result<TensorMap, ReferenceError> {
    let signature = Signature::from(graph);
    let bindings = signature.bind(inputs, given)?;
    let specs = specs(graph);
    weights.check(&specs, Extras::Refuse)?;
    let mut tensors = BTreeMap::new();
    for spec in &signature.inputs {
        tensors.insert(spec.name.clone(), to_tensor::<F>(&Signature::convert(spec, inputs, &bindings)?));
    }
    let failed = Cell::new(None);
    let weight = |name: &str| {
        let dtype = graph.weights.iter().find(|weight| weight.name == name)?.ty.dtype;
        let host = match load(weights, &specs, name) {
            Ok(host) => host,
            Err(error) => {
                failed.replace(Some(error));
                return None;
            }
        };
        // In f64 a narrow weight keeps what the checkpoint has, so that the answer is that of unrounded arithmetic.
        Some(to_tensor::<F>(&host).cast(dtype, F::ALWAYS_ROUNDS))
    };
    let outputs = evaluate(graph, &bindings, &tensors, &weight, &Options::default());
    if let Some(error) = failed.take() {
        return Err(error.into());
    }
    let outputs = outputs?;
    let mut map = TensorMap::new();
    for (name, tensor) in outputs {
        let host =
            from_tensor(&tensor).map_err(|source| ReferenceError::Output { name: name.clone(), source })?;
        map.insert(name, host);
    }
    Ok(map)
}

fn specs(graph: &Graph) -> Vec<WeightSpec> {
    WeightSpec::list(graph.weights.iter().map(|weight| (weight.name.as_str(), &weight.ty)))
}

/// A weight or the scales of one; floats in `f32`, which holds all of them.
fn load(weights: &dyn WeightSource, specs: &[WeightSpec], name: &str) -> Result<HostTensor, WeightError> {
    let missing = || WeightError::Missing { name: name.to_owned() };
    let known = |spec: &&WeightSpec| spec.name == name || spec.scale_name().as_deref() == Some(name);
    let spec = specs.iter().find(known).ok_or_else(missing)?;
    if spec.channel_axis.is_some() {
        let scaled = weights.load_scaled(spec, 1)?;
        return Ok(if spec.name == name { scaled.values } else { scaled.scales });
    }
    let dtype = if spec.dtype.is_float() { DType::F32 } else { spec.dtype };
    weights.load(&WeightSpec { dtype, ..spec.clone() }, 1)
}

fn to_tensor<F: Real>(host: &HostTensor) -> Tensor<F> {
    let shape = host.shape();
    let tensor = match host.dtype() {
        DType::I32 => Tensor::int(shape, host.as_i32().map(<[i32]>::to_vec).unwrap_or_default()),
        DType::I8 => {
            let values = host.as_i8().unwrap_or_default().iter().map(|value| i32::from(*value)).collect();
            Tensor::new(DType::I8, shape.to_vec(), Data::Int(values))
        }
        DType::Bool => Tensor::bool(shape, host.as_bool().map(<[bool]>::to_vec).unwrap_or_default()),
        DType::F32 | DType::Bf16 | DType::F16 => {
            let values = host.to_f32_vec().into_iter().map(|value| F::from_f64(f64::from(value))).collect();
            Tensor::float(shape, values)
        }
    };
    // The element count is that of a tensor that exists.
    tensor.unwrap_or_else(|_| unreachable!("a host tensor fills its shape")).cast(host.dtype(), true)
}

fn from_tensor<F: Real>(tensor: &Tensor<F>) -> Result<HostTensor, TensorError> {
    let shape = tensor.shape();
    match (tensor.dtype(), tensor.floats(), tensor.ints(), tensor.bools()) {
        (_, _, Some(values), _) => HostTensor::from_i32(shape, values),
        (_, _, _, Some(values)) => HostTensor::from_bool(shape, values),
        (dtype, Some(values), ..) => {
            let values: Vec<f32> = values.iter().map(|value| value.to_f64() as f32).collect();
            let host = HostTensor::from_f32(shape, &values)?;
            if dtype == DType::F32 { Ok(host) } else { host.to_dtype(dtype) }
        }
        (dtype, None, None, None) => HostTensor::zeros(dtype, shape),
    }
}
