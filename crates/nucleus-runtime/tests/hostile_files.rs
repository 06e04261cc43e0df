//! Broken and hostile safetensors files: an error with file and tensor, never a panic or a large allocation.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use nucleus_runtime::safetensors_file::{MAX_HEADER_BYTES, MappedFile, parse_header};
use nucleus_runtime::{Checkpoint, Expected, Extras, TensorMap};
use support::safetensors;
use tempfile::tempdir;

/// The message for a file of that header text and so many bytes of data, without the part that is always there.
fn refusal(header: &str, data: usize) -> String {
    let text = parse_header(Path::new("f"), &safetensors(header, data)).unwrap_err().to_string();
    text.strip_prefix("the header of `f` is broken: ").map(str::to_owned).unwrap_or(text)
}

fn entry(shape: &str, from: &str, to: &str) -> String {
    format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
}

#[test]
fn lengths_are_checked_before_anything_else() {
    let refusal = |bytes: &[u8]| parse_header(Path::new("f"), bytes).unwrap_err().to_string();
    assert_eq!(
        refusal(b""),
        "`f` has 0 bytes: too short for a safetensors file, which starts with an 8-byte header length"
    );
    assert_eq!(
        refusal(b"1234567"),
        "`f` has 7 bytes: too short for a safetensors file, which starts with an 8-byte header length"
    );
    assert_eq!(
        refusal(&[0xff; 12]),
        "`f` declares a header of 18446744073709551615 bytes, but only 4 follow: the file is truncated or no safetensors file"
    );
    let mut large = (MAX_HEADER_BYTES + 1).to_le_bytes().to_vec();
    large.resize(large.len() + MAX_HEADER_BYTES as usize + 1, b' ');
    assert_eq!(refusal(&large), "`f` declares a header of 16777217 bytes; at most 16777216 are accepted");
}

#[test]
fn the_data_must_be_exactly_what_the_header_describes() {
    assert_eq!(
        refusal(&entry("[2]", "0", "8"), 7),
        "`f` has 7 bytes of tensor data, its header describes 8: the file is truncated"
    );
    assert_eq!(
        refusal(&entry("[2]", "0", "8"), 9),
        "`f` has 9 bytes of tensor data, its header describes 8: the file is followed by something else"
    );
    assert_eq!(
        refusal("{}", 1),
        "`f` has 1 bytes of tensor data, its header describes 0: the file is followed by something else"
    );
}

