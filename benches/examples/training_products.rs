//! `cargo run --release -p nucleus-benches --example training_products [THREADS [FILTER]]`: products whose factors lie in memory as
//! f32 and change at every run, beside the same product with a weight that is packed beforehand, and the machine's limit. All three
//! take turns; the best of each counts.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use nucleus_benches::kernel_cases::peak_on_all_threads;
use nucleus_benches::training_cases::{CaseError, TRAINING_SHAPES, TrainingCase};
use nucleus_cpu::kernels::{Isa, Operand};
use nucleus_cpu::threads::Threads;
use nucleus_ir::DType;

const ROUNDS: usize = 15;

fn main() -> Result<(), CaseError> {
    let mut arguments = std::env::args().skip(1);
    let threads = Threads::new(arguments.next().map_or(Ok(0), |count| count.parse())?)?;
    let filter = arguments.next().unwrap_or_default();
    let isa = Isa::select()?;
    println!("{isa}, {} threads", threads.count());
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "product", "GFLOP/s", "packed", "limit", "of packed", "of limit"
    );
    for (dtype, operand) in [(DType::F32, Operand::F32), (DType::Bf16, Operand::Bf16)] {
        for shape in TRAINING_SHAPES {
            let name = format!(
                "{dtype} {} {}x{}x{}x{}",
                shape.name, shape.batch, shape.rows, shape.depth, shape.columns
            );
            if !name.contains(&filter) {
                continue;
            }
            let mut changing = TrainingCase::new(threads.count(), dtype, shape, false)?;
            let mut packed = TrainingCase::new(threads.count(), dtype, shape.with_weights(), true)?;
            let flops = shape.flops();
            let repeats = (2_000_000_000 / flops).clamp(1, 50);
            let mut best = [0f64; 3];
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let done = peak_on_all_threads(&threads, isa, operand, 100_000);
                best[2] = best[2].max(done as f64 / start.elapsed().as_secs_f64());
                for (case, best) in [&mut changing, &mut packed].into_iter().zip(&mut best) {
                    let (start, busy_start) = (Instant::now(), busy_seconds());
                    (0..repeats).try_for_each(|_| case.run())?;
                    let mut seconds = start.elapsed().as_secs_f64();
                    if threads.count() == 1 {
                        seconds = busy_seconds() - busy_start;
                    }
                    *best = best.max((flops * repeats) as f64 / seconds);
                }
            }
            let [speed, packed, limit] = best;
            println!(
                "{name:<44} {:>8.0} {:>8.0} {:>8.0} {:>9.2} {:>9.2}",
                speed / 1e9,
                packed / 1e9,
                limit / 1e9,
                speed / packed,
                speed / limit
            );
        }
    }
    Ok(())
}

/// Seconds that the threads of this process have run.
fn busy_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| -> f64 {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0)
    };
    tasks.map(of).sum::<f64>() / 1e9
}
