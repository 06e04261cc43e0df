//! `cargo run --release -p nucleus-benches --example reduction_rates [FILTER]`: sums over leading axes, long sums and transpositions
//! beside plain passes over as many bytes, on all threads, best of many runs that take turns.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use nucleus_benches::reduction_cases::cases;

const ROUNDS: usize = 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("{:<50} {:>8} {:>10} {:>6}", "launch", "GB/s", "plain GB/s", "ratio");
    // One case at a time: together they would need more memory than caches that cases of a few megabytes live in.
    for mut case in cases(&filter, 0)? {
        let mut best = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            let mut time = |position: usize, body: &mut dyn FnMut()| {
                let start = Instant::now();
                body();
                best[position] = best[position].min(start.elapsed().as_secs_f64());
            };
            time(0, &mut || case.run());
            time(1, &mut || case.plain());
        }
        let rate = |seconds: f64| case.bytes as f64 / seconds / 1e9;
        println!(
            "{:<50} {:>8.2} {:>10.2} {:>6.2}",
            case.name,
            rate(best[0]),
            rate(best[1]),
            best[1] / best[0]
        );
    }
    Ok(())
}
