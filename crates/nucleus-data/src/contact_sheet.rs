//! A page of a data set's pictures with their captions, for a person to look at.

use std::io::Cursor;

use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::{ImageFormat, RgbImage};

use crate::dataset::Dataset;
use crate::format::{DatasetError, Kind};

/// Pixels of a letter along each side.
const LETTER: usize = 8;

/// Lines of a caption that are shown.
const LINES: usize = 2;

/// Least width of a cell, so that captions can be read.
const MIN_CELL: usize = 128;

/// Space around a cell.
const MARGIN: usize = 6;

/// Most pictures of a page.
pub const MAX_PICTURES: usize = 1000;

/// Most pixels of a page along each side.
const MAX_PAGE: usize = 32 << 10;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// The data set cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// It cannot be drawn.
    #[error("{0}")]
    Page(String),
}

/// Draws `count` items, at most [`MAX_PICTURES`], spread evenly over the data set, `columns` in a row. Returns a PNG.
///
/// # Errors
/// The data set holds latents, or pictures so large that the page would be; the captions cannot be read.
pub fn contact_sheet(dataset: &Dataset, count: usize, columns: usize) -> Result<Vec<u8>, SheetError> {
    if dataset.description().kind != Kind::Pixels {
        return Err(SheetError::Page("the data set holds latents, which are no pictures".to_owned()));
    }
    let captions = dataset.captions()?;
    let total = dataset.len();
    let count = count.clamp(1, MAX_PICTURES).min(total);
    let columns = columns.clamp(1, count);
    let buckets = dataset.buckets();
    let widest = buckets.iter().map(|bucket| bucket.width()).max().unwrap_or(1);
    let tallest = buckets.iter().map(|bucket| bucket.height()).max().unwrap_or(1);
    let zoom = MIN_CELL.div_ceil(widest);
    let (cell_width, cell_height) = (widest * zoom + MARGIN, tallest * zoom + LINES * (LETTER + 1) + MARGIN);
    let (width, height) = (columns * cell_width + MARGIN, count.div_ceil(columns) * cell_height + MARGIN);
    if width > MAX_PAGE || height > MAX_PAGE {
        return Err(SheetError::Page(format!(
            "the page would have {width}x{height} pixels: ask for fewer pictures"
        )));
    }
    let mut page = RgbImage::from_pixel(width as u32, height as u32, image::Rgb([232; 3]));
    for place in 0..count {
        let (bucket, item) = locate(dataset, place * total / count);
        let picture = dataset.item(bucket, item)?;
        let (left, top) = (MARGIN + place % columns * cell_width, MARGIN + place / columns * cell_height);
        for (index, pixel) in picture.data.chunks_exact(3).enumerate() {
            let (x, y) = (index % picture.width * zoom + left, index / picture.width * zoom + top);
            for (dy, dx) in (0..zoom).flat_map(|dy| (0..zoom).map(move |dx| (dy, dx))) {
                page.put_pixel((x + dx) as u32, (y + dy) as u32, image::Rgb([pixel[0], pixel[1], pixel[2]]));
            }
        }
        let under = top + picture.height * zoom + 2;
        write(&mut page, left, under, (cell_width - MARGIN) / LETTER, &captions[bucket][item].caption);
    }
    let mut png = Cursor::new(Vec::new());
    page.write_to(&mut png, ImageFormat::Png).map_err(|error| SheetError::Page(error.to_string()))?;
    Ok(png.into_inner())
}

/// Bucket and item of the item with this number.
fn locate(dataset: &Dataset, mut number: usize) -> (usize, usize) {
    for (index, bucket) in dataset.buckets().iter().enumerate() {
        if number < bucket.len() {
            return (index, number);
        }
        number -= bucket.len();
    }
    (0, 0)
}

/// Writes as much of a text as fits.
fn write(page: &mut RgbImage, left: usize, top: usize, letters: usize, text: &str) {
    for (index, letter) in text.chars().take(letters * LINES).enumerate() {
        let Some(glyph) = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter)) else { continue };
        let (x, y) = (left + index % letters * LETTER, top + index / letters * (LETTER + 1));
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                page.put_pixel((x + column) as u32, (y + row) as u32, image::Rgb([0; 3]));
            }
        }
    }
}
