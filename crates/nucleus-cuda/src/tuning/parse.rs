//! The text of tables. They are written by people and programs alike, and read as untrusted input.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::key::Problem;
use super::{Entry, Key, Tuning, TuningError};
use crate::architecture::Architecture;
use crate::tiles::Tile;

/// The most bytes of a file with a table.
pub const MAX_BYTES: usize = 4 << 20;

/// The most bytes of a device's name; the driver gives at most 256.
const MAX_NAME: usize = 256;

const TEXTS: [&str; 4] = ["architecture", "device", "kernel", "shape"];
const NUMBERS: [&str; 7] = ["rows", "columns", "depth", "stages", "warps", "across", "blocks"];

impl Tuning {
    /// Reads the table in a file.
    ///
    /// # Errors
    /// It cannot be read, or is no table.
    pub fn read(path: &Path) -> Result<Tuning, TuningError> {
        let origin = format!("`{}`", path.display());
        let fail = |why: String| TuningError::Read { origin: origin.clone(), why };
        let mut text = String::new();
        let file = File::open(path).map_err(|error| fail(error.to_string()))?;
        // Also of a file that has no end.
        let read = file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| fail(error.to_string()))?;
        if text.len() > MAX_BYTES {
            return Err(fail(format!("it has more than {MAX_BYTES} bytes")));
        }
        Tuning::parse(&text, &origin)
    }

    /// Reads a table; `origin` is what messages name it by, such as a file's name.
    ///
    /// # Errors
    /// The text is no table.
    pub fn parse(text: &str, origin: &str) -> Result<Tuning, TuningError> {
        let mut reader =
            Reader { tuning: Tuning::default(), origin: Arc::from(origin), entry: None, line: 0 };
        for (number, line) in text.lines().enumerate() {
            reader.line = number + 1;
            reader.read(without_comment(line).trim())?;
        }
        reader.finish()?;
        Ok(reader.tuning)
    }
}

/// A table while it is read.
struct Reader {
    tuning: Tuning,
    origin: Arc<str>,
    /// The entry that lines belong to, and its first line.
    entry: Option<(usize, Values)>,
    line: usize,
}

/// The values of an entry.
#[derive(Default)]
struct Values {
    texts: BTreeMap<&'static str, String>,
    numbers: BTreeMap<&'static str, u32>,
}

impl Reader {
    fn error(&self, line: usize, what: String) -> TuningError {
        TuningError::Line { origin: self.origin.to_string(), line, what }
    }

    fn read(&mut self, line: &str) -> Result<(), TuningError> {
        if line.is_empty() {
            return Ok(());
        }
        if line == "[[tile]]" {
            self.finish()?;
            self.entry = Some((self.line, Values::default()));
            return Ok(());
        }
        let read = match (line.split_once('='), &mut self.entry) {
            (None, _) => Err(format!("expected `[[tile]]` or `key = value`, found `{}`", shortened(line))),
            (_, None) => Err("a value before the first `[[tile]]`".to_owned()),
            (Some((key, value)), Some((_, values))) => values.set(key.trim(), value.trim()),
        };
        read.map_err(|what| self.error(self.line, what))
    }

    /// Puts the entry that was read into the table.
    fn finish(&mut self) -> Result<(), TuningError> {
        let Some((line, values)) = self.entry.take() else { return Ok(()) };
        let (key, tile) = values.finish().map_err(|what| self.error(line, what))?;
        if let Some(first) = self.tuning.entries.get(&key) {
            let of = key.device.as_deref().unwrap_or("every device");
            let what = format!(
                "the entry in line {} is for the same kernel and shape on {of}: remove one of them",
                first.line
            );
            return Err(self.error(line, what));
        }
        self.tuning.entries.insert(key, Entry { tile, origin: self.origin.clone(), line });
        Ok(())
    }
}

impl Values {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let again = if let Some(key) = TEXTS.into_iter().find(|known| *known == key) {
            let text = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let text = text.ok_or_else(|| format!("`{key}` must be a text in quotes"))?;
            self.texts.insert(key, text.to_owned()).is_some()
        } else if let Some(key) = NUMBERS.into_iter().find(|known| *known == key) {
            let number = value.parse().map_err(|_| format!("`{key}` must be a number"))?;
            self.numbers.insert(key, number).is_some()
        } else {
            let known = [&TEXTS[..], &NUMBERS[..]].concat().join(", ");
            return Err(format!("unknown key `{}`: expected one of {known}", shortened(key)));
        };
        if again { Err(format!("`{key}` is there twice")) } else { Ok(()) }
    }

    fn finish(mut self) -> Result<(Key, Tile), String> {
        let device = self.texts.remove("device");
        if let Some(name) = &device {
            check_name(name)?;
        }
        let mut text = |key| self.texts.remove(key).ok_or_else(|| format!("`{key}` is missing"));
        let architecture = text("architecture")?;
        let architecture =
            architecture.parse::<Architecture>().map_err(|error| shortened(&error.to_string()))?;
        let problem = Problem { kernel: kernel(&text("kernel")?)?, shape: shape(&text("shape")?)? };
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
        tile.check_numbers().map_err(|error| error.to_string())?;
        Ok((Key { architecture, problem, device }, tile))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("`device` must have 1 to {MAX_NAME} characters"));
    }
    if name.contains(|c: char| c == '"' || c == '\\' || c.is_control()) {
        return Err("`device` has a quote, a backslash or a control character, which no name has".to_owned());
    }
    Ok(())
}

fn kernel(digits: &str) -> Result<[u8; 32], String> {
    let hash = blake3::Hash::from_hex(digits);
    let wrong =
        |_| format!("`kernel` is `{}`: expected the 64 hexadecimal digits of a hash", shortened(digits));
    hash.map(|hash| *hash.as_bytes()).map_err(wrong)
}

fn shape(text: &str) -> Result<[u64; 4], String> {
    let extent = |text: &str| text.parse::<u64>().ok().filter(|extent| extent.is_power_of_two());
    let extents: Option<Vec<u64>> = text.split('x').map(extent).collect();
    let wrong = || {
        format!(
            "`shape` is `{}`: expected batch, rows, columns and depth as powers of two, such as 1x4096x2048x2048",
            shortened(text)
        )
    };
    extents.and_then(|extents| <[u64; 4]>::try_from(extents).ok()).ok_or_else(wrong)
}

/// As much of a text as a message shows.
fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
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

/// Writes an entry as [`Tuning::parse`] reads it.
pub(super) fn write_entry(
    f: &mut dyn fmt::Write,
    architecture: Architecture,
    device: Option<&str>,
    problem: Problem,
    tile: &Tile,
) -> fmt::Result {
    writeln!(f, "[[tile]]\narchitecture = \"{architecture}\"")?;
    if let Some(device) = device {
        writeln!(f, "device = \"{device}\"")?;
    }
    writeln!(f, "kernel = \"{}\"\nshape = \"{}\"", problem.kernel(), problem.shape())?;
    let Tile { rows, columns, depth, stages, warps, across, blocks } = *tile;
    for (key, value) in NUMBERS.into_iter().zip([rows, columns, depth, stages, warps, across, blocks]) {
        writeln!(f, "{key} = {value}")?;
    }
    Ok(())
}
