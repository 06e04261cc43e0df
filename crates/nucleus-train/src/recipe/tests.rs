use std::path::Path;

use super::*;
use crate::groups::{AdamW, AdjustLr, Halves, Muon, NsForm, Optimizer, WeightInfo, assign};

/// A recipe with every key that goes together.
const WHOLE: &str = r#"
[model]
ir = "/abs/model.ir"
config = "config.json"
seed = 3
zero_init = ["proj_out.*"]
dtype = "bf16"
remat = "full"
[data]
kind = "shards"
path = "../data"
batch = 4
text_dropout = 0.25
flip = true
[objective]
z_loss = 1e-3
wavelet = 0.1
orthogonality = 1e-7
routers = ["*.router"]
logit_std = 0.5
uniform = 0
base_shift = 0.1
max_shift = 0.2
base_tokens = 16
max_tokens = 64
[schedule]
kind = "warmup-stable"
warmup_steps = 2
[[group]]
params = ["*.to_*.weight"]
optimizer = "muon"
lr = 1e-3
weight_decay = 0
momentum = 0.9
nesterov = false
ns_steps = 3
ns_form = "direct"
ns_dtype = "f32"
adjust_lr = "original"
halves = "none"
[[group]]
params = ["*"]
optimizer = "adamw"
lr = 2e-3
betas = [0.5, 0.75]
eps = 1e-6
weight_decay = 0.5
[[stage]]
steps = 10
resolution = 32
capacity_factor = 4
[[stage]]
batch = 2
accumulate = 3
capacity_factor = [0, 2.5]
[run]
steps = 25
clip_grad_norm = 1.0
out = "out"
seed = 9
threads = 2
checkpoint_every = 5
keep = 2
resume = false
accumulate = 2
sample_every = 5
sample_steps = 20
guidance = 3
[[run.sample]]
caption = "red apple"
[[run.sample]]
caption = "dog"
height = 32
width = 64
seed = 5
"#;

const LEAST: &str = r#"
[model]
checkpoint = "model/transformer"
[data]
kind = "batches"
path = "batches"
[run]
steps = 6
out = "out"
"#;

fn parse(text: &str) -> Result<Recipe, RecipeError> {
    Recipe::parse(Path::new("dir/recipe.toml"), text)
}

/// The message without the path, for a recipe that is wrong.
fn message(text: &str) -> String {
    let text = parse(text).unwrap_err().to_string();
    text.strip_prefix("dir/recipe.toml:").unwrap_or(&text).to_owned()
}

#[test]
fn a_short_recipe_has_all_defaults() {
    let recipe = parse(LEAST).unwrap();
    assert_eq!(recipe.model.start, Start::Checkpoint(PathBuf::from("dir/model/transformer")));
    assert_eq!((recipe.model.ir, recipe.model.dtype), (None, ComputeDType::F32));
    assert_eq!(recipe.model.remat, Recompute::Nothing);
    assert_eq!(recipe.data, DataRecipe { kind: DataKind::Batches, path: PathBuf::from("dir/batches") });
    assert_eq!((recipe.objective.z_loss, recipe.objective.wavelet), (5e-7, 0.0));
    assert_eq!(recipe.objective.routers, ["*.img_mlp.gate.weight"]);
    assert_eq!(recipe.objective.timesteps, TimestepSampling::default());
    assert_eq!(recipe.schedule.warmup_steps, 1000);
    assert_eq!(recipe.stages.steps(), 6);
    assert_eq!(recipe.stages.at(1).stage.accumulate, 1);
    assert_eq!((recipe.run.clip_grad_norm, recipe.run.keep, recipe.run.resume), (None, None, true));
}

