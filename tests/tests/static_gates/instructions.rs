//! The names of the instructions in a cubin, by nvdisasm.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nucleus_cuda::Nvrtc;

/// NVIDIA's disassembler.
pub(crate) struct Disassembler {
    program: PathBuf,
}

impl Disassembler {
    /// The one beside NVRTC, else the one of the system.
    pub(crate) fn find(nvrtc: &Nvrtc) -> Option<Disassembler> {
        let beside = nvrtc.path().with_file_name("nvdisasm");
        let program = if beside.is_file() { beside } else { PathBuf::from("nvdisasm") };
        let works =
            Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
        works.then_some(Disassembler { program })
    }

    /// The names without what follows a point, such as HMMA, LDGSTS, LDG. What was disassembled before is remembered in `target/tmp`.
    pub(crate) fn instructions(&self, cubin: &[u8]) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
        fs::create_dir_all(&folder).unwrap();
        let name = blake3::hash(cubin).to_hex();
        let known = folder.join(name.as_str());
        let text = fs::read_to_string(&known).unwrap_or_else(|_| {
            let file = tempfile::NamedTempFile::new_in(&folder).unwrap();
            fs::write(file.path(), cubin).unwrap();
            let output = Command::new(&self.program).arg("-c").arg(file.path()).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {errors}", self.program.display());
            let names: BTreeSet<String> =
                String::from_utf8_lossy(&output.stdout).lines().filter_map(name_in).collect();
            let text = names.into_iter().collect::<Vec<_>>().join("\n");
            fs::write(file.path(), &text).unwrap();
            file.persist(&known).unwrap();
            text
        });
        text.lines().map(str::to_owned).collect()
    }
}

/// The instruction in a line of assembly: `/*0a10*/   @!P0 LDG.E.128 R4, …`.
fn name_in(line: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix("/*")?;
    let (_, rest) = rest.split_once("*/")?;
    let mut words = rest.split_whitespace();
    let mut word = words.next()?;
    if word.starts_with('@') {
        word = words.next()?;
    }
    let name: String = word.chars().take_while(char::is_ascii_alphanumeric).collect();
    name.starts_with(|c: char| c.is_ascii_uppercase()).then_some(name)
}
