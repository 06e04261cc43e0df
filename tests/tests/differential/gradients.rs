//! Random losses with the gradients of every weight and float input: their backward pass against finite differences is the business of the tests of
//! `differentiate`; here what the compiler and the backend make of it is compared with the evaluator.

use nucleus_cpu::kernels::Isa;
use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::testing::random_loss;
use nucleus_ir::{Bindings, DType};
use nucleus_passes::differentiate::Gradients;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_passes::remat::{Policy, Remat};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::random::config;
use crate::support::{Subject, dims};

/// What the backward pass recomputes, in a run with sizes `dims`.
fn remat(policy: Option<Policy>, dims: &Bindings) -> Option<Remat> {
    Some(Remat { policy: policy?, sizes: dims.clone() })
}

fn check(
    bytes: &[u8],
    dtype: DType,
    policy: Option<Policy>,
    sizes: [i64; 4],
    seed: u64,
) -> Result<(), TestCaseError> {
    let graph = random_loss(bytes);
    let dims = dims(sizes);
    let inputs = ["x", "text", "time"].map(str::to_owned).to_vec();
    let gradients = Some(Gradients { inputs, ..Gradients::default() });
    let remat = remat(policy, &dims);
    let options = CompileOptions { dtype, gradients, remat, verify: true, ..CompileOptions::default() };
    Subject::with_options(&graph, &options, &Isa::supported()[..1])
        .and_then(|mut subject| subject.check_gradients(&dims, seed))
        .map_err(|error| TestCaseError::fail(format!("{error}\n{}", print_graph(&graph))))
}

fn policies() -> impl Strategy<Value = Option<Policy>> {
    prop_oneof![
        Just(None),
        Just(Some(Policy::Cheap)),
        Just(Some(Policy::Full)),
        // A budget that is not met is an error; this one is met by keeping whatever is worth it.
        Just(Some(Policy::Memory(1 << 40))),
    ]
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn gradients_of_random_losses_agree(
        bytes in prop::collection::vec(any::<u8>(), 20..250),
        (b, h, w, t) in (1i64..4, 1i64..8, 1i64..6, 1i64..12),
        dtype in prop::sample::select(vec![DType::F32, DType::F32, DType::Bf16]),
        policy in policies(),
        seed in any::<u64>(),
    ) {
        check(&bytes, dtype, policy, [b, h, w, t], seed)?;
    }
}
