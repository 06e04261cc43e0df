//! A small picture to draw lines and a few characters on.

/// Rows of a character.
pub(super) const GLYPH_HEIGHT: i64 = 7 * SCALE;

/// Pixels of a character's dot.
const SCALE: i64 = 2;

/// Columns of a character and the gap behind it, in dots.
const GLYPH_STEP: i64 = 6;

/// Characters of axes, 5 × 7 dots, a row in the low five bits, the left dot highest.
const GLYPHS: &[(char, [u8; 7])] = &[
    ('0', [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110]),
    ('1', [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110]),
    ('2', [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111]),
    ('3', [0b01110, 0b10001, 0b00001, 0b00110, 0b00001, 0b10001, 0b01110]),
    ('4', [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010]),
    ('5', [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110]),
    ('6', [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110]),
    ('7', [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000]),
    ('8', [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110]),
    ('9', [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100]),
    ('.', [0, 0, 0, 0, 0, 0b01100, 0b01100]),
    ('-', [0, 0, 0, 0b11111, 0, 0, 0]),
    ('e', [0, 0, 0b01110, 0b10001, 0b11111, 0b10000, 0b01110]),
    ('l', [0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110]),
    ('o', [0, 0, 0b01110, 0b10001, 0b10001, 0b10001, 0b01110]),
    ('p', [0, 0, 0b11110, 0b10001, 0b11110, 0b10000, 0b10000]),
    ('s', [0, 0, 0b01111, 0b10000, 0b01110, 0b00001, 0b11110]),
    ('t', [0b01000, 0b01000, 0b11100, 0b01000, 0b01000, 0b01001, 0b00110]),
];

/// Width of a text in pixels.
pub(super) fn text_width(text: &str) -> i64 {
    text.chars().count() as i64 * GLYPH_STEP * SCALE - SCALE
}

/// RGB pixels, white at first. What lies outside is not drawn.
pub(super) struct Canvas {
    width: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Canvas {
        Canvas { width, pixels: vec![255; width * height * 3] }
    }

    /// Row by row, three bytes each.
    pub(super) fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    fn dot(&mut self, (x, y): (i64, i64), color: [u8; 3]) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        let at = (y * self.width + x) * 3;
        if x < self.width
            && let Some(pixel) = self.pixels.get_mut(at..at + 3)
        {
            pixel.copy_from_slice(&color);
        }
    }

    /// A straight line, ends included (Bresenham).
    pub(super) fn line(&mut self, from: (i64, i64), to: (i64, i64), color: [u8; 3]) {
        let (dx, dy) = ((to.0 - from.0).abs(), -(to.1 - from.1).abs());
        let (right, down) = ((to.0 - from.0).signum(), (to.1 - from.1).signum());
        let (mut at, mut error) = (from, dx + dy);
        loop {
            self.dot(at, color);
            if at == to {
                return;
            }
            let doubled = 2 * error;
            if doubled >= dy {
                error += dy;
                at.0 += right;
            }
            if doubled <= dx {
                error += dx;
                at.1 += down;
            }
        }
    }

    /// Lines from point to point, `thickness` pixels high.
    pub(super) fn path(&mut self, points: &[(i64, i64)], color: [u8; 3], thickness: i64) {
        for offset in 0..thickness {
            let moved = |(x, y): (i64, i64)| (x, y + offset);
            for pair in points.windows(2) {
                self.line(moved(pair[0]), moved(pair[1]), color);
            }
            if let [only] = points {
                self.line(moved((only.0 - 2, only.1)), moved((only.0 + 2, only.1)), color);
            }
        }
    }

    /// A text whose upper left corner is at `at`. Characters that axes do not need are blank.
    pub(super) fn text(&mut self, at: (i64, i64), text: &str, color: [u8; 3]) {
        for (index, character) in text.chars().enumerate() {
            let Some((_, rows)) = GLYPHS.iter().find(|(known, _)| *known == character) else { continue };
            for (row, bits) in (0i64..).zip(rows) {
                for column in (0..5i64).filter(|column| bits & (0b10000 >> column) != 0) {
                    let x = at.0 + (index as i64 * GLYPH_STEP + column) * SCALE;
                    let y = at.1 + row * SCALE;
                    for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                        self.dot((x + dx, y + dy), color);
                    }
                }
            }
        }
    }
}
