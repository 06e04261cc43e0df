//! PNG files, which appear when they are complete.

use std::fs;
use std::io;
use std::path::Path;

use super::{Picture, PictureError};

impl Picture {
    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// A picture without pixels is none for PNG.
    pub fn to_png(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let size = |size: usize| u32::try_from(size).map_err(io::Error::other);
        let mut encoder = png::Encoder::new(&mut bytes, size(self.width())?, size(self.height())?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels())?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Writes a PNG file: under a hidden name first, so that whoever looks sees the old picture or the new one.
    ///
    /// # Errors
    /// The file system refuses, or the picture has no pixels.
    pub fn save(&self, path: &Path) -> Result<(), PictureError> {
        let write = || {
            let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(".partial");
            let hidden = path.with_file_name(hidden);
            let bytes = self.to_png()?;
            let written = fs::write(&hidden, bytes).and_then(|()| fs::rename(&hidden, path));
            if written.is_err() {
                // What is to be reported is why it could not be written.
                let _ = fs::remove_file(&hidden);
            }
            written
        };
        write().map_err(|source| PictureError::Write { path: path.to_path_buf(), source })
    }
}
