//! Timing an entry at given sizes.

use std::collections::BTreeMap;
use std::time::Instant;

use nucleus_ir::{Bindings, Rate};
use nucleus_plan::Profile;
use nucleus_runtime::{Session, TensorMap};
use serde_json::{Value, json};

/// Times at one combination of sizes, and what they are measured against.
pub struct Measurement {
    /// The sizes.
    pub bindings: Bindings,
    /// Seconds that binding them took, before the first run.
    pub bind: f64,
    /// Seconds of whole runs.
    pub runs: Vec<f64>,
    /// Seconds of steps with the prompt prepared.
    pub steps: Vec<f64>,
    /// FLOP/s of multiply-adds in registers on everything that computes, measured between the runs.
    limits: Vec<f64>,
    /// On a GPU bytes per second of copies in its memory, measured with them.
    copies: Vec<f64>,
    /// Floating-point operations of a run.
    pub flops: f64,
    /// Bytes that a run reads or writes at least.
    pub bytes: f64,
    /// Bytes of the arenas.
    pub arenas: u64,
    /// The time of every launch, summed over the runs.
    pub profile: Profile,
}

impl Measurement {
    /// Runs once to warm up, then `repeat` times.
    pub fn take(
        session: &mut Session,
        inputs: &TensorMap,
        dims: &[(String, i64)],
        repeat: usize,
    ) -> anyhow::Result<Measurement> {
        let (mut fixed, mut changing) = (TensorMap::new(), TensorMap::new());
        for (name, tensor) in inputs.iter() {
            let per_step =
                session.signature().inputs.iter().any(|spec| spec.name == *name && spec.rate == Rate::Step);
            let map = if per_step { &mut changing } else { &mut fixed };
            map.insert(name.clone(), tensor.clone());
        }
        let start = Instant::now();
        let bindings = session.check_sizes(inputs, dims)?;
        let bind = start.elapsed().as_secs_f64();
        session.run(inputs, dims)?;
        let sizes: Vec<(String, i64)> = bindings.iter().map(|(dim, size)| (dim.to_string(), size)).collect();
        let prompt = session.prepare(&fixed, &sizes)?;
        let (flops, bytes) = work(session, &bindings);
        let mut taken = Measurement {
            bindings,
            bind,
            runs: Vec::with_capacity(repeat),
            steps: Vec::with_capacity(repeat),
            limits: Vec::with_capacity(repeat),
            copies: Vec::new(),
            flops,
            bytes,
            arenas: session.memory_use().arenas,
            profile: Profile::default(),
        };
        for _ in 0..repeat {
            let limits = session.limits()?;
            taken.limits.push(limits.flops);
            taken.copies.extend(limits.copy_bytes);
            // Events between the launches of a GPU keep them from running as one graph.
            let apart = session.gpu().is_some();
            if apart {
                session.run_profiled(inputs, dims, Some(&mut taken.profile))?;
            }
            let start = Instant::now();
            session.run_profiled(inputs, dims, (!apart).then_some(&mut taken.profile))?;
            taken.runs.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            session.step(&prompt, &changing)?;
            taken.steps.push(start.elapsed().as_secs_f64());
        }
        anyhow::ensure!(repeat > 0, "there are no runs");
        Ok(taken)
    }

    /// Median seconds of a run.
    pub fn run(&self) -> f64 {
        median(&self.runs)
    }

    /// Median seconds of a step.
    pub fn step(&self) -> f64 {
        median(&self.steps)
    }

    /// Median of the arithmetic limit, FLOP/s.
    pub fn limit(&self) -> f64 {
        median(&self.limits)
    }

    /// On a GPU the median bytes per second of copies in its memory.
    pub fn copy(&self) -> Option<f64> {
        (!self.copies.is_empty()).then(|| median(&self.copies))
    }

    /// The part of the limit that whole runs reach.
    pub fn fraction(&self) -> f64 {
        self.flops / self.run() / self.limit()
    }

    /// The sizes as text: `B=1 H=16 …`.
    pub fn sizes(&self) -> String {
        let sizes: Vec<String> = self.bindings.iter().map(|(dim, size)| format!("{dim}={size}")).collect();
        sizes.join(" ")
    }

    /// For `--json`.
    pub fn json(&self) -> Value {
        json!({
            "dims": self.bindings.iter().map(|(dim, size)| (dim.to_string(), size)).collect::<BTreeMap<_, _>>(),
            "bind_s": self.bind,
            "runs_s": self.runs,
            "median_s": self.run(),
            "step_median_s": self.step(),
            "flops": self.flops,
            "gflops": self.flops / self.run() / 1e9,
            "limit_gflops": self.limit() / 1e9,
            "fraction_of_limit": self.fraction(),
            "copy_bytes_per_s": self.copy(),
            "bytes": self.bytes,
            "arenas": self.arenas,
        })
    }
}

/// Dims of each measurement: those that stay, and one value of each that is swept.
pub fn points(
    fixed: &[(String, i64)],
    sweep: &[(String, Vec<i64>)],
) -> anyhow::Result<Vec<Vec<(String, i64)>>> {
    let Some((first, values)) = sweep.first() else { return Ok(vec![fixed.to_vec()]) };
    for (position, (name, list)) in sweep.iter().enumerate() {
        anyhow::ensure!(
            list.len() == values.len(),
            "--sweep {name} has {} values, {first} {}: they are walked together",
            list.len(),
            values.len()
        );
        let twice = fixed.iter().any(|(dim, _)| dim == name)
            || sweep[..position].iter().any(|(earlier, _)| earlier == name);
        anyhow::ensure!(!twice, "--sweep {name}: the size is given twice");
    }
    let point = |at: usize| {
        let swept = sweep.iter().map(|(name, list)| (name.clone(), list[at]));
        fixed.iter().cloned().chain(swept).collect()
    };
    Ok((0..values.len()).map(point).collect())
}

/// The middle value, or the mean of the two middle ones; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        Some(upper) if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], *upper),
        Some(upper) => *upper,
        None => 0.0,
    }
}

/// Floating-point operations and least bytes of one run: everything but the stage `model`.
fn work(session: &Session, bindings: &Bindings) -> (f64, f64) {
    let launches = session.plan().launches.iter().filter(|launch| launch.stage != Rate::Model);
    launches.fold((0.0, 0.0), |(flops, bytes), launch| {
        let more = |dim: &nucleus_ir::Dim| dim.eval(bindings).unwrap_or(0) as f64;
        (flops + more(&launch.flops), bytes + more(&launch.bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str, values: &[i64]) -> (String, Vec<i64>) {
        (name.to_owned(), values.to_vec())
    }

    #[test]
    fn swept_sizes_are_walked_together() {
        let fixed = [("B".to_owned(), 1)];
        let points = points(&fixed, &[list("H", &[8, 16]), list("W", &[4, 2])]).unwrap();
        let of = |h, w| vec![("B".to_owned(), 1), ("H".to_owned(), h), ("W".to_owned(), w)];
        assert_eq!(points, [of(8, 4), of(16, 2)]);
    }

    #[test]
    fn mistaken_sweeps_name_the_size() {
        let fixed = [("B".to_owned(), 1)];
        let message = |sweep: &[(String, Vec<i64>)]| points(&fixed, sweep).unwrap_err().to_string();
        assert!(message(&[list("H", &[8]), list("W", &[4, 2])]).contains("--sweep W has 2 values, H 1"));
        assert!(message(&[list("B", &[8])]).contains("--sweep B: the size is given twice"));
        assert!(message(&[list("H", &[8]), list("H", &[8])]).contains("twice"));
    }

    #[test]
    fn medians_are_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
