//! Reads a data set: shards mapped into memory, every access checked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use nucleus_runtime::safetensors_file::{MappedFile, StoredDType};

use crate::format::{
    BucketDescription, Caption, DESCRIPTION, DatasetError, Description, Kind, ShardDescription, digest,
};
use crate::words::Vocabulary;

/// Most bytes of `dataset.json`.
const MAX_DESCRIPTION_BYTES: u64 = 256 << 20;

/// Most bytes of `captions.jsonl`.
const MAX_CAPTIONS_BYTES: u64 = 4 << 30;

/// A data set that was opened and checked.
///
/// Its files must not change while it is open; see [`MappedFile`].
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    description: Description,
    vocabulary: Vocabulary,
    buckets: Vec<Bucket>,
}

/// The items of one size, numbered through all its shards.
#[derive(Debug)]
pub struct Bucket {
    number: usize,
    height: usize,
    width: usize,
    len: usize,
    shards: Vec<Shard>,
    /// Tokens of all items, i32 [len, token_length].
    tokens: Vec<i32>,
    token_length: usize,
}

#[derive(Debug)]
struct Shard {
    /// Number of its first item in the bucket.
    start: usize,
    file: MappedFile,
    /// Where the data of its items begins in the file.
    data: usize,
    item_bytes: usize,
    dtype: StoredDType,
}

/// One item.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Element type of `data`: U8 for pixels; F32, F16 or BF16 for latents.
    pub dtype: StoredDType,
    /// Pixels [height, width, channels] or latents [channels, height, width], row-major, little-endian, not aligned.
    pub data: &'a [u8],
    /// The caption, i32 \[token_length\]: every id is in the vocabulary.
    pub tokens: &'a [i32],
}

impl Dataset {
    /// Opens the data set in folder `path`: reads `dataset.json`, maps the shards, and checks that they hold what it says and that
    /// every token is in the vocabulary. Pixels and captions are not read yet.
    ///
    /// # Errors
    /// A file is missing, broken, or not what `dataset.json` says.
    pub fn open(path: &Path) -> Result<Dataset, DatasetError> {
        let file = path.join(DESCRIPTION);
        let mut text = Vec::new();
        bounded(&file, MAX_DESCRIPTION_BYTES)?
            .read_to_end(&mut text)
            .map_err(|source| DatasetError::Io { path: file.clone(), source })?;
        let refuse = |message: String| DatasetError::Text { path: file.clone(), message };
        let description: Description = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("no description of a data set: {error}")))?;
        description.check().map_err(refuse)?;
        let mut buckets = Vec::new();
        for (number, bucket) in description.buckets.iter().enumerate() {
            buckets.push(Bucket::open(path, &description, number, bucket)?);
        }
        let vocabulary = Vocabulary::new(description.vocabulary.clone());
        Ok(Dataset { path: path.to_path_buf(), description, vocabulary, buckets })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `dataset.json` says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Words and their ids.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The buckets; none is empty.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Number of items in all buckets.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(Bucket::len).sum()
    }

    /// Never true of a data set that was opened; here for completeness.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Item `item` of bucket `bucket`.
    ///
    /// # Errors
    /// There is no such item.
    pub fn item(&self, bucket: usize, item: usize) -> Result<Item<'_>, DatasetError> {
        let found = self.buckets.get(bucket).ok_or(DatasetError::Item { bucket, item, count: 0 })?;
        found.item(item)
    }

    /// The captions, in the order of buckets and items.
    ///
    /// # Errors
    /// The file is missing or broken, or does not have one line for every item, in order.
    pub fn captions(&self) -> Result<Vec<Vec<Caption>>, DatasetError> {
        let file = self.path.join(&self.description.captions);
        let mut lines = bounded(&file, MAX_CAPTIONS_BYTES)?.lines().enumerate();
        let refuse = |message: String| DatasetError::Text { path: file.clone(), message };
        let mut captions = Vec::new();
        for bucket in &self.description.buckets {
            let mut of_bucket = Vec::new();
            for (shard, index) in places(bucket) {
                let wanted = format!("item {index} of `{}`", shard.file);
                let (number, line) =
                    lines.next().ok_or_else(|| refuse(format!("has no line for {wanted}")))?;
                let line = line.map_err(|source| DatasetError::Io { path: file.clone(), source })?;
                let caption: Caption = serde_json::from_str(&line)
                    .map_err(|error| refuse(format!("line {}: {error}", number + 1)))?;
                if caption.shard != shard.file || caption.index != index {
                    return Err(refuse(format!("line {} is not that of {wanted}", number + 1)));
                }
                of_bucket.push(caption);
            }
            captions.push(of_bucket);
        }
        match lines.next() {
            Some((number, _)) => Err(refuse(format!("line {} belongs to no item", number + 1))),
            None => Ok(captions),
        }
    }

    /// Reads everything: the shards' hashes, and the captions. Latents must be finite.
    ///
    /// # Errors
    /// A file is not the one that was written.
    pub fn verify(&self) -> Result<(), DatasetError> {
        for (bucket, description) in self.buckets.iter().zip(&self.description.buckets) {
            for (shard, ShardDescription { blake3, .. }) in bucket.shards.iter().zip(&description.shards) {
                let path = shard.file.path().to_path_buf();
                let found =
                    digest(&path).map_err(|source| DatasetError::Io { path: path.clone(), source })?;
                if found != *blake3 {
                    let message = format!(
                        "its BLAKE3 is {found}, `{DESCRIPTION}` says {blake3}: it was changed or damaged"
                    );
                    return Err(DatasetError::Shard { path, message });
                }
            }
            for number in 0..bucket.len() {
                if !bucket.item(number)?.is_finite() {
                    let message =
                        format!("item {number} of bucket {}x{} is not finite", bucket.width, bucket.height);
                    return Err(DatasetError::Text { path: self.path.clone(), message });
                }
            }
        }
        self.captions().map(drop)
    }
}

