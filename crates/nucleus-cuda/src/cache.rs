//! Cubins on disk, so that a kernel is compiled once on a machine.
//!
//! A file per cubin, named by the hash of everything that it depends on, written under a temporary name and renamed: processes that share
//! a folder see whole files or none. Length and hash are checked when it is read; what does not fit is compiled and written again. The folder may be removed at
//! any time. What lies in it is run on the device: it must belong to the user.
//!
//! A folder has a limit. Whoever writes an entry beyond it removes those that were not used for the longest time; a file's modification time says
//! when it was. A process knows the folder's size from its first look and what it wrote since, and looks again when that passes the limit: what
//! other processes add meanwhile counts from then on. An entry that is removed while another process reads it is read to its end; one that is
//! missed is compiled again.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::cubin::MAX_CUBIN_BYTES;

/// Environment variable: the folder of what Nucleus keeps between runs.
pub const CACHE_VARIABLE: &str = "NUCLEUS_CACHE";

/// Environment variable: the most bytes of cubins in that folder.
pub const CACHE_LIMIT_VARIABLE: &str = "NUCLEUS_CACHE_BYTES";

/// The limit where none is given: 1 GiB, thirty times what all kernels of a large model take.
pub const DEFAULT_LIMIT: u64 = 1 << 30;

/// Temporary files that are older were left by a process that ended.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Digits of a key.
const KEY_DIGITS: usize = 64;

/// What a file begins with; the last digit is the version of the format.
const MAGIC: &[u8; 8] = b"NUCUBIN1";
/// The most bytes of a file.
const MAX_FILE_BYTES: u64 = (2 * MAX_CUBIN_BYTES) as u64;

/// Numbers of temporary files of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A folder of cubins, or none.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
    /// The most bytes of its files.
    limit: Option<u64>,
    /// Bytes in the folder as far as this process knows; `None` before its first look.
    known: Arc<Mutex<Option<u64>>>,
    /// What is wrong with the environment.
    complaint: Option<String>,
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
    /// It holds at most `NUCLEUS_CACHE_BYTES`, else [`DEFAULT_LIMIT`].
    pub fn standard() -> Cache {
        let variables = [CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"].map(std::env::var_os);
        let (limit, complaint) = standard_limit(std::env::var_os(CACHE_LIMIT_VARIABLE));
        Cache { folder: standard_folder(variables), limit: Some(limit), complaint, ..Cache::none() }
    }

    /// A folder, which is made when it is first needed. It may become as large as it likes.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()), ..Cache::none() }
    }

    /// The same, with at most that many bytes of files.
    #[must_use]
    pub fn limited(self, bytes: u64) -> Cache {
        Cache { limit: Some(bytes), ..self }
    }

    /// Keeps nothing.
    pub fn none() -> Cache {
        Cache::default()
    }

    /// What is wrong with the environment that [`Cache::standard`] was made from.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.clone()
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
        (&file).take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        let entry = decode(&bytes)?;
        // In a folder of somebody else's nothing is removed either.
        let _ = file.set_modified(SystemTime::now());
        Some(entry)
    }

    /// Keeps an entry. Does nothing without a folder.
    pub(crate) fn put(&self, key: &str, entry: &Entry) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{key}.{}-{number}.tmp", std::process::id()));
        let bytes = encode(entry);
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&bytes)?;
            // The clock that readers set it by is finer than the file system's.
            file.set_modified(SystemTime::now())?;
            fs::rename(&temporary, folder.join(key))
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        self.written(folder, bytes.len() as u64)
    }

    /// Keeps the folder within its limit after a file was written.
    fn written(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all = known.map_or(u64::MAX, |known| known.saturating_add(bytes));
        *known = Some(if all > limit { shrink(folder, limit)? } else { all });
        Ok(())
    }
}

/// Removes files until their bytes are within the limit, those first that were not used for the longest time, and what was abandoned. Gives the bytes that are left.
fn shrink(folder: &Path, limit: u64) -> io::Result<u64> {
    let mut entries = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let Some((key, rest)) = name.to_str().and_then(|name| name.split_at_checked(KEY_DIGITS)) else {
            continue;
        };
        // What is not named like an entry is not ours to remove.
        let ours = key.bytes().all(|digit| digit.is_ascii_hexdigit());
        let temporary = rest.starts_with('.') && rest.ends_with(".tmp");
        // Another process may have removed it since the folder was read.
        let Ok(metadata) = file.metadata() else { continue };
        let used = metadata.modified()?;
        if !(ours && metadata.is_file()) {
            continue;
        }
        if rest.is_empty() {
            entries.push((used, name, metadata.len()));
        } else if temporary && used.elapsed().is_ok_and(|age| age > ABANDONED) {
            remove(&file.path())?;
        }
    }
    let mut left: u64 = entries.iter().map(|(_, _, bytes)| bytes).sum();
    entries.sort();
    for (_, name, bytes) in entries {
        if left <= limit {
            break;
        }
        remove(&folder.join(name))?;
        left -= bytes;
    }
    Ok(left)
}

