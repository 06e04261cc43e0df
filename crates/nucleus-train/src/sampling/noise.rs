//! Gaussian noise from a seed.

use nucleus_ir::DType;
use nucleus_runtime::{HostTensor, TensorError};

use crate::random::{Purpose, Streams};

/// Standard normal numbers in the shape `[images, tokens, channels]`.
///
/// Every image has a stream of its own, so image `i` of a seed is the same whatever the batch is.
///
/// # Errors
/// There is not enough memory.
pub fn noise(seed: u64, shape: [usize; 3]) -> Result<HostTensor, TensorError> {
    let mut tensor = HostTensor::zeros(DType::F32, &shape)?;
    let [_, tokens, channels] = shape;
    let streams = Streams::new(seed);
    for (image, values) in tensor.as_f32_mut()?.chunks_mut((tokens * channels).max(1)).enumerate() {
        streams.stream(Purpose::Sample, &[image as u64]).fill_normal(values);
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let (one, three) = (noise(1, [1, 5, 3]).unwrap(), noise(1, [3, 5, 3]).unwrap());
        assert_eq!(one.as_f32().unwrap(), &three.as_f32().unwrap()[..15]);
        assert_ne!(three.as_f32().unwrap()[..15], three.as_f32().unwrap()[15..30]);
        assert_ne!(one, noise(2, [1, 5, 3]).unwrap());
        assert_eq!(noise(1, [2, 0, 3]).unwrap().elements(), 0);
    }
}
