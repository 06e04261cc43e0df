//! Random graphs, and the gradients of random graphs, through the whole compiler. Their kernels are many and small: those of several graphs are one
//! program.

use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::testing::{random_loss, random_training_graph};
use nucleus_ir::{DType, Graph};
use nucleus_passes::Gradients;
use nucleus_passes::pipeline::{CompileOptions, compile_graph};
use nucleus_plan::Plan;

use crate::case::noise;
use crate::harness::{Case, compare_all};

/// Graphs whose kernels are one program.
const GRAPHS_OF_A_PROGRAM: u64 = 6;

/// The same graphs in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` give others, and more, to look for new failures.
fn seeds(cases: u64) -> impl Iterator<Item = u64> {
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = given("PROPTEST_RNG_SEED").unwrap_or(1).wrapping_mul(1 << 20);
    (0..given("PROPTEST_CASES").unwrap_or(cases)).map(move |case| first.wrapping_add(case))
}

/// A number below `count`.
fn draw(seed: u64, position: usize, count: i64) -> i64 {
    ((noise(seed, position) * count as f64) as i64).min(count - 1)
}

/// The bytes that choose a graph: 20 to `most`.
fn bytes(seed: u64, most: i64) -> Vec<u8> {
    let length = 20 + draw(seed, 0, most - 20);
    (0..length as usize).map(|position| draw(seed, 1 + position, 256) as u8).collect()
}

struct Subject {
    seed: u64,
    graph: Graph,
    plan: Plan,
    dims: [(&'static str, i64); 4],
    integers: Vec<String>,
    tolerance: f64,
}

impl Subject {
    fn new(seed: u64, graph: Graph, options: &CompileOptions) -> Subject {
        let plan =
            compile_graph(&graph, options, &mut ()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut names = ["B", "H", "W", "T"].into_iter().zip([3, 5, 5, 7]).zip(1000..);
        let dims = [(); 4]
            .map(|()| names.next().map(|((name, most), at)| (name, 1 + draw(seed, at, most))).unwrap());
        let integers = graph.inputs.iter().filter(|input| input.ty.dtype == DType::I32);
        let integers = integers.map(|input| input.name.clone()).collect();
        // A sum in another order may be rounded to the neighbouring number of a narrow type, and that twice in a chain.
        let narrow = |dtype: DType| matches!(dtype, DType::Bf16 | DType::F16);
        let narrow = narrow(options.dtype)
            || graph
                .nodes()
                .any(|(_, node)| node.results.iter().any(|result| narrow(graph.ty(*result).dtype)));
        let tolerance = if narrow { 2e-2 } else { 1e-5 };
        Subject { seed, graph, plan, dims, integers, tolerance }
    }

    /// The tensors of the graph: integers are small numbers, as they may be places.
    fn value(&self, name: &str, position: usize) -> Option<f64> {
        let random = noise(self.seed, position);
        self.integers.iter().any(|integer| integer == name).then(|| (random * 7.0 - 3.0).floor())
    }
}

fn check(subjects: &[Subject]) {
    let mut failures = Vec::new();
    for chunk in subjects.chunks(GRAPHS_OF_A_PROGRAM as usize) {
        let values: Vec<_> = chunk
            .iter()
            .map(|subject| move |name: &str, position: usize| subject.value(name, position))
            .collect();
        let cases: Vec<(&Plan, Case)> = chunk
            .iter()
            .zip(&values)
            .map(|(subject, value)| {
                (&subject.plan, Case { text: "", dims: &subject.dims, value, tolerance: subject.tolerance })
            })
            .collect();
        for (number, error) in compare_all(&cases) {
            failures.push(format!(
                "seed {}: {error}\n{}",
                chunk[number].seed,
                print_graph(&chunk[number].graph)
            ));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

fn dtype(seed: u64) -> DType {
    [DType::F32, DType::Bf16, DType::F32, DType::F16][(seed % 4) as usize]
}

#[test]
fn random_graphs_agree() {
    let subject = |seed| {
        let options = CompileOptions { dtype: dtype(seed), verify: true, ..CompileOptions::default() };
        Subject::new(seed, random_training_graph(&bytes(seed, 300)), &options)
    };
    check(&seeds(12).map(subject).collect::<Vec<_>>());
}

#[test]
fn gradients_of_random_graphs_agree() {
    let subject = |seed| {
        let inputs = ["x", "text", "time"].map(str::to_owned).to_vec();
        let gradients = Some(Gradients { inputs, ..Gradients::default() });
        let options =
            CompileOptions { dtype: dtype(seed), gradients, verify: true, ..CompileOptions::default() };
        Subject::new(seed, random_loss(&bytes(seed, 150)), &options)
    };
    check(&seeds(6).map(subject).collect::<Vec<_>>());
}
