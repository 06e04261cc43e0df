//! Pictures into buckets: which one, how placed, resized how.

use std::str::FromStr;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::picture::Colour;

/// What happens to a picture whose aspect is not its bucket's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// It fills the bucket; what stands out on two sides is cut off.
    #[default]
    Cover,
    /// All of it is seen; the background fills the rest.
    Contain,
}

/// Width and height of a bucket, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketSize {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl FromStr for BucketSize {
    type Err = String;

    /// `64` or `64x48`: width, then height.
    fn from_str(text: &str) -> Result<BucketSize, String> {
        let side = |side: &str| match side.parse::<usize>() {
            Ok(pixels) if (1..=crate::format::MAX_SIDE).contains(&pixels) => Ok(pixels),
            _ => Err(format!(
                "`{side}` in size `{text}` is not a number of pixels from 1 to {}",
                crate::format::MAX_SIDE
            )),
        };
        match text.split_once('x') {
            Some((width, height)) => Ok(BucketSize { width: side(width)?, height: side(height)? }),
            None => side(text).map(|side| BucketSize { width: side, height: side }),
        }
    }
}

impl std::fmt::Display for BucketSize {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}x{}", self.width, self.height)
    }
}

/// Index of the size whose aspect is nearest to `aspect` (width over height): nearest in the ratio, and the first of equals.
pub fn nearest(sizes: &[BucketSize], aspect: f64) -> usize {
    let distance = |size: &BucketSize| (aspect.ln() - (size.width as f64 / size.height as f64).ln()).abs();
    let mut best = 0;
    for (index, size) in sizes.iter().enumerate() {
        if distance(size) < distance(&sizes[best]) {
            best = index;
        }
    }
    best
}

/// Where a picture lies in its bucket: a point (u, v) of it comes to (scale · u + x, scale · v + y), centred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Pixels of the bucket per unit of the picture.
    pub scale: f64,
    /// Left edge, negative where it is cut.
    pub x: f64,
    /// Upper edge, negative where it is cut.
    pub y: f64,
}

impl Placement {
    /// Places a picture of size `from` in a bucket of size `to`, both width and height.
    pub fn new(from: (f64, f64), to: (f64, f64), fit: Fit) -> Placement {
        let (across, down) = (to.0 / from.0, to.1 / from.1);
        let scale = match fit {
            Fit::Cover => across.max(down),
            Fit::Contain => across.min(down),
        };
        Placement { scale, x: (to.0 - from.0 * scale) / 2.0, y: (to.1 - from.1 * scale) / 2.0 }
    }
}

/// Resizes u8 [height, width, 3] from size `from` to size `to` (both width, height) with a Lanczos filter of three lobes, widened by
/// the factor of the reduction, on the values as they are stored.
///
/// # Errors
/// A sentence from the resizer, which refuses nothing that has pixels.
pub fn resize(
    rgb: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    fit: Fit,
    Colour(background): Colour,
) -> Result<Vec<u8>, String> {
    if from == to {
        return Ok(rgb.to_vec());
    }
    let failed = |error: &dyn std::fmt::Display| format!("cannot be resized: {error}");
    let (from_width, from_height) = (from.0 as f64, from.1 as f64);
    let place = Placement::new((from_width, from_height), (to.0 as f64, to.1 as f64), fit);
    // The part of the picture that is seen, and the size that it gets.
    let seen = ((to.0 as f64 / place.scale).min(from_width), (to.1 as f64 / place.scale).min(from_height));
    let extent = |seen: f64, limit: usize| ((seen * place.scale).round() as usize).clamp(1, limit);
    let inner = (extent(seen.0, to.0), extent(seen.1, to.1));
    let crop = ((from_width - seen.0) / 2.0, (from_height - seen.1) / 2.0);

    // Typed views, so that the resizer is compiled for this one type of pixel.
    let source = TypedImageRef::<U8x3>::from_buffer(from.0 as u32, from.1 as u32, rgb)
        .map_err(|error| failed(&error))?;
    let mut pixels = vec![0; inner.0 * inner.1 * 3];
    let mut resized = TypedImage::<U8x3>::from_buffer(inner.0 as u32, inner.1 as u32, &mut pixels)
        .map_err(|error| failed(&error))?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
        .crop(crop.0, crop.1, seen.0, seen.1);
    Resizer::new().resize_typed(&source, &mut resized, &options).map_err(|error| failed(&error))?;
    drop(resized);
    if inner == to {
        return Ok(pixels);
    }
    let mut out = background.repeat(to.0 * to.1);
    let (left, top) = ((to.0 - inner.0) / 2, (to.1 - inner.1) / 2);
    for (row, line) in pixels.chunks_exact(inner.0 * 3).enumerate() {
        let start = ((top + row) * to.0 + left) * 3;
        out[start..start + line.len()].copy_from_slice(line);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> BucketSize {
        text.parse().expect("a size")
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("64"), BucketSize { width: 64, height: 64 });
        assert_eq!(size("64x48"), BucketSize { width: 64, height: 48 });
        for bad in ["", "0", "64x", "x64", "-1", "99999", "64x64x64"] {
            assert!(bad.parse::<BucketSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_aspect_is_nearest_in_the_ratio() {
        let sizes = [size("64"), size("128x32"), size("32x128")];
        // Between 1 and 4 the middle is 2, not 2.5.
        assert_eq!([0.1, 0.6, 1.0, 1.9, 2.1, 1e9].map(|aspect| nearest(&sizes, aspect)), [2, 0, 0, 0, 1, 1]);
    }

    /// Three columns, red, green and blue, of one row each ten pixels high.
    fn flag() -> Vec<u8> {
        let row: Vec<u8> =
            [[255, 0, 0], [0, 255, 0], [0, 0, 255]].iter().flat_map(|c| c.repeat(10)).collect();
        row.repeat(10)
    }

    #[test]
    fn cover_cuts_the_sides_and_contain_pads_above_and_below() {
        let cover = resize(&flag(), (30, 10), (10, 10), Fit::Cover, Colour::WHITE).expect("resized");
        assert_eq!(cover, [0, 255, 0].repeat(100));
        let contain = resize(&flag(), (30, 10), (30, 30), Fit::Contain, Colour([1, 2, 3])).expect("resized");
        assert_eq!(contain[..30 * 3 * 10], [1, 2, 3].repeat(300));
        assert_eq!(contain[30 * 3 * 10..30 * 3 * 20], flag());
        assert_eq!(contain[30 * 3 * 20..], [1, 2, 3].repeat(300));
    }

    #[test]
    fn extreme_shapes_keep_at_least_a_pixel() {
        let line = vec![7; 5000 * 3];
        for fit in [Fit::Cover, Fit::Contain] {
            for from in [(5000, 1), (1, 5000)] {
                let out = resize(&line, from, (8, 16), fit, Colour::WHITE).expect("resized");
                assert_eq!(out.len(), 8 * 16 * 3);
                assert!(out.contains(&7), "{fit:?} {from:?}");
            }
        }
    }
}