fn places(bucket: &BucketDescription) -> impl Iterator<Item = (&ShardDescription, usize)> {
    bucket.shards.iter().flat_map(|shard| (0..shard.count).map(move |index| (shard, index)))
}

fn bounded(path: &Path, limit: u64) -> Result<BufReader<std::io::Take<File>>, DatasetError> {
    let failed = |source| DatasetError::Io { path: path.to_path_buf(), source };
    // Opening a pipe would wait for its writer, so the kind is looked at first.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > limit {
        let message = format!("is not a regular file of at most {limit} bytes");
        return Err(DatasetError::Text { path: path.to_path_buf(), message });
    }
    Ok(BufReader::new(File::open(path).map_err(failed)?.take(limit)))
}

impl Bucket {
    fn open(
        folder: &Path,
        description: &Description,
        number: usize,
        bucket: &BucketDescription,
    ) -> Result<Bucket, DatasetError> {
        let BucketDescription { height, width, count, shards } = bucket;
        let token_length = description.token_length;
        let mut opened = Bucket {
            number,
            height: *height,
            width: *width,
            len: 0,
            shards: Vec::new(),
            tokens: Vec::new(),
            token_length,
        };
        for shard in shards {
            let path = folder.join(&shard.file);
            let file = MappedFile::open(&path)?;
            let (dtype, data, item_bytes) = opened.check(description, shard, &file)?;
            opened.shards.push(Shard { start: opened.len, file, data, item_bytes, dtype });
            opened.len += shard.count;
        }
        debug_assert_eq!(opened.len, *count, "the description was checked");
        Ok(opened)
    }

    /// Checks a shard and takes its tokens: its element type, where its data begins, and bytes per item.
    fn check(
        &mut self,
        description: &Description,
        shard: &ShardDescription,
        file: &MappedFile,
    ) -> Result<(StoredDType, usize, usize), DatasetError> {
        let refuse = |message: String| DatasetError::Shard { path: file.path().to_path_buf(), message };
        let tensor = |name: &str| {
            let found = file.header().tensors.iter().find(|tensor| tensor.name == name);
            found.ok_or_else(|| refuse(format!("has no tensor `{name}`")))
        };
        let Description { kind, channels, token_length, .. } = *description;
        let data = tensor(kind.tensor())?;
        let (shape, dtypes): (_, &[StoredDType]) = match kind {
            Kind::Pixels => (vec![shard.count, self.height, self.width, channels], &[StoredDType::U8]),
            Kind::Latents => (
                vec![shard.count, channels, self.height, self.width],
                &[StoredDType::F32, StoredDType::F16, StoredDType::BF16],
            ),
        };
        let tokens = tensor("tokens")?;
        for (tensor, shape, dtypes) in
            [(data, shape, dtypes), (tokens, vec![shard.count, token_length], &[StoredDType::I32])]
        {
            if tensor.shape != shape || !dtypes.contains(&tensor.dtype) {
                let dtypes: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
                let (dtypes, name) = (dtypes.join(" or "), &tensor.name);
                let found = format!("tensor `{name}` is {} {:?}", tensor.dtype, tensor.shape);
                return Err(refuse(format!("{found}, `{DESCRIPTION}` asks for {dtypes} {shape:?}")));
            }
        }
        let words = description.vocabulary.len();
        for (index, bytes) in file.bytes()[tokens.range.clone()].chunks_exact(4).enumerate() {
            let token = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if usize::try_from(token).is_ok_and(|token| token < words) {
                self.tokens.push(token);
            } else {
                let (item, place) = (index / token_length, index % token_length);
                return Err(refuse(format!(
                    "token {place} of item {item} is {token}; the vocabulary has ids 0 to {}",
                    words - 1
                )));
            }
        }
        Ok((data.dtype, data.range.start, data.range.len() / shard.count))
    }

    /// Rows of an item.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of an item.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true of a bucket of an opened data set; here for completeness.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Item `item` of the bucket.
    ///
    /// # Errors
    /// There is no such item.
    pub fn item(&self, item: usize) -> Result<Item<'_>, DatasetError> {
        if item >= self.len {
            return Err(DatasetError::Item { bucket: self.number, item, count: self.len });
        }
        let shard = &self.shards[self.shards.partition_point(|shard| shard.start <= item) - 1];
        let start = shard.data + (item - shard.start) * shard.item_bytes;
        Ok(Item {
            height: self.height,
            width: self.width,
            dtype: shard.dtype,
            data: &shard.file.bytes()[start..start + shard.item_bytes],
            tokens: &self.tokens[item * self.token_length..(item + 1) * self.token_length],
        })
    }
}

impl Item<'_> {
    /// True where every element is finite, as all pixels are.
    pub fn is_finite(&self) -> bool {
        // Infinities and NaNs are the values with all bits of the exponent set.
        let finite16 =
            |mask: u16| move |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]) & mask != mask;
        match self.dtype {
            StoredDType::F16 => self.data.chunks_exact(2).all(finite16(0x7c00)),
            StoredDType::BF16 => self.data.chunks_exact(2).all(finite16(0x7f80)),
            StoredDType::F32 => self.data.chunks_exact(4).all(|bytes| finite16(0x7f80)(&bytes[2..])),
            _ => true,
        }
    }
}
