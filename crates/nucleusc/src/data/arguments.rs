//! The grammar of `nucleusc data`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use nucleus_data::fit::BucketSize;
use nucleus_data::picture::Colour;

/// What to do with data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Make a data set from pictures (SVG, PNG, JPEG) and their captions
    #[command(
        after_help = "Pictures that are broken, uncaptioned, double or nearly so are left out and listed in dropped.jsonl.
The folder appears when it is complete; equal inputs give equal bytes.

Examples:
  nucleusc data build --svg color/svg --metadata openmoji.json --size 64 --out emoji
  nucleusc data build --pictures photos --captions captions.jsonl --size 64x64,80x48,48x80 \\
      --unequal-sizes --license \"CC0 1.0\" --out photos-64
  nucleusc data build --svg color/svg --metadata openmoji.json --size 32 --groups food-drink --max-tags 2 --out food"
    )]
    Build(Box<BuildArguments>),
    /// Show what is in a data set
    #[command(after_help = "Examples:
  nucleusc data inspect emoji
  nucleusc data inspect emoji --verify --json
  nucleusc data inspect emoji --contact-sheet emoji.png --pictures 200")]
    Inspect(InspectArguments),
}

/// `nucleusc data build`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("source").required(true).args(["metadata", "captions"])))]
pub struct BuildArguments {
    /// The folder of pictures: SVG, PNG and JPEG files
    #[arg(long, visible_alias = "svg", value_name = "DIR")]
    pub pictures: PathBuf,
    /// Names and tags in the format of OpenMoji's openmoji.json; the picture of an entry is HEXCODE.svg
    #[arg(long, value_name = "openmoji.json")]
    pub metadata: Option<PathBuf>,
    /// Captions: one JSON object per line, with `file` (below the folder), `caption` and perhaps `group`
    #[arg(long, value_name = "captions.jsonl")]
    pub captions: Option<PathBuf>,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the data set that is there
    #[arg(long)]
    pub replace: bool,
    /// Sizes in pixels; each picture goes to the one whose aspect is nearest
    #[arg(long = "size", value_name = "SIDE|WIDTHxHEIGHT,…", value_delimiter = ',', required = true)]
    pub sizes: Vec<BucketSize>,
    /// Every side must be a multiple of this, the pixels of a token [default: 1]
    #[arg(long, value_name = "PIXELS", default_value_t = 1, hide_default_value = true)]
    pub multiple: usize,
    /// Allow sizes that have not equally many pixels, and so not equally many tokens
    #[arg(long)]
    pub unequal_sizes: bool,
    /// Pad pictures to the aspect of their size; without it, what stands out is cut off
    #[arg(long)]
    pub contain: bool,
    /// Colour behind transparent pixels and beside padded pictures
    #[arg(long, value_name = "RRGGBB", default_value = "ffffff")]
    pub background: Colour,
    /// Most pixels that a PNG or JPEG may have
    #[arg(long, value_name = "COUNT", default_value_t = 1 << 25)]
    pub max_pixels: u64,
    /// Take variants that differ only in skin tone
    #[arg(long)]
    pub skin_tones: bool,
    /// Take only these groups of the captions
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    pub groups: Vec<String>,
    /// Leave out these groups of the captions
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    pub without_groups: Vec<String>,
    /// Most tags that follow the name in a caption [default: all]
    #[arg(long, value_name = "N", requires = "metadata")]
    pub max_tags: Option<usize>,
    /// Keep pictures that are nearly the same; exact doubles are always left out
    #[arg(long, conflicts_with_all = ["near_bits", "near_difference"])]
    pub keep_near: bool,
    /// Pictures are nearly the same if their difference hashes differ in at most so many of 128 bits …
    #[arg(long, value_name = "BITS", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=128))]
    pub near_bits: u32,
    /// … and no cell of their 16x16 thumbnails differs by more than this, of 255
    #[arg(long, value_name = "LEVELS", default_value_t = 12)]
    pub near_difference: u8,
    /// Tokens of a caption: further words are cut
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub tokens: usize,
    /// How often a word must occur to be in the vocabulary
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub min_count: u64,
    /// Most words of the vocabulary: the most frequent
    #[arg(long, value_name = "N", default_value_t = 65536)]
    pub max_words: usize,
    /// Most megabytes (10^6 bytes) of a shard
    #[arg(long, value_name = "MB", default_value_t = 256)]
    pub shard_megabytes: u64,
    /// Name of the licence of pictures and captions
    #[arg(long, value_name = "NAME", default_value = "unknown")]
    pub license: String,
    /// Whom the licence asks to name, and how
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub attribution: String,
    /// The licence's text, copied into the data set
    #[arg(long, value_name = "FILE")]
    pub license_file: Option<PathBuf>,
    /// Stop at the first picture that is broken, missing, listed twice or without a caption
    #[arg(long)]
    pub strict: bool,
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc data inspect`.
#[derive(Args, Debug)]
pub struct InspectArguments {
    /// The data set's folder
    #[arg(value_name = "DIR")]
    pub path: PathBuf,
    /// Read everything and compare it with the hashes
    #[arg(long)]
    pub verify: bool,
    /// Write a page of pictures with their captions
    #[arg(long, value_name = "out.png")]
    pub contact_sheet: Option<PathBuf>,
    /// Pictures on the page, spread evenly over the data set
    #[arg(long, value_name = "N", default_value_t = 120, requires = "contact_sheet")]
    pub pictures: usize,
    /// Pictures in a row of the page
    #[arg(long, value_name = "N", default_value_t = 12, requires = "contact_sheet")]
    pub columns: usize,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
