//! Files that the tests of this folder are about.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;

/// A `.safetensors` file of that header text and that many bytes of data (0, 1, 2, …).
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// Writes a file of f32 weights, all zero, at `path`.
pub(crate) fn write_weights(path: &Path, weights: &[(&str, &[usize])]) {
    let mut offset = 0;
    let entries: Vec<String> = weights
        .iter()
        .map(|(name, shape)| {
            let from = offset;
            offset += 4 * shape.iter().product::<usize>();
            format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{from},{offset}]}}"#)
        })
        .collect();
    std::fs::write(path, safetensors(&format!("{{{}}}", entries.join(",")), offset)).unwrap();
}
