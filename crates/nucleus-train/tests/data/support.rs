//! Small data sets on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nucleus_data::format::SPECIAL_WORDS;
use nucleus_runtime::HostTensor;
use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_runtime::safetensors_write::{TensorSpec, write_safetensors};
use nucleus_train::data::{Batch, Draws, Place, Source};
use nucleus_train::random::Streams;
use nucleus_train::recipe::{Stage, Stages};
use nucleus_train::timesteps::TimestepSampling;
use serde_json::{Value, json};

/// A tensor to be written: name, dtype, shape, bytes.
pub(crate) type Raw<'a> = (&'a str, StoredDType, Vec<usize>, Vec<u8>);

pub(crate) fn write(path: &Path, tensors: &[Raw<'_>]) {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorSpec {
            name: (*name).to_owned(),
            dtype: *dtype,
            shape: shape.clone(),
        })
        .collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_safetensors(path, &specs, &BTreeMap::new(), &mut |spec, sink| {
        let (.., bytes) = tensors.iter().find(|(name, ..)| *name == spec.name).unwrap();
        sink.write_all(bytes)
    })
    .unwrap();
}

pub(crate) fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

pub(crate) fn i32_bytes(values: impl IntoIterator<Item = i32>) -> Vec<u8> {
    values.into_iter().flat_map(i32::to_le_bytes).collect()
}

pub(crate) fn draws(seed: u64) -> Draws {
    Draws { streams: Streams::new(seed), timesteps: TimestepSampling::default() }
}

/// One stage without end.
pub(crate) fn stages(batch: usize, resolution: Option<usize>) -> Stages {
    let stage = Stage { steps: 1_000_000, batch, accumulate: 1, resolution, capacity_factor: None };
    Stages::new(vec![stage]).unwrap()
}

pub(crate) fn batch(source: &mut dyn Source, stages: &Stages, step: u64) -> Batch {
    source.batch(&Place::of(stages, step, 0)).unwrap()
}

pub(crate) fn tensor<'a>(batch: &'a Batch, name: &str) -> &'a HostTensor {
    batch.tensors.get(name).unwrap()
}

/// Number of tokens of an item's text.
pub(crate) const TEXT: usize = 3;

/// The tokens of an item: a word, padding, the item's bucket and number as words.
pub(crate) fn tokens(bucket: usize, item: usize) -> [i32; TEXT] {
    [2 + bucket as i32, 10 + item as i32, 0]
}

/// Pixel (y, x, channel) of an item.
pub(crate) fn pixel(item: usize, y: usize, x: usize, channel: usize) -> u8 {
    (item * 7 + y * 5 + x * 3 + channel * 11) as u8
}

/// A data set of pixels: buckets of height, width and the counts of their shards.
pub(crate) fn pixel_set(folder: &Path, buckets: &[(usize, usize, &[usize])]) {
    let mut described = Vec::new();
    for (number, (height, width, shards)) in buckets.iter().enumerate() {
        let mut first = 0;
        let mut files = Vec::new();
        for (shard, count) in shards.iter().enumerate() {
            let file = format!("shards/{height}x{width}-{shard}.safetensors");
            let mut pixels = Vec::new();
            for item in first..first + count {
                for y in 0..*height {
                    for x in 0..*width {
                        pixels.extend((0..3).map(|channel| pixel(item, y, x, channel)));
                    }
                }
            }
            let words = (first..first + count).flat_map(|item| tokens(number, item));
            write(
                &folder.join(&file),
                &[
                    ("pixels", StoredDType::U8, vec![*count, *height, *width, 3], pixels),
                    ("tokens", StoredDType::I32, vec![*count, TEXT], i32_bytes(words)),
                ],
            );
            files.push(json!({"file": file, "count": count, "blake3": ""}));
            first += count;
        }
        described.push(json!({"height": height, "width": width, "count": first, "shards": files}));
    }
    describe(folder, "pixels", 3, described);
}

pub(crate) fn describe(folder: &Path, kind: &str, channels: usize, buckets: Vec<Value>) {
    let mut vocabulary: Vec<String> = (0..200).map(|word| format!("w{word}")).collect();
    vocabulary.splice(..2, SPECIAL_WORDS.map(str::to_owned));
    let description = json!({
        "version": 1, "kind": kind, "channels": channels, "token_length": TEXT, "vocabulary": vocabulary,
        "buckets": buckets, "captions": "captions.jsonl", "license": "CC0", "attribution": ""
    });
    fs::write(folder.join("dataset.json"), description.to_string()).unwrap();
}
