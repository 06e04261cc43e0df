//! Random graphs of every op.

use nucleus_ir::testing::random_loss;
use nucleus_ir::verify_graph::verify_graph;
use nucleus_ir::{Bindings, DType, Graph};

use nucleus_passes::pipeline::{CompileOptions, PASSES, PassKind};
use nucleus_passes::remat::{Policy, Remat, remat_reported};
use nucleus_passes::simplify::simplify;

use crate::finite::{Seen, check, outputs, point, splitmix, with_inputs};

/// Recomputed values are those of the forward pass to the last bit, whatever is kept; returns how many nodes are recomputed.
fn keeps_every_bit(gradients: &Graph, dims: &Bindings, seed: u64) -> usize {
    let simple = simplify(gradients).unwrap();
    let at = point(&simple, dims, seed);
    let want = outputs(&simple, dims, &at);
    let policies = [Policy::Cheap, Policy::Full, Policy::Memory(seed * 64)];
    let recomputed = policies.map(|policy| {
        let request = Remat { policy, sizes: dims.clone() };
        let (graph, report) = remat_reported(&simple, &request).unwrap();
        assert_eq!(verify_graph(&graph), Ok(()), "seed {seed}");
        let got = outputs(&graph, dims, &at);
        for (name, want) in &want {
            let same = want.iter().zip(&got[name]).all(|(want, got)| want.to_bits() == got.to_bits());
            assert!(same, "seed {seed}: {policy:?} changes `{name}`");
        }
        report.recomputed
    });
    recomputed.into_iter().sum()
}

/// The passes that follow take a graph with gradients like any other.
fn keeps_its_answer(gradients: Graph, dims: &Bindings, seed: u64) {
    let at = point(&gradients, dims, seed);
    let want = outputs(&gradients, dims, &at);
    let remat = Some(Remat::new(Policy::Full));
    let options = CompileOptions { dtype: DType::Bf16, remat, ..CompileOptions::default() };
    let mut current = gradients;
    for pass in PASSES {
        let PassKind::Graph(run) = pass.kind else { continue };
        current = run(&current, &options).unwrap();
        assert_eq!(verify_graph(&current), Ok(()), "after {}", pass.name);
        if pass.name == "simplify" {
            assert!(simplify(&current).unwrap() == current, "seed {seed}: simplification goes on");
        }
        let got = outputs(&current, dims, &at);
        for (name, want) in &want {
            let scale = want.iter().fold(1e-30, |scale: f64, x| scale.max(x.abs()));
            for (want, got) in want.iter().zip(&got[name]) {
                let close = (want - got).abs() <= 1e-6 * scale;
                assert!(close, "seed {seed}: {} makes `{name}` {got} instead of {want}", pass.name);
            }
        }
    }
}

#[test]
fn gradients_of_random_graphs() {
    let mut total = Seen::default();
    let mut recomputed = 0;
    for seed in 0..400u64 {
        let mut state = seed;
        let length = 20 + (splitmix(&mut state) % 200) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| (splitmix(&mut state) >> 40) as u8).collect();
        let sizes = ["B", "H", "W", "T"].map(|dim| (dim, 1 + (splitmix(&mut state) % 4) as i64));
        let graph = random_loss(&bytes);
        let request = with_inputs(&["x", "text", "time"]);
        let dims = Bindings::from_iter(sizes);
        let (gradients, seen) = check(&graph, &request, &dims, seed, 3);
        recomputed += keeps_every_bit(&gradients, &dims, seed);
        keeps_its_answer(gradients, &dims, seed);
        total.compared += seen.compared;
        total.nonzero += seen.nonzero;
        total.kinks += seen.kinks;
    }
    assert!(recomputed > 500, "{recomputed}");
    assert!(total.nonzero > 1000 && total.kinks * 50 < total.compared, "{total:?}");
}
