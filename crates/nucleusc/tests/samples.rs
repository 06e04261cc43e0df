//! From pictures to samples as a user does it: data, a run with samples, `nucleusc sample`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nucleus_tests::parity::root;

struct Bench(tempfile::TempDir);

const CONFIG: &str = r#"{
    "patch_size": 4, "in_channels": 48, "out_channels": 3, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "joint_attention_dim": 16, "axes_dims_rope": [4, 6, 6],
    "mlp_ratio": 6.0, "dense_moe_strategy": "leave_first_block_dense", "num_experts": 4, "moe_intermediate_dim": 16,
    "capacity_factors": 2.0, "vocabulary_size": 8
}"#;

impl Bench {
    /// Two pictures, "red" and "blue", as a data set, and a recipe that trains on them.
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(bench.path("pictures")).expect("a writable folder");
        let mut list = String::new();
        for (name, colour) in [("red", [255u8, 0, 0]), ("blue", [0, 0, 255])] {
            let picture = image::RgbImage::from_pixel(16, 16, image::Rgb(colour));
            picture.save(bench.path("pictures").join(format!("{name}.png"))).expect("a picture");
            list += &format!("{{\"file\": \"{name}.png\", \"caption\": \"{name}\"}}\n");
        }
        bench.write("captions.jsonl", &list);
        bench.write("config.json", CONFIG);
        bench.write("recipe.toml", &bench.recipe(""));
        bench.succeeds(&[
            "data",
            "build",
            "--pictures",
            "pictures",
            "--captions",
            "captions.jsonl",
            "--size",
            "16",
            "--tokens",
            "4",
            "--out",
            "set",
        ]);
        bench
    }

    fn recipe(&self, more: &str) -> String {
        let ir = root().join("recipes/emoji.ir");
        format!(
            "[model]\nir = {:?}\nconfig = \"config.json\"\n[data]\nkind = \"shards\"\npath = \"set\"\nbatch = 2\n\
            [schedule]\nwarmup_steps = 5\n[[group]]\nparams = [\"*\"]\noptimizer = \"adamw\"\nlr = 1e-2\nweight_decay = 0.0\n\
            [run]\nsteps = 200\nout = \"out\"\nsample_every = 100\nsample_steps = 12\nguidance = 1.5\n{more}\n\
            [[run.sample]]\ncaption = \"red\"\n[[run.sample]]\ncaption = \"blue\"\n",
            ir.display().to_string()
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a writable folder");
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
        command.current_dir(self.0.path()).args(arguments).output().expect("nucleusc starts")
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.call(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

fn picture(path: &Path) -> image::RgbImage {
    image::open(path).expect("a picture").into_rgb8()
}

#[test]
fn samples_show_their_captions_and_can_be_drawn_again() {
    let bench = Bench::new();
    bench.succeeds(&["train", "recipe.toml"]);
    let last = picture(&bench.path("out/samples/step-200.png"));
    assert_ne!(picture(&bench.path("out/samples/step-100.png")), last);

    // The run's last samples, from its checkpoint.
    bench.succeeds(&["sample", "recipe.toml", "-o", "again.png"]);
    assert_eq!(picture(&bench.path("again.png")), last);
    bench.succeeds(&["sample", "recipe.toml", "--weights", "out/checkpoint-200", "-o", "named.png"]);
    assert_eq!(picture(&bench.path("named.png")), last);

    // Each picture is of its colour: 96 pixels wide, 8 from the edge and from each other.
    let mean = |left: u32| {
        let pixels = (0..96 * 96).map(|i| last.get_pixel(left + i % 96, 8 + i / 96).0);
        pixels
            .fold([0f64; 3], |sum, pixel| [0, 1, 2].map(|at| sum[at] + f64::from(pixel[at]) / (96.0 * 96.0)))
    };
    let (red, blue) = (mean(8), mean(112));
    assert!(red[0] > 200.0 && red[2] < 60.0, "red is {red:?}");
    assert!(blue[2] > 200.0 && blue[0] < 60.0, "blue is {blue:?}");

    // One caption of another size, with the choice of its experts: one layer has some.
    bench.succeeds(&[
        "sample",
        "recipe.toml",
        "--caption",
        "blue",
        "--count",
        "2",
        "--size",
        "16x24",
        "-o",
        "wide.png",
        "--routing",
        "maps",
    ]);
    assert_eq!(picture(&bench.path("wide.png")).width(), 8 + 2 * (24 * 4 + 8));
    let mut maps: Vec<String> = std::fs::read_dir(bench.path("maps"))
        .expect("a folder of maps")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    maps.sort();
    assert_eq!(maps, ["1-allocation.png", "1-experts-1.png", "2-allocation.png", "2-experts-1.png"]);
}

#[test]
fn what_cannot_be_sampled_is_said_before_training() {
    let bench = Bench::new();
    let fails = |text: &str| {
        bench.write("recipe.toml", text);
        bench.fails(&["train", "recipe.toml", "--check"])
    };
    let recipe = bench.recipe("");
    let odd = recipe.replace("caption = \"red\"", "caption = \"red\"\nheight = 16\nwidth = 18");
    assert!(fails(&odd).contains("a sample of 16 × 18 pixels cannot be cut into patches of 4 × 4"));
    bench.write("config.json", &CONFIG.replace("\"vocabulary_size\": 8", "\"vocabulary_size\": 3"));
    let error = fails(&recipe);
    assert!(error.contains("has 4 words, but `vocabulary_size` of the model is 3"), "{error}");
    bench.write("recipe.toml", &recipe);
    let error = bench.fails(&["sample", "recipe.toml", "-o", "x.png"]);
    assert!(error.contains("holds no checkpoint: train first, or give --weights"), "{error}");
}
