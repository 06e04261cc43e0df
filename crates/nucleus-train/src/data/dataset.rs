//! A data set on disk: `dataset.json` and mapped shards. `docs/training.md` describes the format.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

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
pub struct Description {
    version: u64,
    /// What the items are.
    pub kind: Kind,
    /// Channels of an item.
    pub channels: usize,
    /// Tokens of every text, padding included.
    pub token_length: usize,
    /// The words by token; 0 is padding, 1 the unknown word.
    pub vocabulary: Vec<String>,
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
pub enum Kind {
    /// u8 [height, width, channels].
    Pixels,
    /// f32, f16 or bf16 [channels, height, width].
    Latents,
}

impl Kind {
    fn tensor(self) -> &'static str {
        match self {
            Kind::Pixels => "pixels",
            Kind::Latents => "latents",
        }
    }
}

/// A data set: shards are mapped, pictures are not copied.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    description: Description,
    buckets: Vec<Bucket>,
}

/// The items of one size.
#[derive(Debug)]
pub struct Bucket {
    height: usize,
    width: usize,
    len: usize,
    shards: Vec<Shard>,
    /// [len, token_length].
    tokens: Vec<i32>,
    token_length: usize,
}

#[derive(Debug)]
struct Shard {
    file: MappedFile,
    /// Items of the bucket before this shard.
    first: usize,
    count: usize,
    dtype: StoredDType,
    data: Range<usize>,
}

/// One item.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Element type of `data`: U8, F32, F16 or BF16.
    pub dtype: StoredDType,
    /// Little-endian elements, [height, width, channels] of pixels, [channels, height, width] of latents. Not aligned.
    pub data: &'a [u8],
    /// Its text; every token is in the vocabulary.
    pub tokens: &'a [i32],
}

impl Dataset {
    /// Opens the data set in a folder. Shapes and element types of all shards are checked, and that every token is in the vocabulary.
    ///
    /// # Errors
    /// The description or a shard is missing, broken, or not what the description says.
    pub fn open(folder: &Path) -> Result<Dataset, DataError> {
        let path = folder.join("dataset.json");
        let mut description = read_description(&path)?;
        let Description { version, channels, token_length, .. } = description;
        let wrong = |problem: String| Err(DataError::folder(&path, problem));
        if version != 1 {
            return wrong(format!("the data set has version {version}, this program reads version 1"));
        }
        if !(1..=4096).contains(&channels) || !(1..=MAX_TOKENS).contains(&token_length) {
            return wrong(format!(
                "`channels` is {channels} and `token_length` {token_length}; they must be 1 to 4096 and 1 to {MAX_TOKENS}"
            ));
        }
        if description.vocabulary.len() < 2 {
            return wrong(format!(
                "`vocabulary` has {} words; it begins with the padding and the unknown word",
                description.vocabulary.len()
            ));
        }
        let described = std::mem::take(&mut description.buckets);
        let mut dataset = Dataset { path: folder.to_path_buf(), description, buckets: Vec::new() };
        for bucket in described {
            let bucket = dataset.bucket(&path, bucket)?;
            dataset.buckets.push(bucket);
        }
        if dataset.buckets.iter().all(Bucket::is_empty) {
            return wrong("the data set has no items".to_owned());
        }
        Ok(dataset)
    }

    fn bucket(&self, description: &Path, bucket: BucketDescription) -> Result<Bucket, DataError> {
        let BucketDescription { height, width, count, shards } = bucket;
        if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
            let problem = format!("a bucket has items of {height} × {width}; sides are 1 to {MAX_SIDE}");
            return Err(DataError::folder(description, problem));
        }
        let token_length = self.description.token_length;
        let mut bucket =
            Bucket { height, width, len: 0, shards: Vec::new(), tokens: Vec::new(), token_length };
        for shard in shards {
            let plain = Path::new(&shard.file).components().all(|part| matches!(part, Component::Normal(_)));
            if shard.file.is_empty() || !plain {
                let problem = format!("shard {:?} is no path inside the data set", shard.file);
                return Err(DataError::folder(description, problem));
            }
            let file = MappedFile::open(&self.path.join(&shard.file))?;
            self.add_shard(&mut bucket, file, shard.count)?;
        }
        if bucket.len != count {
            let problem = format!(
                "the bucket of {height} × {width} has `count` {count}, but its shards add up to {}",
                bucket.len
            );
            return Err(DataError::folder(description, problem));
        }
        Ok(bucket)
    }

    fn add_shard(&self, bucket: &mut Bucket, file: MappedFile, count: usize) -> Result<(), DataError> {
        let Bucket { height, width, .. } = *bucket;
        let Description { kind, channels, token_length, .. } = self.description;
        let find = |name: &str| {
            let entry = file.header().tensors.iter().find(|entry| entry.name == name);
            entry.ok_or_else(|| DataError::tensor(file.path(), name, "is missing"))
        };
        let name = kind.tensor();
        let picture = find(name)?;
        let (wanted, dtypes): (_, &[StoredDType]) = match kind {
            Kind::Pixels => ([count, height, width, channels], &[StoredDType::U8]),
            Kind::Latents => {
                ([count, channels, height, width], &[StoredDType::F32, StoredDType::F16, StoredDType::BF16])
            }
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
        let wanted = [count, token_length];
        if tokens.shape != wanted {
            return wrong("tokens", format!("has shape {:?}, the data set says {wanted:?}", tokens.shape));
        }
        let vocabulary = self.description.vocabulary.len();
        let bytes = &file.bytes()[tokens.range.clone()];
        bucket.tokens.reserve(bytes.len() / 4);
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let token = i32::from_le_bytes(*word);
            if !usize::try_from(token).is_ok_and(|token| token < vocabulary) {
                let item = index / token_length;
                return wrong(
                    "tokens",
                    format!("holds {token} in item {item}; the vocabulary has {vocabulary} words"),
                );
            }
            bucket.tokens.push(token);
        }
        let (dtype, data) = (picture.dtype, picture.range.clone());
        bucket.shards.push(Shard { first: bucket.len, count, dtype, data, file });
        // Counts are those of mapped tensors by now, which are too few to overflow.
        bucket.len += count;
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `dataset.json` says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The buckets, one for each size.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }
}

impl Bucket {
    /// Rows of an item, in pixels or latents.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of an item, in pixels or latents.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An item by its number.
    ///
    /// # Errors
    /// It lies behind the last.
    pub fn item(&self, index: usize) -> Result<Item<'_>, DataError> {
        let number = self.shards.partition_point(|shard| shard.first + shard.count <= index);
        let Some(shard) = self.shards.get(number) else {
            return Err(DataError::Item { item: index, count: self.len });
        };
        let size = shard.data.len() / shard.count;
        let start = shard.data.start + (index - shard.first) * size;
        Ok(Item {
            dtype: shard.dtype,
            data: &shard.file.bytes()[start..start + size],
            tokens: &self.tokens[index * self.token_length..(index + 1) * self.token_length],
        })
    }
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
