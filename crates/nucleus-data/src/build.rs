//! Makes a data set: reads and draws pictures side by side, leaves out what is double, writes the rest in the given order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::fit::{BucketSize, nearest};
use crate::format::{
    CAPTIONS, Caption, DESCRIPTION, DROPPED, Description, Kind, LICENSE, MAX_TOKENS, UNKNOWN, VERSION,
};
use crate::near::{Fingerprint, NearIndex, NearOptions};
use crate::picture::{EXTENSIONS, Picture, PictureOptions};
use crate::report::{BuildError, BuildReport, Dropped, Reason};
use crate::source::{Candidate, CaptionSource, Selection, Unwanted, candidates};
use crate::words::{WordCounts, words};
use crate::write::{Folder, Spill};

/// Stack of a thread that draws: the renderer recurses as deep as a drawing nests.
const STACK_BYTES: usize = 32 << 20;

/// Most bytes of drawn pictures that wait for being written.
const BATCH_BYTES: usize = 64 << 20;

/// What is to be built.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The folder of pictures.
    pub pictures: PathBuf,
    /// Their captions.
    pub captions: CaptionSource,
    /// The folder to write.
    pub out: PathBuf,
    /// Replace a data set that is there.
    pub replace: bool,
    /// Which entries are taken.
    pub selection: Selection,
    /// Sizes of the buckets, none twice.
    pub sizes: Vec<BucketSize>,
    /// How pictures are read and placed.
    pub picture: PictureOptions,
    /// When two pictures are nearly the same; `None` keeps them all.
    pub near: Option<NearOptions>,
    /// Tokens of a caption.
    pub token_length: usize,
    /// How often a word must occur to be in the vocabulary.
    pub min_count: u64,
    /// Most words of the vocabulary.
    pub max_words: usize,
    /// Most bytes of a shard's data; an item that is larger has a shard of its own.
    pub shard_bytes: u64,
    /// Name of the licence.
    pub license: String,
    /// Whom the licence asks to name.
    pub attribution: String,
    /// The licence's text, copied into the data set.
    pub license_file: Option<PathBuf>,
    /// Stop at the first picture that cannot be used.
    pub strict: bool,
    /// Threads; `None` for one per core. The result does not depend on it.
    pub threads: Option<usize>,
}

/// A picture that was kept.
struct Kept<'a> {
    candidate: &'a Candidate,
    bucket: usize,
}

/// A picture that was looked at.
enum Outcome {
    Unusable(Reason),
    Drawn { bucket: usize, rgb: Vec<u8>, hash: blake3::Hash, fingerprint: Option<Fingerprint> },
}

