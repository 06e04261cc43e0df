//! The learning rate over time: linear warm-up, then constant. Checkpoints are merged instead of decaying it.

/// Warmup–Stable: `min(1, step / warmup_steps)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Steps until the whole rate is reached; 0 for none.
    pub warmup_steps: u64,
}

impl Schedule {
    /// What the learning rates are multiplied by in `step`, counted from 1.
    pub fn factor(&self, step: u64) -> f64 {
        if step >= self.warmup_steps { 1.0 } else { step as f64 / self.warmup_steps as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_linear_from_the_first_step_and_then_constant() {
        let schedule = Schedule { warmup_steps: 4 };
        let factors: Vec<f64> = (1..=6).map(|step| schedule.factor(step)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(Schedule { warmup_steps: 0 }.factor(1), 1.0);
        assert_eq!(Schedule { warmup_steps: 1 }.factor(1), 1.0);
    }
}
