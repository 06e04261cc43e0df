//! Pictures that are nearly the same: found by a difference hash, confirmed by comparing thumbnails.
//!
//! The hash says where a picture gets darker to the right and below, on a grid of 8 × 8 cells in each direction: 128 bits that survive
//! resizing and recompression, and know nothing of colour. So two red and blue hearts have one hash, and two clocks that differ in
//! a hand nearly so. Whether such a pair is one picture is decided on thumbnails of 16 × 16 cells: every cell's mean red, green
//! and blue must agree. All arithmetic is on integers, so every machine decides alike.

use std::collections::HashMap;

/// Cells of a thumbnail along each side.
const THUMBNAIL: usize = 16;

/// Cells of the hash's grid along each side.
const GRID: usize = 8;

/// Two cells whose luma differs by less are alike, so that noise on flat areas sets no bits. Of 255.
const FLAT: i32 = 3;

/// When two pictures are nearly the same.
#[derive(Clone, Copy, Debug)]
pub struct NearOptions {
    /// Most bits, of 128, in which the hashes may differ.
    pub bits: u32,
    /// Most by which a cell's mean red, green or blue may differ, of 255.
    pub difference: u8,
}

impl Default for NearOptions {
    fn default() -> NearOptions {
        NearOptions { bits: 6, difference: 12 }
    }
}

/// What is remembered of a picture to compare it with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    hash: u128,
    /// u8 [16, 16, 3].
    thumbnail: Vec<u8>,
}

impl Fingerprint {
    /// The fingerprint of u8 [height, width, 3].
    pub fn new(rgb: &[u8], width: usize, height: usize) -> Fingerprint {
        let thumbnail = shrink(rgb, width, height, THUMBNAIL, THUMBNAIL);
        let luma = |columns, rows| -> Vec<i32> {
            let small = shrink(rgb, width, height, columns, rows);
            small
                .chunks_exact(3)
                .map(|c| (299 * i32::from(c[0]) + 587 * i32::from(c[1]) + 114 * i32::from(c[2])) / 1000)
                .collect()
        };
        let mut hash = 0u128;
        let across = luma(GRID + 1, GRID);
        let down = luma(GRID, GRID + 1);
        for row in 0..GRID {
            for column in 0..GRID {
                let left = row * (GRID + 1) + column;
                let above = row * GRID + column;
                hash = (hash << 1) | u128::from(across[left] >= across[left + 1] + FLAT);
                hash = (hash << 1) | u128::from(down[above] >= down[above + GRID] + FLAT);
            }
        }
        Fingerprint { hash, thumbnail }
    }

    /// Bits in which the hashes differ.
    pub fn distance(&self, other: &Fingerprint) -> u32 {
        (self.hash ^ other.hash).count_ones()
    }

    /// Largest difference of the thumbnails' cells, of 255.
    pub fn difference(&self, other: &Fingerprint) -> u8 {
        self.thumbnail.iter().zip(&other.thumbnail).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }
}

/// Means over the cells of a grid; a pixel on a border belongs to the cell of its upper left corner, and no cell is empty.
fn shrink(rgb: &[u8], width: usize, height: usize, columns: usize, rows: usize) -> Vec<u8> {
    let span = |cell: usize, cells: usize, size: usize| {
        let start = (cell * size / cells).min(size - 1);
        start..((cell + 1) * size / cells).max(start + 1)
    };
    let mut out = Vec::with_capacity(columns * rows * 3);
    for row in 0..rows {
        for column in 0..columns {
            let (lines, pixels) = (span(row, rows, height), span(column, columns, width));
            let count = (lines.len() * pixels.len()) as u64;
            let mut sums = [0u64; 3];
            for y in lines {
                for pixel in rgb[(y * width + pixels.start) * 3..(y * width + pixels.end) * 3].chunks_exact(3)
                {
                    sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
                }
            }
            out.extend(sums.map(|sum| ((sum + count / 2) / count) as u8));
        }
    }
    out
}