#[test]
fn every_key_is_read() {
    let recipe = parse(WHOLE).unwrap();
    assert_eq!(recipe.model.ir.as_deref(), Some(Path::new("/abs/model.ir")));
    let zero_init = vec!["proj_out.*".to_owned()];
    assert_eq!(
        recipe.model.start,
        Start::Fresh { config: PathBuf::from("dir/config.json"), seed: 3, zero_init }
    );
    assert_eq!(recipe.data.kind, DataKind::Shards { text_dropout: 0.25, flip: true });
    assert_eq!(recipe.data.path, Path::new("dir/../data"));
    assert_eq!(
        (recipe.objective.orthogonality, &recipe.objective.routers[..]),
        (1e-7, &["*.router".to_owned()][..])
    );
    assert_eq!(
        recipe.objective.timesteps,
        TimestepSampling {
            logit_std: 0.5,
            uniform: 0.0,
            base_shift: 0.1,
            max_shift: 0.2,
            base_tokens: 16,
            max_tokens: 64
        }
    );
    assert_eq!(
        recipe.groups[0].optimizer,
        Optimizer::Muon(Muon {
            lr: 1e-3,
            weight_decay: 0.0,
            momentum: 0.9,
            nesterov: false,
            ns_steps: 3,
            ns_form: NsForm::Direct,
            ns_dtype: DType::F32,
            adjust_lr: AdjustLr::Original,
            halves: Halves::None,
        })
    );
    assert_eq!(
        recipe.groups[1].optimizer,
        Optimizer::AdamW(AdamW { lr: 2e-3, weight_decay: 0.5, betas: [0.5, 0.75], eps: 1e-6 })
    );
    let stages: Vec<&Stage> = recipe.stages.iter().collect();
    assert_eq!(
        *stages[0],
        Stage {
            steps: 10,
            batch: 4,
            accumulate: 2,
            resolution: Some(32),
            capacity_factor: Some(CapacityFactor::All(4.0)),
        }
    );
    assert_eq!(
        *stages[1],
        Stage {
            steps: 15,
            batch: 2,
            accumulate: 3,
            resolution: None,
            capacity_factor: Some(CapacityFactor::PerLayer(vec![0.0, 2.5])),
        }
    );
    assert_eq!(recipe.run.samples[0], SampleRecipe { caption: "red apple".into(), size: None, seed: 0 });
    assert_eq!(recipe.run.samples[1], SampleRecipe { caption: "dog".into(), size: Some((32, 64)), seed: 5 });
    assert_eq!((recipe.run.seed, recipe.run.keep, recipe.run.resume), (9, Some(2), false));
}

#[test]
fn unknown_keys_name_their_line_and_the_keys_that_exist() {
    assert_eq!(
        message(&LEAST.replace("path =", "paht =")),
        "6:1: unknown key `paht` in [data]; its keys are `kind`, `path`, `batch`, `text_dropout`, `flip`"
    );
    assert_eq!(
        message(&format!("{LEAST}stepz = 4\n")),
        "10:1: unknown key `stepz` in [run]; its keys are `steps`, `out`, `clip_grad_norm`, `accumulate`, `seed`, `threads`, `checkpoint_every`, `keep`, `resume`, `sample_every`, `sample_steps`, `guidance`, `sample`"
    );
    assert_eq!(
        message(&format!("{LEAST}[optimiser]\n")),
        "10:2: unknown key `optimiser` in the recipe; its keys are `model`, `data`, `objective`, `schedule`, `group`, `stage`, `run`"
    );
    assert_eq!(
        message(&format!("{LEAST}[[group]]\nparams = [\"*\"]\noptimizer = \"adamw\"\nns_steps = 5\n")),
        "13:1: unknown key `ns_steps` in [[group]] number 1; its keys are `params`, `optimizer`, `lr`, `weight_decay`, `betas`, `eps`"
    );
}

#[test]
fn values_out_of_range_and_of_other_types_are_refused_where_they_stand() {
    for (from, to, expected) in [
        ("steps = 6", "steps = 0", "8:9: `steps` in [run] is 0; it must be 1 to 1000000000"),
        ("steps = 6", "steps = -1", "8:9: `steps` in [run] is -1; it must be 1 to 1000000000"),
        ("steps = 6", "steps = 6.5", "8:9: `steps` in [run] must be an integer, here it is a number"),
        ("steps = 6", "steps = 99999999999999999999", "8:9: `steps` in [run] does not fit 64 bits"),
        ("steps = 6", "steps = \"6\"", "8:9: `steps` in [run] must be an integer, here it is a string"),
        ("steps = 6", "", "1:1: [run] needs `steps`"),
        ("out = \"out\"", "out = \"\"", "9:7: `out` in [run] is no path"),
        (
            "\"batches\"\npath",
            "\"batch\"\npath",
            "5:8: `kind` in [data] is \"batch\"; it can be \"batches\", \"shards\"",
        ),
        ("path = \"batches\"", "path = 3", "6:8: `path` in [data] must be a string, here it is an integer"),
        (
            "steps = 6",
            "steps = 6\nclip_grad_norm = 0",
            "9:18: `clip_grad_norm` in [run] is 0; it must be above 0",
        ),
        (
            "steps = 6",
            "steps = 6\nclip_grad_norm = inf",
            "9:18: `clip_grad_norm` in [run] is inf; it must be above 0",
        ),
        (
            "steps = 6",
            "steps = 6\nresume = 1",
            "9:10: `resume` in [run] must be true or false, here it is an integer",
        ),
        (
            "[run]",
            "[objective]\nuniform = 1.5\n[run]",
            "8:11: `uniform` in [objective] is 1.5; it must be 0 to 1",
        ),
        (
            "path =",
            "batch = 2\npath =",
            "6:9: `batch` in [data] is for kind \"shards\"; batches are used as they are",
        ),
        (
            "checkpoint",
            "config = \"c\"\ncheckpoint",
            "3:10: [model] has both `checkpoint` and `config`: one of them says where to start",
        ),
        (
            "checkpoint",
            "seed = 1\ncheckpoint",
            "3:8: `seed` in [model] is of random weights, but `checkpoint` gives the weights",
        ),
    ] {
        assert_eq!(message(&LEAST.replace(from, to)), expected, "{to}");
    }
    assert_eq!(message("[model"), "1:7: unclosed table, expected `]`");
    assert_eq!(
        message("model = 3"),
        "1:9: `model` in the recipe must be a table `[model]`, here it is an integer"
    );
}

