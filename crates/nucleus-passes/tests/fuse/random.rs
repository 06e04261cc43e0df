//! Plans of random graphs compute what the evaluator computes.

use nucleus_ir::testing::random_training_graph;
use nucleus_ir::{Bindings, DType};
use nucleus_passes::fuse::fuse;
use nucleus_passes::route::route;
use nucleus_passes::stage::stage;
use proptest::prelude::*;

use crate::support::{difference, lowered, placed};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_keep_their_meaning(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        (b, h, w, t) in (1i64..3, 1i64..4, 1i64..4, 1i64..4),
        seed in any::<u64>(),
        way in 0..3,
    ) {
        let graph = match way {
            0 => route(&stage(&random_training_graph(&bytes)).unwrap()).unwrap(),
            1 => lowered(&random_training_graph(&bytes), DType::F32),
            _ => lowered(&random_training_graph(&bytes), DType::Bf16),
        };
        let text = || nucleus_ir::graph_printer::print_graph(&graph);
        let plan = fuse(&graph).and_then(placed).map_err(|error| TestCaseError::fail(format!("{error}\n{}", text())))?;
        if let Err(errors) = nucleus_plan::verify_plan(&plan) {
            return Err(TestCaseError::fail(format!("{errors:?}\n{}\n{plan}", text())));
        }
        let dims = Bindings::from_iter([("B", b), ("H", h), ("W", w), ("T", t)]);
        let error = difference(&graph, &plan, &dims, seed)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{}\n{plan}", text())))?;
        // Low-precision values are rounded at the same places; what differs is the order of sums before a rounding to bf16.
        prop_assert!(error <= 2e-2, "error {error}\n{}\n{plan}", text());
    }
}
