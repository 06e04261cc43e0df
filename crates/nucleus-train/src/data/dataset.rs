//! A data set on disk: `dataset.json` and mapped shards. `docs/training.md` describes the format.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path};

use nucleus_runtime::safetensors_file::{MappedFile, StoredDType};
use serde::Deserialize;

use super::DataError;

/// Largest `dataset.json` that is read, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;

/// Longest text of an item, in tokens.
const MAX_TOKENS: usize = 65_536;

/// Largest side of an item, in pixels or latents.
const MAX_SIDE: usize = 65_536;

/// `dataset.json`, as far as training needs it.
#[derive(Debug, Deserialize)]
struct Description {
    version: u64,
    kind: ItemKind,
    channels: usize,
    token_length: usize,
    vocabulary: Vec<String>,
    buckets: Vec<BucketDescription>,
}

#[derive(Debug, Deserialize)]
struct BucketDescription {
    height: usize,
    width: usize,
    count: usize,
    shards: Vec<ShardDescription>,
}

#[derive(Debug, Deserialize)]
struct ShardDescription {
    file: String,
    count: usize,
}

/// What the items of a data set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// u8 [height, width, channels].
    Pixels,
    /// f32, f16 or bf16 [channels, height, width].
    Latents,
}

impl ItemKind {
    fn tensor(self) -> &'static str {
        match self {
            ItemKind::Pixels => "pixels",
            ItemKind::Latents => "latents",
        }
    }
}

/// A data set: shards are mapped, nothing is copied.
#[derive(Debug)]
pub struct Dataset {
    kind: ItemKind,
    channels: usize,
    token_length: usize,
    vocabulary: Vec<String>,
    buckets: Vec<Bucket>,
}

/// The items of one size.
#[derive(Debug)]
pub struct Bucket {
    /// Rows, in pixels or latents.
    pub height: usize,
    /// Columns, in pixels or latents.
    pub width: usize,
    count: usize,
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    file: MappedFile,
    /// Items of the bucket before this shard.
    first: usize,
    count: usize,
    dtype: StoredDType,
    picture: Range<usize>,
    tokens: Range<usize>,
}

/// One item, in its shard.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The shard, for messages.
    pub path: &'a Path,
    /// Element type of `picture`: U8, F32, F16 or BF16.
    pub dtype: StoredDType,
    /// Little-endian elements, [height, width, channels] of pixels, [channels, height, width] of latents.
    pub picture: &'a [u8],
    /// Little-endian i32, one for each token; every one is in the vocabulary.
    pub tokens: &'a [u8],
}

impl Dataset {
    /// Opens the data set in a folder. Shapes and element types of all shards are checked, and that every token is in the vocabulary.
    ///
    /// # Errors
    /// The description or a shard is missing, broken, or not what the description says.
    pub fn open(folder: &Path) -> Result<Dataset, DataError> {
        let path = folder.join("dataset.json");
        let description = read_description(&path)?;
        let Description { version, kind, channels, token_length, vocabulary, buckets } = description;
        let wrong = |problem: String| Err(DataError::folder(&path, problem));
        if version != 1 {
            return wrong(format!("the data set has version {version}, this program reads version 1"));
        }
        if !(1..=4096).contains(&channels) || !(1..=MAX_TOKENS).contains(&token_length) {
            return wrong(format!(
                "`channels` is {channels} and `token_length` {token_length}; they must be 1 to 4096 and 1 to {MAX_TOKENS}"
            ));
        }
        if vocabulary.len() < 2 {
            return wrong(format!(
                "`vocabulary` has {} words; it begins with the padding and the unknown word",
                vocabulary.len()
            ));
        }
        let mut dataset = Dataset { kind, channels, token_length, vocabulary, buckets: Vec::new() };
        for bucket in buckets {
            let bucket = dataset.bucket(folder, &path, bucket)?;
            dataset.buckets.push(bucket);
        }
        if dataset.buckets.iter().all(|bucket| bucket.count == 0) {
            return wrong("the data set has no items".to_owned());
        }
        Ok(dataset)
    }

