//! Random numbers that can be drawn again: a generator for every purpose and place, none of which depends on another.
//!
//! The key of a generator is the BLAKE3 hash of the seed, the purpose and the place. The numbers of step 5,000 are therefore known
//! without those of the steps before it, and a checkpoint needs no state of generators.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What random numbers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The noise that pictures are mixed with.
    Noise,
    /// Noise levels.
    Timestep,
    /// Which items are trained without their text.
    TextDropout,
    /// Which pictures are mirrored.
    Flip,
    /// The order of the items of one bucket in one epoch.
    Items,
    /// The order of the batches of one epoch.
    Order,
    /// Where samples start.
    Sample,
    /// Weights of a fresh model.
    Weights,
}

impl Purpose {
    /// Part of the hashed key: changing a word changes every run.
    fn word(self) -> &'static str {
        match self {
            Purpose::Noise => "noise",
            Purpose::Timestep => "timestep",
            Purpose::TextDropout => "text dropout",
            Purpose::Flip => "flip",
            Purpose::Items => "items",
            Purpose::Order => "order",
            Purpose::Sample => "sample",
            Purpose::Weights => "weights",
        }
    }
}

/// The generators of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// The generators of `seed`.
    pub fn new(seed: u64) -> Streams {
        Streams { seed }
    }

    /// The generator for a purpose at a place, for example `[step, microbatch]`.
    pub fn stream(&self, purpose: Purpose, place: &[u64]) -> Stream {
        let bytes: Vec<u8> = place.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.keyed(purpose, &bytes)
    }

    /// The generator for a purpose and a name, for example a weight's.
    pub fn named(&self, purpose: Purpose, name: &str) -> Stream {
        self.keyed(purpose, name.as_bytes())
    }

    fn keyed(&self, purpose: Purpose, place: &[u8]) -> Stream {
        let mut hasher = blake3::Hasher::new_derive_key("nucleus-train random streams 2026");
        hasher.update(&self.seed.to_le_bytes());
        // The length of one part tells where the other begins.
        hasher.update(&(place.len() as u64).to_le_bytes());
        hasher.update(place);
        hasher.update(purpose.word().as_bytes());
        Stream { generator: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()) }
    }
}

/// One generator.
#[derive(Clone, Debug)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// Uniform in 0 … 1, without 1.
    pub fn uniform(&mut self) -> f64 {
        self.generator.random()
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.generator)
    }

    /// Standard normal numbers, in f32, in every element.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for element in out {
            *element = StandardNormal.sample(&mut self.generator);
        }
    }

    /// True with that probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Every order equally likely (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.generator.random_range(0..=last as u64) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_places_give_equal_numbers_and_others_do_not() {
        let draw = |seed, purpose, place: &[u64]| Streams::new(seed).stream(purpose, place).uniform();
        let first = draw(1, Purpose::Noise, &[3, 0]);
        assert_eq!(first, draw(1, Purpose::Noise, &[3, 0]));
        for other in [
            draw(2, Purpose::Noise, &[3, 0]),
            draw(1, Purpose::Timestep, &[3, 0]),
            draw(1, Purpose::Noise, &[0, 3]),
            draw(1, Purpose::Noise, &[3]),
            draw(1, Purpose::Noise, &[3, 0, 0]),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut values = vec![0.0; 200_000];
        Streams::new(7).stream(Purpose::Noise, &[]).fill_normal(&mut values);
        let moment = |power: i32| {
            values.iter().map(|value| f64::from(*value).powi(power)).sum::<f64>() / values.len() as f64
        };
        // Five standard errors: √(1/n), √(2/n), √(15/n), √(96/n).
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            let bound = 5.0 * (variance / values.len() as f64).sqrt();
            assert!((moment(power) - expected).abs() < bound, "moment {power} is {}", moment(power));
        }
    }

    #[test]
    fn shuffles_are_orders_and_all_orders_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for trial in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            Streams::new(5).stream(Purpose::Items, &[trial]).shuffle(&mut items);
            *counts.entry(items).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // Chi-square with 23 degrees of freedom: above 52 once in 2,000 seeds; the seed is fixed.
        let chi: f64 = counts.values().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 52.0, "{chi}");
    }
}