/// Removes a file, unless another process did.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// From the value of `NUCLEUS_CACHE_BYTES`: the limit, and what is wrong with it.
fn standard_limit(value: Option<OsString>) -> (u64, Option<String>) {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return (DEFAULT_LIMIT, None) };
    match value.to_str().and_then(|value| value.trim().parse().ok()) {
        Some(bytes) => (bytes, None),
        None => {
            let value = value.display();
            let complaint = format!(
                "{CACHE_LIMIT_VARIABLE} is `{value}`, not a number of bytes; kernels are kept up to {DEFAULT_LIMIT} bytes"
            );
            (DEFAULT_LIMIT, Some(complaint))
        }
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

    /// A key, a name of as many digits as a hash has.
    fn key(number: u32) -> String {
        format!("{number:064x}")
    }

    fn there(cache: &Cache, numbers: std::ops::Range<u32>) -> Vec<u32> {
        numbers.filter(|number| cache.get(&key(*number)).is_some()).collect()
    }

    fn total(folder: &Path) -> u64 {
        let files = fs::read_dir(folder).expect("it is there");
        files.map(|file| file.and_then(|file| file.metadata()).expect("it is there").len()).sum()
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = encode(&entry()).len() as u64;
        let cache = Cache::at(folder.path()).limited(3 * size);
        for number in 0..3 {
            cache.put(&key(number), &entry()).expect("a writable folder");
        }
        assert!(cache.get(&key(0)).is_some());
        cache.put(&key(3), &entry()).expect("a writable folder");
        assert_eq!(there(&cache, 0..4), [0, 2, 3], "the second was used least recently");
        // Entries of another process, which count from the next look on.
        let other = Cache::at(folder.path());
        for number in 4..7 {
            other.put(&key(number), &entry()).expect("a writable folder");
        }
        cache.put(&key(7), &entry()).expect("a writable folder");
        assert_eq!(total(folder.path()), 3 * size);
        assert_eq!(there(&cache, 0..8), [5, 6, 7]);
        // A new process with a smaller limit.
        let cache = Cache::at(folder.path()).limited(size);
        cache.put(&key(8), &entry()).expect("a writable folder");
        assert_eq!(there(&cache, 0..9), [8]);
        // What is larger than the limit is not kept.
        let cache = Cache::at(folder.path()).limited(size - 1);
        cache.put(&key(9), &entry()).expect("a writable folder");
        assert_eq!(total(folder.path()), 0);
    }

    #[test]
    fn only_entries_and_abandoned_temporaries_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, [0; 100]).expect("a writable folder");
            let file = fs::File::options().write(true).open(&path).expect("just written");
            let then = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(then).expect("our own file");
            path
        };
        let (fresh, old) = (format!("{}.1-2.tmp", key(1)), format!("{}.1-3.tmp", key(1)));
        let (fresh, old) = (file(&fresh, 10), file(&old, 7200));
        let (notes, long) = (file("notes.txt", 7200), file(&format!("{}0", key(2)), 7200));
        let entry_of_old = file(&key(3), 7200);
        Cache::at(folder.path()).limited(0).put(&key(4), &entry()).expect("a writable folder");
        let there = [fresh, notes, long].map(|path| path.exists());
        let gone = [old, entry_of_old, folder.path().join(key(4))].map(|path| path.exists());
        assert_eq!((there, gone), ([true; 3], [false; 3]));
    }

    /// Threads with caches of their own stand for processes: nothing fails, and what is found is whole.
    #[test]
    fn several_writers_and_readers_share_a_limit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = encode(&entry()).len() as u64;
        let worker = |first: u32| {
            let cache = Cache::at(folder.path()).limited(5 * size);
            for number in 0..200 {
                let key = key((first + 7 * number) % 20);
                if let Some(found) = cache.get(&key) {
                    assert_eq!(found, entry());
                }
                cache.put(&key, &entry()).expect("a writable folder");
            }
        };
        std::thread::scope(|scope| {
            for first in 0..4 {
                scope.spawn(move || worker(first));
            }
        });
        worker(0);
        assert_eq!(total(folder.path()), 5 * size);
    }

    #[test]
    fn the_limit_is_a_number_of_bytes() {
        let limit = |value: &str| standard_limit(Some(OsString::from(value)));
        assert_eq!(limit("5000"), (5000, None));
        assert_eq!(limit("0"), (0, None));
        assert_eq!(limit(""), (DEFAULT_LIMIT, None));
        assert_eq!(standard_limit(None), (DEFAULT_LIMIT, None));
        for wrong in ["1G", "-1", "lots"] {
            let (bytes, complaint) = limit(wrong);
            assert_eq!(bytes, DEFAULT_LIMIT);
            assert!(complaint.is_some_and(|complaint| complaint.contains(wrong)));
        }
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
