//! `log.jsonl`: one line per step, whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error;

/// Name of the log in the folder of a run.
pub const LOG_FILE: &str = "log.jsonl";

/// Longest line that is read, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Why the log could not be read or written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A line before the last is not of a log.
    #[error("`{}`:{line}: {problem}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_path_buf();
    move |source| LogError::Io { path, action, source }
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss of its microbatches.
    pub loss: f64,
    /// Norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the first group that has weights.
    pub lr: f64,
    /// Means of the loss's parts, by name.
    pub parts: Vec<(String, f64)>,
    /// The stage, from 1.
    pub stage: usize,
    /// Image tokens of all its microbatches.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
}

impl StepRecord {
    fn line(&self) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("step".to_owned(), json!(self.step));
        map.insert("loss".to_owned(), json!(self.loss));
        map.insert("grad_norm".to_owned(), json!(self.grad_norm));
        map.insert("lr".to_owned(), json!(self.lr));
        for (name, value) in &self.parts {
            // A part that is called like another key does not take its place.
            map.entry(name.clone()).or_insert(json!(value));
        }
        map.insert("stage".to_owned(), json!(self.stage));
        map.insert("tokens".to_owned(), json!(self.tokens));
        map.insert("seconds".to_owned(), json!((self.seconds * 1e6).round() / 1e6));
        let mut line = Value::Object(map).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// The log of a run, open for its next line.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log in the folder `out` for a run that goes on after `step` (0 for a new one). Lines of later steps, and a last line that
    /// was cut short, are dropped; the file is replaced in one rename, and only if there is something to drop.
    ///
    /// # Errors
    /// The file system refuses, or the file is no log.
    pub fn open(out: &Path, step: u64) -> Result<Log, LogError> {
        let path = out.join(LOG_FILE);
        let (kept, whole) = match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(io_error(&path, "read"))?.len();
                let kept = prefix(&path, file, step)?;
                (kept, kept == size)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, true),
            Err(error) => return Err(io_error(&path, "read")(error)),
        };
        if !whole {
            truncate(&path, kept)?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(io_error(&path, "write"))?;
        Ok(Log { path, file })
    }

    /// Appends the line of a step, in one write.
    ///
    /// # Errors
    /// The file system refuses; a part of the line may have been written, which [`Log::open`] repairs.
    pub fn append(&mut self, record: &StepRecord) -> Result<(), LogError> {
        self.file.write_all(&record.line()).map_err(io_error(&self.path, "write"))
    }

    /// Brings the lines to the disk.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.file.sync_data().map_err(io_error(&self.path, "write"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Steps and losses of a log, in order; a last line that was cut short is left out.
///
/// # Errors
/// The file cannot be read or is no log.
pub fn read_losses(path: &Path) -> Result<Vec<(u64, f64)>, LogError> {
    let mut losses = Vec::new();
    let file = File::open(path).map_err(io_error(path, "read"))?;
    lines(path, file, |step, loss, _| {
        losses.push((step, loss));
        true
    })?;
    Ok(losses)
}

/// Length in bytes of the lines up to `step`.
fn prefix(path: &Path, file: File, step: u64) -> Result<u64, LogError> {
    let mut kept = 0;
    lines(path, file, |line_step, _, end| {
        let keep = line_step <= step;
        if keep {
            kept = end;
        }
        keep
    })?;
    Ok(kept)
}

