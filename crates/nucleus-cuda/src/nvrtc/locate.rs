//! Where libnvrtc may be.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Environment variable: libnvrtc or a folder that holds it.
pub const NVRTC_VARIABLE: &str = "NUCLEUS_NVRTC";

/// The version that the system's loader is asked for.
const SYSTEM_NAMES: &[&str] =
    if cfg!(windows) { &["nvrtc64_130_0.dll"] } else { &["libnvrtc.so.13", "libnvrtc.so"] };

/// What the names of the two libraries begin with. The wheels have others, `libnvrtc.alt.so` and its like, which are not wanted.
const LIBRARY: &str = if cfg!(windows) { "nvrtc64_" } else { "libnvrtc.so" };
const BUILTINS: &str = if cfg!(windows) { "nvrtc-builtins64_" } else { "libnvrtc-builtins.so" };

/// A library that may be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// A path, or a bare name for the system's loader.
    pub(super) library: PathBuf,
    /// The library of built-in functions beside it.
    pub(super) builtins: Option<PathBuf>,
}

/// Places to look in.
#[derive(Clone, Debug)]
pub(super) struct Places<'a> {
    /// The value of [`NVRTC_VARIABLE`].
    pub(super) named: Option<&'a OsStr>,
    /// The folder of the running program.
    pub(super) program: Option<&'a Path>,
    /// The folder that `tools/fetch-nvrtc` fills.
    pub(super) fetched: &'a Path,
}

/// What was found, in the order in which it is to be tried, and a description of every place.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) candidates: Vec<Candidate>,
    pub(super) looked: Vec<String>,
    /// The first candidate is the user's choice: if it cannot be used, nothing else is.
    pub(super) chosen: bool,
}

/// Looks in all places.
pub(super) fn search(places: &Places<'_>) -> Search {
    if let Some(named) = places.named.filter(|named| !named.is_empty()) {
        let path = Path::new(named);
        let candidates = match path.is_dir() {
            true => in_folder(path).into_iter().collect(),
            false => vec![beside(path)],
        };
        return Search { candidates, looked: vec![format!("`{}`", path.display())], chosen: true };
    }
    let program = places.program.iter().flat_map(|folder| [folder.to_path_buf(), folder.join("nvrtc")]);
    let folders: Vec<PathBuf> = program.chain([places.fetched.to_path_buf()]).collect();
    let mut looked: Vec<String> = folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
    let mut candidates: Vec<Candidate> = folders.iter().filter_map(|folder| in_folder(folder)).collect();
    for name in SYSTEM_NAMES {
        looked.push(format!("`{name}` of the system"));
        candidates.push(Candidate { library: PathBuf::from(name), builtins: None });
    }
    Search { candidates, looked, chosen: false }
}

/// libnvrtc in a folder, or in the folders where a CUDA toolkit has it.
fn in_folder(folder: &Path) -> Option<Candidate> {
    ["", "lib64", "lib", "bin"].iter().find_map(|below| {
        let library = newest(&folder.join(below), LIBRARY)?;
        Some(beside(&library))
    })
}

fn beside(library: &Path) -> Candidate {
    let builtins = library.parent().and_then(|folder| newest(folder, BUILTINS));
    Candidate { library: library.to_path_buf(), builtins }
}

/// The last file by name that begins with `start`: of links to one library and of several versions the most exact.
fn newest(folder: &Path, start: &str) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a writable folder");
            fs::write(path, "").expect("a writable folder");
        }
        folder
    }

    const FILES: [&str; 5] = [
        "libnvrtc.alt.so.13",
        "libnvrtc.so.13",
        "libnvrtc-builtins.alt.so.13.0",
        "libnvrtc-builtins.so.13.0",
        "nvdisasm",
    ];

    #[test]
    fn what_the_user_names_is_all_that_is_tried() {
        let (named, fetched) = (folder(&FILES), folder(&FILES));
        let library = named.path().join("libnvrtc.so.13");
        for value in [named.path(), library.as_path()] {
            let places = Places {
                named: Some(value.as_os_str()),
                program: Some(fetched.path()),
                fetched: fetched.path(),
            };
            let found = search(&places);
            let builtins = Some(named.path().join("libnvrtc-builtins.so.13.0"));
            assert_eq!(found.candidates, [Candidate { library: library.clone(), builtins }]);
            assert!(found.chosen);
        }
        let empty = folder(&[]);
        let places = Places { named: Some(empty.path().as_os_str()), program: None, fetched: fetched.path() };
        assert!(search(&places).candidates.is_empty());
    }

    #[test]
    fn the_program_comes_before_the_fetched_folder_and_the_system_last() {
        let program = folder(&["nvrtc/libnvrtc.so.13"]);
        let fetched = folder(&["lib64/libnvrtc.so", "lib64/libnvrtc.so.13", "lib64/libnvrtc.so.13.0.88"]);
        let places =
            Places { named: Some(OsStr::new("")), program: Some(program.path()), fetched: fetched.path() };
        let found = search(&places);
        let libraries: Vec<PathBuf> =
            found.candidates.into_iter().map(|candidate| candidate.library).collect();
        let mut expected = vec![
            program.path().join("nvrtc/libnvrtc.so.13"),
            fetched.path().join("lib64/libnvrtc.so.13.0.88"),
        ];
        expected.extend(SYSTEM_NAMES.iter().map(PathBuf::from));
        assert_eq!(libraries, expected);
        assert_eq!(found.looked.len(), 3 + SYSTEM_NAMES.len());
    }
}
