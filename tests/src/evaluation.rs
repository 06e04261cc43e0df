//! Evaluating graphs on made-up tensors and comparing the answers.

use std::collections::BTreeMap;

use nucleus_interp::{Data, EvalError, Options, Real, Tensor, evaluate};
use nucleus_ir::{Bindings, DType, Graph, TensorType};

/// Tensors that depend on their name alone: the same for every graph that has an input or weight of that name and shape.
#[derive(Clone, Copy, Debug, Default)]
pub struct MadeUp {
    /// Another seed gives other tensors.
    pub seed: u64,
}

impl MadeUp {
    /// Values in −1 … 1, truth values, or the indices 0 and 1; `None` if the shape has unbound or negative sizes.
    pub fn tensor<F: Real>(&self, name: &str, ty: &TensorType, dims: &Bindings) -> Option<Tensor<F>> {
        let shape: Vec<usize> =
            ty.shape.iter().map(|dim| usize::try_from(dim.eval(dims).ok()?).ok()).collect::<Option<_>>()?;
        let mut state = name.bytes().fold(self.seed ^ 0x9e37_79b9_7f4a_7c15, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let numbers = (0..shape.iter().product::<usize>()).map(|_| splitmix(&mut state));
        let data = match ty.dtype {
            // Multiples of 2⁻⁷ with at most eight significant bits, so that every float type holds them.
            DType::F32 | DType::Bf16 | DType::F16 => {
                Data::Float(numbers.map(|z| F::from_f64((z >> 56) as f64 / 128.0 - 1.0)).collect())
            }
            DType::I32 => Data::Int(numbers.map(|z| (z >> 63) as i32).collect()),
            // The floats above in units of 2⁻⁷.
            DType::I8 => Data::Int(numbers.map(|z| (z >> 56) as i32 - 128).collect()),
            DType::Bool => Data::Bool(numbers.map(|z| z >> 62 != 0).collect()),
        };
        Tensor::new(ty.dtype, shape, data).ok()
    }

    /// A weight of a graph; a quantised one times its scale is the weight that a float would be.
    pub fn weight<F: Real>(&self, graph: &Graph, name: &str) -> Option<Tensor<F>> {
        let ty = |name: &str| Some(&graph.weights.iter().find(|weight| weight.name == name)?.ty);
        let tensor = self.tensor(name, ty(name)?, &Bindings::new())?;
        match name.strip_suffix(".scale").and_then(ty) {
            Some(scaled) if scaled.dtype == DType::I8 => {
                let scales = vec![F::from_f64(1.0 / 128.0); tensor.len()];
                Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Data::Float(scales)).ok()
            }
            _ => Some(tensor),
        }
    }

    /// The graph's outputs on made-up inputs and weights, the same weights whatever type the graph stores them in.
    ///
    /// # Errors
    ///
    /// Those of the evaluator.
    pub fn outputs<F: Real>(
        &self,
        graph: &Graph,
        dims: &Bindings,
    ) -> Result<Vec<(String, Tensor<F>)>, EvalError> {
        let inputs: BTreeMap<String, Tensor<F>> = graph
            .inputs
            .iter()
            .filter_map(|input| Some((input.name.clone(), self.tensor(&input.name, &input.ty, dims)?)))
            .collect();
        let weights = |name: &str| self.weight(graph, name);
        evaluate(graph, dims, &inputs, &weights, &Options::default())
    }
}

/// The next number of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The largest difference of two lists of outputs over the largest magnitude of the first, by output; integers and truth values
/// must be equal, NaN must meet NaN and infinity itself. An error says what differs.
pub fn largest_difference<F: Real>(
    want: &[(String, Tensor<F>)],
    got: &[(String, Tensor<F>)],
) -> Result<f64, String> {
    if want.len() != got.len() {
        return Err(format!("{} outputs instead of {}", got.len(), want.len()));
    }
    let mut largest = 0f64;
    for ((name, want), (other, got)) in want.iter().zip(got) {
        if name != other || want.shape() != got.shape() || want.dtype() != got.dtype() {
            return Err(format!("output `{other}` {} instead of `{name}` {}", got.ty(), want.ty()));
        }
        match (want.floats(), got.floats()) {
            (Some(want), Some(got)) => {
                let scale =
                    want.iter().map(|x| x.to_f64().abs()).filter(|x| x.is_finite()).fold(1e-30, f64::max);
                for (index, (x, y)) in want.iter().zip(got).enumerate() {
                    let (x, y) = (x.to_f64(), y.to_f64());
                    if x == y || (x.is_nan() && y.is_nan()) {
                        continue;
                    }
                    if !(x - y).is_finite() {
                        return Err(format!("output `{name}` at {index}: {y} instead of {x}"));
                    }
                    largest = largest.max((x - y).abs() / scale);
                }
            }
            _ if want.data() == got.data() => {}
            _ => return Err(format!("output `{name}` differs")),
        }
    }
    Ok(largest)
}
