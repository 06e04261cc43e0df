//! Folders of batches.

use std::fs;
use std::path::Path;

use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_train::data::{Batches, Place, Source, open};
use nucleus_train::recipe::Recipe;

use crate::support::{Raw, batch, draws, f32_bytes, pixel_set, stages, tensor, write};

/// A batch of 2 items, 6 tokens of 4 channels on a grid of 2 × 3, 5 words of 3 numbers, all `value`.
fn good(value: f32) -> Vec<Raw<'static>> {
    let grid = [2i64, 3].into_iter().flat_map(i64::to_le_bytes).collect();
    vec![
        ("latents", StoredDType::F32, vec![2, 6, 4], f32_bytes([value; 48])),
        ("encoder_hidden_states", StoredDType::F32, vec![2, 5, 3], f32_bytes([value; 30])),
        ("grid", StoredDType::I64, vec![2], grid),
    ]
}

#[test]
fn files_come_in_the_order_of_their_names_and_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("b", 2.0), ("a", 1.0), ("c", 3.0)] {
        write(&dir.path().join(format!("{name}.safetensors")), &good(value));
    }
    fs::write(dir.path().join("notes.txt"), "no batch").unwrap();
    fs::write(dir.path().join(".x.safetensors"), "left by a writer").unwrap();
    let mut batches = Batches::open(dir.path(), draws(1)).unwrap();
    let stages = stages(8, None);
    let first: Vec<f32> = (1..=7)
        .map(|step| tensor(&batch(&mut batches, &stages, step), "latents").as_f32().unwrap()[0])
        .collect();
    assert_eq!(first, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]);
}

#[test]
fn noise_and_levels_are_those_of_the_file_or_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write(&path, &good(1.0));
    let mut batches = Batches::open(dir.path(), draws(1)).unwrap();
    let stages = stages(8, None);
    let (one, two) = (batch(&mut batches, &stages, 1), batch(&mut batches, &stages, 2));
    assert_eq!((one.items, one.image_tokens), (2, 6));
    assert_eq!(one.dims, [("H".to_owned(), 2), ("W".to_owned(), 3)]);
    assert_eq!(tensor(&one, "noise").shape(), [2, 6, 4]);
    assert_eq!(tensor(&one, "timestep").shape(), [2]);
    assert_ne!(one.tensors, two.tensors);
    assert_eq!(one, batch(&mut Batches::open(dir.path(), draws(1)).unwrap(), &stages, 1));
    assert!(one.tensors.get("encoder_hidden_states_mask").is_none());

    let mut whole = good(1.0);
    whole.push(("noise", StoredDType::F32, vec![2, 6, 4], f32_bytes([0.5; 48])));
    whole.push((
        "timestep",
        StoredDType::F64,
        vec![2],
        [0.25f64, 1.0].into_iter().flat_map(f64::to_le_bytes).collect(),
    ));
    whole.push(("encoder_hidden_states_mask", StoredDType::BOOL, vec![2, 5], vec![1; 10]));
    write(&path, &whole);
    let given = batch(&mut batches, &stages, 1);
    assert_eq!(tensor(&given, "noise").as_f32().unwrap(), [0.5; 48]);
    assert_eq!(tensor(&given, "timestep").as_f32().unwrap(), [0.25, 1.0]);
    assert_eq!(tensor(&given, "encoder_hidden_states_mask").as_bool().unwrap(), [true; 10]);
    assert_eq!(given, batch(&mut batches, &stages, 2));
}

