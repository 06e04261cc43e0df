//! Checkpoint folders: layouts, shards, what fits a model, and what is written.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;

use nucleus_ir::DType;
use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_runtime::safetensors_write::TensorSpec;
use nucleus_runtime::{Checkpoint, Expected, Extras, write_checkpoint};
use support::{safetensors, write_weights};
use tempfile::tempdir;

const SINGLE: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

fn error(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

fn index(dir: &Path, weight_map: &str) {
    fs::write(dir.join(INDEX), format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{weight_map}}}"#))
        .unwrap();
}

#[test]
fn a_diffusers_folder_is_opened_with_its_config() {
    let dir = tempdir().unwrap();
    write_weights(&dir.path().join(SINGLE), &[("b", &[2, 3]), ("a", &[4])]);
    assert!(Checkpoint::open(dir.path()).unwrap().config().is_none());
    fs::write(dir.path().join("config.json"), r#"{"_class_name": "M", "num_layers": 3}"#).unwrap();

    for path in [dir.path().to_path_buf(), dir.path().join(SINGLE)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.path(), path);
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.names_in_file_order(), ["b", "a"]);
        let weight = checkpoint.get("b").unwrap();
        assert_eq!((weight.dtype(), weight.shape, weight.elements()), (Some(DType::F32), &[2, 3][..], 6));
        assert_eq!(weight.file, dir.path().join(SINGLE));
        assert_eq!(weight.bytes, (0..24).collect::<Vec<u8>>());
        assert_eq!(checkpoint.get("a").unwrap().bytes, (24..40).collect::<Vec<u8>>());
        assert!(checkpoint.get("c").is_none());
        assert_eq!((checkpoint.len(), checkpoint.total_bytes(), checkpoint.total_elements()), (2, 40, 10));
        assert_eq!(checkpoint.config().unwrap()["num_layers"], 3);
        assert_eq!(checkpoint.config_path().unwrap(), dir.path().join("config.json"));
    }
}

#[test]
fn folders_are_searched_in_the_documented_order() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    let opened = |path: &Path| Checkpoint::open(path).unwrap().names().collect::<Vec<_>>().join(" ");

    write_weights(&path.join("other.bf16.safetensors"), &[("only", &[1])]);
    assert_eq!(opened(path), "only");
    write_weights(&path.join(".model.safetensors.1-2.tmp"), &[("temporary", &[1])]);
    assert_eq!(opened(path), "only");

    fs::create_dir(path.join("transformer")).unwrap();
    write_weights(&path.join("transformer/diffusion_pytorch_model.fp16.safetensors"), &[("sub", &[1])]);
    assert_eq!(opened(path), "sub");
    write_weights(&path.join("model.safetensors"), &[("model", &[1])]);
    assert_eq!(opened(path), "model");
    write_weights(&path.join(SINGLE), &[("diffusers", &[1])]);
    assert_eq!(opened(path), "diffusers");
    fs::write(path.join("model_index.json"), "{}").unwrap();
    assert_eq!(opened(path), "sub");
    assert_eq!(opened(&path.join("model.safetensors")), "model");
}

