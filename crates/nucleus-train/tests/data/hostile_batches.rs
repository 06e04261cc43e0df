//! Files of batches that were damaged, or made to do harm: an error or a batch of finite numbers, at once and in memory that the file accounts for.

use std::fs;
use std::path::Path;

use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_train::data::{Batch, Batches, DataError, Place, Source};
use serde_json::json;

use crate::support::{Raw, draws, f32_bytes, stages, write};

fn sound() -> Vec<Raw<'static>> {
    let floats = |name, shape: &[usize]| -> Raw<'static> {
        let values = (0..shape.iter().product()).map(|at: usize| at as f32 / 64.0);
        (name, StoredDType::F32, shape.to_vec(), f32_bytes(values))
    };
    vec![
        floats("latents", &[2, 6, 2]),
        floats("encoder_hidden_states", &[2, 3, 2]),
        floats("timestep", &[2]),
        ("encoder_hidden_states_mask", StoredDType::BOOL, vec![2, 3], vec![1; 6]),
        ("grid", StoredDType::I64, vec![2], [2i64, 3].iter().flat_map(|side| side.to_le_bytes()).collect()),
    ]
}

fn first(folder: &Path) -> Result<Batch, DataError> {
    Batches::open(folder, draws(1))?.batch(&Place::of(&stages(8, None), 1, 0))
}

/// Whatever is in the file, what comes of it is an error that names it, or a batch that can be trained on.
fn endures(folder: &Path, bytes: &[u8]) -> bool {
    fs::write(folder.join("a.safetensors"), bytes).unwrap();
    match first(folder) {
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("a.safetensors") && message.len() < 1 << 12, "{message}");
            false
        }
        Ok(batch) => {
            for (name, tensor) in batch.tensors.iter() {
                assert!(tensor.to_f32_vec().iter().all(|value| value.is_finite()), "{name}");
            }
            assert_eq!(batch.dims.iter().map(|(_, size)| *size).product::<i64>(), batch.image_tokens as i64);
            assert!(batch.items * batch.image_tokens < bytes.len());
            true
        }
    }
}

#[test]
fn batches_cut_short_or_changed_anywhere_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write(&path, &sound());
    let whole = fs::read(&path).unwrap();
    assert!(endures(dir.path(), &whole));
    for length in 0..whole.len() {
        assert!(!endures(dir.path(), &whole[..length]), "{length} of {} bytes", whole.len());
    }
    let mut trained = 0;
    for at in 0..whole.len() {
        for bits in [0x01, 0x15, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= bits;
            trained += usize::from(endures(dir.path(), &changed));
        }
    }
    assert!(trained > 0, "no change left a batch");
}

/// A file with this header and so many zeros behind it.
fn framed(header: &serde_json::Value, data: usize) -> Vec<u8> {
    let text = header.to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn headers_that_promise_much_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |dtype: &str, shape: &[u64], at: [u64; 2]| json!({"dtype": dtype, "shape": shape, "data_offsets": at});
    for (latents, size) in [
        (vec![1 << 40, 1 << 40, 4], 64),
        (vec![u64::MAX, u64::MAX, u64::MAX], 64),
        (vec![1 << 31, 1 << 31, 1 << 2], 0),
        (vec![1, 1 << 50, 1], 1 << 52),
    ] {
        let header = json!({
            "latents": tensor("F32", &latents, [0, size]),
            "encoder_hidden_states": tensor("F32", &[latents[0], 1, 1], [size, size + 4]),
            "grid": tensor("I64", &[2], [size + 4, size + 20]),
        });
        assert!(!endures(dir.path(), &framed(&header, 84)), "{latents:?}");
    }
    // The length of the header itself.
    for length in [u64::MAX, 1 << 62, 1 << 40] {
        let mut bytes = framed(&json!({}), 16);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(!endures(dir.path(), &bytes), "{length}");
    }
}

/// Sides that would fit once their upper halves are cut off.
#[test]
fn grids_beyond_integers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for sides in [[(1i64 << 32) + 2, 3], [i64::MAX, 3], [i64::MIN, -6], [1 << 62, 4], [0, 6], [-2, -3]] {
        let mut tensors = sound();
        tensors.retain(|(name, ..)| *name != "grid");
        let bytes = sides.iter().flat_map(|side| side.to_le_bytes()).collect();
        tensors.push(("grid", StoredDType::I64, vec![2], bytes));
        write(&path, &tensors);
        let message = first(dir.path()).unwrap_err().to_string();
        assert!(message.contains("tensor `grid` in `") && message.contains("a.safetensors"), "{message}");
    }
}
