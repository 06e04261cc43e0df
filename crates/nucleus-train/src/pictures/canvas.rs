//! Pixels: filled, copied, enlarged, written upon.

use font8x8::legacy::{BASIC_LEGACY, LATIN_LEGACY};

use super::PictureError;

/// Enough for a wall of pictures, and less than a gigabyte.
pub(super) const MAX_PIXELS: usize = 1 << 28;

/// Width and height of a letter, in pixels.
pub(super) const LETTER: usize = 8;

/// A picture of red, green and blue bytes, row-major from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    ///
    /// # Errors
    /// It would have too many pixels.
    pub fn new(width: usize, height: usize, colour: [u8; 3]) -> Result<Picture, PictureError> {
        match width.checked_mul(height) {
            Some(count) if count <= MAX_PIXELS => Ok(Picture { width, height, pixels: colour.repeat(count) }),
            _ => Err(PictureError::TooLarge { width, height }),
        }
    }

    /// A picture of given bytes, three per pixel.
    ///
    /// # Errors
    /// They are too few or too many.
    pub fn from_pixels(width: usize, height: usize, pixels: Vec<u8>) -> Result<Picture, PictureError> {
        let bytes = width.checked_mul(height).and_then(|count| count.checked_mul(3));
        if bytes == Some(pixels.len()) {
            Ok(Picture { width, height, pixels })
        } else {
            Err(PictureError::Pixels { bytes: pixels.len(), width, height })
        }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes: red, green, blue of each pixel.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The colour of a pixel; `None` outside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        let inside = x < self.width && y < self.height;
        let start = (y * self.width + x) * 3;
        inside.then(|| [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]])
    }

    /// Colours a pixel; one outside the picture is left alone.
    pub fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            self.pixels[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
        }
    }

    /// Copies a picture to a place; what would lie outside is cut off.
    pub fn place(&mut self, x: usize, y: usize, picture: &Picture) {
        let columns = picture.width.min(self.width.saturating_sub(x));
        for row in 0..picture.height.min(self.height.saturating_sub(y)) {
            let from = row * picture.width * 3;
            let to = ((y + row) * self.width + x) * 3;
            self.pixels[to..][..columns * 3].copy_from_slice(&picture.pixels[from..][..columns * 3]);
        }
    }

    /// Every pixel as a square of `factor` × `factor`.
    ///
    /// # Errors
    /// The result would have too many pixels.
    pub fn enlarged(&self, factor: usize) -> Result<Picture, PictureError> {
        let (width, height) = (self.width.saturating_mul(factor), self.height.saturating_mul(factor));
        let mut large = Picture::new(width, height, [0; 3])?;
        for y in 0..height {
            for x in 0..width {
                let from = (y / factor * self.width + x / factor) * 3;
                let to = (y * width + x) * 3;
                large.pixels[to..to + 3].copy_from_slice(&self.pixels[from..from + 3]);
            }
        }
        Ok(large)
    }

    /// Writes a line of text, each letter [`LETTER`] pixels wide and high. Letters that the font has not are question marks.
    pub(super) fn write_line(&mut self, x: usize, y: usize, line: &str, colour: [u8; 3]) {
        for (number, letter) in line.chars().enumerate() {
            for (row, bits) in glyph(letter).into_iter().enumerate() {
                // The lowest bit is the leftmost pixel.
                for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                    self.set(x + number * LETTER + column, y + row, colour);
                }
            }
        }
    }
}

fn glyph(letter: char) -> [u8; 8] {
    let code = letter as usize;
    let basic = (!letter.is_control()).then(|| BASIC_LEGACY.get(code)).flatten();
    let latin = || LATIN_LEGACY.get(code.checked_sub(0xa0)?);
    basic.or_else(latin).copied().unwrap_or(BASIC_LEGACY['?' as usize])
}

/// Breaks text into lines of at most `letters` letters, between words where it can; what does not fit into `lines` lines ends in dots.
pub(super) fn wrapped(text: &str, letters: usize, lines: usize) -> Vec<String> {
    let letters = letters.max(1);
    let mut broken: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match broken.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => {
                let word: Vec<char> = word.chars().collect();
                broken.extend(word.chunks(letters).map(|piece| piece.iter().collect::<String>()));
            }
        }
        if broken.len() > lines {
            broken.truncate(lines);
            if let Some(last) = broken.last_mut() {
                let kept: String = last.chars().take(letters.saturating_sub(2)).collect();
                *last = format!("{kept}..").chars().take(letters).collect();
            }
            break;
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_drawn_where_they_belong() {
        let mut picture = Picture::new(24, 8, [255; 3]).unwrap();
        picture.write_line(8, 0, "|é☃", [0; 3]);
        let ink = |from: usize| {
            let dark = |x: usize| (0..8).filter(|&y| picture.pixel(x, y) == Some([0; 3])).count();
            (from..from + 8).map(dark).sum::<usize>()
        };
        assert_eq!(ink(0), 0);
        assert!(ink(8) >= 10, "a bar");
        assert!(ink(16) > 10, "an accented letter");
        assert_eq!(glyph('☃'), glyph('?'));
        assert_eq!(glyph('\u{7}'), glyph('?'));
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("red apple, fruit", 10, 3), ["red apple,", "fruit"]);
        assert_eq!(wrapped("internationalisation", 8, 3), ["internat", "ionalisa", "tion"]);
        assert_eq!(wrapped("one two three four five", 7, 2), ["one two", "three.."]);
        assert!(wrapped("", 7, 2).is_empty());
        assert_eq!(wrapped("a b c", 0, 1), ["."]);
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        let small = Picture::new(3, 3, [9; 3]).unwrap();
        let mut picture = Picture::new(4, 4, [0; 3]).unwrap();
        picture.place(2, 3, &small);
        picture.place(9, 9, &small);
        let nines = (0..16).filter(|i| picture.pixel(i % 4, i / 4) == Some([9; 3])).count();
        assert_eq!((nines, picture.pixel(3, 3), picture.pixel(4, 0)), (2, Some([9; 3]), None));
        let large = picture.enlarged(3).unwrap();
        assert_eq!((large.width(), large.pixel(6, 9), large.pixel(5, 9)), (12, Some([9; 3]), Some([0; 3])));
        assert!(matches!(picture.enlarged(1 << 40), Err(PictureError::TooLarge { .. })));
        assert!(matches!(
            Picture::from_pixels(2, 2, vec![0; 11]),
            Err(PictureError::Pixels { bytes: 11, .. })
        ));
    }
}