#[test]
fn a_pipeline_folder_takes_the_config_of_its_transformer() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("transformer")).unwrap();
    write_weights(&dir.path().join("transformer").join(SINGLE), &[("a", &[1])]);
    fs::write(dir.path().join("config.json"), r#"{"whose": "pipeline"}"#).unwrap();
    fs::write(dir.path().join("transformer/config.json"), r#"{"whose": "transformer"}"#).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().config().unwrap()["whose"], "transformer");
}

#[test]
fn folders_without_one_clear_answer_are_refused() {
    let dir = tempdir().unwrap();
    let shown = dir.path().display().to_string();
    assert_eq!(
        error(dir.path()),
        format!(
            "folder `{shown}` holds no weights: expected `diffusion_pytorch_model.safetensors`, \
             `diffusion_pytorch_model.safetensors.index.json` with its shards, another `.safetensors` file, \
             or a subfolder `transformer`"
        )
    );
    let shard = dir.path().join("diffusion_pytorch_model-00001-of-00002.safetensors");
    write_weights(&shard, &[("a", &[1])]);
    assert_eq!(
        error(dir.path()),
        format!(
            "`diffusion_pytorch_model-00001-of-00002.safetensors` is one shard of several, and folder \
             `{shown}` has no index of them: restore its `.safetensors.index.json`"
        )
    );
    fs::remove_file(shard).unwrap();

    write_weights(&dir.path().join("a.safetensors"), &[("a", &[1])]);
    write_weights(&dir.path().join("b.safetensors"), &[("a", &[1])]);
    assert_eq!(
        error(dir.path()),
        format!(
            "folder `{shown}` holds several sets of weights (`a.safetensors`, `b.safetensors`): name the file to use"
        )
    );
    for i in 0..10 {
        write_weights(&dir.path().join(format!("c{i}.safetensors")), &[("a", &[1])]);
    }
    assert!(error(dir.path()).contains("`c5.safetensors` and 4 more): name the file"));

    write_weights(&dir.path().join(SINGLE), &[("a", &[1])]);
    index(dir.path(), "{}");
    assert_eq!(
        error(dir.path()),
        format!(
            "folder `{shown}` holds several sets of weights (`{SINGLE}`, `{INDEX}`): name the file to use"
        )
    );
    let notes = dir.path().join("notes.txt");
    fs::write(&notes, "x").unwrap();
    assert_eq!(
        error(&notes),
        format!(
            "`{}` is neither a folder nor a `.safetensors` file nor a `.safetensors.index.json`",
            notes.display()
        )
    );
    let missing = dir.path().join("none");
    assert_eq!(
        error(&missing),
        format!("cannot open checkpoint `{}`: No such file or directory (os error 2)", missing.display())
    );
}

#[test]
fn a_broken_config_is_reported_with_its_place() {
    let dir = tempdir().unwrap();
    write_weights(&dir.path().join(SINGLE), &[("a", &[1])]);
    let config = dir.path().join("config.json");
    fs::write(&config, "{\n\"a\" 1}").unwrap();
    assert_eq!(error(dir.path()), format!("`{}`:2:5: expected `:`", config.display()));
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert_eq!(error(dir.path()), format!("`{}` is not a regular file", config.display()));
}

#[test]
fn shards_are_bound_through_their_index() {
    let dir = tempdir().unwrap();
    write_weights(&dir.path().join("m-00001-of-00002.safetensors"), &[("a", &[1]), ("c", &[2])]);
    write_weights(&dir.path().join("m-00002-of-00002.safetensors"), &[("b", &[3])]);
    index(
        dir.path(),
        r#"{"a":"m-00001-of-00002.safetensors","b":"m-00002-of-00002.safetensors","c":"m-00001-of-00002.safetensors"}"#,
    );
    for path in [dir.path().to_path_buf(), dir.path().join(INDEX)] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(checkpoint.names_in_file_order(), ["a", "c", "b"]);
        assert_eq!(checkpoint.get("b").unwrap().shape, [3]);
        assert_eq!(checkpoint.get("b").unwrap().file, dir.path().join("m-00002-of-00002.safetensors"));
        assert_eq!(checkpoint.files().len(), 2);
    }
    fs::rename(dir.path().join(INDEX), dir.path().join("m.safetensors.index.fp16.json")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().len(), 3);
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(INDEX);
    write_weights(&dir.path().join("1.safetensors"), &[("a", &[1]), ("c", &[2])]);
    write_weights(&dir.path().join("2.safetensors"), &[("b", &[3]), ("c", &[2])]);
    let refusal = |weight_map: &str| {
        index(dir.path(), weight_map);
        let prefix = format!("shard index `{}` does not fit its shards: ", path.display());
        error(dir.path()).strip_prefix(&prefix).unwrap().to_owned()
    };
    assert_eq!(
        refusal(r#"{"a":"1.safetensors","c":"1.safetensors","b":"2.safetensors"}"#),
        "weight `c` is in shard `2.safetensors`, the index places it in `1.safetensors`"
    );
    assert_eq!(
        refusal(r#"{"a":"1.safetensors"}"#),
        "weight `c` is in shard `1.safetensors` but not in the index"
    );
    assert_eq!(
        refusal(r#"{"a":"1.safetensors","c":"1.safetensors","d":"1.safetensors"}"#),
        "weight `d` is not in its shard `1.safetensors`"
    );
    assert_eq!(refusal(r#"{"a":"3.safetensors"}"#), "shard `3.safetensors` is missing");
}

#[test]
fn a_broken_index_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(INDEX);
    let refusal = |text: &str| {
        fs::write(&path, text).unwrap();
        let prefix = format!("shard index `{}` is broken: ", path.display());
        error(dir.path()).strip_prefix(&prefix).unwrap().to_owned()
    };
    assert_eq!(refusal("{}"), "it has no object `weight_map`");
    assert_eq!(refusal(r#"{"weight_map":{}}"#), "its `weight_map` is empty");
    assert_eq!(refusal(r#"{"weight_map":{"a":1}}"#), "`weight_map` gives no file name for `a`");
    for outside in ["../x.safetensors", "/etc/x.safetensors", "a\\\\x.safetensors", "x", "", ".."] {
        assert_eq!(
            refusal(&format!(r#"{{"weight_map":{{"a":"{outside}"}}}}"#)),
            format!(
                "`weight_map` places `a` in `{}`, which is not the plain name of a `.safetensors` file",
                outside.replace("\\\\", "\\")
            )
        );
    }
    fs::write(&path, "{\"weight_map\":\n [}").unwrap();
    assert_eq!(error(dir.path()), format!("`{}`:2:3: expected value", path.display()));
    fs::write(&path, "[]").unwrap();
    assert!(
        error(dir.path()).ends_with(":1:0: invalid type: sequence, expected a map"),
        "{}",
        error(dir.path())
    );
}

#[test]
fn everything_that_does_not_fit_is_reported_at_once() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(SINGLE);
    let entry = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let header = [
        entry("transformer_blocks.3.attn.to_q.weight", "BF16", "[1, 4]", 0, 8),
        entry("steps", "I64", "[1]", 8, 16),
        entry("img_in.wieght", "F16", "[2]", 16, 20),
        entry("transformer.proj_out.weight", "F32", "[1]", 20, 24),
        entry("fine", "F32", "[1]", 24, 28),
        entry("narrow", "F16", "[1]", 28, 30),
    ];
    fs::write(&path, safetensors(&format!("{{{}}}", header.join(",")), 30)).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut narrow = Expected::new("narrow", [1]);
    narrow.dtype = Some(DType::F32);
    let expected = [
        Expected::new("transformer_blocks.3.attn.to_q.weight", [4, 4]),
        Expected::new("steps", [1]),
        Expected::new("img_in.weight", [2]),
        Expected::new("proj_out.weight", [1]),
        Expected::new("fine", [1]),
        Expected::new("unlike.anything", [1]),
        narrow,
    ];
    let body = "
  weight `transformer_blocks.3.attn.to_q.weight` has shape [1, 4], the model needs [4, 4]
  weight `steps` is stored as I64, the model needs f32, bf16 or f16
  weight `img_in.weight` is missing; the checkpoint has `img_in.wieght`, which the model does not use
  weight `proj_out.weight` is missing; the checkpoint has `transformer.proj_out.weight`, which the model does not use
  weight `unlike.anything` is missing
  weight `narrow` is stored as F16, the model needs f32";
    let dir = dir.path().display();
    assert_eq!(
        checkpoint.check(&expected, Extras::Allow).unwrap_err().to_string(),
        format!("checkpoint `{dir}` does not fit the model (6 problems):{body}")
    );
    assert_eq!(
        checkpoint.check(&expected, Extras::Refuse).unwrap_err().to_string(),
        format!(
            "checkpoint `{dir}` does not fit the model (8 problems):{body}
  weight `img_in.wieght` is not used by the model
  weight `transformer.proj_out.weight` is not used by the model"
        )
    );
    checkpoint.check(&expected[4..5], Extras::Allow).unwrap();
    assert_eq!(
        checkpoint.check(&[Expected::new("gone", [1])], Extras::Allow).unwrap_err().to_string(),
        format!("checkpoint `{dir}` does not fit the model (1 problem):\n  weight `gone` is missing")
    );
}

#[test]
fn twenty_problems_are_written_out_and_the_rest_counted() {
    let dir = tempdir().unwrap();
    write_weights(&dir.path().join(SINGLE), &[("a", &[1])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let expected: Vec<Expected> = (0..50).map(|i| Expected::new(format!("weight.number.{i}"), [1])).collect();
    let text = checkpoint.check(&expected, Extras::Refuse).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 22);
    assert!(text.contains("(51 problems)"), "{text}");
    assert!(text.contains("`weight.number.19` is missing\n  and 31 more"), "{text}");
}

#[test]
fn the_dtype_is_that_of_most_bytes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let dtype = |header: &str, data| {
        fs::write(&path, safetensors(header, data)).unwrap();
        Checkpoint::open(&path).unwrap().dtype()
    };
    let mixed = r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},
                    "b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]},
                    "c":{"dtype":"I64","shape":[2],"data_offsets":[10,26]}}"#;
    assert_eq!(dtype(mixed, 26), Some(DType::Bf16));
    assert_eq!(dtype(r#"{"c":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 2), None);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let weight = checkpoint.get("c").unwrap();
    assert_eq!((weight.dtype(), weight.stored_dtype), (None, StoredDType::U8));
}

#[cfg(target_os = "linux")]
#[test]
fn released_weights_leave_the_resident_set_and_come_back() {
    fn resident_kib() -> i64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    let dir = tempdir().unwrap();
    let n = 8 << 20;
    write_weights(&dir.path().join(SINGLE), &[("big", &[n]), ("small", &[1])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let sum = || checkpoint.get("big").unwrap().bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    checkpoint.advise_sequential();
    checkpoint.prefetch("big");
    let first = sum();
    let before = resident_kib();
    checkpoint.release("big");
    checkpoint.release("no such weight");
    let after = resident_kib();
    // Half of the 32 MiB leaves room for what other tests of this process map meanwhile.
    assert!(before - after > 16 << 10, "RssFile {before} KiB before, {after} KiB after");
    assert_eq!(sum(), first);
}

/// The bytes that [`save`] stores for a tensor.
fn content(spec: &TensorSpec) -> Vec<u8> {
    let seed = spec.name.bytes().map(usize::from).sum::<usize>();
    (0..spec.bytes().unwrap() as usize).map(|i| (seed + i) as u8).collect()
}

fn save(dir: &Path, tensors: &[TensorSpec], max_shard_bytes: u64) {
    let config = serde_json::json!({"num_layers": 2, "a": [1, 2]});
    write_checkpoint(dir, config.as_object(), tensors, max_shard_bytes, &mut |spec, sink: &mut dyn Write| {
        content(spec).chunks(7).try_for_each(|chunk| sink.write_all(chunk))
    })
    .unwrap();
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn written_checkpoints_read_back() {
    let tensors = [
        TensorSpec::new("z", DType::Bf16, [3, 5]),
        TensorSpec::new("a", DType::F32, [7]),
        TensorSpec::new("m", DType::F16, [2, 2]),
        TensorSpec::new("scalar", DType::F32, []),
        TensorSpec::new("empty", DType::F32, [0, 4]),
    ];
    let base = "diffusion_pytorch_model";
    let layouts = [
        (u64::MAX, vec!["config.json".to_owned(), SINGLE.to_owned()]),
        (
            36,
            vec![
                "config.json".to_owned(),
                format!("{base}-00001-of-00003.safetensors"),
                format!("{base}-00002-of-00003.safetensors"),
                format!("{base}-00003-of-00003.safetensors"),
                INDEX.to_owned(),
            ],
        ),
    ];
    for (max_shard_bytes, expected) in layouts {
        let dir = tempdir().unwrap();
        let folder = dir.path().join("new/folder");
        save(&folder, &tensors, max_shard_bytes);
        assert_eq!(files(&folder), expected);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.len(), tensors.len());
        assert_eq!(checkpoint.config().unwrap().keys().collect::<Vec<_>>(), ["num_layers", "a"]);
        for spec in &tensors {
            let weight = checkpoint.get(&spec.name).unwrap();
            assert_eq!((weight.stored_dtype, weight.shape), (spec.dtype, &spec.shape[..]));
            assert_eq!(weight.bytes, content(spec), "{}", spec.name);
            assert_eq!(weight.bytes.as_ptr() as usize % (spec.dtype.bitsize() / 8), 0);
        }
        for file in checkpoint.files() {
            assert_eq!(file.header().metadata["format"], "pt");
            assert_eq!(file.header().tensors[0].range.start % 64, 0);
        }

        let again = dir.path().join("again");
        save(&again, &tensors, max_shard_bytes);
        for name in &expected {
            assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(again.join(name)).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_failed_write_leaves_nothing() {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("out");
    let tensors = [TensorSpec::new("a", DType::F32, [2]), TensorSpec::new("b", DType::F32, [2])];
    let written = |bytes_of_b: usize| {
        write_checkpoint(&folder, None, &tensors, 8, &mut |spec, sink: &mut dyn Write| {
            sink.write_all(&vec![0; if spec.name == "b" { bytes_of_b } else { 8 }])
        })
        .unwrap_err()
        .to_string()
    };
    let file = folder.join("diffusion_pytorch_model-00002-of-00002.safetensors");
    let prefix = format!("cannot write tensor `b` to `{}`: its source gave ", file.display());
    assert_eq!(written(7), format!("{prefix}7 of 8 bytes"));
    assert_eq!(written(9), format!("{prefix}at least 1 bytes too many"));
    assert_eq!(files(&folder), Vec::<String>::new());
}

#[test]
fn writes_that_cannot_be_right_are_refused() {
    let dir = tempdir().unwrap();
    let refusal = |tensors: &[TensorSpec], max: u64| {
        write_checkpoint(dir.path(), None, tensors, max, &mut |spec, sink: &mut dyn Write| {
            sink.write_all(&content(spec))
        })
        .unwrap_err()
        .to_string()
    };
    let a = TensorSpec::new("a", DType::F32, [1]);
    assert_eq!(
        refusal(std::slice::from_ref(&a), 0),
        "max_shard_bytes is 0: give the largest size that a shard file may have"
    );
    assert_eq!(refusal(&[a.clone(), a.clone()], 8), "tensor name `a` is given twice");
    assert_eq!(
        refusal(&[TensorSpec::new("__metadata__", DType::F32, [1])], 8),
        "tensor name `__metadata__` is reserved by the format"
    );
    assert_eq!(
        refusal(&[TensorSpec::new("a", DType::F32, [usize::MAX, 2])], 8),
        format!("tensor `a` of shape [{}, 2] and dtype F32 has no valid size", usize::MAX)
    );
    write_weights(&dir.path().join("model.safetensors"), &[("a", &[1])]);
    assert_eq!(
        refusal(&[a], 8),
        format!(
            "`{}` already holds weights (`model.safetensors`): remove them or write to a new folder",
            dir.path().display()
        )
    );
}
