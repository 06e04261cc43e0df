//! Plans run on CUDA kernels and by the plan interpreter give the same outputs. The kernels are executed without a GPU, by the shim of
//! `tests/shim`, or on the machine's GPU where `NUCLEUS_TEST_GPU=1` asks for it; the plans are those that the CPU backend is tested with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attention_architectures;
mod device;
mod harness;
mod random_graphs;
mod shim;
mod tiles;

#[path = "../../../nucleus-cpu/tests/executor/attention.rs"]
mod attention;
#[path = "../../../nucleus-cpu/tests/executor/attention_shapes.rs"]
mod attention_shapes;
#[path = "../../../nucleus-cpu/tests/executor/bytes.rs"]
mod bytes;
#[path = "../../../nucleus-cpu/tests/executor/case.rs"]
mod case;
#[path = "../../../nucleus-cpu/tests/executor/contractions.rs"]
mod contractions;
#[path = "../../../nucleus-cpu/tests/executor/groups.rs"]
mod groups;
#[path = "../../../nucleus-cpu/tests/executor/leading_axes.rs"]
mod leading_axes;
#[path = "../../../nucleus-cpu/tests/executor/maps.rs"]
mod maps;
#[path = "../../../nucleus-cpu/tests/executor/models.rs"]
mod models;
#[path = "../../../nucleus-cpu/tests/executor/products.rs"]
mod products;
#[path = "../../../nucleus-cpu/tests/executor/random_functions.rs"]
mod random_functions;
#[path = "../../../nucleus-cpu/tests/executor/reductions.rs"]
mod reductions;
#[path = "../../../nucleus-cpu/tests/executor/routing.rs"]
mod routing;
#[path = "../../../nucleus-cpu/tests/executor/row_structures.rs"]
mod row_structures;
