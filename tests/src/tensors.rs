//! Random tensors of every element type, and how far the backend's answer is from the evaluator's.

use std::collections::BTreeMap;

use nucleus_interp::{Data, Options, Real, Tensor, evaluate_traced};
use nucleus_ir::{Bindings, DType, Graph, NodeData, Op, TensorType};
use nucleus_runtime::{HostTensor, TensorMap};

use crate::evaluation::splitmix;

/// Numbers in −1 … 1 that use all bits of their type, integers from −3 to 4, truth values of which three in four hold.
///
/// # Errors
/// A size is not bound or negative.
pub fn random_tensor(ty: &TensorType, dims: &Bindings, seed: u64) -> Result<HostTensor, String> {
    let size = |dim: &nucleus_ir::Dim| usize::try_from(dim.eval(dims).ok()?).ok();
    let shape: Option<Vec<usize>> = ty.shape.iter().map(size).collect();
    let shape = shape.ok_or_else(|| format!("{ty} is not the type of a tensor"))?;
    let mut state = seed;
    let numbers = (0..shape.iter().product::<usize>()).map(|_| splitmix(&mut state));
    let tensor = match ty.dtype {
        DType::F32 | DType::Bf16 | DType::F16 => {
            let values: Vec<f32> = numbers.map(|z| (z >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
            HostTensor::from_f32(&shape, &values).and_then(|tensor| tensor.to_dtype(ty.dtype))
        }
        DType::I32 => {
            HostTensor::from_i32(&shape, &numbers.map(|z| (z >> 61) as i32 - 3).collect::<Vec<_>>())
        }
        DType::I8 => HostTensor::from_i8(&shape, &numbers.map(|z| (z >> 56) as i8).collect::<Vec<_>>()),
        DType::Bool => HostTensor::from_bool(&shape, &numbers.map(|z| z >> 62 != 0).collect::<Vec<_>>()),
    };
    tensor.map_err(|error| error.to_string())
}

/// A random tensor for every input and weight, of the graph's types.
///
/// # Errors
/// As for [`random_tensor`].
pub fn random_tensors(graph: &Graph, dims: &Bindings, seed: u64) -> Result<(TensorMap, TensorMap), String> {
    let (mut inputs, mut weights) = (TensorMap::new(), TensorMap::new());
    let mut next = seed;
    for input in &graph.inputs {
        inputs.insert(input.name.clone(), random_tensor(&input.ty, dims, splitmix(&mut next))?);
    }
    for weight in &graph.weights {
        weights.insert(weight.name.clone(), random_tensor(&weight.ty, dims, splitmix(&mut next))?);
    }
    Ok((inputs, weights))
}

/// The same tensor for the evaluator.
pub fn evaluated<F: Real>(tensor: &HostTensor) -> Tensor<F> {
    let data = match tensor.dtype() {
        DType::F32 | DType::Bf16 | DType::F16 => {
            Data::Float(tensor.to_f32_vec().into_iter().map(|x| F::from_f64(f64::from(x))).collect())
        }
        DType::I32 => Data::Int(tensor.as_i32().map(<[i32]>::to_vec).unwrap_or_default()),
        DType::I8 => Data::Int(tensor.as_i8().unwrap_or_default().iter().map(|x| i32::from(*x)).collect()),
        DType::Bool => Data::Bool(tensor.as_bool().map(<[bool]>::to_vec).unwrap_or_default()),
    };
    Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data).unwrap_or_else(|error| panic!("{error}"))
}

fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
}

/// What the evaluator makes of a graph.
pub struct Answer {
    /// The outputs, in order.
    pub outputs: Vec<(String, Tensor<f64>)>,
    /// Whether a float narrower than `f32` is computed anywhere, inside of attention included: it takes the weights of its values in their type.
    pub narrow: bool,
}

/// Evaluates a graph in `F`, rounding to `bf16` and `f16` where the graph says so.
///
/// # Errors
/// What the evaluator says.
pub fn answer<F: Real>(
    graph: &Graph,
    dims: &Bindings,
    inputs: &TensorMap,
    weights: &TensorMap,
) -> Result<Answer, String> {
    let given: BTreeMap<String, Tensor<F>> =
        inputs.iter().map(|(name, tensor)| (name.clone(), evaluated(tensor))).collect();
    let weight = |name: &str| {
        let dtype = graph.weights.iter().find(|weight| weight.name == name)?.ty.dtype;
        Some(evaluated::<F>(weights.get(name)?).cast(dtype, true))
    };
    let options = Options { round_storage: true, ..Options::default() };
    let mut narrow = false;
    let mut trace = |_, node: &NodeData, results: &[Tensor<F>]| {
        let attention = matches!(node.op, Op::Attention { .. });
        narrow |= attention && node.operands.iter().any(|operand| is_narrow(graph.ty(*operand).dtype));
        narrow |= results.iter().any(|result| is_narrow(result.dtype()));
    };
    let outputs = evaluate_traced(graph, dims, &given, &weight, &options, &mut trace)
        .map_err(|error| format!("evaluator: {error}"))?;
    let outputs = outputs.into_iter().map(|(name, tensor)| (name, tensor.convert())).collect();
    Ok(Answer { outputs, narrow })
}

/// How far one output is from what it should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// The largest difference.
    pub most: f64,
    /// The largest finite magnitude that it should have.
    pub scale: f64,
}

/// The elements of a tensor, whatever their type.
pub fn numbers(tensor: &Tensor<f64>) -> Vec<f64> {
    match tensor.data() {
        Data::Float(x) => x.clone(),
        Data::Int(x) => x.iter().map(|x| f64::from(*x)).collect(),
        Data::Bool(x) => x.iter().map(|x| f64::from(u8::from(*x))).collect(),
    }
}

/// The tensor with these elements.
///
/// # Errors
/// There are more or fewer of them than its shape says.
pub fn tensor_of(dtype: DType, shape: &[usize], numbers: Vec<f64>) -> Result<Tensor<f64>, String> {
    let data = match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => Data::Float(numbers),
        DType::I32 | DType::I8 => Data::Int(numbers.into_iter().map(|x| x as i32).collect()),
        DType::Bool => Data::Bool(numbers.into_iter().map(|x| x != 0.0).collect()),
    };
    Tensor::new(dtype, shape.to_vec(), data).map_err(|error| error.to_string())
}

/// The distance of an output. Integers and truth values must be equal, NaN must meet NaN and infinity itself.
///
/// # Errors
/// What differs beyond a rounding.
pub fn distance(want: &Tensor<f64>, got: &Tensor<f64>) -> Result<Distance, String> {
    if want.shape() != got.shape() || want.dtype() != got.dtype() {
        return Err(format!("{} instead of {}", got.ty(), want.ty()));
    }
    let (Some(x), Some(y)) = (want.floats(), got.floats()) else {
        if want.data() == got.data() {
            return Ok(Distance::default());
        }
        let (got, want) = (format!("{:?}", got.data()), format!("{:?}", want.data()));
        let shown = |text: String| text.chars().take(200).collect::<String>();
        return Err(format!("{} instead of {}", shown(got), shown(want)));
    };
    let mut distance = Distance::default();
    for (index, (x, y)) in x.iter().zip(y).enumerate() {
        if x.is_finite() {
            distance.scale = distance.scale.max(x.abs());
        }
        if x == y || (x.is_nan() && y.is_nan()) {
            continue;
        }
        let difference = (x - y).abs();
        if !difference.is_finite() {
            return Err(format!("{y} instead of {x} at {index}"));
        }
        distance.most = distance.most.max(difference);
    }
    Ok(distance)
}
