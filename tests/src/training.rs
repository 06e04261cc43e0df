//! The engine of real training on fixtures, and the recipe fixtures.
//!
//! A recipe fixture is a folder `tests/fixtures/training/<case>` as `tools/README.md` describes it. It is copied before it is run, since a run writes
//! beside its recipe.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_runtime::{Checkpoint, TensorMap};
use nucleus_train::assemble::{Assembled, assemble, checkpoints};
use nucleus_train::data::{Batch, Source};
use nucleus_train::engine::{Engine, State};
use nucleus_train::graph_engine::{GraphEngine, LossOptions};
use nucleus_train::groups::{AdamW, Group, Optimizer};
use nucleus_train::log::StepRecord;
use nucleus_train::recipe::Recipe;
use nucleus_train::start::from_checkpoint;
use nucleus_train::trainer::{Observer, Summary, TrainError, Trainer};
use tempfile::TempDir;

use crate::gradients::GradientCase;
use crate::parity::root;

/// The engine on the weights of a gradient fixture, all of them under AdamW.
pub fn engine(case: &GradientCase, dtype: DType, threads: usize) -> GraphEngine {
    let all =
        Group { params: vec!["*".to_owned()], optimizer: Optimizer::AdamW(AdamW::default()), default: true };
    let coefficients = vec![("z_loss".to_owned(), case.z_loss), ("wavelet".to_owned(), case.wavelet)];
    let options = LossOptions { dtype, coefficients, orthogonality: 0.0, routers: Vec::new(), remat: None };
    let mut engine =
        GraphEngine::new(case.model(), &[all], options, Some(threads)).expect("the loss compiles");
    from_checkpoint(engine.parameters_mut(), &case.checkpoint()).expect("the weights are of this model");
    engine
}

/// The inputs of a gradient fixture as a batch.
pub fn batch(case: &GradientCase) -> Batch {
    Batch { tensors: case.inputs(), dims: case.dims.clone(), items: 0, image_tokens: 0 }
}

/// The gradient of a weight where the engine left it.
///
/// # Panics
/// There is no such weight.
pub fn gradient<'a>(engine: &'a GraphEngine, name: &str) -> &'a [f32] {
    let parameters = engine.parameters();
    let parameter = parameters.list().iter().find(|parameter| parameter.info.name == name);
    let parameter = parameter.unwrap_or_else(|| panic!("no weight `{name}`"));
    &parameters.gradients[parameter.range.clone()]
}

/// A copy of a recipe fixture that goes when it is dropped.
pub struct Run {
    folder: TempDir,
    /// The text of the recipe, which may be changed.
    pub text: String,
}

/// What an observer saw, and when it stops the run.
#[derive(Default)]
pub struct Watch {
    /// Every step.
    pub records: Vec<StepRecord>,
    /// Notes for a person.
    pub notes: Vec<String>,
    /// Stop after this step.
    pub stop_after: Option<u64>,
}

impl Observer<GraphEngine> for Watch {
    fn step(&mut self, record: &StepRecord) {
        self.records.push(record.clone());
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    fn stop(&mut self) -> bool {
        self.records.last().is_some_and(|record| Some(record.step) == self.stop_after)
    }
}

/// Weights and optimiser state by name, as bits.
pub type Bits = Vec<(String, Vec<u32>)>;

/// Everything that a checkpoint keeps of an engine, as bits.
pub fn bits(state: &State<'_>) -> Bits {
    let all = state.weights.iter().chain(&state.optimizer);
    all.map(|tensor| (tensor.name.clone(), tensor.values.iter().map(|value| value.to_bits()).collect()))
        .collect()
}

impl Run {
    /// A copy of the fixture of that name.
    ///
    /// # Panics
    /// There is no such fixture.
    pub fn of(name: &str) -> Run {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = root().join("tests/fixtures/training").join(name);
        copy(&source, folder.path());
        let text = std::fs::read_to_string(source.join("recipe.toml")).expect("a fixture has a recipe");
        Run { folder, text }
    }

    /// The same with a part of the recipe replaced.
    ///
    /// # Panics
    /// The part does not occur.
    #[must_use]
    pub fn with(mut self, part: &str, replacement: &str) -> Run {
        assert!(self.text.contains(part), "the recipe has no `{part}`");
        self.text = self.text.replace(part, replacement);
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the run writes, by the recipe as it is in the fixture.
    pub fn out(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// Writes the recipe, and says where.
    ///
    /// # Panics
    /// The file system refuses.
    pub fn write(&self) -> PathBuf {
        let path = self.folder().join("recipe.toml");
        std::fs::write(&path, &self.text).expect("a writable folder");
        path
    }

    /// The recipe.
    ///
    /// # Panics
    /// It is not sound.
    pub fn recipe(&self) -> Recipe {
        Recipe::read(&self.write()).expect("a sound recipe")
    }

    /// Puts the run together and lets `change` change its engine and its data; trains until the observer stops it. Gives what became of it and the
    /// state at its end.
    ///
    /// # Panics
    /// The parts cannot be put together.
    pub fn train_changed(
        &self,
        watch: &mut Watch,
        change: impl FnOnce(&mut GraphEngine, Box<dyn Source>) -> Box<dyn Source>,
    ) -> (Result<Summary, TrainError>, Bits) {
        let recipe = self.recipe();
        let Assembled { mut engine, source, config } = assemble(&recipe).expect("the parts fit");
        let mut source = change(&mut engine, source);
        let mut kept = checkpoints(&recipe, config).expect("the folder of the run");
        let trained =
            Trainer::new(&recipe, &mut engine, &mut *source).expect("the groups fit").run(&mut kept, watch);
        let state = bits(&engine.state());
        (trained, state)
    }

    /// Trains; what was seen and the state at the end.
    ///
    /// # Panics
    /// The run fails.
    pub fn train(&self) -> (Watch, Bits) {
        let mut watch = Watch::default();
        let (trained, state) = self.train_changed(&mut watch, |_, source| source);
        trained.expect("the run succeeds");
        (watch, state)
    }

    /// The weights that PyTorch's loop ends with.
    ///
    /// # Panics
    /// The fixture is broken.
    pub fn expected_weights(&self) -> Checkpoint {
        Checkpoint::open(self.folder().join("expected/transformer")).expect("fixtures are sound")
    }

    /// A column of PyTorch's steps: `loss`, `grad_norm` or `lr_factor`.
    ///
    /// # Panics
    /// The fixture is broken.
    pub fn expected_column(&self, name: &str) -> Vec<f64> {
        let text =
            std::fs::read_to_string(self.folder().join("expected/steps.json")).expect("fixtures are sound");
        let json: serde_json::Value = serde_json::from_str(&text).expect("steps.json is JSON");
        json[name].as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
    }

    /// Changes the file of one batch.
    ///
    /// # Panics
    /// There is no such file.
    pub fn change_batch(&self, file: &str, change: impl FnOnce(&mut TensorMap)) {
        let path = self.folder().join("batches").join(file);
        let mut tensors = TensorMap::read(&path).expect("fixtures are sound");
        change(&mut tensors);
        tensors.write(&path).expect("a writable folder");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a writable folder");
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("a readable folder");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a readable file");
        }
    }
}
