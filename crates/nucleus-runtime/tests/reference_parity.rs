//! The reference backend gives diffusers' answers on every parity fixture.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{Checkpoint, Model, TensorMap};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn f32_fixtures() {
    let mut worst = 0.0f64;
    let folder = root().join("tests/fixtures/parity");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        let text = std::fs::read_to_string(case.join("case.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        if json["dtype"] != "f32" {
            continue;
        }
        let checkpoint = Checkpoint::open(&case).unwrap();
        let mut model = Model::open(&root().join("ir-specs/nucleus_image.ir")).unwrap();
        model.apply_json(checkpoint.config_path().unwrap(), checkpoint.config().unwrap()).unwrap();
        let graph = match model.graph("velocity") { Ok(g) => g, Err(e) => panic!("{}: {e}", case.display()) };
        let inputs = TensorMap::read(&case.join("inputs.safetensors")).unwrap();
        let dims: Vec<_> = ["H", "W"].iter().map(|d| (d.to_string(), json["dims"][d].as_i64().unwrap())).collect();
        let outputs = run_reference::<f32>(&graph, &checkpoint, &inputs, &dims).unwrap();
        let want = TensorMap::read(&case.join("expected.safetensors")).unwrap();
        let (got, want) = (outputs.get("sample").unwrap().to_f32_vec(), want.get("sample").unwrap().to_f32_vec());
        let scale = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let error = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
        println!("{:40} {error:.2e}", case.file_name().unwrap().to_string_lossy());
        worst = worst.max(f64::from(error));
    }
    assert!(worst <= 1e-5, "{worst}");
    let _ = DType::F32;
}
