//! Symmetric quantisation of weights to 8-bit integers, one scale per output channel.
//!
//! With `m` the largest magnitude of a channel, the scale is `s = m / 127` and an element `w` becomes `q = round(w / s)`, half to even, between
//! −127 and 127, so that `|w − q·s| ≤ s / 2`. A channel of zeros has scale 1. Values depend on neither the stored float type's width nor the
//! number of threads.

use nucleus_ir::DType;

use crate::convert::{self, ConvertError};

/// The largest quantised magnitude: −128 is left out, so that the range is symmetric.
pub const LARGEST: f32 = 127.0;

/// Elements converted at a time.
const BLOCK: usize = 2048;

/// How the channels of a weight lie in memory: for each of `outer` groups, `depth` rows of `inner` elements, one for each channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    outer: usize,
    depth: usize,
    inner: usize,
}

impl Channels {
    /// The channels of a weight whose products sum over `axis`; `None` if it has no such axis or no elements.
    pub fn new(shape: &[usize], axis: usize) -> Option<Channels> {
        let depth = *shape.get(axis)?;
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        (depth > 0 && outer > 0 && inner > 0).then_some(Channels { outer, depth, inner })
    }

    /// How many channels there are.
    pub fn count(&self) -> usize {
        self.outer * self.inner
    }

    /// The elements of all channels.
    pub fn elements(&self) -> usize {
        self.count() * self.depth
    }

    /// Elements that lie one behind the other, and how many such rows there are: a channel each, or one element of each channel.
    fn rows(&self) -> (usize, usize) {
        if self.inner == 1 { (self.depth, self.outer) } else { (self.inner, self.outer * self.depth) }
    }

    /// The first channel of a row.
    fn first_channel(&self, row: usize) -> usize {
        if self.inner == 1 { row } else { row / self.depth * self.inner }
    }
}

/// The scale of every channel of a weight stored as little-endian floats of type `from`.
///
/// # Errors
/// `from` is no float, or `bytes` does not hold the elements of the channels.
pub fn scales(
    from: DType,
    bytes: &[u8],
    channels: Channels,
    threads: usize,
) -> Result<Vec<f32>, ConvertError> {
    check(from, bytes, channels)?;
    let (length, rows) = channels.rows();
    let parts = parts(rows, channels.elements(), threads);
    let largest = |part: &(usize, usize)| {
        let (start, end) = *part;
        let first = channels.first_channel(start);
        let last = channels.first_channel(end - 1) + if channels.inner == 1 { 1 } else { channels.inner };
        let mut largest = vec![0f32; last - first];
        each_block(from, bytes, length, start..end, &mut |row, column, values| {
            let channel = channels.first_channel(row) - first;
            if channels.inner == 1 {
                let of_block = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                largest[channel] = largest[channel].max(of_block);
            } else {
                for (largest, value) in largest[channel + column..].iter_mut().zip(values) {
                    *largest = largest.max(value.abs());
                }
            }
        });
        (first, largest)
    };
    let largest = &largest;
    let mut scales = vec![0f32; channels.count()];
    for (first, part) in in_parallel(parts.iter().map(|part| move || largest(part))) {
        // The largest of several is the same in any order.
        for (scale, largest) in scales[first..].iter_mut().zip(part) {
            *scale = scale.max(largest);
        }
    }
    for scale in &mut scales {
        // Below the normal numbers a quotient has too few bits for the bound to hold.
        *scale = if *scale == 0.0 { 1.0 } else { (*scale / LARGEST).max(f32::MIN_POSITIVE) };
    }
    Ok(scales)
}