#[test]
fn headers_that_are_not_what_they_should_be_are_named() {
    assert_eq!(refusal("", 0), "EOF while parsing a value at line 1 column 0");
    assert_eq!(refusal("{\n nope}", 0), "key must be a string at line 2 column 2");
    assert_eq!(refusal("[]", 0), "invalid type: sequence, expected a map at line 1 column 0");
    assert_eq!(refusal(r#"{"x":1}"#, 0), "tensor `x`: invalid type: integer `1`, expected struct TensorInfo");
    assert_eq!(
        refusal(r#"{"x":{"dtype":"F32","shape":[1]}}"#, 0),
        "tensor `x`: missing field `data_offsets`"
    );
    assert!(
        refusal(r#"{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4)
            .starts_with("tensor `x`: unknown variant `F99`, expected one of")
    );
    assert!(refusal(&entry("[-1]", "0", "4"), 4).starts_with("tensor `x`: invalid value: integer `-1`"));
    assert!(refusal(r#"{"__metadata__":{"a":1}}"#, 0).contains("expected a string"));
    let not_utf8 = [&2u64.to_le_bytes()[..], b"\xff\xff"].concat();
    assert_eq!(
        parse_header(Path::new("f"), &not_utf8).unwrap_err().to_string(),
        "the header of `f` is broken: expected value at line 1 column 1"
    );
    assert!(refusal(&format!("{{\"x\":{}", "[".repeat(1 << 20)), 0).contains("recursion limit exceeded"));
}

#[test]
fn shapes_and_offsets_must_agree() {
    assert_eq!(
        refusal(&entry("[2, 3]", "0", "20"), 20),
        "tensor `x`: shape [2, 3] of F32 needs 24 bytes, its offsets 0..20 span 20"
    );
    assert_eq!(
        refusal(&entry("[1]", "4", "0"), 4),
        "tensor `x`: its data ends at byte 0, before it starts at byte 4"
    );
    assert_eq!(
        refusal(&entry("[1]", "4", "8"), 8),
        "tensor `x`: its data starts at byte 4 and leaves a gap after what ends at byte 0"
    );
    assert_eq!(
        refusal(&entry("[4294967296, 4294967296]", "0", "0"), 0),
        "tensor `x`: shape [4294967296, 4294967296] of F32 overflows"
    );
    assert_eq!(
        refusal(r#"{"x":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, 1),
        "tensor `x`: shape [1] of F4 has 4 bits, which are not whole bytes"
    );
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                          "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_eq!(
        refusal(overlapping, 8),
        "tensor `b`: its data starts at byte 4 and overlaps what ends at byte 8"
    );
}

#[test]
fn offsets_near_the_end_of_the_address_space_do_not_wrap() {
    // Eight tensors of 2^61 bytes end where the sum with the header's length would wrap around.
    let entries: Vec<String> = (0..8u64)
        .map(|i| {
            let n = (1u64 << 61) - 1;
            format!(r#""{i}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{},{}]}}"#, i * n, (i + 1) * n)
        })
        .collect();
    assert_eq!(
        refusal(&format!("{{{}}}", entries.join(",")), 0),
        "`f` has 0 bytes of tensor data, its header describes 18446744073709551608: the file is truncated"
    );
}

#[test]
fn names_from_files_cannot_garble_the_terminal() {
    let header = entry("[1]", "0", "8").replace("\"x\"", &format!("\"\\u001b[2J{}\"", "y".repeat(500)));
    let text = refusal(&header, 8);
    assert!(text.starts_with("tensor `\\u{1b}[2Jyyy"), "{text}");
    assert!(text.contains("y…`: shape [1]"), "{text}");
    assert!(text.len() < 400, "{text}");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = tempdir().unwrap();
    let shown = dir.path().display();
    assert_eq!(
        MappedFile::open(dir.path()).unwrap_err().to_string(),
        format!("`{shown}` is not a regular file")
    );
    let missing = dir.path().join("x.safetensors");
    assert_eq!(
        MappedFile::open(&missing).unwrap_err().to_string(),
        format!("cannot open `{}`: No such file or directory (os error 2)", missing.display())
    );
    fs::write(&missing, b"").unwrap();
    assert_eq!(
        MappedFile::open(&missing).unwrap_err().to_string(),
        format!(
            "`{}` has 0 bytes: too short for a safetensors file, which starts with an 8-byte header length",
            missing.display()
        )
    );
}

/// Opens a damaged file in every way there is and reads all of it.
fn exercise(path: &Path, bytes: &[u8]) -> bool {
    fs::write(path, bytes).unwrap();
    let opened = Checkpoint::open(path);
    if let Ok(checkpoint) = &opened {
        for (name, weight) in checkpoint.iter() {
            std::hint::black_box(weight.bytes.iter().fold(0u8, |sum, byte| sum ^ byte));
            let mut out = vec![0.0; weight.elements()];
            let _ = weight.load_f32(&mut out);
            checkpoint.release(name);
        }
        let _ =
            checkpoint.check(&[Expected::new("weight.a", [2, 3])], Extras::Refuse).map_err(|e| e.to_string());
        let _ = (checkpoint.dtype(), checkpoint.total_bytes(), checkpoint.total_elements());
    }
    let read = TensorMap::read(path);
    for message in [opened.as_ref().err().map(ToString::to_string), read.err().map(|e| e.to_string())] {
        assert!(message.is_none_or(|text| text.contains(&path.display().to_string())));
    }
    opened.is_ok()
}

#[test]
fn every_truncation_and_every_bit_flip_of_a_small_file_is_survived() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"weight.a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""weight.b":{"dtype":"BOOL","shape":[2],"data_offsets":[24,26]}}"#
    );
    let mut whole = safetensors(header, 26);
    let end = whole.len();
    whole[end - 2..].copy_from_slice(&[1, 0]);
    assert!(exercise(&path, &whole));
    for length in 0..whole.len() {
        assert!(!exercise(&path, &whole[..length]), "truncated to {length} bytes, it was opened");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            exercise(&path, &flipped);
        }
    }
}

#[test]
fn every_truncation_and_every_bit_flip_of_an_index_is_survived() {
    let dir = tempdir().unwrap();
    support::write_weights(&dir.path().join("1.safetensors"), &[("a", &[1])]);
    support::write_weights(&dir.path().join("2.safetensors"), &[("b", &[1])]);
    let path = dir.path().join("model.safetensors.index.json");
    let whole = br#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    fs::write(&path, whole).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().len(), 2);
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(Checkpoint::open(dir.path()).is_err(), "truncated to {length} bytes, it was opened");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 1 << bit;
            fs::write(&path, flipped).unwrap();
            if let Err(error) = Checkpoint::open(dir.path()) {
                assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
            }
        }
    }
}
