//! Which pictures there are and what they show: from OpenMoji's metadata, or from a list of captions.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::report::BuildError;

/// Most bytes of a file of metadata or captions.
const MAX_METADATA_BYTES: u64 = 1 << 30;

/// Most bytes of one caption.
const MAX_CAPTION_BYTES: usize = 64 << 10;

/// Where captions come from.
#[derive(Clone, Debug)]
pub enum CaptionSource {
    /// OpenMoji's `openmoji.json`: the picture of an entry is `<hexcode>.svg`.
    OpenMoji(PathBuf),
    /// JSON lines with `file` and `caption`, and optionally `group`.
    Lines(PathBuf),
}

/// Which entries are taken, and how much of each.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Take variants that differ only in skin tone.
    pub skin_tones: bool,
    /// Only these groups, where any are named.
    pub groups: Vec<String>,
    /// None of these groups.
    pub without_groups: Vec<String>,
    /// Most tags that follow the name in a caption.
    pub max_tags: Option<usize>,
}

/// A picture that may become an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Path below the folder of pictures, with `/` between its parts.
    pub file: String,
    /// What it shows.
    pub caption: String,
    /// The source's own classification.
    pub group: Option<String>,
    /// Why it is left out before it is looked at.
    pub unwanted: Option<Unwanted>,
}

/// Why an entry is left out by choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// A variant in skin tone.
    SkinTone,
    /// Of a group that is not wanted.
    Group,
}

/// Reads the list of pictures, in its order.
///
/// # Errors
/// The file cannot be read or is not of its format, as a whole. What is wrong with one entry is found when it is looked at.
pub fn candidates(source: &CaptionSource, selection: &Selection) -> Result<Vec<Candidate>, BuildError> {
    let mut list = match source {
        CaptionSource::OpenMoji(path) => open_moji(path, selection)?,
        CaptionSource::Lines(path) => lines(path)?,
    };
    let known: HashSet<String> = list.iter().filter_map(|candidate| candidate.group.clone()).collect();
    for group in selection.groups.iter().chain(&selection.without_groups) {
        if !known.contains(group) {
            let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "no groups".to_owned() } else { known.join(", ") };
            return Err(BuildError::Choice(format!(
                "there is no group `{group}`; the captions have {known}"
            )));
        }
    }
    for candidate in &mut list {
        let listed = |groups: &[String]| candidate.group.as_ref().is_some_and(|group| groups.contains(group));
        let wanted = selection.groups.is_empty() || listed(&selection.groups);
        if candidate.unwanted.is_none() && (!wanted || listed(&selection.without_groups)) {
            candidate.unwanted = Some(Unwanted::Group);
        }
    }
    Ok(list)
}

/// The keys of an OpenMoji entry that matter here; others are passed over.
#[derive(Deserialize)]
struct OpenMojiEntry {
    hexcode: String,
    #[serde(default)]
    annotation: String,
    #[serde(default)]
    tags: String,
    #[serde(default)]
    openmoji_tags: String,
    #[serde(default)]
    group: Option<String>,
    /// Empty, a number, or numbers with commas.
    #[serde(default)]
    skintone: Value,
}

fn open_moji(path: &Path, selection: &Selection) -> Result<Vec<Candidate>, BuildError> {
    let reader = open(path)?;
    let entries: Vec<OpenMojiEntry> = serde_json::from_reader(reader).map_err(|error| {
        let message =
            format!("is not OpenMoji's metadata, a list of objects with `hexcode` and `annotation`: {error}");
        BuildError::Text { path: path.to_path_buf(), message }
    })?;
    let candidate = |entry: OpenMojiEntry| Candidate {
        caption: caption(&entry, selection.max_tags),
        file: format!("{}.svg", entry.hexcode),
        group: entry.group,
        unwanted: match &entry.skintone {
            Value::Null => None,
            Value::String(tone) if tone.is_empty() => None,
            _ => (!selection.skin_tones).then_some(Unwanted::SkinTone),
        },
    };
    Ok(entries.into_iter().map(candidate).collect())
}

/// Name, then tags, without what was said already.
fn caption(entry: &OpenMojiEntry, max_tags: Option<usize>) -> String {
    let name = entry.annotation.trim();
    let mut seen = HashSet::from([name.to_lowercase()]);
    let tags = entry.tags.split(',').chain(entry.openmoji_tags.split(',')).map(str::trim);
    let tags = tags.filter(|tag| !tag.is_empty() && seen.insert(tag.to_lowercase()));
    let parts = std::iter::once(name).filter(|name| !name.is_empty());
    parts.chain(tags.take(max_tags.unwrap_or(usize::MAX))).collect::<Vec<_>>().join(", ")
}

