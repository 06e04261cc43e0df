//! Names in a run's folder: what is a checkpoint, and what a killed process left behind.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{CheckpointError, TRAINER};

const PREFIX: &str = "checkpoint-";

/// Names under which something that is no checkpoint lies in a run's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aside {
    /// A checkpoint that is being written.
    Partial,
    /// A checkpoint whose successor of the same step takes its place.
    Replaced,
    /// A checkpoint that is being removed.
    Removed,
}

impl Aside {
    const ALL: [Aside; 3] = [Aside::Partial, Aside::Replaced, Aside::Removed];

    fn suffix(self) -> &'static str {
        match self {
            Aside::Partial => ".partial",
            Aside::Replaced => ".replaced",
            Aside::Removed => ".removed",
        }
    }
}

/// `OUT/checkpoint-<step>`.
pub(super) fn checkpoint_path(out: &Path, step: u64) -> PathBuf {
    out.join(format!("{PREFIX}{step}"))
}

/// Where something lies that is no checkpoint, or not any more.
pub(super) fn aside_path(out: &Path, step: u64, aside: Aside) -> PathBuf {
    out.join(format!(".{PREFIX}{step}{}", aside.suffix()))
}

/// The step in a name. Only the form that is written counts: `checkpoint-007` is somebody else's.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

fn aside_of(name: &str) -> Option<(u64, Aside)> {
    let name = name.strip_prefix('.')?;
    Aside::ALL.into_iter().find_map(|aside| Some((step_of(name.strip_suffix(aside.suffix())?)?, aside)))
}

fn names(out: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(out) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CheckpointError::io(out, "read folder"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CheckpointError::io(out, "read folder"))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Step and folder of every checkpoint of a run, oldest first; none where there is no such folder.
///
/// # Errors
/// The folder cannot be read.
pub fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found: Vec<(u64, PathBuf)> = names(out)?
        .iter()
        .filter_map(|name| step_of(name).map(|step| (step, out.join(name))))
        .filter(|(_, path)| path.join(TRAINER).is_file())
        .collect();
    found.sort();
    Ok(found)
}

/// Step and folder of the newest checkpoint of a run.
///
/// # Errors
/// The folder cannot be read.
pub fn latest(out: &Path) -> Result<Option<(u64, PathBuf)>, CheckpointError> {
    Ok(list(out)?.pop())
}

/// Removes what a killed process left, and puts back a checkpoint that it had moved aside and not replaced. Returns what was found.
///
/// Nobody else may be writing there.
pub(super) fn recover(out: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    for name in names(out)? {
        let Some((step, aside)) = aside_of(&name) else { continue };
        let path = out.join(&name);
        let checkpoint = checkpoint_path(out, step);
        if aside == Aside::Replaced && !checkpoint.exists() {
            fs::rename(&path, &checkpoint).map_err(CheckpointError::io(&path, "put back"))?;
        } else {
            remove_folder(&path)?;
        }
        found.push(path);
    }
    if !found.is_empty() {
        sync_folder(out)?;
    }
    Ok(found)
}

/// Takes a checkpoint away: first its name, so that no half of it is ever seen under that.
pub(super) fn remove_checkpoint(out: &Path, step: u64) -> Result<(), CheckpointError> {
    let aside = aside_path(out, step, Aside::Removed);
    remove_folder(&aside)?;
    let path = checkpoint_path(out, step);
    fs::rename(&path, &aside).map_err(CheckpointError::io(&path, "remove"))?;
    remove_folder(&aside)
}

/// Removes a folder and what is in it, if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CheckpointError::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// Brings the names in a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    // Other systems cannot open folders, and keep names in order by themselves.
    #[cfg(unix)]
    fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(CheckpointError::io(path, "write folder"))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_written_form_is_a_step() {
        assert_eq!(step_of("checkpoint-0"), Some(0));
        assert_eq!(step_of("checkpoint-120"), Some(120));
        for name in ["checkpoint-", "checkpoint-007", "checkpoint--1", "checkpoint-+1", "checkpoint-1.tmp"] {
            assert_eq!(step_of(name), None, "{name}");
        }
        assert_eq!(step_of("checkpoint-99999999999999999999999"), None);
    }

    #[test]
    fn names_aside_read_back() {
        for aside in Aside::ALL {
            let path = aside_path(Path::new("out"), 12, aside);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(aside_of(name), Some((12, aside)));
            assert_eq!(step_of(name), None);
        }
        assert_eq!(aside_of("checkpoint-12"), None);
        assert_eq!(aside_of(".checkpoint-12.mine"), None);
    }
}
