//! `cargo bench -p nucleus-benches --bench codegen [-- FILTER]`: generated loops at the model's sizes on one thread, and the reductions
//! and transpositions of training on all. For figures that a busy machine does not spoil see the examples `codegen_rates` and
//! `reduction_rates`.

use criterion::{Criterion, Throughput};
use nucleus_benches::{codegen_cases, reduction_cases};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("codegen");
    for mut case in codegen_cases::cases("")? {
        group.throughput(Throughput::Elements(case.points as u64));
        group.bench_function(case.name, |bencher| bencher.iter(|| case.run()));
    }
    group.finish();
    let mut group = criterion.benchmark_group("reductions");
    for mut case in reduction_cases::cases("", 0)? {
        group.throughput(Throughput::Bytes(case.bytes as u64));
        group.bench_function(case.name, |bencher| bencher.iter(|| case.run()));
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
