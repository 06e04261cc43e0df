//! Weights, shard index and config of a checkpoint, and files of tensors, from arbitrary bytes.
//!
//! The input is split at every `\xff\xfe`: first shard, second shard, index, `config.json`. The first eight
//! bytes of a shard are replaced by a header length that leaves the part after its last `}` as data, so that
//! mutations of the JSON reach the parser.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nucleus_runtime::safetensors_file::parse_header;
use nucleus_runtime::{Checkpoint, Expected, Extras, TensorMap};

fn parts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = data.windows(2).position(|pair| pair == b"\xff\xfe") {
        parts.push(&data[..at]);
        data = &data[at + 2..];
    }
    parts.push(data);
    parts
}

/// `part` as a file: its JSON gets the length field that belongs to it.
fn framed(part: &[u8]) -> Vec<u8> {
    let header = part.iter().rposition(|&byte| byte == b'}').map_or(part.len(), |at| at + 1);
    [&(header as u64).to_le_bytes()[..], part].concat()
}

fn exercise(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        let mut bytes = 0;
        for (name, weight) in checkpoint.iter() {
            bytes += weight.bytes.len() as u64;
            let _ = weight.load_f32(&mut vec![0.0; weight.elements()]);
            checkpoint.release(name);
        }
        assert_eq!(bytes, checkpoint.total_bytes());
        let expected = [Expected::new("weight.a", [2, 3]), Expected::new("b", [])];
        if let Err(error) = checkpoint.check(&expected, Extras::Refuse) {
            assert!(error.to_string().len() < 1 << 16);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path();
    let _ = parse_header(Path::new("raw"), data);

    let parts = parts(data);
    let part = |i: usize| parts.get(i).copied().unwrap_or_default();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect("a writable folder");
    write("1.safetensors", &framed(part(0)));
    write("2.safetensors", &framed(part(1)));
    write("model.safetensors.index.json", part(2));
    write("config.json", part(3));
    exercise(dir);
    exercise(&dir.join("1.safetensors"));
    if let Ok(tensors) = TensorMap::read(&dir.join("1.safetensors")) {
        let copy = dir.join("copy.safetensors");
        if tensors.write(&copy).is_ok() {
            assert_eq!(TensorMap::read(&copy).expect("what was written reads back"), tensors);
            std::fs::remove_file(copy).expect("the copy is there");
        }
    }
});