#[derive(Deserialize)]
struct CaptionLine {
    file: String,
    #[serde(default)]
    caption: String,
    #[serde(default)]
    group: Option<String>,
}

fn lines(path: &Path) -> Result<Vec<Candidate>, BuildError> {
    let mut list = Vec::new();
    for (number, line) in open(path)?.lines().enumerate() {
        let failed = |message: String| BuildError::Text {
            path: path.to_path_buf(),
            message: format!("line {}: {message}", number + 1),
        };
        let line = line.map_err(|error| failed(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: CaptionLine = serde_json::from_str(&line)
            .map_err(|error| failed(format!("is not a JSON object with `file` and `caption`: {error}")))?;
        list.push(Candidate { file: line.file, caption: line.caption, group: line.group, unwanted: None });
    }
    Ok(list)
}

fn open(path: &Path) -> Result<impl BufRead, BuildError> {
    let failed = |source| BuildError::Io { path: path.to_path_buf(), action: "read", source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_METADATA_BYTES {
        let message = format!("is not a regular file of at most {MAX_METADATA_BYTES} bytes");
        return Err(BuildError::Text { path: path.to_path_buf(), message });
    }
    Ok(BufReader::new(File::open(path).map_err(failed)?.take(MAX_METADATA_BYTES)))
}

impl Candidate {
    /// What is wrong with the entry itself, whatever its picture.
    pub fn fault(&self) -> Option<String> {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if self.file.is_empty() || !Path::new(&self.file).components().all(plain) {
            return Some("its path does not lie below the folder of pictures".to_owned());
        }
        let extension =
            Path::new(&self.file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !crate::picture::EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()) {
            return Some(format!(
                "`.{extension}` is none of the formats that are read: {}",
                crate::picture::EXTENSIONS.join(", ")
            ));
        }
        if self.caption.len() > MAX_CAPTION_BYTES {
            return Some(format!("its caption has more than {MAX_CAPTION_BYTES} bytes"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    const ENTRIES: &str = r#"[
        {"hexcode": "1F600", "group": "smileys", "annotation": "grinning face", "tags": "face, Grin, grinning face", "openmoji_tags": "grin, happy", "skintone": ""},
        {"hexcode": "1F44B-1F3FB", "group": "people", "annotation": "waving hand: light skin tone", "tags": "", "skintone": 1},
        {"hexcode": "1F1EA", "group": "flags", "annotation": "flag", "skintone": ""}
    ]"#;

    #[test]
    fn captions_are_names_and_new_tags() {
        let file = written(ENTRIES);
        let source = CaptionSource::OpenMoji(file.path().to_owned());
        let list = candidates(&source, &Selection::default()).expect("read");
        assert_eq!(list[0].caption, "grinning face, face, Grin, happy");
        assert_eq!(list[0].file, "1F600.svg");
        assert_eq!(
            list.iter().map(|c| c.unwanted).collect::<Vec<_>>(),
            [None, Some(Unwanted::SkinTone), None]
        );

        let selection = Selection {
            skin_tones: true,
            without_groups: vec!["flags".into()],
            max_tags: Some(1),
            ..Selection::default()
        };
        let list = candidates(&source, &selection).expect("read");
        assert_eq!(list[0].caption, "grinning face, face");
        assert_eq!(list.iter().map(|c| c.unwanted).collect::<Vec<_>>(), [None, None, Some(Unwanted::Group)]);

        let selection = Selection { groups: vec!["flag".into()], ..Selection::default() };
        let message = candidates(&source, &selection).expect_err("no such group").to_string();
        assert!(message.contains("`flag`") && message.contains("flags, people, smileys"), "{message}");
    }

    #[test]
    fn lines_name_the_one_that_is_broken() {
        let file = written("{\"file\": \"a.png\", \"caption\": \"a\"}\n\n{\"file\": 3}\n");
        let message = candidates(&CaptionSource::Lines(file.path().to_owned()), &Selection::default())
            .expect_err("broken")
            .to_string();
        assert!(message.contains("line 3"), "{message}");
    }

    #[test]
    fn paths_stay_below_the_folder() {
        let fault = |file: &str| {
            Candidate { file: file.to_owned(), caption: String::new(), group: None, unwanted: None }.fault()
        };
        assert_eq!(fault("a/b.PNG"), None);
        for bad in ["", "/etc/passwd.png", "../a.png", "a/../../b.svg", "a.gif", "a"] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