/// What is said of a folder, or of its first batch, with one tensor replaced.
fn message(dir: &Path, tensors: &[Raw<'_>]) -> String {
    write(&dir.join("a.safetensors"), tensors);
    let first = Batches::open(dir, draws(1))
        .and_then(|mut batches| batches.batch(&Place::of(&stages(8, None), 1, 0)));
    first.unwrap_err().to_string().replace(&format!("{}/", dir.display()), "")
}

#[test]
fn broken_batches_name_file_and_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let with = |tensor: Raw<'static>| -> Vec<Raw<'static>> {
        let mut tensors = good(1.0);
        tensors.retain(|(name, ..)| *name != tensor.0);
        tensors.push(tensor);
        tensors
    };
    let f32s = |name, shape: &[usize], value: f32| -> Raw<'static> {
        let count = shape.iter().product();
        (name, StoredDType::F32, shape.to_vec(), f32_bytes(std::iter::repeat_n(value, count)))
    };
    let grid = |values: &[i64]| -> Raw<'static> {
        ("grid", StoredDType::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    for (tensors, expected) in [
        (good(1.0)[..2].to_vec(), "tensor `grid` in `a.safetensors` is missing"),
        (good(1.0)[1..].to_vec(), "tensor `latents` in `a.safetensors` is missing"),
        (
            with(f32s("latent", &[1], 0.0)),
            "tensor `latent` in `a.safetensors` is none of a batch, which has `latents`, `encoder_hidden_states`, `grid`, `noise`, `timestep`, `encoder_hidden_states_mask`",
        ),
        (
            with(f32s("latents", &[2, 24], 0.0)),
            "tensor `latents` in `a.safetensors` has shape [2, 24], it must have 3 axes and elements",
        ),
        (
            with(f32s("latents", &[0, 6, 4], 0.0)),
            "tensor `latents` in `a.safetensors` has shape [0, 6, 4], it must have 3 axes and elements",
        ),
        (
            with(("latents", StoredDType::I32, vec![2, 6, 4], vec![0; 192])),
            "tensor `latents` in `a.safetensors` is stored as I32, it must be F32, BF16, F16 or F64",
        ),
        (
            with(f32s("latents", &[2, 6, 4], f32::INFINITY)),
            "tensor `latents` in `a.safetensors` is not finite: element 0 is inf",
        ),
        (
            with(f32s("noise", &[2, 6, 5], 0.0)),
            "tensor `noise` in `a.safetensors` has shape [2, 6, 5]; beside `latents` [2, 6, 4] and `encoder_hidden_states` [2, 5, 3] it must be [2, 6, 4]",
        ),
        (
            with(f32s("encoder_hidden_states", &[3, 5, 3], 0.0)),
            "tensor `encoder_hidden_states` in `a.safetensors` has shape [3, 5, 3]; beside `latents` [2, 6, 4] and `encoder_hidden_states` [3, 5, 3] it must be [2, 5, 3]",
        ),
        (
            with(f32s("timestep", &[2], 1.5)),
            "tensor `timestep` in `a.safetensors` holds 1.5; noise levels lie in 0 … 1",
        ),
        (
            with(f32s("timestep", &[2], f32::NAN)),
            "tensor `timestep` in `a.safetensors` is not finite: element 0 is NaN",
        ),
        (
            with(grid(&[3, 3])),
            "tensor `grid` in `a.safetensors` holds [3, 3]; rows times columns must be the 6 tokens of `latents`",
        ),
        (
            with(grid(&[-2, -3])),
            "tensor `grid` in `a.safetensors` holds [-2, -3]; rows times columns must be the 6 tokens of `latents`",
        ),
        (
            with(grid(&[6])),
            "tensor `grid` in `a.safetensors` has shape [1]; beside `latents` [2, 6, 4] and `encoder_hidden_states` [2, 5, 3] it must be [2]",
        ),
        (
            with(("encoder_hidden_states_mask", StoredDType::BOOL, vec![2, 5], vec![7; 10])),
            "tensor `encoder_hidden_states_mask` in `a.safetensors`: element 0 of a bool tensor is byte 7; only 0 and 1 are bools",
        ),
        (
            with(("encoder_hidden_states_mask", StoredDType::F32, vec![2, 5], vec![0; 40])),
            "tensor `encoder_hidden_states_mask` in `a.safetensors` is stored as F32, it must be BOOL",
        ),
    ] {
        assert_eq!(message(dir.path(), &tensors), expected);
    }
}

#[test]
fn a_recipe_names_its_batches() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |kind: &str| {
        let text = format!(
            "[model]\ncheckpoint = 'c'\n[data]\nkind = '{kind}'\npath = 'd'\n[run]\nsteps = 2\nseed = 7\nout = 'o'\n"
        );
        Recipe::parse(&dir.path().join("recipe.toml"), &text).unwrap()
    };
    write(&dir.path().join("d/a.safetensors"), &good(1.0));
    let stages = stages(8, None);
    let mut source = open(&recipe("batches"), 2).unwrap();
    let mut same = Batches::open(&dir.path().join("d"), draws(7)).unwrap();
    assert_eq!(batch(&mut *source, &stages, 2), batch(&mut same, &stages, 2));
    pixel_set(&dir.path().join("d"), &[(4, 4, &[8])]);
    let mut source = open(&recipe("shards"), 2).unwrap();
    assert_eq!(batch(&mut *source, &stages, 1).image_tokens, 4);
    pixel_set(&dir.path().join("d"), &[(4, 4, &[7])]);
    let error = open(&recipe("shards"), 2).err().unwrap().to_string();
    assert!(error.starts_with("stage 1 has no batch"), "{error}");
}

#[test]
fn folders_without_batches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Batches::open(dir.path(), draws(1)).unwrap_err().to_string();
    assert!(error.ends_with("the folder holds no batches (*.safetensors)"), "{error}");
    let error = Batches::open(&dir.path().join("none"), draws(1)).unwrap_err().to_string();
    assert!(error.contains("none`: No such file"), "{error}");
    fs::create_dir(dir.path().join("a.safetensors")).unwrap();
    let error = Batches::open(dir.path(), draws(1)).unwrap_err().to_string();
    assert!(error.ends_with("a.safetensors` is not a regular file"), "{error}");
}