/// The pictures that are kept so far.
///
/// Two hashes that differ in at most `bits` bits agree in one of `bits + 1` parts, so only pictures that share a part are compared.
#[derive(Debug)]
pub struct NearIndex {
    options: NearOptions,
    kept: Vec<Fingerprint>,
    by_part: HashMap<(u32, u128), Vec<u32>>,
}

impl NearIndex {
    /// An empty index.
    pub fn new(options: NearOptions) -> NearIndex {
        NearIndex { options, kept: Vec::new(), by_part: HashMap::new() }
    }

    /// The first kept picture that `fingerprint` nearly is, by the order of [`NearIndex::keep`].
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<usize> {
        let near = |index: &usize| {
            let other = &self.kept[*index];
            fingerprint.distance(other) <= self.options.bits
                && fingerprint.difference(other) <= self.options.difference
        };
        let candidates = self.parts(fingerprint.hash).filter_map(|part| self.by_part.get(&part));
        candidates.filter_map(|list| list.iter().map(|index| *index as usize).find(near)).min()
    }

    /// Remembers a picture.
    pub fn keep(&mut self, fingerprint: Fingerprint) {
        let index = self.kept.len() as u32;
        for part in self.parts(fingerprint.hash).collect::<Vec<_>>() {
            self.by_part.entry(part).or_default().push(index);
        }
        self.kept.push(fingerprint);
    }

    fn parts(&self, hash: u128) -> impl Iterator<Item = (u32, u128)> + use<> {
        let parts = self.options.bits.min(127) + 1;
        (0..parts).map(move |part| {
            let (from, to) = (part * 128 / parts, (part + 1) * 128 / parts);
            let width = to - from;
            let mask = if width >= 128 { u128::MAX } else { (1 << width) - 1 };
            (part, (hash >> from) & mask)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 64;

    fn paint(colour: impl Fn(i32, i32) -> [u8; 3]) -> Vec<u8> {
        let side = SIDE as i32;
        (0..side * side).flat_map(|index| colour(index % side, index / side)).collect()
    }

    fn disc(centre: i32, colour: [u8; 3]) -> Fingerprint {
        let picture = paint(|x, y| {
            let inside = (x - centre).pow(2) + (y - 32).pow(2) < 400;
            if inside { colour } else { [255; 3] }
        });
        Fingerprint::new(&picture, SIDE, SIDE)
    }

    #[test]
    fn noise_is_the_same_picture_and_colour_or_place_is_not() {
        let red = disc(32, [200, 30, 30]);
        let mut index = NearIndex::new(NearOptions::default());
        index.keep(disc(20, [0, 0, 0]));
        index.keep(red.clone());
        assert_eq!(index.find(&disc(32, [203, 27, 33])), Some(1));
        let blue = disc(32, [30, 30, 200]);
        assert!(red.distance(&blue) <= 6, "the hash alone does not tell colours apart");
        assert_eq!(index.find(&blue), None);
        assert_eq!(index.find(&disc(36, [200, 30, 30])), None);
    }

    #[test]
    fn one_size_is_as_good_as_another() {
        let at = |side: i32| {
            let picture: Vec<u8> = (0..side * side)
                .flat_map(|index| if index % side * 2 < side { [10, 20, 30] } else { [250, 240, 230] })
                .collect();
            Fingerprint::new(&picture, side as usize, side as usize)
        };
        assert_eq!(at(64), at(256));
        assert_eq!(at(1).thumbnail.len(), 16 * 16 * 3);
    }

    #[test]
    fn the_index_finds_what_a_comparison_with_all_finds() {
        // Hashes that differ in few bits from each other, by a fixed generator.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for bits in [0, 1, 6, 40, 127, 128] {
            let mut index = NearIndex::new(NearOptions { bits, difference: 0 });
            for _ in 0..200 {
                let mut hash = 0u128;
                for _ in 0..random() % 8 {
                    hash |= 1 << (random() % 128);
                }
                let fingerprint = Fingerprint { hash, thumbnail: vec![0; 3] };
                let slow = index.kept.iter().position(|other| other.distance(&fingerprint) <= bits);
                assert_eq!(index.find(&fingerprint), slow, "{bits} bits");
                index.keep(fingerprint);
            }
        }
    }
}
