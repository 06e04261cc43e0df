//! The gradient fixtures: the training loss on diffusers' model, and PyTorch's gradient of it by every weight.
//!
//! `tools/make-fixtures` writes them, and `tools/README.md` says what a case holds. A case is a folder `tests/fixtures/gradients/<case>` with
//! `inputs.safetensors`, `expected.safetensors`, `case.json` and, where it has not those of a parity fixture, weights.

use std::path::{Path, PathBuf};

use nucleus_runtime::{Checkpoint, Model, TensorMap};

use crate::parity::{nucleus_image, root};

/// One fixture.
pub struct GradientCase {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The folder of its weights and config.
    pub weights: PathBuf,
    /// The sizes that its inputs' shapes do not decide.
    pub dims: Vec<(String, i64)>,
    /// The coefficient of the router z-loss.
    pub z_loss: f64,
    /// The coefficient of the wavelet loss.
    pub wavelet: f64,
}

impl GradientCase {
    /// Every fixture, by name.
    pub fn all() -> Vec<GradientCase> {
        let folder = root().join("tests/fixtures/gradients");
        let mut cases: Vec<GradientCase> = std::fs::read_dir(&folder)
            .expect("the fixtures are in the repository")
            .map(|entry| GradientCase::read(&entry.expect("a readable folder").path()))
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() >= 20, "only {} fixtures in {}", cases.len(), folder.display());
        cases
    }

    /// The fixture of that name.
    pub fn named(name: &str) -> GradientCase {
        GradientCase::read(&root().join("tests/fixtures/gradients").join(name))
    }

    fn read(folder: &Path) -> GradientCase {
        let text = std::fs::read_to_string(folder.join("case.json")).expect("every case has a case.json");
        let json: serde_json::Value = serde_json::from_str(&text).expect("case.json is JSON");
        let dims = json["dims"].as_object().expect("dims is an object");
        GradientCase {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: folder.to_path_buf(),
            weights: folder.join(json["checkpoint"].as_str().expect("a folder")),
            dims: dims.iter().map(|(dim, size)| (dim.clone(), size.as_i64().expect("a size"))).collect(),
            z_loss: json["z_loss"].as_f64().expect("a number"),
            wavelet: json["wavelet"].as_f64().expect("a number"),
        }
    }

    /// The weights.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.weights).expect("fixtures are sound")
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

    /// `latents`, `noise`, `timestep`, `encoder_hidden_states`, and in some cases `encoder_hidden_states_mask`.
    pub fn inputs(&self) -> TensorMap {
        TensorMap::read(&self.folder.join("inputs.safetensors")).expect("fixtures are sound")
    }

    /// `loss`, its parts `loss.velocity`, `loss.router_z` and `loss.wavelet` before their coefficients, and a gradient under the name of
    /// every weight.
    pub fn expected(&self) -> TensorMap {
        TensorMap::read(&self.folder.join("expected.safetensors")).expect("fixtures are sound")
    }
}
