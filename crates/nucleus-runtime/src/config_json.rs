//! A checkpoint's `config.json`: one JSON object, small, checked before anything is built from it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;

/// Largest `config.json` that is read, in bytes. Real ones have a few kilobytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why a `config.json` could not be read.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file system refused.
    #[error("cannot read `{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, device or pipe.
    #[error("`{}` is not a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Larger than [`MAX_CONFIG_BYTES`].
    #[error(
        "`{}` is larger than {limit} bytes, the most that such a file may have",
        .path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// Not JSON.
    #[error("`{}`:{line}:{column}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, in bytes from 1; 0 at the end of a line.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// JSON, but no object.
    #[error("`{}` holds {found}, a configuration is an object: {{\"num_layers\": 32, …}}", .path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// The kind of value found.
        found: &'static str,
    },
}

/// Reads the JSON object in the file at `path`, keys in the order of the text.
///
/// # Errors
/// The file is missing, too large, not JSON or not an object.
pub fn read_config(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    parse_config(path, &read_limited(path, MAX_CONFIG_BYTES)?)
}

/// Parses the bytes of a configuration; `path` is named in errors.
///
/// # Errors
/// The bytes are not JSON, or not an object.
pub fn parse_config(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    let found = match parse_json(path, bytes)? {
        Value::Object(map) => return Ok(map),
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
    };
    Err(ConfigError::NotAnObject { path: path.to_path_buf(), found })
}

/// Parses JSON of any type, with the place in the error.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
) -> Result<T, ConfigError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let place = format!(" at line {line} column {column}");
        ConfigError::Syntax {
            path: path.to_path_buf(),
            line,
            column,
            message: text.strip_suffix(place.as_str()).unwrap_or(&text).to_owned(),
        }
    })
}

/// The bytes of a regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ConfigError> {
    let io_error = |source| ConfigError::Io { path: path.to_path_buf(), source };
    // Opening a pipe would wait for its writer, so the kind is looked at first.
    if !std::fs::metadata(path).map_err(io_error)?.is_file() {
        return Err(ConfigError::NotAFile { path: path.to_path_buf() });
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io_error)?.take(limit + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > limit {
        return Err(ConfigError::TooLarge { path: path.to_path_buf(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &[u8]) -> String {
        parse_config(Path::new("config.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn keys_keep_their_order() {
        let map =
            parse_config(Path::new("config.json"), br#"{"z": 1, "a": [0.5, null], "m": true}"#).unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["z", "a", "m"]);
    }

    #[test]
    fn syntax_errors_name_line_and_column() {
        assert_eq!(message(b"{\n  \"a\": 1,\n  oops\n}"), "`config.json`:3:3: key must be a string");
        assert_eq!(message(b""), "`config.json`:1:0: EOF while parsing a value");
        assert_eq!(message(b"{\"a\": NaN}"), "`config.json`:1:7: expected value");
        assert_eq!(message(b"{\"a\": 1e999}"), "`config.json`:1:11: number out of range");
    }

    #[test]
    fn other_values_are_not_configurations() {
        let expect = |found| {
            format!("`config.json` holds {found}, a configuration is an object: {{\"num_layers\": 32, …}}")
        };
        assert_eq!(message(b"[1]"), expect("an array"));
        assert_eq!(message(b"null"), expect("null"));
        assert_eq!(message(b"\"a\""), expect("a string"));
        assert_eq!(message(b"1"), expect("a number"));
        assert_eq!(message(b"true"), expect("a bool"));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat();
        assert_eq!(message(&deep), "`config.json`:1:636: recursion limit exceeded");
    }

    #[test]
    fn size_and_kind_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, vec![b' '; MAX_CONFIG_BYTES as usize + 1]).unwrap();
        assert_eq!(
            read_config(&path).unwrap_err().to_string(),
            format!("`{}` is larger than 1048576 bytes, the most that such a file may have", path.display())
        );
        assert_eq!(
            read_config(dir.path()).unwrap_err().to_string(),
            format!("`{}` is not a regular file", dir.path().display())
        );
        let missing = dir.path().join("none.json");
        assert_eq!(
            read_config(&missing).unwrap_err().to_string(),
            format!("cannot read `{}`: No such file or directory (os error 2)", missing.display())
        );
    }
}
