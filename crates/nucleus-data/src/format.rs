//! The description of a data set, `dataset.json`: what it says and what must hold of it.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the format that this crate writes and reads.
pub const VERSION: u32 = 1;

/// Name of the description in the folder of a data set.
pub const DESCRIPTION: &str = "dataset.json";

/// Name of the list of captions, one JSON object per line.
pub const CAPTIONS: &str = "captions.jsonl";

/// Name of the list of pictures that were left out, one JSON object per line.
pub const DROPPED: &str = "dropped.jsonl";

/// Name of the licence's text.
pub const LICENSE: &str = "LICENSE.txt";

/// Token id of padding, which stands after the words of a caption.
pub const PADDING: i32 = 0;

/// Token id of every word that the vocabulary does not hold.
pub const UNKNOWN: i32 = 1;

/// What stands in the vocabulary at [`PADDING`] and [`UNKNOWN`]; no word of a caption can be spelt so.
pub const SPECIAL_WORDS: [&str; 2] = ["<padding>", "<unknown>"];

/// Largest width and height of a stored picture, in pixels.
pub const MAX_SIDE: usize = 8192;

/// Most tokens that a caption may have.
pub const MAX_TOKENS: usize = 4096;

/// Most words that a vocabulary may have.
pub const MAX_WORDS: usize = 1 << 20;

/// What the shards of a data set hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `pixels` u8 [N, height, width, channels], sRGB.
    Pixels,
    /// `latents` f32, f16 or bf16 [N, channels, height, width].
    Latents,
}

impl Kind {
    /// The name of the tensor in the shards.
    pub fn tensor(self) -> &'static str {
        match self {
            Kind::Pixels => "pixels",
            Kind::Latents => "latents",
        }
    }
}

/// One file of items of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardDescription {
    /// Path below the folder, with `/` between its parts.
    pub file: String,
    /// Number of items.
    pub count: usize,
    /// BLAKE3 of the file's bytes, in hexadecimal.
    pub blake3: String,
}

/// The items of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketDescription {
    /// Rows of a picture or latent.
    pub height: usize,
    /// Columns of a picture or latent.
    pub width: usize,
    /// Number of items in all shards.
    pub count: usize,
    /// The files, in order.
    pub shards: Vec<ShardDescription>,
}

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`VERSION`].
    pub version: u32,
    /// What the shards hold.
    pub kind: Kind,
    /// Channels of a picture or latent.
    pub channels: usize,
    /// Tokens of a caption, padding included.
    pub token_length: usize,
    /// Word of every token id; the first two are [`SPECIAL_WORDS`].
    pub vocabulary: Vec<String>,
    /// The sizes, none twice.
    pub buckets: Vec<BucketDescription>,
    /// Path of the captions below the folder.
    pub captions: String,
    /// Name of the licence of pictures and captions.
    pub license: String,
    /// Whom the licence asks to name, and how.
    pub attribution: String,
}

impl Description {
    /// Checks everything that can be checked without looking at another file.
    ///
    /// # Errors
    /// A sentence that names the key and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("`version` is {}; this program reads version {VERSION}", self.version));
        }
        if self.channels == 0 || self.channels > 4096 {
            return Err(format!("`channels` is {}, which is not between 1 and 4096", self.channels));
        }
        if self.kind == Kind::Pixels && self.channels != 3 {
            return Err(format!("`channels` is {}; pictures have 3", self.channels));
        }
        if self.token_length == 0 || self.token_length > MAX_TOKENS {
            return Err(format!("`token_length` is {}, not between 1 and {MAX_TOKENS}", self.token_length));
        }
        self.check_vocabulary()?;
        if self.buckets.is_empty() {
            return Err("`buckets` is empty: there are no items".to_owned());
        }
        for (index, bucket) in self.buckets.iter().enumerate() {
            self.check_bucket(index, bucket)?;
        }
        check_path(&self.captions).map_err(|problem| format!("`captions` {problem}"))
    }

    fn check_vocabulary(&self) -> Result<(), String> {
        if self.vocabulary.len() > MAX_WORDS + 2 {
            return Err(format!("`vocabulary` has more than {MAX_WORDS} words"));
        }
        if self.vocabulary.iter().take(2).ne(SPECIAL_WORDS.iter()) {
            let [padding, unknown] = SPECIAL_WORDS;
            return Err(format!("`vocabulary` does not begin with `{padding}` and `{unknown}`"));
        }
        let mut seen = std::collections::HashSet::new();
        match self.vocabulary.iter().find(|word| !seen.insert(word.as_str())) {
            Some(word) => Err(format!("`vocabulary` holds {word:?} twice")),
            None => Ok(()),
        }
    }

    fn check_bucket(&self, index: usize, bucket: &BucketDescription) -> Result<(), String> {
        let BucketDescription { height, width, count, shards } = bucket;
        if [*height, *width].iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(format!("bucket {index} is {width}x{height}; sides are between 1 and {MAX_SIDE}"));
        }
        if self.buckets[..index].iter().any(|other| (other.height, other.width) == (*height, *width)) {
            return Err(format!("two buckets have the size {width}x{height}"));
        }
        let mut total = 0usize;
        for shard in shards {
            check_path(&shard.file)
                .map_err(|problem| format!("bucket {width}x{height}: `file` {problem}"))?;
            if shard.count == 0 {
                return Err(format!("shard `{}` has no items", shard.file));
            }
            total = total.saturating_add(shard.count);
        }
        if total != *count || total == 0 {
            return Err(format!(
                "bucket {width}x{height} has `count` {count}, its shards have {total} items"
            ));
        }
        Ok(())
    }
}

/// A path that stays below the folder, whatever the system.
fn check_path(path: &str) -> Result<(), String> {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    if path.split('/').all(plain) {
        Ok(())
    } else {
        Err(format!("{path:?} is not a plain path below the data set's folder"))
    }
}

/// One line of `captions.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caption {
    /// The shard's `file`.
    pub shard: String,
    /// Index in the shard.
    pub index: usize,
    /// The text from which the tokens were made.
    pub caption: String,
    /// Path of the picture below the folder that it came from.
    pub source: String,
    /// The source's own classification, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Why a data set could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file system refused.
    #[error("cannot read `{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `dataset.json` or `captions.jsonl` is not what it should be.
    #[error("`{}`: {message}", .path.display())]
    Text {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// No complete, consistent safetensors file.
    #[error(transparent)]
    File(#[from] nucleus_runtime::safetensors_file::SafetensorsError),
    /// A shard is not what `dataset.json` says.
    #[error("shard `{}`: {message}", .path.display())]
    Shard {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// An item that does not exist was asked for.
    #[error("bucket {bucket} has no item {item}: it has {count}")]
    Item {
        /// Index of the bucket.
        bucket: usize,
        /// Index of the item in it.
        item: usize,
        /// Items that the bucket has; 0 where there is no such bucket.
        count: usize,
    },
}

/// BLAKE3 of a file, in hexadecimal.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
