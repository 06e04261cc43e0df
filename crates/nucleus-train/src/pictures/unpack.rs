//! From tokens to pixels.

use nucleus_runtime::HostTensor;

use super::{Picture, PictureError};

/// The pictures of a batch of tokens `[B, S, 3·p·p]` (f32), of which `rows` × `columns` make a picture, row-major.
///
/// Inside a token the order is (colour, row, column) over its p × p pixels; a value v in −1 … 1 becomes (v + 1)·127.5, rounded. What lies
/// beyond is cut off, and what is no number is black.
///
/// # Errors
/// The tensor is not of that type and shape.
pub fn unpack(tokens: &HostTensor, rows: usize, columns: usize) -> Result<Vec<Picture>, PictureError> {
    let refused = || PictureError::Tensor {
        what: "the tensor of pixels",
        given: format!("{tokens:?}"),
        wanted: format!("f32[images, {rows} × {columns} tokens, 3 colours × patch × patch]"),
    };
    let &[_, count, features] = tokens.shape() else { return Err(refused()) };
    let patch = (features / 3).isqrt();
    if rows.checked_mul(columns) != Some(count) || patch == 0 || features != 3 * patch * patch {
        return Err(refused());
    }
    let values = tokens.as_f32().map_err(|_| refused())?;
    let mut pictures = Vec::new();
    for image in values.chunks(count.max(1) * features) {
        let mut picture = Picture::new(columns * patch, rows * patch, [0; 3])?;
        for (number, token) in image.chunks(features).enumerate() {
            let (top, left) = (number / columns * patch, number % columns * patch);
            for pixel in 0..patch * patch {
                let colour = [0, 1, 2].map(|colour| byte(token[colour * patch * patch + pixel]));
                picture.set(left + pixel % patch, top + pixel / patch, colour);
            }
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

/// The cast cuts off, and makes zero of what is no number.
fn byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_normalisation() {
        for value in 0..=u8::MAX {
            assert_eq!(byte(f32::from(value) / 127.5 - 1.0), value);
        }
        assert_eq!([-7.0, 1.01, f32::INFINITY, f32::NAN].map(byte), [0, 255, 255, 0]);
    }

    #[test]
    fn pixels_come_from_their_token() {
        // Two pictures of 2 × 3 tokens with patches of 2 × 2: every value tells where it belongs.
        let (rows, columns, patch) = (2, 3, 2);
        let mut values = Vec::new();
        for image in 0..2 {
            for token in 0..rows * columns {
                for feature in 0..12 {
                    let (colour, dy, dx) = (feature / 4, feature / 2 % 2, feature % 2);
                    let (y, x) = (token / columns * patch + dy, token % columns * patch + dx);
                    let byte = image * 100 + colour * 30 + y * 6 + x;
                    values.push(byte as f32 / 127.5 - 1.0);
                }
            }
        }
        let tensor = HostTensor::from_f32(&[2, 6, 12], &values).unwrap();
        let pictures = unpack(&tensor, rows, columns).unwrap();
        assert_eq!(pictures.len(), 2);
        for (image, picture) in pictures.iter().enumerate() {
            assert_eq!((picture.width(), picture.height()), (6, 4));
            for (x, y) in (0..24).map(|i| (i % 6, i / 6)) {
                let expected = [0, 1, 2].map(|colour| (image * 100 + colour * 30 + y * 6 + x) as u8);
                assert_eq!(picture.pixel(x, y), Some(expected), "image {image} at {x}, {y}");
            }
        }
        for (rows, columns) in [(3, 3), (usize::MAX, 2), (0, 0)] {
            let error = unpack(&tensor, rows, columns).unwrap_err().to_string();
            assert!(error.contains("the tensor of pixels is f32[2, 6, 12]"), "{error}");
        }
        let odd = HostTensor::from_f32(&[1, 6, 13], &[0.0; 78]).unwrap();
        assert!(unpack(&odd, 2, 3).is_err());
    }
}
