//! Weights without a file, for timing: made up from a seed, the same on every machine.
//!
//! A matrix has elements `q · s` with `q` uniform in −127 … 127 and `s` the power of two that brings their deviation closest to
//! 1 / √fan-in, so that activations keep their size. Eight bits and a power of two: every type holds the elements exactly, `i8` with a scale
//! included, and a model gives the same answers in whatever type its weights are stored. Vectors are near one, or near zero where their
//! name ends in `.bias`, as PyTorch names them.

use nucleus_ir::DType;

use crate::checkpoint::{CheckpointError, Extras};
use crate::convert;
use crate::quantize::in_parallel;
use crate::tensor::HostTensor;
use crate::weights::{Scaled, WeightError, WeightSource, WeightSpec};

/// Fewer elements than this are not worth a thread.
const LEAST_PIECE: usize = 1 << 16;

/// A source of made-up weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RandomWeights {
    /// Another seed gives other weights.
    pub seed: u64,
}

impl WeightSource for RandomWeights {
    fn check(&self, _needed: &[WeightSpec], _extras: Extras) -> Result<(), CheckpointError> {
        Ok(())
    }

    fn load(&self, weight: &WeightSpec, threads: usize) -> Result<HostTensor, WeightError> {
        let wrap = |source| WeightError::Tensor { name: weight.name.clone(), source };
        let mut tensor = HostTensor::zeros(weight.dtype, &weight.shape).map_err(wrap)?;
        let key = self.key(&weight.name);
        let make = |first: usize, piece: &mut [u8]| match (weight.dtype, &weight.shape[..]) {
            (DType::I8, _) => fill(key, first, piece, 1, |q, to| to[0] = q as u8),
            // 16 steps of 2⁻⁶ on either side.
            (dtype, [_]) => {
                let base = if weight.name.ends_with(".bias") { 0.0 } else { 1.0 };
                floats(dtype, key, first, piece, |q| base + f32::from(q >> 3) / 64.0)
            }
            (dtype, shape) => {
                let scale = scale(shape);
                floats(dtype, key, first, piece, |q| f32::from(q) * scale)
            }
        };
        let length = tensor.elements().div_ceil(threads.max(1)).max(LEAST_PIECE).next_multiple_of(8);
        let pieces = tensor.bytes_mut().chunks_mut(length * weight.dtype.size()).enumerate();
        let make = &make;
        in_parallel(pieces.map(|(number, piece)| move || make(number * length, piece)));
        Ok(tensor)
    }

    fn load_scaled(&self, weight: &WeightSpec, threads: usize) -> Result<Scaled, WeightError> {
        let wrap = |source| WeightError::Tensor { name: weight.name.clone(), source };
        let scales = HostTensor::from_f32(
            &weight.scale_shape(),
            &vec![scale(&weight.shape); weight.scale_shape().iter().product()],
        );
        Ok(Scaled { values: self.load(weight, threads)?, scales: scales.map_err(wrap)? })
    }
}

impl RandomWeights {
    /// What the elements of a weight follow from, besides their position.
    fn key(&self, name: &str) -> u64 {
        // FNV-1a, then mixed: names that differ in a digit must not give related sequences.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        mix(hash ^ mix(self.seed))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The power of two nearest to √3 / (127 √fan-in), by ratio. The fan-in is the second size: matrices are stored (out, in), those of experts
/// (expert, in, out).
fn scale(shape: &[usize]) -> f32 {
    let fan_in = shape.get(1).copied().unwrap_or(1) as f64;
    let mut scale = 1.0f64;
    while scale > 1e-9 && scale * scale * fan_in * (127.0 * 127.0) > 6.0 {
        scale /= 2.0;
    }
    scale as f32
}

/// Gives every element of `size` bytes, the first of which is element `first`, a number of its own. `first` is a multiple of 8.
#[inline(always)]
fn fill(key: u64, first: usize, piece: &mut [u8], size: usize, put: impl Fn(i8, &mut [u8])) {
    for (block, elements) in piece.chunks_mut(8 * size).enumerate() {
        let number = (first / 8 + block + 1) as u64;
        let bytes = mix(key.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
        for (to, byte) in elements.chunks_exact_mut(size).zip(bytes) {
            put((byte as i8).max(-127), to);
        }
    }
}

fn floats(dtype: DType, key: u64, first: usize, piece: &mut [u8], value: impl Fn(i8) -> f32) {
    let size = dtype.size();
    match dtype {
        DType::F32 => fill(key, first, piece, 4, |q, to| to.copy_from_slice(&value(q).to_le_bytes())),
        // Eight significant bits: the upper half is the whole number.
        DType::Bf16 => fill(key, first, piece, 2, |q, to| to.copy_from_slice(&value(q).to_le_bytes()[2..])),
        _ => fill(key, first, piece, size, |q, to| {
            // Only floats come here, one element at a time.
            let _ = convert::store_f32(&[value(q)], dtype, to);
        }),
    }
}
