//! What every comparison asks of a graph.

use nucleus_cpu::kernels::Isa;
use nucleus_ir::{Bindings, DType, Graph, Op};
use nucleus_passes::pipeline::CompileOptions;
use nucleus_plan::Plan;
use nucleus_plan::reference::{self, Tensors};
use nucleus_runtime::TensorMap;
use nucleus_tests::backend::{Backend, compiled_with};
use nucleus_tests::tensors::{
    Answer, Distance, answer, distance, evaluated, numbers, random_tensors, tensor_of,
};

use crate::builder::{Builder, Leaves};

/// The largest error of `f32` arithmetic over the largest value, at least 1, of an output. A sum of n products is off by at most n · 2⁻²⁴ of
/// the sum of their magnitudes and a function of the backend by 2 · 2⁻²⁴ of its value; a graph chains a few of them.
const F32: f64 = 1e-5;
/// The same where values are rounded to `bf16` or `f16` on the way: another order of a sum, or other weights inside of attention, may round to
/// the neighbouring number, in `bf16` up to 2⁻⁷ of its magnitude away, and that twice in a chain.
const NARROW: f64 = 2.0 / 128.0;
/// How much further than the evaluator in `f32` a backend may be from the evaluator in `f64`: sums have another order, and in chains of
/// cancelling sums, as gradients are, errors grow by the conditions of them all.
const CONDITION: f64 = 16.0;

pub(crate) fn dims(sizes: [i64; 4]) -> Bindings {
    ["B", "H", "W", "T"].into_iter().zip(sizes).collect()
}

/// A graph, compiled for several instruction sets and numbers of threads.
pub(crate) struct Subject<'a> {
    graph: &'a Graph,
    /// The graph with the roundings of its compute type.
    rounded: Graph,
    plan: Plan,
    targets: Vec<Target>,
}

/// One instruction set.
struct Target {
    isa: Isa,
    /// One thread, every launch packs its own factors.
    alone: Backend,
    /// Others that must give the same bits, and what they are.
    others: Vec<(String, Backend)>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(graph: &'a Graph, dtype: DType, isas: &[Isa]) -> Result<Subject<'a>, String> {
        Subject::with_options(
            graph,
            &CompileOptions { dtype, verify: true, ..CompileOptions::default() },
            isas,
        )
    }

    pub(crate) fn with_options(
        graph: &'a Graph,
        options: &CompileOptions,
        isas: &[Isa],
    ) -> Result<Subject<'a>, String> {
        let (plan, rounded) = compiled_with(graph, options)?;
        let mut targets = Vec::new();
        for &isa in isas {
            let mut others = Vec::new();
            for (threads, pack_first) in [(2, true), (4, false)] {
                let what = format!("{isa}, {threads} threads, packed first: {pack_first}");
                others.push((what, Backend::new(&plan, threads, isa, pack_first)?));
            }
            targets.push(Target { isa, alone: Backend::new(&plan, 1, isa, false)?, others });
        }
        Ok(Subject { graph, rounded, plan, targets })
    }

    /// Runs on random tensors: every backend must be close to the evaluator, and the number of threads must not change a bit.
    pub(crate) fn check(&mut self, dims: &Bindings, seed: u64) -> Result<(), String> {
        let (inputs, weights) = random_tensors(self.graph, dims, seed)?;
        self.check_on(dims, &inputs, &weights)
    }

    pub(crate) fn check_on(
        &mut self,
        dims: &Bindings,
        inputs: &TensorMap,
        weights: &TensorMap,
    ) -> Result<(), String> {
        // In f64 unless the answer depends on how f32 sums are rounded to a narrower type.
        let exact = answer::<f64>(&self.rounded, dims, inputs, weights)?;
        let want = if exact.narrow { answer::<f32>(&self.rounded, dims, inputs, weights)? } else { exact };
        let slack = vec![0.0; want.outputs.len()];
        self.compare(dims, inputs, weights, &want, &slack)
    }

