//! `cargo run --release -p nucleus-benches --example codegen_rates [FILTER]`: the speed of generated loops at the model's sizes on
//! one thread, best of many runs that take turns.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use nucleus_benches::codegen_cases::cases;

const ROUNDS: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let mut cases = cases(&filter)?;
    let mut best = vec![f64::INFINITY; cases.len()];
    for _ in 0..ROUNDS {
        for (case, best) in cases.iter_mut().zip(&mut best) {
            let start = Instant::now();
            case.run();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    println!("{:<20} {:>10} {:>12} {:>8}", "slot", "points", "points / ns", "GB/s");
    for (case, seconds) in cases.iter().zip(best) {
        let (points, bytes) = (case.points as f64, case.bytes as f64);
        println!(
            "{:<20} {points:>10} {:>12.3} {:>8.2}",
            case.name,
            points / seconds / 1e9,
            bytes / seconds / 1e9
        );
    }
    Ok(())
}
