//! NVRTC, NVIDIA's run-time compiler for CUDA C++: a library that needs neither a GPU nor a driver.
//!
//! It is looked for in this order: `NUCLEUS_NVRTC` (the library, a folder that holds it, or a CUDA toolkit), the folder of the running
//! program and the folder `nvrtc` in it, the folder that `tools/fetch-nvrtc` fills in the source tree, the system's loader. Version 13.0
//! is what `tools/fetch-nvrtc` takes: drivers from R580 run its cubins.

mod library;
mod locate;
mod log;

use std::ffi::{CString, OsString};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use locate::NVRTC_VARIABLE;
pub use log::Resources;

use crate::architecture::Architecture;
use crate::cubin::{CubinError, check_cubin};
use library::{CallError, Functions};
use locate::Places;

/// The folder that `tools/fetch-nvrtc` fills.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/nvrtc");

/// The major version whose cubins are wanted.
const MAJOR: u32 = 13;

/// What to do without a usable library.
const REMEDY: &str =
    "run `tools/fetch-nvrtc`, or set NUCLEUS_NVRTC to the library or the folder that holds it";

/// Options of every compilation: a small language without the runtime's headers, and the log that [`Resources`] are read from.
const OPTIONS: [&str; 4] = ["-std=c++17", "-w", "--minimal", "--ptxas-options=-v"];

/// Why kernels cannot be compiled.
#[derive(Debug, Error)]
pub enum NvrtcError {
    /// There is no library.
    #[error("NVRTC (libnvrtc), the compiler of CUDA kernels, was not found; looked for {}: {REMEDY}", .looked.join(", "))]
    Missing {
        /// Everything that was tried.
        looked: Vec<String>,
    },
    /// There is a library, which does not load.
    #[error("NVRTC at `{}` cannot be loaded: {why}; {REMEDY}", .path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// What the system's loader said.
        why: String,
    },
    /// It is of a version that is not supported.
    #[error("NVRTC at `{}` has version {}.{}, kernels are compiled with {MAJOR}.0, whose cubins drivers from R580 run: {REMEDY}", .path.display(), .version.0, .version.1)]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: (u32, u32),
    },
    /// The text does not compile.
    #[error("kernel `{kernel}` does not compile for {architecture} ({error}):\n{log}")]
    Compile {
        /// The kernel's name.
        kernel: String,
        /// For which architecture.
        architecture: Architecture,
        /// What NVRTC calls the error.
        error: String,
        /// What the compiler said.
        log: String,
    },
    /// NVRTC failed where it should not.
    #[error("kernel `{kernel}` for {architecture}: {call} failed: {error}")]
    Call {
        /// The kernel's name.
        kernel: String,
        /// For which architecture.
        architecture: Architecture,
        /// The function that failed.
        call: &'static str,
        /// What NVRTC calls the error.
        error: String,
    },
    /// What came out is no cubin.
    #[error("kernel `{kernel}` for {architecture}: NVRTC's result cannot be used: {source}")]
    Cubin {
        /// The kernel's name.
        kernel: String,
        /// For which architecture.
        architecture: Architecture,
        /// What is wrong with it.
        source: CubinError,
    },
}

/// The loaded compiler. Several threads may use it at a time.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    path: PathBuf,
}

/// What a compilation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// Machine code, an ELF file.
    pub(crate) cubin: Vec<u8>,
    /// What the compiler said.
    pub(crate) log: String,
}

impl Nvrtc {
    /// Finds and loads the library.
    ///
    /// # Errors
    /// There is none, or it is of an unsupported version.
    pub fn load() -> Result<Nvrtc, NvrtcError> {
        let named: Option<OsString> = std::env::var_os(NVRTC_VARIABLE);
        let program = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
        Nvrtc::load_from(&Places {
            named: named.as_deref(),
            program: program.as_deref(),
            fetched: Path::new(FETCHED),
        })
    }

    fn load_from(places: &Places<'_>) -> Result<Nvrtc, NvrtcError> {
        let search = locate::search(places);
        for candidate in search.candidates {
            let path = candidate.library;
            let by_name = path.components().count() == 1 && !search.chosen;
            let functions = match Functions::load(&path, candidate.builtins.as_deref()) {
                Ok(functions) => functions,
                // The system has none of this name.
                Err(_) if by_name => continue,
                Err(why) => return Err(NvrtcError::Load { path, why }),
            };
            let version = functions.version();
            let version = version.map_err(|CallError { call, error }| NvrtcError::Load {
                path: path.clone(),
                why: format!("{call} failed: {error}"),
            })?;
            if version.0 != MAJOR {
                return Err(NvrtcError::Version { path, version });
            }
            return Ok(Nvrtc { functions, version, path });
        }
        Err(NvrtcError::Missing { looked: search.looked })
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where the library lies; a bare name if the system's loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a cubin depends on besides text and architecture.
    pub(crate) fn identity(&self) -> String {
        format!("nvrtc {}.{} {}", self.version.0, self.version.1, OPTIONS.join(" "))
    }

    /// Compiles a translation unit.
    pub(crate) fn compile(
        &self,
        kernel: &str,
        text: &str,
        architecture: Architecture,
    ) -> Result<Compiled, NvrtcError> {
        let call_failed = |call: &'static str, error: String| NvrtcError::Call {
            kernel: kernel.to_owned(),
            architecture,
            call,
            error,
        };
        let c_string = |text: String| {
            CString::new(text).map_err(|_| call_failed("nvrtcCreateProgram", "a text with a NUL".to_owned()))
        };
        let mut options = vec![c_string(format!("--gpu-architecture={architecture}"))?];
        for option in OPTIONS {
            options.push(c_string(option.to_owned())?);
        }
        let (text, name) = (c_string(text.to_owned())?, c_string(format!("{kernel}.cu"))?);
        let output = self
            .functions
            .compile(&text, &name, &options)
            .map_err(|CallError { call, error }| call_failed(call, error))?;
        let (kernel, log) = (kernel.to_owned(), output.log);
        let cubin = match output.result {
            Ok(cubin) => cubin,
            Err(error) => {
                let log = log.trim_end().to_owned();
                return Err(NvrtcError::Compile { kernel, architecture, error, log });
            }
        };
        match check_cubin(&cubin, architecture) {
            Ok(()) => Ok(Compiled { cubin, log }),
            Err(source) => Err(NvrtcError::Cubin { kernel, architecture, source }),
        }
    }
}

/// What the functions of a unit take, from the log of its compilation.
pub(crate) fn resources(log: &str) -> Vec<Resources> {
    log::parse(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_named_but_is_none_is_an_error_with_the_way_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = folder.path().join("libnvrtc.so.13");
        std::fs::write(&fake, "no library").expect("a writable folder");
        let load = |named: &Path| {
            let places =
                Places { named: Some(named.as_os_str()), program: None, fetched: Path::new(FETCHED) };
            Nvrtc::load_from(&places).expect_err("nothing can be loaded").to_string()
        };
        for (named, start) in [
            (folder.path().join("empty"), "NVRTC at `"),
            (fake, "NVRTC at `"),
            (folder.path().to_path_buf(), "NVRTC at `"),
        ] {
            let message = load(&named);
            assert!(message.starts_with(start) && message.ends_with(REMEDY), "{message}");
        }
        let empty = tempfile::tempdir().expect("a temporary folder");
        let message = load(empty.path());
        assert!(message.contains("was not found; looked for `") && message.ends_with(REMEDY), "{message}");
    }
}
