//! `nucleusc compile --target cuda:…` as a user meets it. What needs NVRTC says so where it is missing and asserts nothing, unless
//! `NUCLEUS_REQUIRE_NVRTC=1`.

#![expect(clippy::print_stderr, reason = "what is not tested is said")]

use std::path::Path;
use std::process::{Command, Output};

use nucleus_cuda::Nvrtc;
use nucleus_runtime::Artifact;

const MODEL: &str = "dim B, N;
entry f(x: [B, N, 8] per step, w: [8] per model) -> (y: [B, N, 8], z: [B, N, 8]) {
    let y = exp(x) * broadcast(w, [B, N, 8]);
    (y, transpose(reshape(y, [N, B, 8]), permutation = [1, 0, 2]))
}
";

/// A folder with the model, and calls of `nucleusc` in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().expect("a temporary folder"));
        std::fs::write(bench.0.path().join("model.ir"), MODEL).expect("a writable folder");
        bench
    }

    fn compile(&self, extra: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nucleusc"));
        command.current_dir(&self.0).args(["compile", "model.ir", "-o", "model.nuc"]).args(extra);
        command.env("NUCLEUS_CACHE", self.0.path().join("cache"));
        command.envs(variables.iter().copied()).output().expect("nucleusc starts")
    }

    fn succeeds(&self, extra: &[&str]) -> String {
        let output = self.compile(extra, &[]);
        assert!(output.status.success(), "{extra:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The message of a call that leaves no artifact.
    fn fails(&self, extra: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.compile(extra, variables);
        assert_eq!(output.status.code(), Some(1), "{extra:?}");
        assert!(!self.0.path().join("model.nuc").exists(), "{extra:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path().join(folder)).expect("the folder is made");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn has_nvrtc() -> bool {
    match Nvrtc::load() {
        Ok(_) => true,
        Err(error) if std::env::var_os("NUCLEUS_REQUIRE_NVRTC").is_none_or(|value| value != "1") => {
            eprintln!("compiling for GPUs is not tested: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_artifact_and_the_folder_hold_a_cubin_of_every_kernel_and_architecture() {
    if !has_nvrtc() {
        return;
    }
    let bench = Bench::new();
    let target = ["--target", "cuda:sm_80,sm_90,sm_80"];
    let report = bench.succeeds(&[&target[..], &["--emit", "cuda,cubin", "--emit-dir", "kernels"]].concat());
    let artifact = Artifact::open(&bench.0.path().join("model.nuc")).expect("just written");
    let compiled = artifact.compiled();
    let kernels = compiled.plans[0].kernels.len();
    assert_eq!(compiled.target, "cuda:sm_80,sm_90");
    // And those that measure a device.
    assert_eq!(compiled.cubins.len(), 2 * kernels + 2);
    let line = format!("cubins: {} of {kernels} distinct kernels", 2 * kernels);
    assert!(
        report.contains(&line) && report.contains(", 0 from the cache") && report.contains("no spills"),
        "{report}"
    );

    let files = bench.files("kernels");
    assert_eq!(files.len(), 4 * kernels);
    for pair in files.chunks(2) {
        let [text, cubin] = pair else { panic!("{pair:?}") };
        assert_eq!(text.strip_suffix(".cu"), cubin.strip_suffix(".cubin"), "named alike");
        assert!(text.starts_with("map_") && (text.contains(".sm_80.") || text.contains(".sm_90.")), "{text}");
        let read = |name: &String| std::fs::read(bench.0.path().join("kernels").join(name)).expect("written");
        assert!(String::from_utf8_lossy(&read(text)).contains("struct Arguments {"));
        assert!(compiled.cubins.iter().any(|(_, stored)| stored == read(cubin)), "{cubin}");
    }

    let again = bench.succeeds(&target);
    assert!(again.contains(&format!(", {} from the cache", 2 * kernels)), "{again}");
    let json: serde_json::Value =
        serde_json::from_str(&bench.succeeds(&[&target[..], &["--json"]].concat())).expect("JSON");
    let anchor = &json["cubins"]["anchors"][0];
    assert_eq!((&anchor["anchor"], &anchor["cached"]), (&"map".into(), &(2 * kernels).into()), "{json}");
    assert_eq!(json["target"], "cuda:sm_80,sm_90");
    let inspected = Command::new(env!("CARGO_BIN_EXE_nucleusc"))
        .arg("inspect")
        .arg(bench.0.path().join("model.nuc"))
        .output()
        .expect("nucleusc starts");
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.contains(&format!("cubins  {},", 2 * kernels + 2)), "{inspected}");
}

#[test]
fn the_cpu_needs_no_nvrtc_and_writes_no_cubins() {
    let bench = Bench::new();
    let report = bench.compile(&[], &[("NUCLEUS_NVRTC", "nowhere")]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let artifact = Artifact::open(&bench.0.path().join("model.nuc")).expect("just written");
    assert!(artifact.compiled().cubins.is_empty());
    assert!(!Path::exists(&bench.0.path().join("cache")));
}

#[test]
fn what_cannot_be_compiled_for_is_said_with_the_way_out() {
    let bench = Bench::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--target", "cuda:sm_81"], &["unknown architecture `sm_81`", "sm_80", "sm_120"]),
        (&["--target", "cuda:"], &["unknown architecture ``"]),
        (&["--target", "cuda:sm_80,"], &["unknown architecture ``"]),
        (&["--target", "cuda"], &["expected `cpu`, or `cuda:` and architectures"]),
        (&["--emit", "cuda", "--emit-dir", "k"], &["--emit cuda needs a GPU", "--target cuda:"]),
        (&["--emit", "cubin", "--emit-dir", "k"], &["--emit cubin needs a GPU"]),
        (&["--emit", "ptx", "--emit-dir", "k"], &["no stage `ptx`", "cuda, cubin, tiles or all"]),
        (&["--target", "cuda:sm_80", "--emit", "cubin"], &["--emit needs --emit-dir"]),
    ];
    for (arguments, wanted) in cases {
        let message = bench.fails(arguments, &[]);
        assert!(wanted.iter().all(|words| message.contains(words)), "{arguments:?}: {message}");
    }
    let nowhere = [("NUCLEUS_NVRTC", "nowhere/libnvrtc.so.13")];
    let message = bench.fails(&["--target", "cuda:sm_90"], &nowhere);
    for words in ["NVRTC at `nowhere/libnvrtc.so.13` cannot be loaded", "tools/fetch-nvrtc", "NUCLEUS_NVRTC"]
    {
        assert!(message.contains(words), "{message}");
    }
    let empty = bench.0.path().join("empty");
    std::fs::create_dir(&empty).expect("a writable folder");
    let empty = empty.display().to_string();
    let message = bench.fails(&["--target", "cuda:sm_90"], &[("NUCLEUS_NVRTC", &empty)]);
    assert!(
        message.contains("was not found; looked for") && message.contains("tools/fetch-nvrtc"),
        "{message}"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    if !has_nvrtc() {
        return;
    }
    let bench = Bench::new();
    let file = bench.0.path().join("model.ir").display().to_string();
    let output = bench.compile(&["--target", "cuda:sm_90"], &[("NUCLEUS_CACHE", &file)]);
    assert!(output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.starts_with("warning: cannot keep kernels in") && message.lines().count() == 1,
        "{message}"
    );
}

#[test]
fn artifacts_with_damaged_cubins_are_refused() {
    if !has_nvrtc() {
        return;
    }
    let bench = Bench::new();
    bench.succeeds(&["--target", "cuda:sm_90"]);
    let path = bench.0.path().join("model.nuc");
    let bytes = std::fs::read(&path).expect("written");
    let cubins = bytes.windows(4).enumerate().filter(|(_, window)| window == b"\x7fELF");
    let starts: Vec<usize> = cubins.map(|(at, _)| at).collect();
    assert!(starts.len() >= 2, "an artifact with cubins: {starts:?}");
    for start in starts {
        for at in [start, start + 18, start + 49, start + 300, start + 2000] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).expect("written");
            let message = Artifact::open(&path).expect_err("it is damaged").to_string();
            assert!(
                message.contains("is broken") && message.contains("compile the model again"),
                "{message}"
            );
        }
    }
}
