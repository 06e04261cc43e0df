//! `cargo bench -p nucleus-benches --bench compiler`: the released model through all passes, its kernels to machine code, and what
//! new run-time sizes cost afterwards.

use std::path::Path;

use criterion::Criterion;
use nucleus_cpu::{CpuProgram, Options};
use nucleus_ir::{Bindings, DType};
use nucleus_runtime::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../ir-specs/nucleus_image.ir"))?;
    let compile = || model.compile("velocity", DType::Bf16, &mut ());
    let plan = compile()?;
    let program = CpuProgram::compile(plan.clone(), Options::default())?;
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    criterion.bench_function("passes", |bencher| bencher.iter(|| compile().map(|plan| plan.launches.len())));
    criterion.bench_function("machine code", |bencher| {
        bencher.iter(|| CpuProgram::compile(plan.clone(), Options::default()).is_ok());
    });
    for side in [16, 64] {
        let sizes = Bindings::from_iter([("B", 1), ("H", side), ("W", side), ("T", 64)]);
        criterion.bench_function(&format!("bind {side}x{side}"), |bencher| {
            bencher
                .iter(|| program.bind(&sizes).map(|bound| bound.sizes().arena_bytes(nucleus_ir::Rate::Step)));
        });
    }
    criterion.final_summary();
    Ok(())
}
