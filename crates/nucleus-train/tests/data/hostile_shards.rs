//! Data sets that are broken: a message that names file and tensor, and no panic.

use std::fs;
use std::path::Path;

use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_train::data::{Dataset, Place, ShardOptions, Shards, Source};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Raw, describe, draws, f32_bytes, i32_bytes, pixel_set, stages, write};

const PLAIN: ShardOptions = ShardOptions { patch_size: 2, text_dropout: 0.0, flip: false };
const SHARD: &str = "shards/4x4-0.safetensors";

fn set() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    pixel_set(dir.path(), &[(4, 4, &[2])]);
    dir
}

/// The message, with the folder taken out.
fn message(dir: &Path) -> String {
    let error = Shards::open(dir, PLAIN, draws(1)).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.display()), "")
}

#[test]
fn descriptions_are_checked() {
    let dir = set();
    let path = dir.path().join("dataset.json");
    let good: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value, expected) in [
        ("version", json!(2), "`dataset.json`: the data set has version 2, this program reads version 1"),
        (
            "channels",
            json!(0),
            "`dataset.json`: `channels` is 0 and `token_length` 3; they must be 1 to 4096 and 1 to 65536",
        ),
        (
            "channels",
            json!(4),
            "tensor `pixels` in `shards/4x4-0.safetensors` has shape [2, 4, 4, 3], the data set says [2, 4, 4, 4]",
        ),
        (
            "token_length",
            json!(2),
            "tensor `tokens` in `shards/4x4-0.safetensors` has shape [2, 3], the data set says [2, 2]",
        ),
        (
            "vocabulary",
            json!(["a"]),
            "`dataset.json`: `vocabulary` has 1 words; it begins with the padding and the unknown word",
        ),
        (
            "vocabulary",
            json!(["a", "b", "c"]),
            "tensor `tokens` in `shards/4x4-0.safetensors` holds 10 in item 0; the vocabulary has 3 words",
        ),
        ("kind", json!("latents"), "tensor `latents` in `shards/4x4-0.safetensors` is missing"),
        ("buckets", json!([]), "`dataset.json`: the data set has no items"),
        (
            "buckets",
            json!([{"height": 4, "width": 4, "count": 3, "shards": [{"file": SHARD, "count": 2}]}]),
            "`dataset.json`: the bucket of 4 × 4 has `count` 3, but its shards add up to 2",
        ),
        (
            "buckets",
            json!([{"height": 4, "width": 4, "count": 2, "shards": [{"file": "../x", "count": 2}]}]),
            "`dataset.json`: shard \"../x\" is no path inside the data set",
        ),
        (
            "buckets",
            json!([{"height": 4, "width": 4, "count": 2, "shards": [{"file": "/etc/passwd", "count": 2}]}]),
            "`dataset.json`: shard \"/etc/passwd\" is no path inside the data set",
        ),
        (
            "buckets",
            json!([{"height": 0, "width": 4, "count": 2, "shards": []}]),
            "`dataset.json`: a bucket has items of 0 × 4; sides are 1 to 65536",
        ),
        (
            "buckets",
            json!([{"height": 4, "width": 4, "count": 2, "shards": [{"file": "none", "count": 2}]}]),
            "cannot open `none`: No such file or directory (os error 2)",
        ),
        (
            "buckets",
            json!([{"height": 4, "width": 4, "count": 2, "shards": [{"file": "shards", "count": 2}]}]),
            "`shards` is not a regular file",
        ),
    ] {
        let mut changed = good.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).unwrap();
        assert_eq!(message(dir.path()), expected);
    }
    for text in ["", "[]", "{\"version\": 1}", "{\"version\": -1}"] {
        fs::write(&path, text).unwrap();
        assert!(message(dir.path()).starts_with("`dataset.json`: "), "{text}");
    }
    fs::write(&path, good.to_string()).unwrap();
    assert_eq!(Dataset::open(dir.path()).unwrap().buckets()[0].len(), 2);
    fs::remove_file(&path).unwrap();
    assert_eq!(message(dir.path()), "cannot read `dataset.json`: No such file or directory (os error 2)");
}

