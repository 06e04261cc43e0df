//! The loss curve as a picture: every step, a running mean, and axes with numbers.

mod canvas;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use canvas::{Canvas, GLYPH_HEIGHT, text_width};

/// Name of the picture in the folder of a run.
pub const CURVE_FILE: &str = "loss.png";

const WIDTH: i64 = 960;
const HEIGHT: i64 = 540;
const LEFT: i64 = 90;
const RIGHT: i64 = 30;
const TOP: i64 = 30;
const BOTTOM: i64 = 60;

const BLACK: [u8; 3] = [40, 40, 40];
const GRID: [u8; 3] = [228, 228, 228];
const RAW: [u8; 3] = [168, 198, 232];
const MEAN: [u8; 3] = [18, 82, 160];

/// Share of the steps over which the running mean runs, on either side.
const MEAN_SHARE: usize = 100;

/// Writes `loss.png` into the folder `out`, under a temporary name that is renamed at the end.
///
/// `losses` are steps and losses in order; all losses are finite.
///
/// # Errors
/// The file system refuses.
pub fn write(out: &Path, losses: &[(u64, f64)]) -> io::Result<()> {
    let canvas = draw(losses);
    let temporary = out.join(format!(".{CURVE_FILE}.tmp"));
    let path = out.join(CURVE_FILE);
    let written = encode(&temporary, &canvas).and_then(|()| std::fs::rename(&temporary, &path));
    written.map_err(|error| {
        // What stays behind is overwritten the next time.
        let _ = std::fs::remove_file(&temporary);
        io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
    })
}

fn encode(path: &Path, canvas: &Canvas) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut file, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(canvas.pixels())?;
    writer.finish()?;
    file.flush()
}

/// Where values lie on the canvas.
struct Axes {
    steps: (f64, f64),
    losses: (f64, f64),
}

impl Axes {
    fn new(losses: &[(u64, f64)], means: &[f64]) -> Axes {
        let (first, last) = match losses {
            [(first, _), .., (last, _)] => (*first as f64, *last as f64),
            [(only, _)] => (*only as f64 - 1.0, *only as f64 + 1.0),
            [] => (0.0, 1.0),
        };
        let mut sorted: Vec<f64> = losses.iter().map(|(_, loss)| *loss).collect();
        sorted.sort_by(f64::total_cmp);
        // One step in a hundred may leave the picture: a single spike must not flatten the rest.
        let rank = |share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied();
        let low = means.iter().copied().fold(rank(0.01).unwrap_or(0.0), f64::min);
        let high = means.iter().copied().fold(rank(0.99).unwrap_or(1.0), f64::max);
        let margin = if high > low { (high - low) * 0.05 } else { low.abs().max(1e-12) * 0.5 };
        Axes { steps: (first, last), losses: (low - margin, high + margin) }
    }

    fn x(&self, step: f64) -> i64 {
        let (first, last) = self.steps;
        LEFT + ((step - first) / (last - first) * (WIDTH - LEFT - RIGHT) as f64).round() as i64
    }

