//! Picture files.

use nucleus_train::pictures::{Picture, PictureError};

#[test]
fn a_saved_picture_decodes_to_its_pixels() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sample.png");
    let pixels: Vec<u8> = (0..5 * 7 * 3).map(|i| (i * 11 % 256) as u8).collect();
    let picture = Picture::from_pixels(7, 5, pixels.clone()).expect("they fill it");
    std::fs::write(&path, "an older picture").expect("writable");
    picture.save(&path).expect("written");
    let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).expect("there")))
        .read_info()
        .expect("a PNG file");
    let mut decoded = vec![0; reader.output_buffer_size().expect("a small picture")];
    let info = reader.next_frame(&mut decoded).expect("whole");
    assert_eq!((info.width, info.height, info.color_type), (7, 5, png::ColorType::Rgb));
    assert_eq!(&decoded[..info.buffer_size()], pixels);
    let left = std::fs::read_dir(folder.path()).expect("readable").count();
    assert_eq!(left, 1, "no hidden file");
}

#[test]
fn what_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let picture = Picture::new(1, 1, [0; 3]).expect("small");
    let path = folder.path().join("absent/sample.png");
    let error = picture.save(&path).expect_err("there is no such folder");
    assert!(error.to_string().contains("absent/sample.png"), "{error}");
    let empty = Picture::new(0, 4, [0; 3]).expect("nothing is small");
    assert!(matches!(empty.save(&folder.path().join("empty.png")), Err(PictureError::Write { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
}