#[test]
fn shards_are_checked() {
    let dir = set();
    let path = dir.path().join(SHARD);
    let words = i32_bytes([2, 10, 0, 2, 11, 0]);
    let pixels = || -> Raw<'static> { ("pixels", StoredDType::U8, vec![2, 4, 4, 3], vec![0; 96]) };
    for (tensors, expected) in [
        (vec![pixels()], "tensor `tokens` in `shards/4x4-0.safetensors` is missing"),
        (
            vec![pixels(), ("tokens", StoredDType::I64, vec![2, 3], vec![0; 48])],
            "tensor `tokens` in `shards/4x4-0.safetensors` is stored as I64, it must be I32",
        ),
        (
            vec![pixels(), ("tokens", StoredDType::I32, vec![2, 3], i32_bytes([0, 0, 0, 0, -1, 0]))],
            "tensor `tokens` in `shards/4x4-0.safetensors` holds -1 in item 1; the vocabulary has 200 words",
        ),
        (
            vec![
                ("pixels", StoredDType::F32, vec![2, 4, 4, 3], vec![0; 384]),
                ("tokens", StoredDType::I32, vec![2, 3], words.clone()),
            ],
            "tensor `pixels` in `shards/4x4-0.safetensors` is stored as F32, it must be U8",
        ),
        (
            vec![
                ("pixels", StoredDType::U8, vec![2, 4, 3, 4], vec![0; 96]),
                ("tokens", StoredDType::I32, vec![2, 3], words),
            ],
            "tensor `pixels` in `shards/4x4-0.safetensors` has shape [2, 4, 3, 4], the data set says [2, 4, 4, 3]",
        ),
    ] {
        write(&path, &tensors);
        assert_eq!(message(dir.path()), expected);
    }
}

#[test]
fn files_cut_short_or_changed_anywhere_do_not_panic() {
    let dir = set();
    let path = dir.path().join(SHARD);
    let whole = fs::read(&path).unwrap();
    let stages = stages(2, None);
    for length in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(message(dir.path()).contains("4x4-0.safetensors"));
    }
    for at in (0..whole.len()).step_by(3) {
        let mut changed = whole.clone();
        changed[at] ^= 0x15;
        fs::write(&path, &changed).unwrap();
        if let Ok(mut shards) = Shards::open(dir.path(), PLAIN, draws(1)) {
            shards.batch(&Place::of(&stages, 1, 0)).unwrap();
        }
    }
}

#[test]
fn models_and_data_must_fit() {
    let dir = set();
    let error = |options| {
        let error = Shards::open(dir.path(), options, draws(1)).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        error(ShardOptions { patch_size: 3, ..PLAIN }),
        "`DIR`: items of 4 × 4 cannot be cut into patches of 3 × 3, as the model's patch_size asks"
    );
    assert_eq!(error(ShardOptions { patch_size: 0, ..PLAIN }), "`DIR`: the model's patch_size is 0");
}

#[test]
fn latents_must_be_finite_and_are_not_mirrored() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![0.5; 16];
    values[9] = f32::NAN;
    let text = i32_bytes([2, 10, 0]);
    let latents: [Raw<'_>; 2] = [
        ("latents", StoredDType::F32, vec![1, 4, 2, 2], f32_bytes(values)),
        ("tokens", StoredDType::I32, vec![1, 3], text),
    ];
    write(&dir.path().join("shards/a.safetensors"), &latents);
    let shards = json!([{"file": "shards/a.safetensors", "count": 1}]);
    describe(dir.path(), "latents", 4, vec![json!({"height": 2, "width": 2, "count": 1, "shards": shards})]);
    let mut shards = Shards::open(dir.path(), PLAIN, draws(1)).unwrap();
    let error = shards.batch(&Place::of(&stages(1, None), 1, 0)).unwrap_err().to_string();
    assert!(error.ends_with("` is not finite in item 0 of those of 2 × 2"), "{error}");
    let error = Shards::open(dir.path(), ShardOptions { flip: true, ..PLAIN }, draws(1)).unwrap_err();
    assert!(error.to_string().contains("`flip` mirrors pictures, but the data set holds latents"));
}
