//! A CUDA driver and an NVRTC that need neither a GPU nor CUDA, for processes that are started with them.
//!
//! `tests/fake-cuda` holds their sources: kernels are compiled by the system's C++ compiler with the shim of `nucleus-cuda`'s tests and run on
//! this computer, and the driver reports what no driver would forgive. They are built once for what their files hold, with the cubins that
//! were made by them kept beside.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::parity::root;

/// Status of a process that misused the driver, and of one that left something over.
pub const MISUSE: i32 = 70;
/// See [`MISUSE`].
pub const LEAK: i32 = 71;

/// How kernels are compiled; the headers are compiled beforehand with the same.
const FLAGS: &str = "-std=c++17 -O1 -fPIC -fno-strict-aliasing -ffp-contract=off -w";

/// The libraries, built.
#[derive(Clone, Debug)]
pub struct FakeCuda {
    folder: PathBuf,
}

impl FakeCuda {
    /// Builds them in a folder for temporary files of tests, unless that was done.
    ///
    /// # Panics
    /// There is no C++ compiler, or it refuses.
    pub fn build(temporary: &Path) -> FakeCuda {
        static BUILT: OnceLock<FakeCuda> = OnceLock::new();
        BUILT.get_or_init(|| build(temporary)).clone()
    }

    /// Has a process to be started find them. Its kernels are cached for all tests.
    pub fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_LIBRARY_PATH", &self.folder)
            .env("NUCLEUS_NVRTC", self.folder.join("libnvrtc.so.13"))
            .env("NUCLEUS_CACHE", self.folder.join("cache"))
            .env_remove("NUCLEUS_CUDA_DEVICE")
            .env_remove("NUCLEUS_CUDA_SYNC")
    }
}

/// What the driver did in a process, by its log: the numbers of the last line.
///
/// # Panics
/// There is no such log.
pub fn counts(log: &Path) -> std::collections::BTreeMap<String, u64> {
    let text = std::fs::read_to_string(log).expect("the driver wrote its log");
    let line = text.lines().last().unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].parse().expect("a number"))).collect()
}

fn build(temporary: &Path) -> FakeCuda {
    let shim = root().join("crates/nucleus-cuda/tests/shim");
    let sources = root().join("tests/fake-cuda");
    let read = |path: PathBuf| {
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let headers = ["shim.hpp", "driver.hpp"].map(|name| (name, read(shim.join(name))));
    let mut hasher = blake3::Hasher::new();
    for (_, text) in &headers {
        hasher.update(text.as_bytes());
    }
    for name in ["cuda.cpp", "nvrtc.cpp"] {
        hasher.update(read(sources.join(name)).as_bytes());
    }
    hasher.update(FLAGS.as_bytes());
    let folder = temporary.join(format!("fake-cuda-{}", &hasher.finalize().to_hex()[..16]));
    if folder.exists() {
        return FakeCuda { folder };
    }
    // Built elsewhere and moved: several tests may build at a time.
    let building = temporary.join(format!("fake-cuda-{}", std::process::id()));
    std::fs::create_dir_all(&building).expect("a writable folder");
    for (name, text) in headers {
        std::fs::write(building.join(name), text).expect("a writable folder");
    }
    let flags: Vec<&OsStr> = FLAGS.split(' ').map(OsStr::new).collect();
    let compile = |arguments: &[&OsStr]| {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let output = Command::new(compiler).args(&flags).args(arguments).output();
        let output = output.expect("a C++ compiler: `c++`, or what CXX names");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (header, compiled) = (building.join("driver.hpp"), building.join("driver.hpp.gch"));
    compile(&["-x".as_ref(), "c++-header".as_ref(), header.as_ref(), "-o".as_ref(), compiled.as_ref()]);
    let library = |name: &str| building.join(name).into_os_string();
    let source = |name: &str| sources.join(name).into_os_string();
    let (driver, nvrtc) = (library("libcuda.so.1"), library("libnvrtc.so.13"));
    compile(&["-shared".as_ref(), "-o".as_ref(), &driver, &source("cuda.cpp"), "-ldl".as_ref()]);
    let directory = format!("-DSHIM_DIRECTORY=\"{}\"", folder.display());
    let flags_macro = format!("-DFLAGS=\"{FLAGS}\"");
    compile(&[
        "-shared".as_ref(),
        directory.as_ref(),
        flags_macro.as_ref(),
        "-o".as_ref(),
        &nvrtc,
        &source("nvrtc.cpp"),
    ]);
    if std::fs::rename(&building, &folder).is_err() {
        assert!(folder.exists(), "{} cannot be made", folder.display());
        let _ = std::fs::remove_dir_all(&building);
    }
    FakeCuda { folder }
}