#[test]
fn memory_is_a_size() {
    let with = |value: &str| parse(&LEAST.replace("checkpoint", &format!("memory = {value}\ncheckpoint")));
    for (value, bytes) in [
        ("4096", 4096),
        ("\"2 GiB\"", 2 << 30),
        ("\"1.5GiB\"", 3 << 29),
        ("\"500 MB\"", 500_000_000),
        ("\"7 B\"", 7),
    ] {
        assert_eq!(with(value).unwrap().model.remat, Recompute::Within(bytes), "{value}");
    }
    for value in [
        "0",
        "-1",
        "\"\"",
        "\"2\"",
        "\"GiB\"",
        "\"-2 GiB\"",
        "\"1e3 MB\"",
        "\"inf B\"",
        "\"0 B\"",
        "\"9 gb\"",
        "true",
    ] {
        let error = with(value).unwrap_err().to_string();
        assert!(error.contains(":3:10: `memory` in [model]"), "{value}: {error}");
    }
    let huge = format!("\"{} TiB\"", "9".repeat(400));
    assert!(with(&huge).is_err());
    assert_eq!(
        message(&LEAST.replace("checkpoint", "remat = \"auto\"\nmemory = 9\ncheckpoint")),
        "4:10: [model] has both `remat` and `memory`: one of them says what is computed again"
    );
}

#[test]
fn stages_add_up() {
    let with = |stages: &str| parse(&format!("{LEAST}{stages}"));
    let recipe = with("[[stage]]\nsteps = 2\n[[stage]]\nsteps = 1\n[[stage]]\n").unwrap();
    let places: Vec<(usize, u64)> =
        (1..=7).map(|step| recipe.stages.at(step)).map(|at| (at.number, at.step_in_stage)).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]);
    for (stages, expected) in [
        ("[[stage]]\nsteps = 2\n", "1:1: [run] has 6 steps, but the stages add up to 2"),
        (
            "[[stage]]\nsteps = 6\n[[stage]]\n",
            "12:1: no steps are left for [[stage]] number 2: [run] has 6, the stages before it 6",
        ),
        (
            "[[stage]]\n[[stage]]\n",
            "10:1: [[stage]] number 1 needs `steps`; only the last stage can leave it out, where [run] has `steps`",
        ),
        (
            "[[stage]]\nresolution = 64\n",
            "11:14: `resolution` in [[stage]] number 1 is for data of kind \"shards\"; batches are used as they are",
        ),
    ] {
        let text = with(stages).unwrap_err().to_string();
        assert_eq!(text.strip_prefix("dir/recipe.toml:").unwrap(), expected);
    }
    assert_eq!(CapacityFactor::All(2.0).per_layer(2).unwrap(), [2.0, 2.0]);
    assert_eq!(
        CapacityFactor::PerLayer(vec![1.0]).per_layer(2).unwrap_err(),
        "`capacity_factor` lists 1 numbers, the model has 2 layers"
    );
}

#[test]
fn newton_schulz_steps_compute_in_the_type_of_the_model_unless_a_group_says_otherwise() {
    let of = |dtype: &str, keys: &str| {
        let group = format!("[[group]]\nparams = [\"a\"]\noptimizer = \"muon\"\n{keys}[run]");
        let text = LEAST.replace("[data]", &format!("dtype = \"{dtype}\"\n[data]")).replace("[run]", &group);
        let of = |group: &Group| match group.optimizer {
            Optimizer::Muon(muon) => (muon.ns_form, muon.ns_dtype),
            Optimizer::AdamW(_) => unreachable!("the first groups are Muon's"),
        };
        // Behind the recipe's own group stands the default one of Muon.
        parse(&text).map(|recipe| (of(&recipe.groups[0]), of(&recipe.groups[1])))
    };
    let (gram, direct) = ("ns_form = \"gram\"\n", "ns_form = \"direct\"\n");
    let (f32, bf16) = ("ns_dtype = \"f32\"\n", "ns_dtype = \"bf16\"\n");
    for (dtype, usual) in [("f32", DType::F32), ("bf16", DType::Bf16)] {
        let own = |keys: &str| {
            let (own, default) = of(dtype, keys).unwrap();
            assert_eq!(default, (NsForm::Gram, usual));
            own
        };
        assert_eq!(own(""), (NsForm::Gram, usual));
        assert_eq!(own(gram), (NsForm::Gram, usual));
        assert_eq!(own(direct), (NsForm::Direct, usual));
        assert_eq!(own(f32), (NsForm::Gram, DType::F32));
        assert_eq!(own(&format!("{direct}{bf16}")), (NsForm::Direct, DType::Bf16));
        assert_eq!(own(&format!("{gram}{bf16}")), (NsForm::Gram, DType::Bf16));
        assert!(of(dtype, "ns_dtype = \"f16\"\n").is_err());
    }
}