    fn bucket(
        &self,
        folder: &Path,
        description: &Path,
        bucket: BucketDescription,
    ) -> Result<Bucket, DataError> {
        let BucketDescription { height, width, count, shards } = bucket;
        if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
            let problem = format!("a bucket has items of {height} × {width}; sides are 1 to {MAX_SIDE}");
            return Err(DataError::folder(description, problem));
        }
        let mut opened: Vec<Shard> = Vec::with_capacity(shards.len());
        let mut first = 0usize;
        for shard in shards {
            let plain = Path::new(&shard.file).components().all(|part| matches!(part, Component::Normal(_)));
            if shard.file.is_empty() || !plain {
                let problem = format!("shard {:?} is no path inside the data set", shard.file);
                return Err(DataError::folder(description, problem));
            }
            let file = MappedFile::open(&folder.join(&shard.file))?;
            let shard = self.shard(file, first, shard.count, height, width)?;
            // Counts are those of mapped tensors by now, which are too few to overflow.
            first += shard.count;
            opened.push(shard);
        }
        if first != count {
            let problem = format!(
                "the bucket of {height} × {width} has `count` {count}, but its shards add up to {first}"
            );
            return Err(DataError::folder(description, problem));
        }
        Ok(Bucket { height, width, count, shards: opened })
    }

    fn shard(
        &self,
        file: MappedFile,
        first: usize,
        count: usize,
        height: usize,
        width: usize,
    ) -> Result<Shard, DataError> {
        let find = |name: &str| {
            let entry = file.header().tensors.iter().find(|entry| entry.name == name);
            entry.ok_or_else(|| DataError::tensor(file.path(), name, "is missing"))
        };
        let name = self.kind.tensor();
        let picture = find(name)?;
        let (wanted, dtypes): (_, &[StoredDType]) = match self.kind {
            ItemKind::Pixels => ([count, height, width, self.channels], &[StoredDType::U8]),
            ItemKind::Latents => (
                [count, self.channels, height, width],
                &[StoredDType::F32, StoredDType::F16, StoredDType::BF16],
            ),
        };
        let wrong = |tensor, problem| Err(DataError::tensor(file.path(), tensor, problem));
        if !dtypes.contains(&picture.dtype) {
            let names: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
            return wrong(name, format!("is stored as {}, it must be {}", picture.dtype, names.join(" or ")));
        }
        if picture.shape != wanted {
            return wrong(name, format!("has shape {:?}, the data set says {wanted:?}", picture.shape));
        }
        let tokens = find("tokens")?;
        if tokens.dtype != StoredDType::I32 {
            return wrong("tokens", format!("is stored as {}, it must be I32", tokens.dtype));
        }
        let wanted = [count, self.token_length];
        if tokens.shape != wanted {
            return wrong("tokens", format!("has shape {:?}, the data set says {wanted:?}", tokens.shape));
        }
        for (index, token) in words(&file.bytes()[tokens.range.clone()]).enumerate() {
            if !usize::try_from(token).is_ok_and(|token| token < self.vocabulary.len()) {
                let (item, words) = (index / self.token_length, self.vocabulary.len());
                return wrong(
                    "tokens",
                    format!("holds {token} in item {item}; the vocabulary has {words} words"),
                );
            }
        }
        let (dtype, picture, tokens) = (picture.dtype, picture.range.clone(), tokens.range.clone());
        Ok(Shard { first, count, dtype, picture, tokens, file })
    }

    /// What the items are.
    pub fn kind(&self) -> ItemKind {
        self.kind
    }

    /// Channels of an item.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Tokens of every text, padding included.
    pub fn token_length(&self) -> usize {
        self.token_length
    }

    /// The words by token; 0 is padding, 1 the unknown word.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// The buckets, one for each size.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }
}

impl Bucket {
    /// Number of items.
    pub fn count(&self) -> usize {
        self.count
    }

    /// An item by its number, or `None` behind the last.
    pub fn item(&self, index: usize) -> Option<Item<'_>> {
        let number = self.shards.partition_point(|shard| shard.first + shard.count <= index);
        let shard = self.shards.get(number)?;
        let part = |range: &Range<usize>| {
            let size = range.len() / shard.count;
            let start = range.start + (index - shard.first) * size;
            &shard.file.bytes()[start..start + size]
        };
        Some(Item {
            path: shard.file.path(),
            dtype: shard.dtype,
            picture: part(&shard.picture),
            tokens: part(&shard.tokens),
        })
    }
}

/// Little-endian i32.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = i32> {
    bytes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word))
}

fn read_description(path: &Path) -> Result<Description, DataError> {
    // Opening a pipe would wait for its writer, so the kind is looked at first.
    if !std::fs::metadata(path).map_err(DataError::io(path))?.is_file() {
        return Err(DataError::folder(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(DataError::io(path))?;
    file.take(MAX_DESCRIPTION_BYTES + 1).read_to_end(&mut bytes).map_err(DataError::io(path))?;
    if bytes.len() as u64 > MAX_DESCRIPTION_BYTES {
        return Err(DataError::folder(path, format!("is larger than {MAX_DESCRIPTION_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| DataError::folder(path, error.to_string()))
}
