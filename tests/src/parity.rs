//! The parity fixtures: small checkpoints with diffusers' inputs and answers.
//!
//! `tools/make-fixtures` writes them. A case is a folder `tests/fixtures/parity/<case>` with a checkpoint as `save_pretrained` makes it,
//! `inputs.safetensors`, `expected.safetensors` (`sample`: the answer in f32 arithmetic; for bf16 cases also `sample_bf16`, diffusers' own
//! answer in bf16) and `case.json`.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::{Checkpoint, Model, TensorMap};

/// The repository, or the copy of its models and fixtures that `NUCLEUS_ROOT` names: tests may run where it is not.
pub fn root() -> PathBuf {
    std::env::var_os("NUCLEUS_ROOT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from)
}

/// The definition of Nucleus-Image.
pub fn nucleus_image() -> PathBuf {
    root().join("ir-specs/nucleus_image.ir")
}

/// One fixture.
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The sizes that its inputs' shapes do not decide.
    pub dims: Vec<(String, i64)>,
    /// The element type of products in which it is run.
    pub dtype: DType,
}

impl Case {
    /// Every fixture, by name.
    pub fn all() -> Vec<Case> {
        let folder = root().join("tests/fixtures/parity");
        let mut cases: Vec<Case> = std::fs::read_dir(&folder)
            .expect("the fixtures are in the repository")
            .map(|entry| Case::read(&entry.expect("a readable folder").path()))
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() >= 20, "only {} fixtures in {}", cases.len(), folder.display());
        cases
    }

    /// The fixture of that name.
    pub fn named(name: &str) -> Case {
        Case::read(&root().join("tests/fixtures/parity").join(name))
    }

    fn read(folder: &Path) -> Case {
        let text = std::fs::read_to_string(folder.join("case.json")).expect("every case has a case.json");
        let json: serde_json::Value = serde_json::from_str(&text).expect("case.json is JSON");
        let dims = json["dims"].as_object().expect("dims is an object");
        Case {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: folder.to_path_buf(),
            dims: dims.iter().map(|(dim, size)| (dim.clone(), size.as_i64().expect("a size"))).collect(),
            dtype: json["dtype"].as_str().and_then(DType::from_name).expect("a dtype"),
        }
    }

    /// The weights.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.folder).expect("fixtures are sound")
    }

    /// The definition of Nucleus-Image under the config of the checkpoint.
    pub fn model(&self) -> Model {
        let checkpoint = self.checkpoint();
        let mut model = Model::open(&nucleus_image()).expect("the definition is sound");
        let path = checkpoint.config_path().expect("fixtures have a config");
        model
            .apply_json(path, checkpoint.config().expect("fixtures have a config"))
            .expect("the config fits");
        model
    }

    /// The inputs.
    pub fn inputs(&self) -> TensorMap {
        TensorMap::read(&self.folder.join("inputs.safetensors")).expect("fixtures are sound")
    }

    /// An expected answer.
    pub fn expected(&self, name: &str) -> Vec<f32> {
        let map = TensorMap::read(&self.folder.join("expected.safetensors")).expect("fixtures are sound");
        map.get(name).unwrap_or_else(|| panic!("{}: no expected `{name}`", self.name)).to_f32_vec()
    }
}

/// The largest absolute difference over the largest absolute wanted value. NaN counts as infinitely wrong.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let scale = want.iter().fold(0.0f64, |scale, x| scale.max(f64::from(x.abs())));
    let worst = got.iter().zip(want).fold(0.0f64, |worst, (got, want)| {
        let difference = (f64::from(*got) - f64::from(*want)).abs();
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    });
    worst / scale
}

/// The root mean square of the differences.
pub fn rms_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let sum: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - f64::from(*want)).powi(2)).sum();
    (sum / want.len() as f64).sqrt()
}