#[test]
fn default_groups_know_the_published_names() {
    let weights: Vec<WeightInfo> = [
        ("img_in.weight", vec![64, 8]),
        ("txt_norm.weight", vec![8]),
        ("time_text_embed.norm.weight", vec![8]),
        ("transformer_blocks.0.img_mod.1.weight", vec![256, 64]),
        ("transformer_blocks.0.attn.norm_q.weight", vec![8]),
        ("transformer_blocks.0.attn.to_q.weight", vec![64, 64]),
        ("transformer_blocks.0.attn.to_out.0.weight", vec![64, 64]),
        ("transformer_blocks.0.attn.add_k_proj.weight", vec![16, 64]),
        ("transformer_blocks.0.img_mlp.gate.weight", vec![4, 128]),
        ("transformer_blocks.0.img_mlp.experts.gate_up_proj", vec![4, 64, 32]),
        ("transformer_blocks.0.img_mlp.experts.down_proj", vec![4, 16, 64]),
        ("transformer_blocks.0.img_mlp.shared_expert.net.0.proj.weight", vec![32, 64]),
        ("transformer_blocks.0.img_mlp.shared_expert.net.2.weight", vec![64, 16]),
        ("transformer_blocks.0.encoder_proj.bias", vec![64]),
    ]
    .into_iter()
    .map(|(name, shape)| WeightInfo { name: name.to_owned(), shape })
    .collect();
    let assignment = assign(&groups::defaults(ComputeDType::F32), &weights).unwrap();
    let groups: Vec<usize> = assignment.weights.iter().map(|weight| weight.group).collect();
    assert_eq!(groups, [2, 1, 1, 2, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
    let matrices: Vec<usize> =
        assignment.weights.iter().filter_map(|weight| Some(weight.layout?.matrices())).collect();
    assert_eq!(matrices, [1, 1, 1, 8, 4, 2, 1]);
    assert!(assignment.unused.is_empty());
}

#[test]
fn the_fingerprint_is_of_what_decides_the_weights() {
    let same = parse(&LEAST.replace("steps = 6", "steps = 8\nkeep = 1").replace("\"out\"", "\"b\"")).unwrap();
    let first = parse(LEAST).unwrap().fingerprint();
    assert_eq!(first, same.fingerprint());
    assert_eq!(first, Recipe::parse(Path::new("/moved/recipe.toml"), LEAST).unwrap().fingerprint());
    for (from, to) in [("steps = 6", "steps = 6\nseed = 1"), ("\"batches\"\n[run]", "\"others\"\n[run]")] {
        let other = parse(&LEAST.replace(from, to)).unwrap();
        assert_ne!(first, other.fingerprint(), "{to}");
    }
}

#[test]
fn recipes_changed_anywhere_do_not_panic() {
    let mut right = 0;
    for at in 0..WHOLE.len() {
        for with in ["", "\"", "]", "é", "-", "9", "\n", "[[", "=", "{"] {
            let text = format!("{}{with}{}", &WHOLE[..at], &WHOLE[at + 1..]);
            right += usize::from(parse(&text).is_ok());
        }
    }
    assert!(right > 0, "no change left a recipe");
}

#[test]
fn files_that_are_no_recipes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Recipe::read(dir.path()).unwrap_err().to_string().ends_with("is not a regular file"));
    let path = dir.path().join("r.toml");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Recipe::read(&path).unwrap_err().to_string().ends_with("is not UTF-8"));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Recipe::read(&path).unwrap_err().to_string().ends_with("is larger than 1048576 bytes"));
    std::fs::write(&path, LEAST).unwrap();
    assert_eq!(Recipe::read(&path).unwrap().run.out, dir.path().join("out"));
    // Nesting is bounded by the parser.
    assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
}
