//! Pictures side by side, with a caption below each or labels at the edges.

use super::canvas::{LETTER, wrapped};
use super::{Picture, PictureError};

const PAPER: [u8; 3] = [255; 3];
const INK: [u8; 3] = [40; 3];

/// Pixels from one line of text to the next.
const LINE: usize = LETTER + 2;

/// How a grid is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridOptions {
    /// Pictures in a row.
    pub columns: usize,
    /// The side of the square that a pixel becomes.
    pub enlarge: usize,
    /// Pixels between pictures.
    pub gap: usize,
    /// The most lines that a caption may have.
    pub caption_lines: usize,
}

impl Default for GridOptions {
    /// Eight in a row, as large as they are, with captions of up to three lines.
    fn default() -> GridOptions {
        GridOptions { columns: 8, enlarge: 1, gap: 8, caption_lines: 3 }
    }
}

/// Pictures in rows, each with its caption below it. Rows are as high, and columns as wide, as what is in them needs.
///
/// # Errors
/// The grid would have too many pixels.
pub fn grid(pictures: &[(Picture, String)], options: &GridOptions) -> Result<Picture, PictureError> {
    let mut cells = Vec::new();
    for (picture, caption) in pictures {
        let large = picture.enlarged(options.enlarge.max(1))?;
        let lines = wrapped(caption, large.width() / LETTER, options.caption_lines);
        let mut cell = Picture::new(large.width(), large.height() + below(lines.len()), PAPER)?;
        cell.place(0, 0, &large);
        for (number, line) in lines.iter().enumerate() {
            cell.write_line(0, large.height() + 4 + number * LINE, line, INK);
        }
        cells.push(cell);
    }
    let rows: Vec<&[Picture]> = cells.chunks(options.columns.max(1)).collect();
    table(&rows, &[], &[], options.gap)
}

/// What a caption of so many lines takes below a picture.
fn below(lines: usize) -> usize {
    if lines == 0 { 0 } else { 4 + lines * LINE }
}

/// Rows of cells, with labels to their left and above the columns.
pub(super) fn table(
    rows: &[&[Picture]],
    row_labels: &[String],
    column_labels: &[String],
    gap: usize,
) -> Result<Picture, PictureError> {
    let letters = |label: &String| label.chars().count() * LETTER;
    let left = row_labels.iter().map(letters).max().map_or(0, |width| width + gap);
    let top = if column_labels.is_empty() { 0 } else { LINE + gap / 2 };
    let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(column_labels.len());
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(Picture::width);
            cells.chain(column_labels.get(column).map(letters)).max().unwrap_or(0)
        })
        .collect();
    let heights: Vec<usize> = rows
        .iter()
        .map(|row| row.iter().map(Picture::height).max().unwrap_or(0))
        .enumerate()
        .map(|(row, height)| if row < row_labels.len() { height.max(LETTER) } else { height })
        .collect();
    let spread = |sizes: &[usize]| sizes.iter().fold(gap, |total, size| total.saturating_add(size + gap));
    let mut picture =
        Picture::new(spread(&widths).saturating_add(left), spread(&heights).saturating_add(top), PAPER)?;
    let start = |sizes: &[usize], index: usize| spread(&sizes[..index]);
    for (column, label) in column_labels.iter().enumerate() {
        picture.write_line(left + start(&widths, column), gap, label, INK);
    }
    for (row, cells) in rows.iter().enumerate() {
        let y = top + start(&heights, row);
        if let Some(label) = row_labels.get(row) {
            picture.write_line(gap, y + (heights[row] - LETTER) / 2, label, INK);
        }
        for (column, cell) in cells.iter().enumerate() {
            picture.place(left + start(&widths, column), y, cell);
        }
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_has_its_place_and_its_caption() {
        let pictures: Vec<(Picture, String)> = (0..5u8)
            .map(|i| {
                (
                    Picture::new(24, 16, [i, 0, 200]).unwrap(),
                    if i < 3 { "red fox".into() } else { String::new() },
                )
            })
            .collect();
        let options = GridOptions { columns: 3, enlarge: 2, gap: 5, caption_lines: 3 };
        let picture = grid(&pictures, &options).unwrap();
        // Three of 48 pixels with gaps; a row of 32 and two lines ("red fox" has 7 letters, 6 fit), a row of 32.
        assert_eq!((picture.width(), picture.height()), (5 + 3 * 53, 5 + 32 + 4 + 20 + 5 + 32 + 5));
        for i in 0..5 {
            let (x, y) = (5 + i % 3 * 53, 5 + i / 3 * 61);
            assert_eq!(picture.pixel(x, y), Some([i as u8, 0, 200]));
            assert_eq!(picture.pixel(x + 47, y + 31), Some([i as u8, 0, 200]));
            assert_eq!(picture.pixel(x + 48, y + 31), Some(PAPER));
        }
        let ink = |from: usize, to: usize| {
            let pixels = (from..to).flat_map(|y| (0..picture.width()).map(move |x| (x, y)));
            pixels.filter(|&(x, y)| picture.pixel(x, y) == Some(INK)).count()
        };
        assert!(ink(37, 51) > 20 && ink(51, 61) > 20, "two lines of text");
        assert_eq!(ink(61, picture.height()), 0, "no caption, no text");
    }

    #[test]
    fn an_empty_grid_is_paper() {
        let picture = grid(&[], &GridOptions::default()).unwrap();
        assert_eq!((picture.width(), picture.height()), (8, 8));
    }
}
