//! Measured tiles, which override the cost model of [`crate::tiles`].
//!
//! A table is a text file, a small part of TOML: comments, and for every measurement
//!
//! ```text
//! [[tile]]
//! device = "NVIDIA H100 80GB HBM3"        # as the driver names it
//! kernel = "5f0c…"                        # BLAKE3 of the kernel as plans print it, 64 hexadecimal digits
//! shape = "1x4096x2048x2048"              # batch, rows, columns of all parts, depth; each rounded up to a power of two
//! rows = 128                              # the fields of `Tile`
//! columns = 128
//! depth = 64
//! stages = 3
//! warps = 4
//! across = 2
//! blocks = 2
//! ```

use std::collections::BTreeMap;

use nucleus_plan::{Anchor, Contraction, Kernel, Size};

use crate::facts::Facts;
use crate::tiles::Tile;

/// What a measurement belongs to: device, kernel, shape.
type Key = (String, String, String);

/// Measured tiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    tiles: BTreeMap<Key, Tile>,
}

/// A table that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the table of tiles: {what}")]
pub struct TuningError {
    /// Counted from 1.
    line: usize,
    /// What is wrong.
    what: String,
}

impl Tuning {
    /// Reads a table.
    ///
    /// # Errors
    /// The text is no table.
    pub fn parse(text: &str) -> Result<Tuning, TuningError> {
        let mut tuning = Tuning::default();
        let mut entry: Option<(usize, Entry)> = None;
        for (number, line) in text.lines().enumerate() {
            let error = |what: String| TuningError { line: number + 1, what };
            let line = without_comment(line).trim();
            if line == "[[tile]]" {
                tuning.finish(entry.replace((number + 1, Entry::default())))?;
            } else if let Some((key, value)) = line.split_once('=') {
                let Some((_, entry)) = &mut entry else {
                    return Err(error("a value before the first `[[tile]]`".to_owned()));
                };
                entry.set(key.trim(), value.trim()).map_err(error)?;
            } else if !line.is_empty() {
                return Err(error(format!("expected `[[tile]]` or `key = value`, found `{line}`")));
            }
        }
        tuning.finish(entry)?;
        Ok(tuning)
    }

    fn finish(&mut self, entry: Option<(usize, Entry)>) -> Result<(), TuningError> {
        let Some((line, entry)) = entry else { return Ok(()) };
        let (key, tile) = entry.finish().map_err(|what| TuningError { line, what })?;
        self.tiles.insert(key, tile);
        Ok(())
    }

    /// Facts with the tile that was measured for this kernel on a device of that name, if one was.
    pub fn apply(&self, device: &str, kernel: &Kernel, facts: Facts) -> Facts {
        let (Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction)) = &kernel.anchor else {
            return facts;
        };
        let Some(shape) = shape(contraction, &facts) else { return facts };
        let hash = blake3::hash(kernel.to_string().as_bytes()).to_hex().to_string();
        match self.tiles.get(&(device.to_owned(), hash, shape)) {
            Some(tile) => facts.with_tile(*tile),
            None => facts,
        }
    }
}

/// The bucket of the largest launch of a contraction; `None` if it has none.
fn shape(contraction: &Contraction, facts: &Facts) -> Option<String> {
    let bucket = |sizes: &[i64]| {
        let product = |extents: &[Size]| {
            extents.iter().fold(1i64, |product, extent| product.saturating_mul(extent.value(sizes).max(0)))
        };
        let columns = contraction.parts.iter();
        let columns =
            columns.map(|part| part.columns.value(sizes).max(0).saturating_mul(part.segments.into()));
        let columns = columns.fold(0, i64::saturating_add);
        [
            product(&contraction.batch),
            product(&contraction.rows),
            columns,
            contraction.depth.value(sizes).max(0),
        ]
    };
    let largest = facts.samples().iter().map(|sizes| bucket(sizes)).max_by_key(|extents| {
        extents.iter().fold(1u128, |volume, extent| volume.saturating_mul(u128::from(extent.unsigned_abs())))
    })?;
    let rounded = largest.map(|extent| extent.unsigned_abs().next_power_of_two().to_string());
    Some(rounded.join("x"))
}

/// The line without what follows a `#` outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..at],
            _ => {}
        }
    }
    line
}

/// A measurement while it is read.
#[derive(Default)]
struct Entry {
    strings: BTreeMap<&'static str, String>,
    numbers: BTreeMap<&'static str, u32>,
}

const STRINGS: [&str; 3] = ["device", "kernel", "shape"];
const NUMBERS: [&str; 7] = ["rows", "columns", "depth", "stages", "warps", "across", "blocks"];

impl Entry {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let again = if let Some(key) = STRINGS.into_iter().find(|known| *known == key) {
            let text = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let text = text.ok_or_else(|| format!("`{key}` must be a text in quotes"))?;
            self.strings.insert(key, text.to_owned()).is_some()
        } else if let Some(key) = NUMBERS.into_iter().find(|known| *known == key) {
            let number = value.parse().map_err(|_| format!("`{key}` must be a number"))?;
            self.numbers.insert(key, number).is_some()
        } else {
            return Err(format!("unknown key `{key}`"));
        };
        if again { Err(format!("`{key}` is there twice")) } else { Ok(()) }
    }

    fn finish(mut self) -> Result<(Key, Tile), String> {
        let mut string = |key| self.strings.remove(key).ok_or_else(|| format!("`{key}` is missing"));
        let key = (string("device")?, string("kernel")?, string("shape")?);
        let number = |key| self.numbers.get(key).copied().ok_or_else(|| format!("`{key}` is missing"));
        let tile = Tile {
            rows: number("rows")?,
            columns: number("columns")?,
            depth: number("depth")?,
            stages: number("stages")?,
            warps: number("warps")?,
            across: number("across")?,
            blocks: number("blocks")?,
        };
        Ok((key, tile))
    }
}