/// Writes every element in units of its channel's scale.
///
/// # Errors
/// As for [`scales`].
///
/// # Panics
/// When `scales` or `out` are not as long as there are channels or elements.
pub fn quantize(
    from: DType,
    bytes: &[u8],
    channels: Channels,
    scales: &[f32],
    threads: usize,
    out: &mut [u8],
) -> Result<(), ConvertError> {
    check(from, bytes, channels)?;
    assert_eq!(
        (scales.len(), out.len()),
        (channels.count(), channels.elements()),
        "quantize: lengths differ"
    );
    let (length, rows) = channels.rows();
    let mut rest = out;
    let mut jobs = Vec::new();
    for (start, end) in parts(rows, channels.elements(), threads) {
        let (part, behind) = rest.split_at_mut((end - start) * length);
        rest = behind;
        jobs.push(move || {
            each_block(from, bytes, length, start..end, &mut |row, column, values| {
                let to = &mut part[(row - start) * length + column..][..values.len()];
                let channel = channels.first_channel(row);
                if channels.inner == 1 {
                    let scale = scales[channel];
                    for (to, value) in to.iter_mut().zip(values) {
                        *to = quantized(*value, scale);
                    }
                } else {
                    for ((to, value), scale) in to.iter_mut().zip(values).zip(&scales[channel + column..]) {
                        *to = quantized(*value, *scale);
                    }
                }
            });
        });
    }
    in_parallel(jobs);
    Ok(())
}

/// `value / scale` to the nearest integer, half to even, as a byte of two's complement.
///
/// Added to 1.5 · 2²³, a number is rounded to an integer that stands in the low bits of the sum; unlike a call of the mathematical library,
/// loops over this become vector code.
#[inline(always)]
fn quantized(value: f32, scale: f32) -> u8 {
    let units = (value / scale).clamp(-LARGEST, LARGEST);
    (units + 12_582_912.0).to_bits() as u8
}

fn check(from: DType, bytes: &[u8], channels: Channels) -> Result<(), ConvertError> {
    let needed = channels.elements();
    match (from.is_float(), needed.checked_mul(from.size()) == Some(bytes.len())) {
        (false, _) => Err(ConvertError::NotFloat { from, to: DType::I8 }),
        (true, false) => {
            Err(ConvertError::Length { from, from_bytes: bytes.len(), to: DType::I8, to_bytes: needed })
        }
        (true, true) => Ok(()),
    }
}

/// Calls `use_block` with row, first column and values of pieces of the rows, in order. `bytes` holds whole rows of floats.
fn each_block(
    from: DType,
    bytes: &[u8],
    length: usize,
    rows: std::ops::Range<usize>,
    use_block: &mut dyn FnMut(usize, usize, &[f32]),
) {
    let mut block = [0f32; BLOCK];
    for row in rows {
        for column in (0..length).step_by(BLOCK) {
            let values = &mut block[..BLOCK.min(length - column)];
            let start = (row * length + column) * from.size();
            let source = &bytes[start..start + values.len() * from.size()];
            if convert::load_f32(from, source, values).is_ok() {
                use_block(row, column, values);
            }
        }
    }
}

/// Fewer elements than this are not worth a thread.
const LEAST_PART: usize = 1 << 16;

/// Ranges of rows, about as many as there are threads.
fn parts(rows: usize, elements: usize, threads: usize) -> Vec<(usize, usize)> {
    let count = threads.min(rows).min(elements.div_ceil(LEAST_PART)).max(1);
    let bound = |part: usize| (rows as u128 * part as u128 / count as u128) as usize;
    (0..count).map(|part| (bound(part), bound(part + 1))).collect()
}

