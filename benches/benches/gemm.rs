//! `cargo bench -p nucleus-benches --bench gemm [-- FILTER]`: the micro-kernels at the model's sizes, and the machine's
//! limit (`limit/*`) in the same unit. For ratios that a busy machine does not spoil see the example `kernel_ratios`.

use criterion::{Criterion, Throughput};
use nucleus_benches::kernel_cases::{
    ATTENTION_TOKENS, AttentionCase, GEMM_SHAPES, GemmCase, peak_on_all_threads,
};
use nucleus_cpu::kernels::{Element, Isa, Operand};
use nucleus_cpu::threads::Threads;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = Threads::new(0)?;
    let isa = Isa::select()?;
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let kinds = [
        (Operand::F32, Element::F32, "f32"),
        (Operand::Bf16, Element::Bf16, "bf16"),
        (Operand::Bf16, Element::I8, "bf16-i8"),
    ];
    for (operand, weights, name) in kinds {
        let mut group = criterion.benchmark_group("limit");
        group.throughput(Throughput::Elements(peak_on_all_threads(&threads, isa, operand, 100_000) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| peak_on_all_threads(&threads, isa, operand, 100_000));
        });
        group.finish();
        let mut group = criterion.benchmark_group(format!("gemm/{name}"));
        for shape in GEMM_SHAPES {
            let id = format!("{}/{}x{}", shape.name, shape.experts, shape.rows);
            // Criterion calls the closure only if the filter asks for it; making operands is slow.
            let mut case = None;
            group.throughput(Throughput::Elements(
                (2 * shape.experts * shape.rows * shape.k * shape.n * shape.segments) as u64,
            ));
            group.bench_function(id, |bencher| {
                let case =
                    case.get_or_insert_with(|| GemmCase::new(&threads, isa, (operand, weights), shape));
                bencher.iter(|| case.run(&threads));
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group(format!("attention/{name}"));
        for tokens in ATTENTION_TOKENS {
            let mut case = AttentionCase::new(isa, operand, tokens);
            group.throughput(Throughput::Elements(case.flops() as u64));
            group.bench_function(tokens.to_string(), |bencher| bencher.iter(|| case.run(&threads)));
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
