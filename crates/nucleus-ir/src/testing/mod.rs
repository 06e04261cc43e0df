//! Random well-typed graphs, for tests that compare what two parts of the system make of the same graph.
//!
//! A graph is a function of a string of bytes, so that a property-testing library can draw the bytes and shrink them:
//!
//! ```
//! use nucleus_ir::testing::random_graph;
//! let graph = random_graph(&[3, 141, 59, 26, 5, 35]);
//! assert_eq!(nucleus_ir::verify_graph::verify_graph(&graph), Ok(()));
//! ```
//!
//! Graphs use every op of the table and dims `B`, `H`, `W`, `T`; they run for every binding of the dims to sizes from 1, as
//! long as inputs of type `i32` hold small numbers. So that two ways of rounding give nearly the same answer,
//! - values stay moderate: factors and arguments of `exp` pass through `tanh`, divisors are at least 1;
//! - what decides (comparisons, conversions to `i32` or `bool`, `expert_choice`) looks only at inputs, constants and integers, which
//!   every implementation has exactly.
//!
//! So that finite differences are gradients, `stop_gradient` stands behind integers and booleans alone, and behind `attention_grad`, which has no
//! derivative and looks only at constants.

mod elementwise;
mod generator;
mod loss;
mod movement;
mod products;
mod routing;

use crate::graph::Graph;
use generator::{Generator, Kind};

/// The most nodes of a random graph; a step may add a few more.
const MAX_NODES: usize = 60;
/// The largest rank that steps build on.
const RANK: usize = 5;

/// The graph that these bytes choose. No bytes give the smallest graph.
pub fn random_graph(bytes: &[u8]) -> Graph {
    generated(Generator::new(bytes))
}

/// The same with what only training graphs have: weights per step, `stop_gradient`, `after` and `attention_grad`.
pub fn random_training_graph(bytes: &[u8]) -> Graph {
    generated(Generator { kind: Kind::Training, ..Generator::new(bytes) })
}

/// A graph whose first output, `loss`, is a scalar in `f32` that depends on every other float output: the sum of all their elements, each times
/// one of an input `cotangent.<output>`. Its nodes lie in layers, in scopes `layer.<number>`, and blocks of experts occur, whose gates the loss
/// reaches. The experts' affinities are rounded; to choose alike, two implementations must find nearly equal ones in the same order, and random
/// numbers in the input `x` seldom are.
pub fn random_loss(bytes: &[u8]) -> Graph {
    loss::with_loss(generated(Generator { kind: Kind::Loss, ..Generator::new(bytes) }))
}

fn generated(mut generator: Generator<'_>) -> Graph {
    while !generator.bytes.is_empty() && generator.graph.node_count() < MAX_NODES {
        generator.step();
    }
    generator.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::dim::Bindings;
    use crate::ops::op_table;
    use crate::types::Rate;
    use crate::verify_graph::verify_graph;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) as u8
        };
        (0..length).map(|_| next(&mut state)).collect()
    }

    #[test]
    fn every_op_occurs() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let graph = random_training_graph(&noise(seed, 400));
            seen.extend(graph.nodes().map(|(_, node)| node.op.name()));
        }
        let missing: Vec<&str> =
            op_table().iter().map(|info| info.name).filter(|name| !seen.contains(name)).collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn losses_have_layers_of_experts() {
        let blocks = |graph: &Graph| {
            let named = |name: &str| graph.nodes().filter(|(_, node)| node.op.name() == name).count();
            named("expert_choice").min(named("grouped_matmul") / 2)
        };
        let graphs = (0..100).map(|seed| random_loss(&noise(seed, 400)));
        assert!(graphs.map(|graph| blocks(&graph)).sum::<usize>() > 50);
    }

    #[test]
    fn weights_of_either_rate_occur() {
        let rates = |rate: Rate| {
            (0..50).any(|seed| {
                random_training_graph(&noise(seed, 400)).weights.iter().any(|weight| weight.rate == rate)
            })
        };
        assert!(rates(Rate::Model) && rates(Rate::Step));
    }

    proptest! {
        #[test]
        fn random_graphs_are_valid_for_all_sizes(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            sizes in prop::array::uniform4(1i64..6),
        ) {
            let bindings: Bindings = ["B", "H", "W", "T"].into_iter().zip(sizes).collect();
            for graph in [random_graph(&bytes), random_training_graph(&bytes), random_loss(&bytes)] {
                prop_assert_eq!(verify_graph(&graph), Ok(()));
                prop_assert!(graph.node_count() > 0 && !graph.outputs.is_empty());
                for constraint in &graph.constraints {
                    let (smaller, larger) = (constraint.smaller.eval(&bindings)?, constraint.larger.eval(&bindings)?);
                    prop_assert!(smaller <= larger, "{:?}", constraint);
                }
            }
        }
    }
}