    /// The same for graphs with gradients: what is badly conditioned may be as far off as the evaluator in `f32` shows. The plan is
    /// interpreted, too.
    pub(crate) fn check_gradients(&mut self, dims: &Bindings, seed: u64) -> Result<(), String> {
        let (inputs, weights) = random_tensors(self.graph, dims, seed)?;
        let exact = answer::<f64>(&self.rounded, dims, &inputs, &weights)?;
        let single = answer::<f32>(&self.rounded, dims, &inputs, &weights)?;
        let slack: Vec<f64> = exact
            .outputs
            .iter()
            .zip(&single.outputs)
            // Where the evaluator itself chooses otherwise, or has no number, there is nothing to compare.
            .map(|(exact, single)| {
                distance(&exact.1, &single.1).map_or(f64::INFINITY, |d| CONDITION * d.most)
            })
            .collect();
        let want = if exact.narrow { single } else { exact };
        self.interpret(dims, &inputs, &weights, &want, &slack)
            .map_err(|error| format!("the plan: {error}"))?;
        self.compare(dims, &inputs, &weights, &want, &slack)
    }

    /// Compares what the interpreter of plans makes of the plan.
    fn interpret(
        &self,
        dims: &Bindings,
        inputs: &TensorMap,
        weights: &TensorMap,
        want: &Answer,
        slack: &[f64],
    ) -> Result<(), String> {
        let plain = |tensors: &TensorMap| -> Tensors {
            tensors.iter().map(|(name, tensor)| (name.clone(), numbers(&evaluated(tensor)))).collect()
        };
        let got = reference::evaluate(&self.plan, dims, &plain(inputs), &plain(weights));
        let got = got.map_err(|error| error.to_string())?;
        for (((name, tensor), got), slack) in want.outputs.iter().zip(got).zip(slack) {
            close(want, || distance(tensor, &tensor_of(tensor.dtype(), tensor.shape(), got)?), *slack)
                .map_err(|error| format!("output `{name}`: {error}"))?;
        }
        Ok(())
    }

    fn compare(
        &mut self,
        dims: &Bindings,
        inputs: &TensorMap,
        weights: &TensorMap,
        want: &Answer,
        slack: &[f64],
    ) -> Result<(), String> {
        for Target { isa, alone, others } in &mut self.targets {
            let first = alone.run(dims, inputs, weights).map_err(|error| format!("{isa}: {error}"))?;
            if first.len() != want.outputs.len() {
                return Err(format!("{isa}: {} outputs instead of {}", first.len(), want.outputs.len()));
            }
            for (((name, tensor), (given, got)), slack) in want.outputs.iter().zip(&first).zip(slack) {
                if given != name {
                    return Err(format!("{isa}: output `{given}` instead of `{name}`"));
                }
                close(want, || distance(tensor, &evaluated(got)), *slack)
                    .map_err(|error| format!("{isa}: output `{name}`: {error}"))?;
            }
            for (what, backend) in others {
                let other = backend.run(dims, inputs, weights).map_err(|error| format!("{what}: {error}"))?;
                for ((name, x), (_, y)) in first.iter().zip(&other) {
                    if x.bytes() != y.bytes() {
                        return Err(format!("{what}: output `{name}` has other bits than with one thread"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn close(
    want: &Answer,
    distance: impl FnOnce() -> Result<Distance, String>,
    slack: f64,
) -> Result<(), String> {
    if slack.is_infinite() {
        return Ok(());
    }
    let distance = distance()?;
    let scale = distance.scale.max(1.0);
    let tolerance = if want.narrow { NARROW } else { F32 };
    if distance.most > tolerance * scale + slack {
        let error = distance.most / scale;
        return Err(format!("an error of {error:e} of the largest value, {:e}", distance.scale));
    }
    Ok(())
}

/// The comparison fails for a factor that is off by one part in ten thousand, and for an integer that is off by one.
#[test]
fn small_differences_are_seen() {
    let graph = |dtype, factor| {
        let mut b = Builder::new("factor", Leaves::Inputs);
        let (x, factor) = (b.tensor(dtype, "B, T"), b.constant(factor, dtype));
        let factor = b.broadcast(factor, "B, T");
        b.output(Op::Mul, &[x, factor]);
        b.graph
    };
    for (dtype, right, wrong, says) in
        [(DType::F32, 1.5, 1.50015, "an error of"), (DType::I32, 3.0, 4.0, "instead of")]
    {
        let right = graph(dtype, right);
        let mut subject = Subject::new(&right, DType::F32, &Isa::supported()[..1]).unwrap();
        let dims = dims([2, 1, 1, 9]);
        assert_eq!(subject.check(&dims, 1), Ok(()));
        subject.rounded = graph(dtype, wrong);
        let error = subject.check(&dims, 1).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
