//! A picture on its way in: decoded or parsed, then drawn at the size of a bucket.

use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

use crate::drawing_cost;
use crate::fit::{Fit, Placement, resize};

/// Most bytes of a picture's file.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Most bytes of a drawing's file; its tree takes some fifty times as much.
pub const MAX_DRAWING_BYTES: usize = 4 << 20;

/// A drawing is drawn this many times larger than wanted along each side, and resized: smoother than one that is drawn as it is wanted.
const OVERSAMPLING: u32 = 4;

/// The longest side that a drawing is drawn at.
const MAX_CANVAS: u32 = 4096;

/// A colour without transparency: red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

impl Colour {
    /// White.
    pub const WHITE: Colour = Colour([255; 3]);
}

impl FromStr for Colour {
    type Err = String;

    fn from_str(text: &str) -> Result<Colour, String> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        match u32::from_str_radix(digits, 16) {
            Ok(value) if digits.len() == 6 && !digits.starts_with('+') => {
                let [_, red, green, blue] = value.to_be_bytes();
                Ok(Colour([red, green, blue]))
            }
            _ => Err(format!("`{text}` is not a colour of six hexadecimal digits, such as ffffff")),
        }
    }
}

/// Limits and choices that hold for all pictures.
#[derive(Clone, Copy, Debug)]
pub struct PictureOptions {
    /// What is behind transparent pixels and beside pictures that do not fill their bucket.
    pub background: Colour,
    /// What happens to a picture whose aspect is not its bucket's.
    pub fit: Fit,
    /// Most pixels that a PNG or JPEG may have.
    pub max_pixels: u64,
}

impl Default for PictureOptions {
    fn default() -> PictureOptions {
        PictureOptions { background: Colour::WHITE, fit: Fit::Cover, max_pixels: 1 << 26 }
    }
}

/// A decoded PNG or JPEG, or a parsed drawing.
#[derive(Debug)]
pub enum Picture {
    /// Pixels, row-major, without transparency.
    Raster {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Red, green and blue of every pixel.
        rgb: Vec<u8>,
    },
    /// An SVG.
    Drawing(Box<usvg::Tree>),
}

/// The extensions of files that can be read, in lower case.
pub const EXTENSIONS: [&str; 4] = ["svg", "png", "jpg", "jpeg"];

