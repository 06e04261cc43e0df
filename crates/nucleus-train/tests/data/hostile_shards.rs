//! Data sets that are broken: a message that names file and tensor, and no panic.

use std::fs;
use std::path::Path;

use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_train::data::{Place, ShardOptions, Shards, Source};
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

/// What is wrong with data sets is tested where they are read; here, that their errors come through.
#[test]
fn broken_data_sets_are_refused() {
    let dir = set();
    let path = dir.path().join("dataset.json");
    let mut description: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    description["version"] = json!(2);
    fs::write(&path, description.to_string()).unwrap();
    assert_eq!(message(dir.path()), "`dataset.json`: `version` is 2; this program reads version 1");
    fs::remove_file(&path).unwrap();
    assert_eq!(message(dir.path()), "cannot read `dataset.json`: No such file or directory (os error 2)");
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

/// Opens a data set and reads its first batch, if it can be.
fn first(dir: &Path, batch: usize) -> bool {
    let stages = stages(batch, None);
    let opened = Shards::open(dir, PLAIN, draws(1)).and_then(|mut shards| {
        shards.check(&stages)?;
        shards.batch(&Place::of(&stages, 1, 0))
    });
    match opened {
        Ok(batch) => batch.items * batch.image_tokens <= 2 * 4,
        Err(error) => {
            assert!(error.to_string().len() < 1 << 12, "{error}");
            false
        }
    }
}

#[test]
fn descriptions_changed_anywhere_do_not_panic() {
    let dir = set();
    let path = dir.path().join("dataset.json");
    let whole = fs::read_to_string(&path).unwrap();
    assert!(first(dir.path(), 2));
    for at in 0..whole.len() {
        for with in ["", "\"", "9", "-", "]", "{", "é", "null"] {
            let Some((before, after)) = whole.split_at_checked(at) else { continue };
            let mut rest = after.chars();
            rest.next();
            fs::write(&path, format!("{before}{with}{}", rest.as_str())).unwrap();
            first(dir.path(), 2);
        }
        fs::write(&path, &whole[..at]).unwrap();
        assert!(!first(dir.path(), 2), "{at} of {} bytes", whole.len());
    }
}

/// Every number of the description, one after the other, becomes one that no data stands behind.
#[test]
fn descriptions_that_promise_much_are_refused_at_once() {
    let dir = set();
    let path = dir.path().join("dataset.json");
    let whole: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut numbers = Vec::new();
    collect(&whole, String::new(), &mut numbers);
    assert!(numbers.len() >= 7, "{numbers:?}");
    for pointer in numbers {
        for number in [
            json!(u64::MAX),
            json!(i64::MAX),
            json!(1u64 << 32),
            json!(0),
            json!(-1),
            json!(2.5),
            json!(1e300),
        ] {
            let mut changed = whole.clone();
            *changed.pointer_mut(&pointer).unwrap() = number.clone();
            fs::write(&path, changed.to_string()).unwrap();
            assert!(!first(dir.path(), 2), "{pointer} = {number}");
        }
    }
}

fn collect(value: &Value, pointer: String, numbers: &mut Vec<String>) {
    match value {
        Value::Number(_) => numbers.push(pointer),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| collect(item, format!("{pointer}/{at}"), numbers));
        }
        Value::Object(entries) => {
            entries.iter().for_each(|(key, item)| collect(item, format!("{pointer}/{key}"), numbers));
        }
        _ => {}
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
    let shards = json!([{"file": "shards/a.safetensors", "count": 1, "blake3": ""}]);
    describe(dir.path(), "latents", 4, vec![json!({"height": 2, "width": 2, "count": 1, "shards": shards})]);
    let mut shards = Shards::open(dir.path(), PLAIN, draws(1)).unwrap();
    let error = shards.batch(&Place::of(&stages(1, None), 1, 0)).unwrap_err().to_string();
    assert!(error.ends_with("` is not finite in item 0 of those of 2 × 2"), "{error}");
    let error = Shards::open(dir.path(), ShardOptions { flip: true, ..PLAIN }, draws(1)).unwrap_err();
    assert!(error.to_string().contains("`flip` mirrors pictures, but the data set holds latents"));
}
