//! The released model and small configurations of every kind.

use std::time::{Duration, Instant};

use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::verify_graph::verify_graph;

use crate::support::{NUCLEUS_IMAGE, build, graph};

#[test]
fn the_released_model_has_its_parameters() {
    let start = Instant::now();
    let graph = graph(NUCLEUS_IMAGE, &[]);
    let time = start.elapsed();
    assert_eq!(graph.parameter_count(), Some(16_922_679_296));
    assert_eq!(verify_graph(&graph), Ok(()));
    // About 50 ms in an optimised build; tests run unoptimised on shared machines.
    assert!(time < Duration::from_secs(1), "{time:?}");
    eprintln!("{time:?} {} nodes {} weights", graph.node_count(), graph.weights.len());
    let start = Instant::now();
    let text = print_graph(&graph);
    std::fs::write("/tmp/flat.ir", &text).unwrap();
    let again = build(&text, &[]).unwrap();
    eprintln!("{:?}", start.elapsed());
    assert!(again == graph);
}
