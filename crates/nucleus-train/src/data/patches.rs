//! Pictures as tokens: squares of `patch` × `patch` pixels, row by row.

/// Writes a picture of `channels` × `height` × `width` values to `out` [S, channels · patch²], S = (height / patch) · (width / patch)
/// row-major over the grid, channels inside a token in the order (channel, dy, dx), as the model's pipeline packs its latents.
///
/// `height` and `width` must be multiples of `patch`, and `out` that large.
pub fn pack(
    [channels, height, width]: [usize; 3],
    patch: usize,
    value: impl Fn(usize, usize, usize) -> f32,
    out: &mut [f32],
) {
    let (rows, columns) = (height / patch, width / patch);
    let tokens = out.chunks_exact_mut(channels * patch * patch);
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    for (token, (row, column)) in tokens.zip(places) {
        let mut elements = token.iter_mut();
        for channel in 0..channels {
            for dy in 0..patch {
                for dx in 0..patch {
                    if let Some(element) = elements.next() {
                        *element = value(channel, row * patch + dy, column * patch + dx);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_row_major_and_hold_channels_first() {
        // Value = 100 · channel + 10 · y + x, a picture of 2 channels, 2 × 4, patches of 2.
        let mut out = [0.0; 16];
        pack([2, 2, 4], 2, |c, y, x| (100 * c + 10 * y + x) as f32, &mut out);
        assert_eq!(out[..8], [0.0, 1.0, 10.0, 11.0, 100.0, 101.0, 110.0, 111.0]);
        assert_eq!(out[8..], [2.0, 3.0, 12.0, 13.0, 102.0, 103.0, 112.0, 113.0]);
    }
}
