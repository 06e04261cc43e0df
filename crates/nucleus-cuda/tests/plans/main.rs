//! Plans run on CUDA kernels and by the plan interpreter give the same outputs. The kernels are executed without a GPU, by the shim of
//! `tests/shim`; the plans are those that the CPU backend is tested with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod shim;

#[path = "../../../nucleus-cpu/tests/executor/case.rs"]
mod case;
#[path = "../../../nucleus-cpu/tests/executor/contractions.rs"]
mod contractions;
#[path = "../../../nucleus-cpu/tests/executor/groups.rs"]
mod groups;
#[path = "../../../nucleus-cpu/tests/executor/maps.rs"]
mod maps;
#[path = "../../../nucleus-cpu/tests/executor/products.rs"]
mod products;