/// Builds a data set. `progress` is told how many pictures of how many are done.
///
/// Equal inputs and options give equal bytes. The folder appears when it is complete; after an error there is nothing.
///
/// # Errors
/// Options that do not fit, inputs that cannot be read as a whole, the file system, no picture left; with `strict`, the first
/// picture that cannot be used.
pub fn build(
    options: &BuildOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<BuildReport, BuildError> {
    check(options)?;
    let license_text = options.license_file.as_deref().map(read_license).transpose()?;
    let mut list = candidates(&options.captions, &options.selection)?;
    let unlisted = unlisted(&options.pictures, &list)?;
    list.extend(unlisted);
    let folder = Folder::create(&options.out, options.replace)?;
    let mut spills = Vec::new();
    for size in &options.sizes {
        spills.push(Spill::create(&folder, *size)?);
    }

    let (kept, dropped) = gather(options, &list, &folder, &mut spills, progress)?;
    let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
    for Dropped { reason, .. } in &dropped {
        *reasons.entry(reason.name()).or_default() += 1;
    }
    if kept.is_empty() {
        let list_of: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let first = dropped
            .iter()
            .find_map(|dropped| Some(format!("; `{}` {}", dropped.file, dropped.reason.fault()?)));
        let reasons = list_of.join(", ") + &first.unwrap_or_default();
        return Err(BuildError::Nothing { candidates: list.len(), reasons });
    }

    let mut counts = WordCounts::default();
    kept.iter().for_each(|kept| counts.add(&kept.candidate.caption));
    let vocabulary = counts.vocabulary(options.min_count, options.max_words);
    let mut report = BuildReport {
        candidates: list.len(),
        items: kept.len(),
        dropped: reasons,
        buckets: BTreeMap::new(),
        vocabulary: vocabulary.len(),
        unknown_words: 0,
        cut_captions: 0,
    };
    let mut buckets = Vec::new();
    let mut captions = Vec::new();
    for (number, spill) in spills.into_iter().enumerate() {
        let items: Vec<&Candidate> =
            kept.iter().filter(|kept| kept.bucket == number).map(|kept| kept.candidate).collect();
        let mut tokens = Vec::with_capacity(items.len() * options.token_length);
        for item in &items {
            let ids = vocabulary.tokens(&item.caption, options.token_length);
            report.unknown_words += ids.iter().filter(|id| **id == UNKNOWN).count();
            report.cut_captions += usize::from(words(&item.caption).nth(options.token_length).is_some());
            tokens.extend(ids);
        }
        let bucket = spill.finish(&folder, options.token_length, options.shard_bytes, &tokens)?;
        if bucket.count == 0 {
            continue;
        }
        let places =
            bucket.shards.iter().flat_map(|shard| (0..shard.count).map(move |index| (&shard.file, index)));
        captions.extend(places.zip(items).map(|((shard, index), item)| Caption {
            shard: shard.clone(),
            index,
            caption: item.caption.clone(),
            source: item.file.clone(),
            group: item.group.clone(),
        }));
        report.buckets.insert(options.sizes[number].to_string(), bucket.count);
        buckets.push(bucket);
    }
    let description = Description {
        version: VERSION,
        kind: Kind::Pixels,
        channels: 3,
        token_length: options.token_length,
        vocabulary: vocabulary.words().to_vec(),
        buckets,
        captions: CAPTIONS.to_owned(),
        license: options.license.clone(),
        attribution: options.attribution.clone(),
    };
    folder.lines(CAPTIONS, captions.iter())?;
    folder.lines(DROPPED, dropped.iter())?;
    if let Some(text) = license_text {
        folder.file(LICENSE, |out| out.write_all(&text))?;
    }
    folder.file(DESCRIPTION, |out| {
        serde_json::to_writer_pretty(&mut *out, &description)?;
        out.write_all(b"\n")
    })?;
    folder.commit()?;
    Ok(report)
}

fn check(options: &BuildOptions) -> Result<(), BuildError> {
    let refuse = |message: String| Err(BuildError::Choice(message));
    if options.sizes.is_empty() {
        return refuse("there is no size: give at least one, for example 64".to_owned());
    }
    let mut seen = HashSet::new();
    if let Some(size) = options.sizes.iter().find(|size| !seen.insert((size.width, size.height))) {
        return refuse(format!("size {size} is given twice"));
    }
    if options.token_length == 0 || options.token_length > MAX_TOKENS {
        return refuse(format!("a caption may have 1 to {MAX_TOKENS} tokens, not {}", options.token_length));
    }
    if options.threads == Some(0) {
        return refuse("at least one thread is needed".to_owned());
    }
    let failed = |source| BuildError::Io { path: options.pictures.clone(), action: "read", source };
    if !std::fs::metadata(&options.pictures).map_err(failed)?.is_dir() {
        return Err(BuildError::Text {
            path: options.pictures.clone(),
            message: "is not a folder of pictures".to_owned(),
        });
    }
    Ok(())
}

fn read_license(path: &Path) -> Result<Vec<u8>, BuildError> {
    let failed = |source| BuildError::Io { path: path.to_path_buf(), action: "read", source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > 1 << 20 {
        let message = "is not a licence's text: a regular file of at most 1 MiB".to_owned();
        return Err(BuildError::Text { path: path.to_path_buf(), message });
    }
    std::fs::read(path).map_err(failed)
}

/// The pictures of the folder that the list does not name, in the order of their paths: they have no captions.
fn unlisted(pictures: &Path, list: &[Candidate]) -> Result<Vec<Candidate>, BuildError> {
    let listed: HashSet<&str> = list.iter().map(|candidate| candidate.file.as_str()).collect();
    let mut found = Vec::new();
    let mut folders = vec![(pictures.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |source| BuildError::Io { path: folder.clone(), action: "read", source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not Unicode cannot be in the list, nor in a JSON file about what was left out but so.
            let file = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // The type of the entry itself: a link to a folder above would have no end.
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push((entry.path(), format!("{file}/")));
                continue;
            }
            let extension =
                Path::new(&file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
                && !listed.contains(file.as_str())
            {
                found.push(file);
            }
        }
    }
    found.sort_unstable();
    let candidate = |file| Candidate { file, caption: String::new(), group: None, unwanted: None };
    Ok(found.into_iter().map(candidate).collect())
}

/// Draws all pictures, batch by batch, and decides in their order which are kept.
fn gather<'a>(
    options: &BuildOptions,
    list: &'a [Candidate],
    folder: &Folder,
    spills: &mut [Spill],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Kept<'a>>, Vec<Dropped>), BuildError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or(0))
        .stack_size(STACK_BYTES)
        .build()
        .map_err(|error| BuildError::Choice(format!("the threads cannot be started: {error}")))?;
    let largest = options.sizes.iter().map(|size| size.width * size.height * 3).max().unwrap_or(1);
    let batch = (BATCH_BYTES / largest).clamp(pool.current_num_threads(), 256);
    let mut kept: Vec<Kept<'a>> = Vec::new();
    let mut dropped = Vec::new();
    let mut names = HashSet::new();
    let mut exact: HashMap<blake3::Hash, usize> = HashMap::new();
    let mut near = options.near.map(NearIndex::new);
    let mut fingerprints: Vec<Fingerprint> = Vec::new();
    progress(0, list.len());
    for (number, candidates) in list.chunks(batch).enumerate() {
        let again: Vec<bool> =
            candidates.iter().map(|candidate| !names.insert(candidate.file.as_str())).collect();
        let outcomes: Vec<Outcome> = pool.install(|| {
            candidates
                .par_iter()
                .zip(&again)
                .map(|(candidate, again)| look_at(options, candidate, *again))
                .collect()
        });
        for (candidate, outcome) in candidates.iter().zip(outcomes) {
            let reason = match outcome {
                Outcome::Unusable(reason) => reason,
                Outcome::Drawn { bucket, rgb, hash, fingerprint } => {
                    let name = |index: usize| kept[index].candidate.file.clone();
                    let double = exact.get(&hash).map(|first| Reason::Duplicate { of: name(*first) });
                    let double = double.or_else(|| {
                        let fingerprint = fingerprint.as_ref()?;
                        let first = near.as_ref()?.find(fingerprint)?;
                        let bits = fingerprint.distance(&fingerprints[first]);
                        let difference = fingerprint.difference(&fingerprints[first]);
                        Some(Reason::NearDuplicate { of: name(first), bits, difference })
                    });
                    match double {
                        Some(reason) => reason,
                        None => {
                            spills[bucket].push(folder, &rgb)?;
                            exact.insert(hash, kept.len());
                            if let (Some(near), Some(fingerprint)) = (&mut near, fingerprint) {
                                near.keep(fingerprint.clone());
                                fingerprints.push(fingerprint);
                            }
                            kept.push(Kept { candidate, bucket });
                            continue;
                        }
                    }
                }
            };
            if let Some(message) = reason.fault().filter(|_| options.strict) {
                return Err(BuildError::Picture { file: candidate.file.clone(), message });
            }
            dropped.push(Dropped {
                file: candidate.file.clone(),
                reason,
                caption: candidate.caption.clone(),
            });
        }
        progress((number * batch + candidates.len()).min(list.len()), list.len());
    }
    Ok((kept, dropped))
}

/// Everything about one picture that does not depend on others.
fn look_at(options: &BuildOptions, candidate: &Candidate, again: bool) -> Outcome {
    let reason = match candidate.unwanted {
        Some(Unwanted::SkinTone) => Some(Reason::SkinTone),
        Some(Unwanted::Group) => Some(Reason::Group),
        None if again => Some(Reason::ListedTwice),
        None => match candidate.fault() {
            Some(message) => Some(Reason::Broken { message }),
            None if words(&candidate.caption).next().is_none() => Some(Reason::NoCaption),
            None => None,
        },
    };
    if let Some(reason) = reason {
        return Outcome::Unusable(reason);
    }
    let drawn = || {
        let picture = Picture::read(&options.pictures.join(&candidate.file), &options.picture)?;
        let bucket = nearest(&options.sizes, picture.aspect());
        let BucketSize { width, height } = options.sizes[bucket];
        let rgb = picture.render(width, height, &options.picture)?;
        // The size is part of the hash: as bytes, 2x1 white and 1x2 white are the same.
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(width as u64).to_le_bytes()).update(&(height as u64).to_le_bytes()).update(&rgb);
        let fingerprint = options.near.map(|_| Fingerprint::new(&rgb, width, height));
        Ok(Outcome::Drawn { bucket, rgb, hash: hasher.finalize(), fingerprint })
    };
    drawn().unwrap_or_else(|message| Outcome::Unusable(Reason::Broken { message }))
}
