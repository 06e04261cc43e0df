//! Files of batches and data sets, from arbitrary bytes.
//!
//! The input is split at every `\xff\xfe`: a file of batches or shard, and `dataset.json`. The first eight bytes of the file are replaced by a
//! header length that leaves the part after its last `}` as data, so that mutations of the JSON reach the parser. Where there is no
//! second part the description is one of a shard of four items.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nucleus_train::data::{Batch, Batches, DataError, Draws, Place, ShardOptions, Shards, Source};
use nucleus_train::random::Streams;
use nucleus_train::recipe::{Stage, Stages};
use nucleus_train::timesteps::TimestepSampling;

const DESCRIPTION: &[u8] = br#"{"version": 1, "kind": "pixels", "channels": 3, "token_length": 3,
    "vocabulary": ["<padding>", "<unknown>", "a", "b"], "buckets": [{"height": 4, "width": 4, "count": 4,
    "shards": [{"file": "shards/a.safetensors", "count": 4, "blake3": ""}]}],
    "captions": "captions.jsonl", "license": "CC0", "attribution": ""}"#;

/// `part` as a file: its JSON gets the length field that belongs to it.
fn framed(part: &[u8]) -> Vec<u8> {
    let header = part.iter().rposition(|&byte| byte == b'}').map_or(part.len(), |at| at + 1);
    [&(header as u64).to_le_bytes()[..], part].concat()
}

fn check(opened: Result<Batch, DataError>, bytes: usize) {
    match opened {
        Ok(batch) => {
            for (name, tensor) in batch.tensors.iter() {
                assert!(tensor.to_f32_vec().iter().all(|value| value.is_finite()), "{name}");
            }
            assert_eq!(batch.dims.iter().map(|(_, size)| *size).product::<i64>(), batch.image_tokens as i64);
            assert!(batch.items * batch.image_tokens <= bytes);
        }
        Err(error) => assert!(error.to_string().len() < 1 << 16),
    }
}

fn exercise(folder: &Path, bytes: usize) {
    let draws = Draws { streams: Streams::new(1), timesteps: TimestepSampling::default() };
    let stage = Stage { steps: 100, batch: 2, accumulate: 1, resolution: None, capacity_factor: None };
    let stages = Stages::new(vec![stage]).expect("there is one");
    let place = Place::of(&stages, 3, 0);
    check(Batches::open(&folder.join("shards"), draws).and_then(|mut batches| {
        let _ = batches.largest();
        batches.batch(&place)
    }), bytes);
    for patch_size in [1, 2] {
        let options = ShardOptions { patch_size, text_dropout: 0.5, flip: false };
        check(Shards::open(folder, options, draws).and_then(|mut shards| {
            shards.check(&stages)?;
            shards.largest(&stages)?;
            shards.batch(&place)
        }), bytes);
    }
}

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path();
    let (file, description) = match data.windows(2).position(|pair| pair == b"\xff\xfe") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, DESCRIPTION),
    };
    std::fs::create_dir_all(dir.join("shards")).expect("a writable folder");
    std::fs::write(dir.join("shards/a.safetensors"), framed(file)).expect("a writable folder");
    std::fs::write(dir.join("dataset.json"), description).expect("a writable folder");
    exercise(dir, file.len());
});