/// Runs every job on a thread of its own, the last on this one; results in order.
pub(crate) fn in_parallel<T: Send>(jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send>) -> Vec<T> {
    let mut jobs: Vec<_> = jobs.into_iter().collect();
    let Some(last) = jobs.pop() else { return Vec::new() };
    std::thread::scope(|scope| {
        let others: Vec<_> = jobs.into_iter().map(|job| scope.spawn(job)).collect();
        let last = last();
        let joined = others.into_iter().map(|other| match other.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let mut all: Vec<T> = joined.collect();
        all.push(last);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of both signs and of many magnitudes that f16 holds; every 7th channel is zero.
    fn values(channels: Channels) -> Vec<f32> {
        let channel = |element: usize| {
            let inner = element % channels.inner;
            element / (channels.depth * channels.inner) * channels.inner + inner
        };
        (0..channels.elements())
            .map(|element| {
                let channel = channel(element);
                let noise = (element as u32).wrapping_mul(2_654_435_761) >> 8;
                let unit = noise as f32 / (1 << 23) as f32 - 1.0;
                if channel % 7 == 6 { 0.0 } else { unit * 2f32.powi(channel as i32 % 28 - 14) }
            })
            .collect()
    }

    #[test]
    fn no_element_is_further_off_than_half_a_unit() {
        for (shape, axis) in [
            (vec![33, 70], 1),
            (vec![70, 33], 0),
            (vec![5, 48, 19], 1),
            (vec![5, 19, 48], 2),
            (vec![1, 4096], 1),
            (vec![3000, 3], 0),
        ] {
            let channels = Channels::new(&shape, axis).unwrap();
            for from in [DType::F32, DType::Bf16, DType::F16] {
                let mut bytes = vec![0; channels.elements() * from.size()];
                convert::store_f32(&values(channels), from, &mut bytes).unwrap();
                let mut stored = vec![0f32; channels.elements()];
                convert::load_f32(from, &bytes, &mut stored).unwrap();
                let scales = scales(from, &bytes, channels, 3).unwrap();
                let mut quantized = vec![0; channels.elements()];
                quantize(from, &bytes, channels, &scales, 3, &mut quantized).unwrap();
                let mut used = vec![0; scales.len()];
                for (element, (&value, &q)) in stored.iter().zip(&quantized).enumerate() {
                    let channel = element / (channels.depth * channels.inner) * channels.inner
                        + element % channels.inner;
                    let (q, scale) = (f64::from(q as i8), f64::from(scales[channel]));
                    // The scale itself is rounded to f32, which moves the largest element by at most 127 · 2⁻²⁵ of a unit.
                    let allowed = scale * (0.5 + 1e-5);
                    assert!((f64::from(value) - q * scale).abs() <= allowed, "{shape:?} {from} {element}");
                    used[channel] = used[channel].max(q.abs() as i32);
                }
                for (channel, used) in used.into_iter().enumerate() {
                    let zero = scales[channel] == 1.0 && used == 0;
                    assert!(used == 127 || zero, "{shape:?} channel {channel} uses {used}");
                }
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_neighbour_and_threads_change_nothing() {
        let mut weights = vec![0.5f32, 1.5, 2.5, -0.5, -1.5, -2.5, 127.0, -127.0];
        weights.extend((0..1 << 17).map(|i| ((i * 37) % 255) as f32 - 127.0));
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let channels = Channels::new(&[1, weights.len()], 1).unwrap();
        assert_eq!(scales(DType::F32, &bytes, channels, 1).unwrap(), [1.0]);
        let mut out = vec![0; weights.len()];
        quantize(DType::F32, &bytes, channels, &[1.0], 1, &mut out).unwrap();
        let first: Vec<i8> = out[..8].iter().map(|byte| *byte as i8).collect();
        assert_eq!(first, [0, 2, 2, 0, -2, -2, 127, -127]);

        let channels = Channels::new(&[weights.len() / 8, 8], 0).unwrap();
        let one = scales(DType::F32, &bytes, channels, 1).unwrap();
        for threads in [2, 3, 7] {
            assert_eq!(scales(DType::F32, &bytes, channels, threads).unwrap(), one);
        }
    }

    #[test]
    fn what_is_no_float_or_too_short_is_refused() {
        let channels = Channels::new(&[2, 2], 1).unwrap();
        let error = scales(DType::I32, &[0; 16], channels, 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot convert i32 to i8: both must be f32, bf16 or f16");
        assert!(scales(DType::F32, &[0; 15], channels, 1).is_err());
        assert_eq!(Channels::new(&[2, 2], 2), None);
    }
}