    /// Losses outside the axis are drawn at its ends.
    fn y(&self, loss: f64) -> i64 {
        let (low, high) = self.losses;
        let share = ((loss - low) / (high - low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - (share * (HEIGHT - TOP - BOTTOM) as f64).round() as i64
    }
}

fn draw(losses: &[(u64, f64)]) -> Canvas {
    let means = running_mean(losses);
    let axes = Axes::new(losses, &means);
    let mut canvas = Canvas::new(WIDTH as usize, HEIGHT as usize);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);

    let (ticks, spacing) = ticks(axes.losses, 6);
    for tick in ticks {
        let y = axes.y(tick);
        canvas.line((LEFT, y), (right, y), GRID);
        let label = number(tick, spacing);
        canvas.text((LEFT - 10 - text_width(&label), y - GLYPH_HEIGHT / 2), &label, BLACK);
    }
    let (ticks, spacing) = self::ticks(axes.steps, 7);
    for tick in ticks {
        let x = axes.x(tick);
        canvas.line((x, TOP), (x, bottom), GRID);
        let label = number(tick, spacing.max(1.0));
        canvas.text((x - text_width(&label) / 2, bottom + 10), &label, BLACK);
    }

    let points = |values: &mut dyn Iterator<Item = f64>| -> Vec<(i64, i64)> {
        losses.iter().zip(values).map(|((step, _), value)| (axes.x(*step as f64), axes.y(value))).collect()
    };
    canvas.path(&points(&mut losses.iter().map(|(_, loss)| *loss)), RAW, 1);
    canvas.path(&points(&mut means.iter().copied()), MEAN, 2);

    canvas.line((LEFT, TOP), (LEFT, bottom), BLACK);
    canvas.line((LEFT, bottom), (right, bottom), BLACK);
    canvas.text((LEFT - text_width("loss") / 2, TOP - 20), "loss", BLACK);
    canvas.text(((LEFT + right - text_width("step")) / 2, HEIGHT - 25), "step", BLACK);
    canvas
}

/// The mean over a hundredth of the steps on either side.
fn running_mean(losses: &[(u64, f64)]) -> Vec<f64> {
    let half = losses.len() / MEAN_SHARE;
    let mut sums = Vec::with_capacity(losses.len() + 1);
    let mut sum = 0.0;
    sums.push(sum);
    for (_, loss) in losses {
        sum += loss;
        sums.push(sum);
    }
    let mean = |index: usize| {
        let (from, to) = (index.saturating_sub(half), (index + half + 1).min(losses.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    (0..losses.len()).map(mean).collect()
}

/// About `count` round numbers between two, and their distance: 1, 2 or 5 times a power of ten.
fn ticks((low, high): (f64, f64), count: usize) -> (Vec<f64>, f64) {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let spacing =
        [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|spacing| *spacing >= rough);
    let spacing = spacing.unwrap_or(power);
    if !spacing.is_finite() || spacing <= 0.0 {
        return (Vec::new(), 1.0);
    }
    let first = (low / spacing).ceil();
    let all = (0..=2 * count).map(|index| (first + index as f64) * spacing);
    (all.take_while(|tick| *tick <= high).collect(), spacing)
}

/// A tick as text, with as many places as its distance to the next has.
fn number(value: f64, spacing: f64) -> String {
    // Not −0.
    let value = if value.abs() < spacing * 1e-6 { 0.0 } else { value };
    let places = (-spacing.log10().floor()).max(0.0);
    if places <= 6.0 && value.abs() < 1e9 {
        return format!("{value:.*}", places as usize);
    }
    let digits = value.abs().max(spacing).log10().floor() - spacing.log10().floor();
    format!("{value:.*e}", digits.clamp(0.0, 16.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(path: &Path) -> (u32, u32, Vec<u8>) {
        let decoder = png::Decoder::new(io::BufReader::new(File::open(path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    /// Rows of the mean's line in a column of pixels.
    fn rows(pixels: &[u8], x: i64) -> Vec<i64> {
        (0..HEIGHT)
            .filter(|y| {
                let at = ((y * WIDTH + x) * 3) as usize;
                pixels[at..at + 3] == MEAN
            })
            .collect()
    }

    #[test]
    fn the_picture_shows_a_falling_loss() {
        let dir = tempfile::tempdir().unwrap();
        let losses: Vec<(u64, f64)> = (1..=1000).map(|step| (step, 1.0 / (step as f64).sqrt())).collect();
        write(dir.path(), &losses).unwrap();
        let (width, height, pixels) = decode(&dir.path().join(CURVE_FILE));
        assert_eq!((width, height), (WIDTH as u32, HEIGHT as u32));
        let (early, late) = (rows(&pixels, LEFT + 20), rows(&pixels, WIDTH - RIGHT - 20));
        assert!(!early.is_empty() && !late.is_empty());
        assert!(early[0] + 50 < late[0], "{early:?} {late:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn odd_runs_have_pictures_too() {
        let dir = tempfile::tempdir().unwrap();
        for losses in [
            vec![],
            vec![(1, 0.5)],
            vec![(1, 0.5), (2, 0.5)],
            vec![(1, 0.0), (2, 0.0)],
            vec![(1, f64::MAX), (2, f64::MIN_POSITIVE)],
            vec![(u64::MAX - 1, -1.0), (u64::MAX, 1e300)],
        ] {
            write(dir.path(), &losses).unwrap();
        }
        let error = write(&dir.path().join("none"), &[]).unwrap_err().to_string();
        assert!(error.contains("none/loss.png"), "{error}");
    }

    #[test]
    fn a_spike_does_not_flatten_the_curve() {
        let mut losses: Vec<(u64, f64)> = (1..=1000).map(|step| (step, 1.0)).collect();
        losses[0].1 = 1e6;
        let means = vec![1.0; 1000];
        assert!(Axes::new(&losses, &means).losses.1 < 2.0);
    }

    #[test]
    fn ticks_are_round_and_have_the_places_they_need() {
        let labels = |low, high, count| {
            let (ticks, spacing) = ticks((low, high), count);
            ticks.into_iter().map(|tick| number(tick, spacing)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.0, 1000.0, 5), ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!(labels(-0.011, 0.021, 6), ["-0.01", "0.00", "0.01", "0.02"]);
        assert_eq!(labels(0.5, 0.500_000_12, 2), ["5.000000e-1", "5.000001e-1"]);
        assert_eq!(labels(0.0, 5e-10, 2), ["0e0", "5e-10"]);
        assert_eq!(labels(2e9, 2.2e9, 2), ["2.0e9", "2.1e9", "2.2e9"]);
        assert!(labels(1.0, 1.0, 4).is_empty());
    }

    #[test]
    fn the_running_mean_is_over_a_hundredth_on_either_side() {
        let losses: Vec<(u64, f64)> = (0..200).map(|step| (step, f64::from(step as u32 % 5))).collect();
        let means = running_mean(&losses);
        // Five steps in the middle, three at the ends.
        assert!((means[100] - 2.0).abs() < 1e-12);
        assert!((means[0] - 1.0).abs() < 1e-12);
        assert_eq!(means.len(), 200);
    }
}
