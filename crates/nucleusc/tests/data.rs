//! `nucleusc data` as a user meets it.

use std::process::{Command, Output};

struct Bench(tempfile::TempDir);

impl Bench {
    /// Three drawings with OpenMoji's metadata, one of them a variant in skin tone.
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(bench.path("svg")).expect("a writable folder");
        let drawing = |colour| {
            format!(
                "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'><circle cx='36' cy='36' r='30' fill='{colour}'/></svg>"
            )
        };
        for (name, colour) in [("1F534", "red"), ("1F535", "blue"), ("1F44B-1F3FB", "tan")] {
            std::fs::write(bench.path("svg").join(format!("{name}.svg")), drawing(colour)).expect("written");
        }
        let metadata = serde_json::json!([
            { "hexcode": "1F534", "group": "symbols", "annotation": "red circle", "tags": "geometric, circle", "skintone": "" },
            { "hexcode": "1F535", "group": "symbols", "annotation": "blue circle", "tags": "geometric", "skintone": "" },
            { "hexcode": "1F44B-1F3FB", "group": "people", "annotation": "waving hand: light skin tone", "tags": "", "skintone": 1 },
        ]);
        std::fs::write(bench.path("openmoji.json"), metadata.to_string()).expect("written");
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
        command.current_dir(self.0.path()).arg("data").args(arguments).output().expect("nucleusc starts")
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    fn build(&self, more: &[&str]) -> Vec<String> {
        let start = ["build", "--svg", "svg", "--metadata", "openmoji.json", "--out", "set"];
        start.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    }
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn build_then_inspect() {
    let bench = Bench::new();
    let built =
        json(&bench.succeeds(&borrowed(&bench.build(&["--size", "16", "--license", "CC0 1.0", "--json"]))));
    assert_eq!((&built["items"], &built["dropped"]["skin-tone"]), (&2.into(), &1.into()));
    let seen =
        json(&bench.succeeds(&["inspect", "set", "--verify", "--json", "--contact-sheet", "sheet.png"]));
    assert_eq!((&seen["items"], &seen["left_out"], &seen["verified"]), (&2.into(), &1.into(), &true.into()));
    assert_eq!((&seen["buckets"][0]["width"], &seen["license"]), (&16.into(), &"CC0 1.0".into()));
    let sheet = image::open(bench.path("sheet.png")).expect("a PNG").into_rgb8();
    assert_eq!(sheet.get_pixel(70, 70).0, [255, 0, 0]);

    let message = bench.fails(&borrowed(&bench.build(&["--size", "16"])));
    assert!(message.contains("already exists"), "{message}");
    let text = bench.succeeds(&borrowed(&bench.build(&[
        "--size",
        "16",
        "--replace",
        "--skin-tones",
        "--max-tags",
        "0",
    ])));
    assert!(text.starts_with("3 of 3 pictures"), "{text}");
    let text = bench.succeeds(&["inspect", "set"]);
    assert!(text.contains("16x16: 3 items in 1 shard(s)") && text.contains("circle"), "{text}");
}

#[test]
fn mistakes_are_explained() {
    let bench = Bench::new();
    for (arguments, word) in [
        (&["--size", "16x16,32x16"][..], "16x16 and 32x16 have 256 and 512 pixels"),
        (&["--size", "20", "--multiple", "16"], "multiples of 16"),
        (&["--size", "0"], "`0`"),
        (&["--size", "16", "--background", "white"], "`white`"),
        (&["--size", "16", "--groups", "symbol"], "people, symbols"),
        (&["--size", "16", "--license-file", "nowhere"], "nowhere"),
        (&["--size", "16", "--threads", "0"], "thread"),
    ] {
        let message = bench.fails(&borrowed(&bench.build(arguments)));
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
    assert!(!bench.path("set").exists());
    let message = bench.fails(&["build", "--pictures", "svg", "--out", "set", "--size", "16"]);
    assert!(message.contains("--metadata") && message.contains("--captions"), "{message}");
    assert!(bench.fails(&["inspect", "svg"]).contains("dataset.json"));
}

#[test]
fn a_page_that_cannot_be_written_is_an_error() {
    let bench = Bench::new();
    bench.succeeds(&borrowed(&bench.build(&["--size", "16"])));
    let message = bench.fails(&["inspect", "set", "--contact-sheet", "nowhere/sheet.png"]);
    assert!(message.contains("nowhere/sheet.png"), "{message}");
}
