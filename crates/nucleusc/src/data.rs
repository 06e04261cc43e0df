//! `nucleusc data`: data sets from captioned pictures, and what is in them.

mod arguments;

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use nucleus_data::contact_sheet::contact_sheet;
use nucleus_data::fit::Fit;
use nucleus_data::near::NearOptions;
use nucleus_data::picture::PictureOptions;
use nucleus_data::source::{CaptionSource, Selection};
use nucleus_data::{Bucket, BuildOptions, BuildReport, Dataset};
use serde_json::json;

pub use arguments::DataCommand;

use crate::{progress, report};
use arguments::{BuildArguments, InspectArguments};

/// Runs the command.
pub fn data(command: &DataCommand) -> anyhow::Result<()> {
    match command {
        DataCommand::Build(arguments) => build(arguments),
        DataCommand::Inspect(arguments) => inspect(arguments),
    }
}

fn build(arguments: &BuildArguments) -> anyhow::Result<()> {
    check_sizes(arguments)?;
    let captions = match (&arguments.metadata, &arguments.captions) {
        (Some(path), None) => CaptionSource::OpenMoji(path.clone()),
        (None, Some(path)) => CaptionSource::Lines(path.clone()),
        _ => anyhow::bail!("give either --metadata or --captions"),
    };
    let options = BuildOptions {
        pictures: arguments.pictures.clone(),
        captions,
        out: arguments.out.clone(),
        replace: arguments.replace,
        selection: Selection {
            skin_tones: arguments.skin_tones,
            groups: arguments.groups.clone(),
            without_groups: arguments.without_groups.clone(),
            max_tags: arguments.max_tags,
        },
        sizes: arguments.sizes.clone(),
        picture: PictureOptions {
            background: arguments.background,
            fit: if arguments.contain { Fit::Contain } else { Fit::Cover },
            max_pixels: arguments.max_pixels,
        },
        near: (!arguments.keep_near)
            .then_some(NearOptions { bits: arguments.near_bits, difference: arguments.near_difference }),
        token_length: arguments.tokens,
        min_count: arguments.min_count,
        max_words: arguments.max_words,
        shard_bytes: arguments.shard_megabytes.saturating_mul(1_000_000),
        license: arguments.license.clone(),
        attribution: arguments.attribution.clone(),
        license_file: arguments.license_file.clone(),
        strict: arguments.strict,
        threads: arguments.threads,
    };
    let start = Instant::now();
    let bar = progress::step_bar("pictures");
    let built = nucleus_data::build(&options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let built = built?;
    let seconds = start.elapsed();
    if arguments.json {
        let mut value = serde_json::to_value(&built)?;
        value["out"] = json!(arguments.out);
        value["seconds"] = json!(seconds.as_secs_f64());
        return report::print(&value.to_string());
    }
    let mut text = summary(&built)?;
    write!(text, "wrote {} in {}", arguments.out.display(), report::duration(seconds))?;
    report::print(&text)
}

fn check_sizes(arguments: &BuildArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.multiple > 0, "--multiple must be at least 1");
    for size in &arguments.sizes {
        let whole = [size.width, size.height].iter().all(|side| side % arguments.multiple == 0);
        anyhow::ensure!(
            whole,
            "size {size}: both sides must be multiples of {} (--multiple)",
            arguments.multiple
        );
    }
    let Some(first) = arguments.sizes.first() else { return Ok(()) };
    let pixels = first.width * first.height;
    let other = arguments.sizes.iter().find(|size| size.width * size.height != pixels);
    match other {
        Some(other) if !arguments.unequal_sizes => anyhow::bail!(
            "sizes {first} and {other} have {pixels} and {} pixels: choose equally many, so that all batches cost the same, or give --unequal-sizes",
            other.width * other.height
        ),
        _ => Ok(()),
    }
}

fn summary(built: &BuildReport) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{} of {} pictures", built.items, built.candidates)?;
    for (reason, count) in &built.dropped {
        writeln!(text, "  left out   {count:6}  {reason}")?;
    }
    for (size, count) in &built.buckets {
        writeln!(text, "  size       {count:6}  {size}")?;
    }
    writeln!(
        text,
        "  words      {:6}  in the vocabulary, with padding and the unknown word",
        built.vocabulary
    )?;
    writeln!(text, "  unknown    {:6}  words of captions", built.unknown_words)?;
    writeln!(text, "  cut        {:6}  captions", built.cut_captions)?;
    Ok(text)
}

fn inspect(arguments: &InspectArguments) -> anyhow::Result<()> {
    let dataset = Dataset::open(&arguments.path)?;
    if arguments.verify {
        dataset.verify()?;
    }
    if let Some(path) = &arguments.contact_sheet {
        let png = contact_sheet(&dataset, arguments.pictures, arguments.columns)?;
        write_file(path, &png).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let description = dataset.description();
    let dropped = dropped(&arguments.path);
    if arguments.json {
        let buckets: Vec<_> = dataset
            .buckets()
            .iter()
            .zip(&description.buckets)
            .map(|(bucket, described)| {
                json!({ "width": bucket.width(), "height": bucket.height(), "items": bucket.len(), "shards": described.shards.len() })
            })
            .collect();
        let value = json!({
            "path": arguments.path,
            "kind": description.kind,
            "items": dataset.len(),
            "channels": description.channels,
            "token_length": description.token_length,
            "vocabulary": dataset.vocabulary().len(),
            "buckets": buckets,
            "left_out": dropped,
            "license": description.license,
            "attribution": description.attribution,
            "verified": arguments.verify,
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    let verified = if arguments.verify { ", verified" } else { "" };
    writeln!(text, "data set {}: {} items{verified}", arguments.path.display(), dataset.len())?;
    for (bucket, described) in dataset.buckets().iter().zip(&description.buckets) {
        let (width, height) = (bucket.width(), bucket.height());
        writeln!(
            text,
            "  size        {width}x{height}: {} items in {} shard(s)",
            bucket.len(),
            described.shards.len()
        )?;
    }
    writeln!(
        text,
        "  vocabulary  {} ids, {} tokens per caption",
        dataset.vocabulary().len(),
        description.token_length
    )?;
    let frequent: Vec<&str> =
        dataset.vocabulary().words().iter().skip(2).take(12).map(String::as_str).collect();
    writeln!(text, "  words       {} …", frequent.join(" "))?;
    let used = mean_words(dataset.buckets());
    writeln!(text, "  captions    {used:.1} tokens on average")?;
    if let Some(dropped) = dropped {
        writeln!(text, "  left out    {dropped} pictures")?;
    }
    writeln!(text, "  licence     {}", description.license)?;
    if !description.attribution.is_empty() {
        writeln!(text, "  attribution {}", description.attribution)?;
    }
    report::print(&text)
}

/// Tokens of a caption that are not padding, on average.
fn mean_words(buckets: &[Bucket]) -> f64 {
    let (mut tokens, mut items) = (0usize, 0usize);
    for bucket in buckets {
        for item in (0..bucket.len()).filter_map(|item| bucket.item(item).ok()) {
            tokens += item.tokens.iter().filter(|token| **token != nucleus_data::format::PADDING).count();
            items += 1;
        }
    }
    tokens as f64 / items.max(1) as f64
}

/// How many pictures were left out, where the data set has the list.
fn dropped(path: &Path) -> Option<usize> {
    let text = std::fs::read(path.join(nucleus_data::format::DROPPED)).ok()?;
    Some(text.iter().filter(|byte| **byte == b'\n').count())
}

/// Writes a file that appears when it is complete.
fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Nothing can be done about a temporary file that cannot be removed.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
