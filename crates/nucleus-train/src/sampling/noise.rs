//! Gaussian noise from a seed.

use nucleus_runtime::{HostTensor, TensorError};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Standard normal numbers in the shape `[images, tokens, channels]`.
///
/// Every image has a stream of its own, so image `i` of a seed is the same whatever the batch is.
///
/// # Errors
/// There is not enough memory.
pub fn noise(seed: u64, shape: [usize; 3]) -> Result<HostTensor, TensorError> {
    let mut tensor = HostTensor::zeros(nucleus_ir::DType::F32, &shape)?;
    let [_, tokens, channels] = shape;
    let size = (tokens * channels).max(1);
    for (image, values) in tensor.as_f32_mut()?.chunks_mut(size).enumerate() {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(image as u64);
        for pair in values.chunks_mut(2) {
            // Box and Muller. The first number is never zero: its logarithm is finite.
            let radius = (-2.0 * unit(&mut random).ln()).sqrt();
            let (sine, cosine) = (std::f64::consts::TAU * unit(&mut random)).sin_cos();
            for (value, part) in pair.iter_mut().zip([cosine, sine]) {
                *value = (radius * part) as f32;
            }
        }
    }
    Ok(tensor)
}

/// A number in (0, 1], of 53 bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    ((random.next_u64() >> 11) + 1) as f64 * 2f64.powi(-53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_standard_normal() {
        let tensor = noise(7, [1, 1000, 64]).unwrap();
        let values = tensor.as_f32().unwrap();
        let moment = |power: i32| {
            values.iter().map(|&value| f64::from(value).powi(power)).sum::<f64>() / values.len() as f64
        };
        // Four standard deviations of each estimate over 64,000 numbers: variances of x, x², x³ and x⁴ are 1, 2, 15 and 96.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            let bound = 4.0 * (variance / values.len() as f64).sqrt();
            assert!((moment(power) - expected).abs() < bound, "moment {power} is {}", moment(power));
        }
        // Neighbours, which come from one pair of numbers, are uncorrelated.
        let products: f64 = values.chunks(2).map(|pair| f64::from(pair[0] * pair[1])).sum();
        assert!((products / 32_000.0).abs() < 4.0 / 32_000f64.sqrt());
    }

    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let (one, three) = (noise(1, [1, 5, 3]).unwrap(), noise(1, [3, 5, 3]).unwrap());
        assert_eq!(one.as_f32().unwrap(), &three.as_f32().unwrap()[..15]);
        assert_ne!(three.as_f32().unwrap()[..15], three.as_f32().unwrap()[15..30]);
        assert_ne!(one, noise(2, [1, 5, 3]).unwrap());
        assert_eq!(noise(1, [2, 0, 3]).unwrap().elements(), 0);
    }
}
