//! Files of inputs and outputs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use nucleus_ir::DType;
use nucleus_runtime::{HostTensor, TensorMap};
use support::safetensors;
use tempfile::tempdir;

fn file_of(path: &Path, dtype: &str, shape: &str, data: &[u8]) {
    let header =
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{}]}}}}"#, data.len());
    let mut bytes = safetensors(&header, 0);
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_dtype_reads_back_as_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut map = TensorMap::new();
    map.insert("f", HostTensor::from_f32(&[2, 2], &[1.0, f32::NAN, -0.0, f32::INFINITY]).unwrap());
    map.insert("mask", HostTensor::from_bool(&[1, 3], &[true, false, true]).unwrap());
    map.insert("b", HostTensor::from_bf16(&[1], &[bf16::from_f32(2.5)]).unwrap());
    map.insert("h", HostTensor::from_f16(&[1], &[f16::from_f32(2.5)]).unwrap());
    map.insert("i", HostTensor::from_i32(&[], &[i32::MIN]).unwrap());
    map.insert("none", HostTensor::zeros(DType::F32, &[0, 3]).unwrap());
    map.write(&path).unwrap();
    assert_eq!(TensorMap::read(&path).unwrap(), map);
    assert_eq!(map.names().collect::<Vec<_>>(), ["b", "f", "h", "i", "mask", "none"]);

    let bytes = fs::read(&path).unwrap();
    map.write(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

    TensorMap::new().write(&path).unwrap();
    assert!(TensorMap::read(&path).unwrap().is_empty());
}

#[test]
fn wide_types_are_narrowed() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let doubles: Vec<u8> = [0.1f64, -2.0, 1e300].iter().flat_map(|x| x.to_le_bytes()).collect();
    file_of(&path, "F64", "[3]", &doubles);
    let map = TensorMap::read(&path).unwrap();
    assert_eq!(map.get("x").unwrap().as_f32().unwrap(), [0.1, -2.0, f32::INFINITY]);

    let longs: Vec<u8> =
        [i64::from(i32::MIN), i64::from(i32::MAX)].iter().flat_map(|x| x.to_le_bytes()).collect();
    file_of(&path, "I64", "[2]", &longs);
    let map = TensorMap::read(&path).unwrap();
    assert_eq!(map.get("x").unwrap().as_i32().unwrap(), [i32::MIN, i32::MAX]);
}

#[test]
fn values_that_do_not_fit_are_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let refusal = || TensorMap::read(&path).unwrap_err().to_string();
    let at = format!("tensor `x` in `{}`", path.display());

    let longs: Vec<u8> = [1, 5_000_000_000i64].iter().flat_map(|x| x.to_le_bytes()).collect();
    file_of(&path, "I64", "[2]", &longs);
    assert_eq!(refusal(), format!("{at}: element 1 is 5000000000, which i32 cannot hold"));
    file_of(&path, "BOOL", "[2]", &[1, 2]);
    assert_eq!(refusal(), format!("{at}: element 1 of a bool tensor is byte 2; only 0 and 1 are bools"));
    file_of(&path, "U8", "[2]", &[1, 1]);
    assert_eq!(
        refusal(),
        format!("{at} is stored as U8; F32, BF16, F16, F64, I8, I32, I64 and BOOL can be read")
    );
    file_of(&path, "F8_E4M3", "[0]", &[]);
    assert_eq!(
        refusal(),
        format!("{at} is stored as F8_E4M3; F32, BF16, F16, F64, I8, I32, I64 and BOOL can be read")
    );
}

#[test]
fn writing_fails_with_the_files_name() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("no/folder/x.safetensors");
    assert_eq!(
        TensorMap::new().write(&path).unwrap_err().to_string(),
        format!("cannot write `{}`: No such file or directory (os error 2)", path.display())
    );
    let path = dir.path().join("folder");
    fs::create_dir_all(path.join("full")).unwrap();
    assert_eq!(
        TensorMap::new().write(&path).unwrap_err().to_string(),
        format!("cannot write `{}`: Is a directory (os error 21)", path.display())
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    assert_eq!(
        TensorMap::new().write(Path::new("/")).unwrap_err().to_string(),
        "cannot write `/`: it names no file"
    );
}
