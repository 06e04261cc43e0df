//! Noise levels of training: logit-normal with a mean that grows with the number of image tokens, mixed with uniform ones.
//!
//! logit(t) ~ N(mu, std²), t = 1 / (1 + e^−logit). Long sequences need more noise to hide their picture, so mu is linear in the
//! number of tokens: 0.5 at 256 and 1.15 at 4,096 (arXiv 2604.12163). The uniform part keeps both ends of the path trained.

use crate::random::Stream;

/// How noise levels are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepSampling {
    /// Deviation of the logit.
    pub logit_std: f64,
    /// Share of uniform levels, 0 … 1.
    pub uniform: f64,
    /// Mean of the logit at `base_tokens`.
    pub base_shift: f64,
    /// Mean of the logit at `max_tokens`.
    pub max_shift: f64,
    /// Image tokens at which the mean is `base_shift`.
    pub base_tokens: u64,
    /// Image tokens at which the mean is `max_shift`. Not `base_tokens`.
    pub max_tokens: u64,
}

impl Default for TimestepSampling {
    fn default() -> TimestepSampling {
        TimestepSampling {
            logit_std: 1.0,
            uniform: 0.1,
            base_shift: 0.5,
            max_shift: 1.15,
            base_tokens: 256,
            max_tokens: 4096,
        }
    }
}

impl TimestepSampling {
    /// Mean of the logit for a picture of `tokens` image tokens.
    pub fn mean_logit(&self, tokens: usize) -> f64 {
        let slope = (self.max_shift - self.base_shift) / (self.max_tokens as f64 - self.base_tokens as f64);
        self.base_shift + slope * (tokens as f64 - self.base_tokens as f64)
    }

    /// A noise level in 0 … 1 (1 is pure noise) for every item of a batch of pictures of `tokens` image tokens.
    pub fn sample(&self, stream: &mut Stream, tokens: usize, count: usize) -> Vec<f32> {
        let mean = self.mean_logit(tokens);
        let one = |_| {
            if stream.chance(self.uniform) {
                return stream.uniform() as f32;
            }
            let logit = mean + self.logit_std * stream.normal();
            (1.0 / (1.0 + (-logit).exp())) as f32
        };
        (0..count).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Streams};

    const COUNT: usize = 200_000;

    fn levels(sampling: TimestepSampling, tokens: usize) -> Vec<f64> {
        let mut stream = Streams::new(11).stream(Purpose::Timestep, &[]);
        sampling.sample(&mut stream, tokens, COUNT).into_iter().map(f64::from).collect()
    }

    fn share_below(levels: &[f64], bound: f64) -> f64 {
        levels.iter().filter(|level| **level < bound).count() as f64 / levels.len() as f64
    }

    #[test]
    fn the_mean_is_linear_in_the_number_of_tokens() {
        let sampling = TimestepSampling::default();
        assert_eq!(sampling.mean_logit(256), 0.5);
        assert!((sampling.mean_logit(4096) - 1.15).abs() < 1e-12);
        assert!((sampling.mean_logit(1024) - 0.63).abs() < 1e-12);
        assert!((sampling.mean_logit(64) - 0.4675).abs() < 1e-12);
    }

    #[test]
    fn logits_are_normal_with_that_mean_and_deviation() {
        let sampling = TimestepSampling { uniform: 0.0, logit_std: 0.8, ..TimestepSampling::default() };
        let logits: Vec<f64> =
            levels(sampling, 1024).iter().map(|level| (level / (1.0 - level)).ln()).collect();
        let mean = logits.iter().sum::<f64>() / COUNT as f64;
        let variance = logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / COUNT as f64;
        let error = 0.8 / (COUNT as f64).sqrt();
        assert!((mean - 0.63).abs() < 5.0 * error, "{mean}");
        assert!((variance.sqrt() - 0.8).abs() < 5.0 * error, "{variance}");
        // Of a normal distribution 15.87 % lie below the mean less one deviation.
        let below = logits.iter().filter(|logit| **logit < 0.63 - 0.8).count() as f64 / COUNT as f64;
        assert!((below - 0.158_655).abs() < 0.005, "{below}");
    }

    #[test]
    fn a_share_of_the_levels_is_uniform() {
        let all = TimestepSampling { uniform: 1.0, ..TimestepSampling::default() };
        let sampled = levels(all, 256);
        for bound in [0.01, 0.1, 0.5, 0.9] {
            assert!((share_below(&sampled, bound) - bound).abs() < 0.006, "{bound}");
        }
        // Next to 0 nearly all levels are of the uniform part: Φ((logit(0.01) − 0.5) / 1) is 1.7e-7.
        let mixed = levels(TimestepSampling::default(), 256);
        assert!((share_below(&mixed, 0.01) - 0.001).abs() < 5.0 * (0.001 / COUNT as f64).sqrt());
        // Median of the whole: 0.1 · 0.5 + 0.9 · Φ(−0.5) = 0.05 + 0.9 · 0.308538 below one half.
        assert!((share_below(&mixed, 0.5) - 0.327_684).abs() < 0.006);
    }
}