impl Picture {
    /// Reads the file, whose extension says what it is.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it; the file's name is left to the caller.
    pub fn read(path: &Path, options: &PictureOptions) -> Result<Picture, String> {
        let bytes = read_bounded(path)?;
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        // Decoders are other people's code on strangers' files: should one panic, one picture is lost and not the work of hours.
        let read = || match extension.to_ascii_lowercase().as_str() {
            "svg" => Picture::drawing(&bytes),
            _ => Picture::raster(&bytes, options),
        };
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("its decoder panicked".to_owned()))
    }

    fn drawing(bytes: &[u8]) -> Result<Picture, String> {
        if bytes.len() > MAX_DRAWING_BYTES {
            return Err(format!("has {} bytes; drawings may have {MAX_DRAWING_BYTES}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))?;
        let options = usvg::roxmltree::ParsingOptions {
            allow_dtd: true,
            nodes_limit: drawing_cost::MAX_ELEMENTS as u32,
            ..Default::default()
        };
        let document = usvg::roxmltree::Document::parse_with_options(text, options)
            .map_err(|error| format!("is not XML: {error}"))?;
        drawing_cost::check(&document)?;
        // Nothing but the file itself is looked at: a drawing cannot reach for others.
        let options = usvg::Options {
            image_href_resolver: usvg::ImageHrefResolver {
                resolve_data: Box::new(|_, _, _| None),
                resolve_string: Box::new(|_, _| None),
            },
            ..usvg::Options::default()
        };
        let tree =
            usvg::Tree::from_xmltree(&document, &options).map_err(|error| format!("is no SVG: {error}"))?;
        if !tree.root().has_children() {
            return Err("draws nothing".to_owned());
        }
        Ok(Picture::Drawing(Box::new(tree)))
    }

    fn raster(bytes: &[u8], options: &PictureOptions) -> Result<Picture, String> {
        let failed = |error: image::ImageError| format!("cannot be decoded: {error}");
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| format!("cannot be decoded: {error}"))?;
        let mut limits = Limits::no_limits();
        // Up to four 16-bit channels, and as much again for the decoder.
        limits.max_alloc = Some(options.max_pixels.saturating_mul(16).saturating_add(1 << 20));
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder().map_err(failed)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > options.max_pixels {
            return Err(format!("is {width}x{height}; at most {} pixels are accepted", options.max_pixels));
        }
        decoder.set_limits(limits).map_err(failed)?;
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
        image.apply_orientation(orientation);
        let (width, height) = (image.width(), image.height());
        if width == 0 || height == 0 {
            return Err("has no pixels".to_owned());
        }
        let rgb = if image.color().has_alpha() {
            let rgba = image.into_rgba8();
            rgba.pixels().flat_map(|pixel| over(pixel.0, options.background)).collect()
        } else {
            image.into_rgb8().into_raw()
        };
        Ok(Picture::Raster { width, height, rgb })
    }

    /// Width over height.
    pub fn aspect(&self) -> f64 {
        match self {
            Picture::Raster { width, height, .. } => f64::from(*width) / f64::from(*height),
            Picture::Drawing(tree) => f64::from(tree.size().width()) / f64::from(tree.size().height()),
        }
    }

    /// The picture at a given size: u8 [height, width, 3], row-major.
    ///
    /// # Errors
    /// A sentence that says why it cannot be drawn.
    pub fn render(&self, width: usize, height: usize, options: &PictureOptions) -> Result<Vec<u8>, String> {
        let draw = || match self {
            Picture::Raster { width: from_width, height: from_height, rgb } => {
                let from = (*from_width as usize, *from_height as usize);
                resize(rgb, from, (width, height), options.fit, options.background)
            }
            Picture::Drawing(tree) => draw(tree, width, height, options),
        };
        catch_unwind(AssertUnwindSafe(draw)).unwrap_or_else(|_| Err("drawing it panicked".to_owned()))
    }
}

fn draw(tree: &usvg::Tree, width: usize, height: usize, options: &PictureOptions) -> Result<Vec<u8>, String> {
    let longest = width.max(height) as u32;
    let times = (MAX_CANVAS / longest.max(1)).clamp(1, OVERSAMPLING);
    let (canvas_width, canvas_height) = (width as u32 * times, height as u32 * times);
    let mut canvas =
        Pixmap::new(canvas_width, canvas_height).ok_or("cannot be drawn: its canvas is too large")?;
    let [red, green, blue] = options.background.0;
    canvas.fill(resvg::tiny_skia::Color::from_rgba8(red, green, blue, 255));
    // The canvas is the bucket, whatever the drawing's size: the transform crops or pads, so nothing large is ever drawn.
    let from = (f64::from(tree.size().width()), f64::from(tree.size().height()));
    let place = Placement::new(from, (f64::from(canvas_width), f64::from(canvas_height)), options.fit);
    let [scale, x, y] = [place.scale, place.x, place.y].map(|value| value as f32);
    if ![scale, x, y].iter().all(|value| value.is_finite()) || scale <= 0.0 {
        return Err(format!("cannot be drawn: its size is {} by {}", from.0, from.1));
    }
    resvg::render(tree, Transform::from_row(scale, 0.0, 0.0, scale, x, y), &mut canvas.as_mut());
    let rgb: Vec<u8> =
        canvas.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    let canvas_size = (canvas_width as usize, canvas_height as usize);
    resize(&rgb, canvas_size, (width, height), Fit::Cover, options.background)
}

/// A pixel over a background, rounded to nearest.
fn over([red, green, blue, alpha]: [u8; 4], Colour(background): Colour) -> [u8; 3] {
    let alpha = u32::from(alpha);
    let mix = |front: u8, back: u8| {
        ((u32::from(front) * alpha + u32::from(back) * (255 - alpha) + 127) / 255) as u8
    };
    [mix(red, background[0]), mix(green, background[1]), mix(blue, background[2])]
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Opening a pipe would wait for its writer, so the kind is looked at first.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("has more than {MAX_FILE_BYTES} bytes"));
    }
    Ok(bytes)
}
