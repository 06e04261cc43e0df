//! A folder of small pictures, and the options to build a data set from it.

use std::path::{Path, PathBuf};

use nucleus_data::fit::BucketSize;
use nucleus_data::near::NearOptions;
use nucleus_data::picture::PictureOptions;
use nucleus_data::source::{CaptionSource, Selection};
use nucleus_data::{BuildError, BuildOptions, BuildReport};

pub struct Bench {
    folder: tempfile::TempDir,
    lines: Vec<String>,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("pictures")).expect("a writable folder");
        Bench { folder, lines: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a picture without listing it.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path("pictures").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        std::fs::write(path, bytes).expect("a writable folder");
    }

    /// Lists a picture.
    pub fn list(&mut self, name: &str, caption: &str) {
        self.lines.push(serde_json::json!({ "file": name, "caption": caption }).to_string());
    }

    /// Writes and lists a picture.
    pub fn picture(&mut self, name: &str, caption: &str, bytes: impl AsRef<[u8]>) {
        self.file(name, bytes);
        self.list(name, caption);
    }

    pub fn options(&self) -> BuildOptions {
        std::fs::write(self.path("captions.jsonl"), self.lines.join("\n")).expect("a writable folder");
        BuildOptions {
            pictures: self.path("pictures"),
            captions: CaptionSource::Lines(self.path("captions.jsonl")),
            out: self.path("set"),
            replace: false,
            selection: Selection::default(),
            sizes: vec![BucketSize { width: 16, height: 16 }],
            picture: PictureOptions::default(),
            near: Some(NearOptions::default()),
            token_length: 4,
            min_count: 1,
            max_words: 100,
            shard_bytes: 1 << 20,
            license: "CC0 1.0".to_owned(),
            attribution: "nobody".to_owned(),
            license_file: None,
            strict: false,
            threads: Some(2),
        }
    }

    pub fn build(&self, options: &BuildOptions) -> Result<BuildReport, BuildError> {
        nucleus_data::build(options, &mut |_, _| ())
    }

    /// What stands beside the pictures: nothing temporary may.
    pub fn entries(&self) -> Vec<String> {
        names(self.folder.path())
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A drawing of size `size` with one disc of that colour.
pub fn disc(size: (u32, u32), colour: &str) -> String {
    let (width, height) = size;
    let radius = f64::from(width.min(height)) * 0.4;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><circle cx="{}" cy="{}" r="{radius}" fill="{colour}"/></svg>"#,
        f64::from(width) / 2.0,
        f64::from(height) / 2.0,
    )
}

/// A picture in format `format` with one colour per quarter.
pub fn quarters(format: image::ImageFormat, side: u32, colours: [[u8; 3]; 4]) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb(colours[usize::from(x * 2 >= side) + 2 * usize::from(y * 2 >= side)])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}
