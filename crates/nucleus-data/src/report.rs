//! What building gives: counts, the list of what was left out, or the reason why there is nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use nucleus_runtime::safetensors_write::WriteError;
use serde::Serialize;

/// Why no data set was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("`{}` {message}", .path.display())]
    Text {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// Options that do not fit together.
    #[error("{0}")]
    Choice(String),
    /// A picture cannot be used, and `strict` is set.
    #[error("picture `{file}` {message}")]
    Picture {
        /// Its path below the folder of pictures.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// A shard could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Every picture was left out.
    #[error("no picture is left of {candidates}: {reasons}")]
    Nothing {
        /// Pictures that there were.
        candidates: usize,
        /// Why they were left out, with counts.
        reasons: String,
    },
}

/// Why a picture was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// It could not be read or drawn.
    Broken {
        /// What is wrong with it.
        message: String,
    },
    /// No caption, or one without words.
    NoCaption,
    /// The list names it a second time.
    ListedTwice,
    /// A variant in skin tone.
    SkinTone,
    /// Of a group that is not wanted.
    Group,
    /// The pixels of an earlier picture.
    Duplicate {
        /// That picture.
        of: String,
    },
    /// Nearly an earlier picture.
    NearDuplicate {
        /// That picture.
        of: String,
        /// Bits, of 128, in which the hashes differ.
        bits: u32,
        /// Largest difference of the thumbnails, of 255.
        difference: u8,
    },
}

impl Reason {
    /// The name that `dropped.jsonl` and reports use.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::Broken { .. } => "broken",
            Reason::NoCaption => "no-caption",
            Reason::ListedTwice => "listed-twice",
            Reason::SkinTone => "skin-tone",
            Reason::Group => "group",
            Reason::Duplicate { .. } => "duplicate",
            Reason::NearDuplicate { .. } => "near-duplicate",
        }
    }

    /// What is wrong with the input, where it is a fault of it and no choice.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Reason::Broken { message } => Some(message.clone()),
            Reason::NoCaption => Some("has no caption with a word in it".to_owned()),
            Reason::ListedTwice => Some("is listed twice".to_owned()),
            _ => None,
        }
    }
}

/// A picture that was left out: a line of `dropped.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Dropped {
    /// Its path below the folder of pictures.
    pub file: String,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
    /// Its caption.
    pub caption: String,
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// Pictures that were listed or found.
    pub candidates: usize,
    /// Items of the data set.
    pub items: usize,
    /// Pictures that were left out, by reason.
    pub dropped: BTreeMap<&'static str, usize>,
    /// Items by size, `WIDTHxHEIGHT`.
    pub buckets: BTreeMap<String, usize>,
    /// Ids of the vocabulary, padding and the unknown word included.
    pub vocabulary: usize,
    /// Words of captions that the vocabulary does not hold, among those that became tokens.
    pub unknown_words: usize,
    /// Captions with more words than tokens.
    pub cut_captions: usize,
}
