//! `recipes/emoji.ir`: Nucleus-Image with words in the same graph is Nucleus-Image.

use nucleus_runtime::checkpoint::CheckpointError;
use nucleus_runtime::weights::Scaled;
use nucleus_runtime::{
    Checkpoint, Extras, HostTensor, Model, Session, SessionOptions, TensorMap, WeightError, WeightSource,
    WeightSpec,
};
use nucleus_tests::parity::{Case, relative_error, root};

const TABLE: &str = "text_embedding.weight";

/// A checkpoint with one weight more: the vectors of words.
struct WithWords(Checkpoint, HostTensor);

impl WeightSource for WithWords {
    fn check(&self, needed: &[WeightSpec], extras: Extras) -> Result<(), CheckpointError> {
        let rest: Vec<WeightSpec> = needed.iter().filter(|spec| spec.name != TABLE).cloned().collect();
        assert_eq!(rest.len() + 1, needed.len(), "the model has vectors of words");
        WeightSource::check(&self.0, &rest, extras)
    }

    fn load(&self, weight: &WeightSpec, threads: usize) -> Result<HostTensor, WeightError> {
        if weight.name == TABLE {
            assert_eq!(weight.shape, self.1.shape());
            return Ok(self.1.clone());
        }
        self.0.load(weight, threads)
    }

    fn load_scaled(&self, weight: &WeightSpec, threads: usize) -> Result<Scaled, WeightError> {
        self.0.load_scaled(weight, threads)
    }
}

/// The text's states become vectors of words: word i + 2 is the i-th of all states.
fn run(case: &Case, entry: &str, change: impl Fn(&mut [i32])) -> TensorMap {
    let mut inputs = case.inputs();
    let states = inputs.get("encoder_hidden_states").expect("fixtures have a text").clone();
    let &[images, length, features] = states.shape() else { panic!("states are [B, T, K]") };
    let words = images * length + 2;
    let mut values = vec![0.0; 2 * features];
    values.extend(states.to_f32_vec());
    let mut tokens: Vec<i32> = (2..words as i32).collect();
    change(&mut tokens);
    inputs.insert("tokens", HostTensor::from_i32(&[images, length], &tokens).expect("memory"));
    if inputs.get("encoder_hidden_states_mask").is_none() {
        let mask = HostTensor::from_bool(&[images, length], &vec![true; tokens.len()]);
        inputs.insert("encoder_hidden_states_mask", mask.expect("memory"));
    }
    let mut given = TensorMap::new();
    for name in ["hidden_states", "timestep", "tokens", "encoder_hidden_states_mask"] {
        given.insert(name, inputs.get(name).expect("all inputs are there").clone());
    }

    let checkpoint = case.checkpoint();
    let mut model = Model::open(&root().join("recipes/emoji.ir")).expect("the definition is sound");
    let config = checkpoint.config_path().zip(checkpoint.config()).expect("fixtures have a config");
    model.apply_json(config.0, config.1).expect("the config fits");
    model.set(&format!("vocabulary_size={words}")).expect("a setting");
    let plan = model.compile(entry, case.dtype, &mut ()).expect("the definition compiles");
    let table = HostTensor::from_f32(&[words, features], &values).expect("memory");
    let options = SessionOptions { threads: Some(2), ..SessionOptions::default() };
    let mut session = Session::new(plan, WithWords(checkpoint, table), &options).expect("the weights fit");
    session.run(&given, &case.dims).expect("the inputs fit")
}

fn sample(outputs: &TensorMap) -> Vec<f32> {
    outputs.get("sample").expect("the entry has this output").to_f32_vec()
}

#[test]
fn words_give_diffusers_answers() {
    for name in ["first_dense", "mask_batch_2", "all_moe"] {
        let case = Case::named(name);
        let error = relative_error(&sample(&run(&case, "velocity", |_| ())), &case.expected("sample"));
        assert!(error <= 1e-5, "{name}: {error:.2e}");
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_the_unknown_word() {
    let case = Case::named("first_dense");
    let with = |token| sample(&run(&case, "velocity", |tokens| tokens[0] = token));
    let unknown = with(1);
    for token in [-1, i32::MIN, i32::MAX, 1_000_000] {
        assert_eq!(with(token), unknown, "{token}");
    }
    assert_ne!(with(2), unknown);
}

#[test]
fn routing_tells_what_every_expert_took() {
    let case = Case::named("all_moe");
    let outputs = run(&case, "routing", |_| ());
    let error = relative_error(&sample(&outputs), &case.expected("sample"));
    assert!(error <= 1e-5, "{error:.2e}");
    let chosen = outputs.get("chosen").expect("the entry has this output");
    let layers = nucleus_train::pictures::layers_of_choice(chosen).expect("a choice of experts");
    let &[images, count, tokens, experts] = chosen.shape() else { panic!("chosen is [B, L, S, E]") };
    let checkpoint = case.checkpoint();
    let config = checkpoint.config().expect("fixtures have a config");
    assert_eq!(count as u64, config["num_layers"].as_u64().expect("a number"), "every layer has experts");
    assert!(chosen.to_f32_vec().iter().all(|value| [0.0, 1.0].contains(value)));
    for (layer, slots) in layers.iter().enumerate() {
        let factor = match &config["capacity_factors"] {
            serde_json::Value::Array(list) => list[layer].as_f64(),
            one => one.as_f64(),
        };
        let capacity = factor.expect("a number") * tokens as f64 / experts as f64;
        assert_eq!(slots.shape(), [images, experts, (capacity.ceil() as usize).max(1)]);
    }
}

#[test]
fn a_file_beside_a_model_wins_over_the_one_that_is_shipped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("main.ir");
    let text = "use nucleus_image { NAME };\ndim N;\nentry main(x: [N] per step) -> (y: [N]) { x * NAME }";
    std::fs::write(&path, text).expect("a writable folder");
    let error = Model::open(&path).expect_err("the shipped model has no such constant").to_string();
    assert!(error.contains("NAME") && error.contains("nucleus_image"), "{error}");
    std::fs::write(folder.path().join("nucleus_image.ir"), "const NAME = 3;").expect("a writable folder");
    assert_eq!(Model::open(&path).expect("the file has one").entries(), ["main"]);
}
