//! Finite differences of a graph's loss.

use std::collections::BTreeMap;

use nucleus_interp::{Data, Options, Tensor, evaluate};
use nucleus_ir::source::SourceMap;
use nucleus_ir::verify_graph::verify_graph;
use nucleus_ir::{Bindings, DType, Dim, Graph, TensorType};
use nucleus_passes::differentiate::{Gradients, differentiate, gradient_name};
use nucleus_passes::elaborate::{Config, Program, elaborate};

/// The step of central differences; their error is about its square.
const STEP: f64 = 1e-5;

/// The most by which a gradient and a finite difference may differ, over the largest element of the gradient or 1.
const ERROR: f64 = 1e-6;

/// Tensors by name, for inputs and weights.
pub type Point = BTreeMap<String, Tensor<f64>>;

/// The graph of an entry of a text.
pub fn graph(text: &str, settings: &[&str], entry: &str) -> Graph {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    let program = Program::load(&mut sources, file, &|_| None)
        .unwrap_or_else(|errors| panic!("{}", nucleus_ir::diagnostics::render(&sources, &errors, false)));
    let mut config = Config::new();
    settings.iter().for_each(|setting| config.set(setting).unwrap());
    elaborate(&program, &config, entry)
        .unwrap_or_else(|errors| panic!("{}", nucleus_ir::diagnostics::render(&sources, &errors, false)))
}

/// The next number of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in −1 … 1 that no other equals, so that nothing ties by chance.
fn number(state: &mut u64) -> f64 {
    (splitmix(state) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn made_up(name: &str, ty: &TensorType, dims: &Bindings, seed: u64) -> Tensor<f64> {
    let shape: Vec<usize> = ty.shape.iter().map(|dim: &Dim| dim.eval(dims).unwrap() as usize).collect();
    let count = shape.iter().product();
    let mut state =
        name.bytes().fold(seed, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let data = match ty.dtype {
        DType::F32 | DType::Bf16 | DType::F16 => {
            Data::Float((0..count).map(|_| number(&mut state)).collect())
        }
        DType::I32 | DType::I8 => {
            Data::Int((0..count).map(|_| (splitmix(&mut state) >> 63) as i32).collect())
        }
        DType::Bool => Data::Bool((0..count).map(|_| splitmix(&mut state) >> 62 != 0).collect()),
    };
    Tensor::new(ty.dtype, shape, data).unwrap()
}

/// Inputs and weights of a graph, made up from their names. Indices are 0 or 1.
pub fn point(graph: &Graph, dims: &Bindings, seed: u64) -> Point {
    let inputs = graph.inputs.iter().map(|input| (&input.name, &input.ty));
    let weights = graph.weights.iter().map(|weight| (&weight.name, &weight.ty));
    inputs.chain(weights).map(|(name, ty)| (name.clone(), made_up(name, ty, dims, seed))).collect()
}

/// The outputs of a graph at a point.
pub fn outputs(graph: &Graph, dims: &Bindings, point: &Point) -> BTreeMap<String, Vec<f64>> {
    let is_input = |name: &str| graph.inputs.iter().any(|input| input.name == name);
    let inputs =
        point.iter().filter(|(name, _)| is_input(name)).map(|(name, x)| (name.clone(), x.clone())).collect();
    let weights = |name: &str| point.get(name).cloned();
    let outputs = evaluate(graph, dims, &inputs, &weights, &Options::default()).unwrap();
    outputs
        .into_iter()
        .map(|(name, tensor)| {
            let numbers = match tensor.into_data() {
                Data::Float(x) => x,
                Data::Int(x) => x.into_iter().map(f64::from).collect(),
                Data::Bool(x) => x.into_iter().map(|x| f64::from(u8::from(x))).collect(),
            };
            (name, numbers)
        })
        .collect()
}

/// The derivative of the loss when the elements of one tensor move in a direction; `None` where two steps disagree, because the loss has a
/// kink there.
fn slope(graph: &Graph, dims: &Bindings, at: &Point, name: &str, direction: &[f64]) -> Option<f64> {
    let loss = graph.outputs[0].name.clone();
    let moved = |step: f64| {
        let mut moved = at.clone();
        let tensor = &at[name];
        let elements = tensor.floats().unwrap().iter().zip(direction).map(|(x, d)| x + step * d).collect();
        let tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Data::Float(elements)).unwrap();
        moved.insert(name.to_owned(), tensor);
        outputs(graph, dims, &moved)[&loss][0]
    };
    let central = |step: f64| (moved(step) - moved(-step)) / (2.0 * step);
    let (coarse, fine) = (central(2.0 * STEP), central(STEP));
    ((coarse - fine).abs() <= 1e-5 * fine.abs().max(1.0)).then_some(fine)
}

/// What a check has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Derivatives that were compared.
    pub compared: usize,
    /// Those that are not zero.
    pub nonzero: usize,
    /// Places where the loss has a kink.
    pub kinks: usize,
}

/// Differentiates and compares every gradient with finite differences of the first output: element by element for tensors of at most
/// `elements`, along two directions for larger ones.
pub fn check(
    graph: &Graph,
    request: &Gradients,
    dims: &Bindings,
    seed: u64,
    elements: usize,
) -> (Graph, Seen) {
    let gradients = differentiate(graph, request).unwrap();
    assert_eq!(verify_graph(&gradients), Ok(()));
    let at = point(graph, dims, seed);
    let (want, got) = (outputs(graph, dims, &at), outputs(&gradients, dims, &at));
    for (name, want) in &want {
        let worst = want.iter().zip(&got[name]).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-6, "output `{name}` changed by {worst:e}");
    }
    let mut seen = Seen::default();
    let mut state = seed;
    let names: Vec<&String> = at.keys().filter(|name| got.contains_key(&gradient_name(name))).collect();
    assert!(!names.is_empty());
    for name in names {
        let gradient = &got[&gradient_name(name)];
        assert_eq!(gradient.len(), at[name].len(), "the gradient of `{name}`");
        let scale = gradient.iter().fold(1.0, |scale: f64, x| scale.max(x.abs()));
        let directions: Vec<Vec<f64>> = if gradient.len() <= elements {
            (0..gradient.len())
                .map(|i| (0..gradient.len()).map(|j| f64::from(u8::from(i == j))).collect())
                .collect()
        } else {
            (0..2).map(|_| gradient.iter().map(|_| number(&mut state)).collect()).collect()
        };
        for direction in directions {
            let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let Some(want) = slope(graph, dims, &at, name, &direction) else {
                seen.kinks += 1;
                continue;
            };
            let error = (got - want).abs() / scale.max(want.abs());
            assert!(error <= ERROR, "`{name}` along {direction:?}: {got} instead of {want}");
            seen.compared += 1;
            seen.nonzero += usize::from(got != 0.0);
        }
    }
    (gradients, seen)
}

/// Gradients of all float weights and these inputs.
pub fn with_inputs(inputs: &[&str]) -> Gradients {
    Gradients { inputs: inputs.iter().map(|name| (*name).to_owned()).collect(), ..Gradients::default() }
}
