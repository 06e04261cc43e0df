//! Artifacts with machine code for GPUs and measured tiles: what is stored comes back, and what fits the hash but is neither is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use nucleus_cuda::{Architecture, CubinKey, StoredCubins, Tuning};
use nucleus_ir::DType;
use nucleus_runtime::artifact::{RESERVED, write_artifact};
use nucleus_runtime::safetensors_file::{MappedFile, StoredDType};
use nucleus_runtime::safetensors_write::{TensorSpec, write_safetensors};
use nucleus_runtime::{Artifact, Compiled, Model, ModelText};

/// An ELF header for sm_90, and a section table of one entry behind it.
fn cubin() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..9].copy_from_slice(b"\x7fELF\x02\x01\x01A\x08");
    (bytes[18], bytes[49]) = (190, 90);
    (bytes[40], bytes[58], bytes[60]) = (64, 64, 1);
    bytes
}

fn key(architecture: Architecture, number: u8) -> CubinKey {
    CubinKey { architecture, text: [number; 32] }
}

fn compiled(cubins: StoredCubins) -> Compiled {
    let source = "dim N; entry f(x: [N] per step) -> (y: [N]) { exp(x) }";
    let text = ModelText { main: ("f.ir".to_owned(), source.to_owned()), modules: Vec::new() };
    let plan = Model::from_text(&text).unwrap().compile("f", DType::F32, &mut ()).unwrap();
    let (config, target) = (Vec::new(), "cuda:sm_90".to_owned());
    Compiled { text, config, dtype: DType::F32, target, plans: vec![plan], cubins, tuning: Tuning::default() }
}

fn write(path: &Path, cubins: StoredCubins) {
    write_artifact(path, &compiled(cubins), None, &mut |_, _| {}).unwrap();
}

#[test]
fn cubins_come_back_as_they_were_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.nuc");
    let mut cubins = StoredCubins::new();
    cubins.insert(key(Architecture::SM90, 7), cubin()).unwrap();
    cubins.insert(key(Architecture::SM90, 3), cubin()).unwrap();
    write(&path, cubins.clone());
    let (read, weights) = Artifact::open(&path).unwrap().into_parts();
    assert_eq!(read.cubins, cubins);
    assert!(weights.is_none(), "cubins are no weights");
    write(&path, StoredCubins::new());
    assert!(Artifact::open(&path).unwrap().compiled().cubins.is_empty());
}

/// A table with one tile.
const TABLE: &str = "[[tile]]
architecture = \"sm_90\"
device = \"a device\"
kernel = \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"
shape = \"1x4096x256x64\"
rows = 64
columns = 128
depth = 32
stages = 4
warps = 8
across = 2
blocks = 2
";

#[test]
fn measured_tiles_come_back_as_they_were_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.nuc");
    let tuning = Tuning::parse(TABLE, "the test's").unwrap();
    let compiled = Compiled { tuning, ..compiled(StoredCubins::new()) };
    write_artifact(&path, &compiled, None, &mut |_, _| {}).unwrap();
    let (read, weights) = Artifact::open(&path).unwrap().into_parts();
    assert_eq!(read.tuning.to_string(), TABLE);
    assert!(weights.is_none(), "a table is no weight");
}

/// Writes an artifact with further tensors under a hash that fits, and opens it.
fn refusal(name: &str, dtype: StoredDType, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (whole, changed) = (folder.path().join("whole.nuc"), folder.path().join("changed.nuc"));
    write(&whole, StoredCubins::new());
    let file = MappedFile::open(&whole).unwrap();
    let mut parts: BTreeMap<String, (StoredDType, Vec<u8>)> = BTreeMap::new();
    for entry in &file.header().tensors {
        parts.insert(entry.name.clone(), (entry.dtype, file.bytes()[entry.range.clone()].to_vec()));
    }
    parts.insert(name.to_owned(), (dtype, bytes.to_vec()));
    let mut hasher = blake3::Hasher::new();
    let mut specs = Vec::new();
    for (name, (dtype, bytes)) in &parts {
        assert!(name.starts_with(RESERVED));
        for piece in [name.as_bytes(), bytes] {
            hasher.update(&(piece.len() as u64).to_le_bytes());
            hasher.update(piece);
        }
        let size = if *dtype == StoredDType::U8 { 1 } else { 4 };
        specs.push(TensorSpec { name: name.clone(), dtype: *dtype, shape: vec![bytes.len() / size] });
    }
    let mut metadata: BTreeMap<String, String> =
        file.header().metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    metadata.insert("blake3".to_owned(), hasher.finalize().to_hex().to_string());
    write_safetensors(&changed, &specs, &metadata, &mut |spec, out| out.write_all(&parts[&spec.name].1))
        .unwrap();
    match Artifact::open(&changed) {
        Ok(artifact) => {
            assert_eq!(artifact.compiled().cubins.len(), 1);
            "none".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_cubin_or_table_is_refused_though_the_hash_fits() {
    let name = format!("nucleus.cubin.{}", key(Architecture::SM90, 7).name());
    assert_eq!(refusal(&name, StoredDType::U8, &cubin()), "none", "the test's own hash fits");
    let other = format!("nucleus.cubin.{}", key(Architecture::SM80, 7).name());
    let mut another_machine = cubin();
    another_machine[18] = 62;
    let cases: &[(&str, StoredDType, &[u8], &str)] = &[
        (&name, StoredDType::F32, &cubin(), "it is not a list of bytes"),
        (&name, StoredDType::U8, &cubin()[..127], "its section table lies outside the file"),
        (&name, StoredDType::U8, &[], "it is shorter than an ELF header"),
        (&name, StoredDType::U8, &another_machine, "it is for another kind of machine"),
        (&name, StoredDType::U8, &[0; 4096], "it does not begin as a 64-bit little-endian ELF file"),
        (&other, StoredDType::U8, &cubin(), "the cubin is for sm_90, not for sm_80"),
        (&name[..name.len() - 1], StoredDType::U8, &cubin(), "not named after an architecture and a hash"),
        (&name.replace("sm_90", "sm_09"), StoredDType::U8, &cubin(), "not named after an architecture"),
        ("nucleus.cubin", StoredDType::U8, &cubin(), "it is not a part of this format"),
        ("nucleus.tuning", StoredDType::U8, b"[[tile]]\nrows = 48", "line 1: `architecture` is missing"),
        ("nucleus.tuning", StoredDType::U8, &[0xff], "invalid utf-8"),
    ];
    for (name, dtype, bytes, wanted) in cases {
        let message = refusal(name, *dtype, bytes);
        assert!(message.contains("is broken") && message.contains(wanted), "{wanted}: {message}");
    }
}