/// Calls `each` with step, loss and the offset behind every whole line, as long as it says true.
fn lines(path: &Path, file: File, mut each: impl FnMut(u64, f64, u64) -> bool) -> Result<(), LogError> {
    let wrong =
        |line, problem: &str| LogError::Line { path: path.to_path_buf(), line, problem: problem.to_owned() };
    let mut reader = BufReader::new(file);
    let (mut text, mut end, mut number, mut last) = (Vec::new(), 0u64, 0u64, 0u64);
    loop {
        text.clear();
        number += 1;
        reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(io_error(path, "read"))?;
        if text.last() != Some(&b'\n') {
            if text.len() as u64 == MAX_LINE_BYTES {
                return Err(wrong(number, "the line is too long for a log: move the file away"));
            }
            return Ok(());
        }
        let value: Option<Value> = serde_json::from_slice(&text).ok();
        let step = value.as_ref().and_then(|value| value.get("step")?.as_u64());
        let loss = value.as_ref().and_then(|value| value.get("loss")?.as_f64());
        let (Some(step), Some(loss)) = (step, loss) else {
            // A system that crashed can leave a last line of zeros, or of something else.
            if reader.fill_buf().map_err(io_error(path, "read"))?.is_empty() {
                return Ok(());
            }
            return Err(wrong(
                number,
                "the line has no `step` and `loss`: this is no log, move the file away",
            ));
        };
        if step <= last && number > 1 {
            return Err(wrong(number, "steps do not grow: this is no log, move the file away"));
        }
        last = step;
        end += text.len() as u64;
        if !each(step, loss, end) {
            return Ok(());
        }
    }
}

/// Replaces the file by its first `length` bytes.
fn truncate(path: &Path, length: u64) -> Result<(), LogError> {
    let temporary = path.with_file_name(format!(".{LOG_FILE}.tmp"));
    let write = || {
        let mut out = BufWriter::new(File::create(&temporary)?);
        io::copy(&mut File::open(path)?.take(length), &mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // What stays behind is overwritten the next time.
        let _ = std::fs::remove_file(&temporary);
        io_error(path, "rewrite")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            loss: 1.0 / step as f64,
            grad_norm: 0.1,
            lr: 1e-4,
            parts: vec![("velocity".to_owned(), 0.25), ("step".to_owned(), 9.0)],
            stage: 1,
            tokens: 64,
            seconds: 0.123_456_78,
        }
    }

    fn run(out: &Path, from: u64, to: u64) {
        let mut log = Log::open(out, from).unwrap();
        for step in from + 1..=to {
            log.append(&record(step)).unwrap();
        }
        log.sync().unwrap();
    }

    fn steps(out: &Path) -> Vec<u64> {
        read_losses(&out.join(LOG_FILE)).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn a_line_holds_the_step_in_full_precision() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0, 3);
        let text = std::fs::read_to_string(dir.path().join(LOG_FILE)).unwrap();
        assert_eq!(
            text.lines().nth(2).unwrap(),
            r#"{"step":3,"loss":0.3333333333333333,"grad_norm":0.1,"lr":0.0001,"velocity":0.25,"stage":1,"tokens":64,"seconds":0.123457}"#
        );
        assert_eq!(read_losses(&dir.path().join(LOG_FILE)).unwrap()[2], (3, 1.0 / 3.0));
    }

    #[test]
    fn lines_behind_the_resumed_step_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0, 9);
        run(dir.path(), 4, 6);
        assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6]);
        run(dir.path(), 6, 7);
        assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6, 7]);
        run(dir.path(), 0, 2);
        assert_eq!(steps(dir.path()), [1, 2]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_last_line_cut_short_anywhere_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        run(dir.path(), 0, 3);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in (second..whole.len()).step_by(11) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let before = steps(dir.path());
            run(dir.path(), 3, 4);
            assert_eq!(steps(dir.path()), [&before[..], &[4]].concat(), "{length}");
        }
        let zeros = [&whole[..second], &[0; 20], b"\n"].concat();
        std::fs::write(&path, zeros).unwrap();
        run(dir.path(), 3, 4);
        assert_eq!(steps(dir.path()), [1, 4]);
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        for text in ["hello\nworld\n", "{\"step\": 2, \"loss\": 1}\n{\"step\": 2, \"loss\": 1}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Log::open(dir.path(), 5).unwrap_err().to_string();
            assert!(error.ends_with("move the file away"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, vec![b'x'; 2 << 20]).unwrap();
        assert!(Log::open(dir.path(), 5).is_err());
        let missing = Log::open(&dir.path().join("none"), 0).unwrap_err().to_string();
        assert!(missing.contains("none/log.jsonl`"), "{missing}");
    }
}
