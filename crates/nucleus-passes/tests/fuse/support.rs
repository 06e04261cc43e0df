//! Graphs from text, random tensors, and plans compared with the evaluator.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use nucleus_interp::{Data, Options, Tensor};
use nucleus_ir::source::SourceMap;
use nucleus_ir::{Bindings, DType, Graph, TensorType};
use nucleus_passes::PassError;
use nucleus_passes::allocate::allocate;
use nucleus_passes::elaborate::{Config, Program, elaborate};
use nucleus_passes::epilogue::epilogue;
use nucleus_passes::fuse::fuse;
use nucleus_passes::group::group;
use nucleus_passes::merge::merge;
use nucleus_passes::precision::precision;
use nucleus_passes::route::route;
use nucleus_passes::schedule::schedule;
use nucleus_passes::simplify::simplify;
use nucleus_passes::stage::stage;
use nucleus_plan::{Plan, reference};

pub(crate) const NUCLEUS_IMAGE: &str = include_str!("../../../../ir-specs/nucleus_image.ir");

/// The graph that fusion is given for the first entry of a program.
pub(crate) fn prepared(text: &str, settings: &[&str], dtype: DType) -> Graph {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    let program = Program::load(&mut sources, file, &|_| None)
        .unwrap_or_else(|errors| panic!("{}", nucleus_ir::render(&sources, &errors, false)));
    let mut config = Config::new();
    for setting in settings {
        config.set(setting).unwrap();
    }
    let entry = program.entries().first().map_or(String::new(), ToString::to_string);
    let graph = elaborate(&program, &config, &entry)
        .unwrap_or_else(|errors| panic!("{}", nucleus_ir::render(&sources, &errors, false)));
    lowered(&simplify(&graph).unwrap(), dtype)
}

/// The passes between simplification and fusion.
pub(crate) fn lowered(graph: &Graph, dtype: DType) -> Graph {
    route(&stage(&precision(graph, dtype).unwrap()).unwrap()).unwrap()
}

/// The passes after fusion.
pub(crate) fn placed(plan: Plan) -> Result<Plan, PassError> {
    allocate(schedule(group(merge(epilogue(plan)?)?)?)?)
}

/// One line per launch: kernel, anchor, what is read and written, scope.
pub(crate) fn launches(plan: &Plan) -> String {
    let mut text = String::new();
    for launch in &plan.launches {
        let kernel = plan.kernel(launch.kernel);
        let _ = write!(text, "{} k{} {}", launch.stage, launch.kernel.0, kernel.anchor.name());
        for (operand, buffer) in kernel.operands.iter().zip(&launch.operands) {
            let data = plan.buffer(*buffer);
            let mode = match operand.mode {
                nucleus_plan::OperandMode::Read => "<",
                _ => ">",
            };
            let _ = write!(text, " {mode}b{}:{}", buffer.0, TensorType::new(data.dtype, data.shape.clone()));
        }
        let _ = writeln!(text, " at {}", launch.scope.as_deref().unwrap_or("-"));
    }
    text
}

/// The number of launches of each anchor, by name.
pub(crate) fn anchors(plan: &Plan) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for launch in &plan.launches {
        *counts.entry(plan.kernel(launch.kernel).anchor.name()).or_default() += 1;
    }
    counts
}

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn tensor(&mut self, ty: &TensorType, dims: &Bindings) -> Tensor<f32> {
        let shape: Vec<usize> = ty.shape.iter().map(|dim| dim.eval(dims).unwrap() as usize).collect();
        let count = shape.iter().product::<usize>();
        let data = match ty.dtype {
            DType::Bool => Data::Bool((0..count).map(|_| self.next() % 8 < 6).collect()),
            DType::I32 => Data::Int((0..count).map(|_| (self.next() % 5) as i32).collect()),
            _ => Data::Float((0..count).map(|_| (self.next() % 2001) as f32 / 1000.0 - 1.0).collect()),
        };
        Tensor::new(DType::F32, shape.clone(), data.clone())
            .or_else(|_| Tensor::new(ty.dtype, shape, data))
            .unwrap()
            .cast(ty.dtype, true)
    }
}

pub(crate) fn elements(tensor: &Tensor<f32>) -> Vec<f64> {
    match tensor.data() {
        Data::Float(x) => x.iter().map(|x| f64::from(*x)).collect(),
        Data::Int(x) => x.iter().map(|x| f64::from(*x)).collect(),
        Data::Bool(x) => x.iter().map(|x| f64::from(u8::from(*x))).collect(),
    }
}

/// Runs a plan and the graph it came from on the same random tensors: the largest difference of any output over its largest value.
pub(crate) fn difference(graph: &Graph, plan: &Plan, dims: &Bindings, seed: u64) -> Result<f64, String> {
    let mut random = Random(seed | 1);
    let inputs: BTreeMap<String, Tensor<f32>> =
        graph.inputs.iter().map(|input| (input.name.clone(), random.tensor(&input.ty, dims))).collect();
    let weights: HashMap<String, Tensor<f32>> =
        graph.weights.iter().map(|weight| (weight.name.clone(), random.tensor(&weight.ty, dims))).collect();
    let find = |name: &str| weights.get(name).cloned();
    let expected = nucleus_interp::evaluate(graph, dims, &inputs, &find, &Options::default())
        .map_err(|error| format!("evaluator: {error}"))?;
    let plain = |tensors: &mut dyn Iterator<Item = (&String, &Tensor<f32>)>| {
        tensors.map(|(name, tensor)| (name.clone(), elements(tensor))).collect::<reference::Tensors>()
    };
    let outputs = reference::evaluate(plan, dims, &plain(&mut inputs.iter()), &plain(&mut weights.iter()))
        .map_err(|error| format!("plan: {error}"))?;
    let mut worst = 0.0f64;
    for ((name, expected), given) in expected.iter().zip(&outputs) {
        let expected = elements(expected);
        assert_eq!(expected.len(), given.len(), "{name}");
        let largest = expected
            .iter()
            .fold(1.0f64, |largest, x| if x.is_finite() { largest.max(x.abs()) } else { largest });
        for (x, y) in expected.iter().zip(given) {
            let same = x == y || x.is_nan() && y.is_nan();
            if !same {
                let error = (x - y).abs() / largest;
                worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            }
        }
    }
    Ok(worst)
}

/// The plan of a program, checked against the evaluator at two sizes.
pub(crate) fn checked(text: &str, settings: &[&str], tolerance: f64) -> Plan {
    let graph = prepared(text, settings, DType::F32);
    let plan = fuse(&graph).unwrap();
    assert_eq!(nucleus_plan::verify_plan(&plan), Ok(()));
    let plan = placed(plan).unwrap();
    assert_eq!(nucleus_plan::verify_plan(&plan), Ok(()));
    for (b, h, w, t) in [(1, 3, 4, 2), (2, 2, 3, 5)] {
        let dims = Bindings::from_iter([("B", b), ("H", h), ("W", w), ("T", t)]);
        let error = difference(&graph, &plan, &dims, 7).unwrap();
        assert!(error <= tolerance, "error {error} at {dims:?}\n{}", launches(&plan));
    }
    plan
}
