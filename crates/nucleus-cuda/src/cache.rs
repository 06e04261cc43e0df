//! Cubins on disk, so that a kernel is compiled once on a machine.
//!
//! A file per cubin, named by the hash of everything that it depends on, written under a temporary name and renamed: processes that share
//! a folder see whole files or none. Length and hash are checked when it is read; what does not fit is compiled and written again. The folder may be removed at
//! any time. What lies in it is run on the device: it must belong to the user.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cubin::MAX_CUBIN_BYTES;

/// Environment variable: the folder of what Nucleus keeps between runs.
pub const CACHE_VARIABLE: &str = "NUCLEUS_CACHE";

/// What a file begins with; the last digit is the version of the format.
const MAGIC: &[u8; 8] = b"NUCUBIN1";
/// The most bytes of a file.
const MAX_FILE_BYTES: u64 = (2 * MAX_CUBIN_BYTES) as u64;

/// Numbers of temporary files of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A folder of cubins, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// What is kept of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) cubin: Vec<u8>,
    pub(crate) log: String,
    /// How long it took.
    pub(crate) time: Duration,
}

impl Cache {
    /// The user's: `kernels` in `NUCLEUS_CACHE`, else in `$XDG_CACHE_HOME/nucleus`, else in `~/.cache/nucleus`; none where none of these is set.
    pub fn standard() -> Cache {
        let variables = [CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"].map(std::env::var_os);
        Cache { folder: standard_folder(variables) }
    }

    /// A folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// Keeps nothing.
    pub fn none() -> Cache {
        Cache { folder: None }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The entry of a key, a file name; `None` if there is none or it is damaged.
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        let file = fs::File::open(self.folder.as_ref()?.join(key)).ok()?;
        let length = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
        if length > MAX_FILE_BYTES {
            return None;
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        decode(&bytes)
    }

    /// Keeps an entry. Does nothing without a folder.
    pub(crate) fn put(&self, key: &str, entry: &Entry) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{key}.{}-{number}.tmp", std::process::id()));
        let write = || -> io::Result<()> {
            fs::File::create(&temporary)?.write_all(&encode(entry))?;
            fs::rename(&temporary, folder.join(key))
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }
}

/// From the values of `NUCLEUS_CACHE`, `XDG_CACHE_HOME` and `HOME`. The second counts only if it is absolute, as its specification wants.
fn standard_folder([own, xdg, home]: [Option<OsString>; 3]) -> Option<PathBuf> {
    let path = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = path(own)
        .or_else(|| path(xdg).filter(|path| path.is_absolute()).map(|path| path.join("nucleus")))
        .or_else(|| path(home).map(|path| path.join(".cache").join("nucleus")));
    folder.map(|folder| folder.join("kernels"))
}

/// Magic, hash, microseconds, length of the log, length of the cubin, log, cubin. Numbers are little-endian; the hash is of all that follows it.
fn encode(entry: &Entry) -> Vec<u8> {
    let mut rest = Vec::with_capacity(24 + entry.log.len() + entry.cubin.len());
    rest.extend((entry.time.as_micros() as u64).to_le_bytes());
    rest.extend((entry.log.len() as u64).to_le_bytes());
    rest.extend((entry.cubin.len() as u64).to_le_bytes());
    rest.extend(entry.log.as_bytes());
    rest.extend(&entry.cubin);
    let mut bytes = Vec::with_capacity(40 + rest.len());
    bytes.extend(MAGIC);
    bytes.extend(blake3::hash(&rest).as_bytes());
    bytes.extend(rest);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Entry> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    if blake3::hash(rest) != *hash {
        return None;
    }
    let (micros, rest) = rest.split_first_chunk::<8>()?;
    let (log, rest) = rest.split_first_chunk::<8>()?;
    let (cubin, rest) = rest.split_first_chunk::<8>()?;
    let log = usize::try_from(u64::from_le_bytes(*log)).ok()?;
    let cubin = u64::from_le_bytes(*cubin);
    let (log, rest) = rest.split_at_checked(log)?;
    if rest.len() as u64 != cubin {
        return None;
    }
    let log = String::from_utf8(log.to_vec()).ok()?;
    Some(Entry { cubin: rest.to_vec(), log, time: Duration::from_micros(u64::from_le_bytes(*micros)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let log = "Used 3 registers".to_owned();
        Entry { cubin: vec![1, 2, 3, 4, 5], log, time: Duration::from_micros(70_000) }
    }

    #[test]
    fn an_entry_is_there_once_it_is_written_and_gone_once_it_is_damaged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::at(folder.path().join("deep/kernels"));
        assert_eq!(cache.get("a"), None);
        cache.put("a", &entry()).expect("a writable folder");
        assert_eq!(cache.get("a"), Some(entry()));
        assert_eq!(cache.get("b"), None);
        let path = folder.path().join("deep/kernels/a");
        let bytes = fs::read(&path).expect("it was written");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).expect("a writable folder");
            assert_eq!(cache.get("a"), None, "byte {at}");
            fs::write(&path, &bytes[..at]).expect("a writable folder");
            assert_eq!(cache.get("a"), None, "{at} bytes");
        }
        cache.put("a", &entry()).expect("a writable folder");
        assert_eq!(cache.get("a"), Some(entry()));
        let files = fs::read_dir(folder.path().join("deep/kernels")).expect("it is there").count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_of_writing_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("a writable folder");
        let cache = Cache::at(file.join("below"));
        assert_eq!(cache.get("a"), None);
        assert!(cache.put("a", &entry()).is_err());
        assert!(Cache::none().put("a", &entry()).is_ok());
    }

    #[test]
    fn the_folder_is_the_first_that_is_named() {
        let folder = |own: &str, xdg: &str, home: &str| {
            standard_folder([own, xdg, home].map(|value| Some(OsString::from(value))))
        };
        assert_eq!(folder("/n", "/x", "/h"), Some(PathBuf::from("/n/kernels")));
        assert_eq!(folder("", "/x", "/h"), Some(PathBuf::from("/x/nucleus/kernels")));
        assert_eq!(folder("", "relative", "/h"), Some(PathBuf::from("/h/.cache/nucleus/kernels")));
        assert_eq!(folder("", "", ""), None);
        assert_eq!(standard_folder([None, None, None]), None);
    }
}
