//! `cargo run --release -p nucleus-benches --example kernel_ratios [THREADS [FILTER [ROWS,COLUMNS,DEPTH]]]`: the
//! micro-kernels' speed as a fraction of what the machine can do in registers, with another blocking on request. Kernel and limit run alternately, so that other work on the
//! machine slows both; the best of each counts, and the median of their ratios.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use nucleus_benches::kernel_cases::{
    ATTENTION_TOKENS, AttentionCase, GEMM_SHAPES, GRAD_SHAPES, GemmCase, GemmShape, GradCase, GradShape,
    peak_on_all_threads,
};
use nucleus_cpu::kernels::{Blocking, Element, Isa, Operand};
use nucleus_cpu::threads::Threads;

const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads = Threads::new(arguments.next().map_or(Ok(0), |count| count.parse())?)?;
    let filter = arguments.next().unwrap_or_default();
    let sizes: Vec<usize> = match arguments.next() {
        Some(text) => text.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let blocking = match sizes[..] {
        [] => None,
        [rows, columns, depth] => Some(Blocking { rows, columns, depth }),
        _ => return Err("a blocking is ROWS,COLUMNS,DEPTH".into()),
    };
    let isa = Isa::select()?;
    println!("{isa}, {} threads", threads.count());
    println!(
        "{:<36} {:>8} {:>8} {:>6} {:>7} {:>8}",
        "kernel", "GFLOP/s", "limit", "best", "median", "GB/s of B"
    );
    let kinds = [(Operand::F32, Element::F32), (Operand::Bf16, Element::Bf16), (Operand::Bf16, Element::I8)];
    for (operand, weights) in kinds {
        for shape in GEMM_SHAPES {
            let GemmShape { name, experts, rows, k, n, segments } = shape;
            let name = format!("{name} {weights:?} {experts}x{rows}x{k}x{n}·{segments}");
            if !name.contains(&filter) {
                continue;
            }
            let mut case = GemmCase::new(&threads, isa, (operand, weights), shape);
            case.blocking = blocking.unwrap_or(case.blocking);
            let (flops, bytes) = (case.flops(), case.weight_bytes());
            measure(&threads, isa, operand, &name, flops, bytes, || case.run(&threads));
        }
        for tokens in ATTENTION_TOKENS.into_iter().filter(|_| weights == operand.element()) {
            let name = format!("attention {operand:?} {tokens}");
            if name.contains(&filter) {
                let mut case = AttentionCase::new(isa, operand, tokens);
                measure(&threads, isa, operand, &name, case.flops(), 0, || case.run(&threads));
            }
        }
        for shape in GRAD_SHAPES.into_iter().filter(|_| weights == operand.element()) {
            let GradShape { batch, tokens, head_dim } = shape;
            let name = format!("attention_grad {operand:?} {batch}x{tokens}x{head_dim}");
            if name.contains(&filter) {
                let mut case = GradCase::new(isa, operand, shape);
                measure(&threads, isa, operand, &name, case.flops(), 0, || case.run(&threads));
            }
        }
    }
    Ok(())
}

/// Prints one line: best speeds, their ratio, the median of the rounds' ratios, weight bytes per second.
fn measure(
    threads: &Threads,
    isa: Isa,
    operand: Operand,
    name: &str,
    flops: usize,
    weight_bytes: usize,
    mut run: impl FnMut(),
) {
    run();
    // About 20 ms of kernel for each round at 100 GFLOP/s.
    let repeats = (2_000_000_000 / flops.max(1)).clamp(1, 20);
    let mut rounds: Vec<[f64; 2]> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let done = peak_on_all_threads(threads, isa, operand, 500_000);
            let limit = done as f64 / start.elapsed().as_secs_f64();
            let start = Instant::now();
            (0..repeats).for_each(|_| run());
            [(flops * repeats) as f64 / start.elapsed().as_secs_f64(), limit]
        })
        .collect();
    let best = |at: usize| rounds.iter().map(|round| round[at]).fold(0.0, f64::max);
    let (speed, limit) = (best(0), best(1));
    rounds.sort_by(|a, b| (a[0] / a[1]).total_cmp(&(b[0] / b[1])));
    let [median, median_limit] = rounds[ROUNDS / 2];
    println!(
        "{name:<36} {:>8.0} {:>8.0} {:>6.2} {:>7.2} {:>8.1}",
        speed / 1e9,
        limit / 1e9,
        speed / limit,
        median / median_limit,
        weight_bytes as f64 * speed / flops as f64 / 1e9
    );
}
