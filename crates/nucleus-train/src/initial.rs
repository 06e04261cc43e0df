//! Weights of a model that starts afresh.
//!
//! Matrices are normal with variance 2 / (rows + columns) (Glorot and Bengio 2010), so that values keep their size forwards and gradients
//! backwards; vectors are one, biases zero, and so is what a recipe's `zero_init` names.

use crate::groups::{WeightInfo, matches};
use crate::random::{Purpose, Streams};

/// Fills a weight, row-major. It depends on its name, its shape and the seed alone, not on the other weights.
pub fn fill(weight: &WeightInfo, zero_init: &[String], seed: u64, out: &mut [f32]) {
    let zero = zero_init.iter().any(|pattern| matches(pattern, &weight.name));
    match weight.shape[..] {
        _ if zero => out.fill(0.0),
        // An expert, or any other slice of a larger weight, is a matrix of its own.
        [.., rows, columns] => {
            let deviation = (2.0 / (rows + columns) as f64).sqrt() as f32;
            Streams::new(seed).named(Purpose::Weights, &weight.name).fill_normal(out);
            out.iter_mut().for_each(|element| *element *= deviation);
        }
        _ if weight.name.ends_with(".bias") => out.fill(0.0),
        _ => out.fill(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(name: &str, shape: &[usize], zero_init: &[&str], seed: u64) -> Vec<f32> {
        let weight = WeightInfo { name: name.to_owned(), shape: shape.to_vec() };
        let zero_init: Vec<String> = zero_init.iter().map(|pattern| (*pattern).to_owned()).collect();
        let mut out = vec![f32::NAN; shape.iter().product()];
        fill(&weight, &zero_init, seed, &mut out);
        out
    }

    #[test]
    fn vectors_are_one_and_biases_and_named_weights_zero() {
        assert_eq!(filled("norm.weight", &[3], &[], 1), [1.0; 3]);
        assert_eq!(filled("img_in.bias", &[3], &[], 1), [0.0; 3]);
        assert_eq!(filled("proj_out.weight", &[2, 2], &["proj_*"], 1), [0.0; 4]);
    }

    #[test]
    fn matrices_have_the_deviation_of_their_sides() {
        for shape in [&[300, 100][..], &[4, 50, 150]] {
            let values = filled("w", shape, &[], 1);
            let count = values.len() as f64;
            let variance = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / count;
            let expected = 2.0 / (shape[shape.len() - 2] + shape[shape.len() - 1]) as f64;
            // Five standard errors of the variance of a normal sample.
            assert!((variance / expected - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{shape:?}: {variance}");
        }
    }

    #[test]
    fn seeds_and_names_decide() {
        let first = filled("a", &[2, 2], &[], 1);
        assert_eq!(first, filled("a", &[2, 2], &[], 1));
        assert_ne!(first, filled("a", &[2, 2], &[], 2));
        assert_ne!(first, filled("b", &[2, 2], &[], 1));
    }
}
