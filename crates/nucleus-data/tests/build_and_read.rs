//! A data set as it is written and read back.

mod support;

use image::ImageFormat;
use nucleus_data::fit::BucketSize;
use nucleus_data::{Dataset, DatasetError};
use support::{Bench, disc, names, quarters};

const RED: [u8; 3] = [200, 20, 20];
const GREEN: [u8; 3] = [20, 200, 20];
const BLUE: [u8; 3] = [20, 20, 200];
const GREY: [u8; 3] = [120, 120, 120];

/// Discs, quarters, a wide drawing.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.picture("red.svg", "Red disc", disc((72, 72), "#c81414"));
    bench.picture("blue.svg", "blue disc", disc((72, 72), "#1414c8"));
    bench.picture("a/wide.svg", "a wide green disc, very wide", disc((72, 36), "#14c814"));
    bench.picture("quarters.png", "four quarters", quarters(ImageFormat::Png, 64, [RED, GREEN, BLUE, GREY]));
    bench
}

fn open(bench: &Bench) -> Dataset {
    Dataset::open(&bench.path("set")).expect("a data set")
}

fn pixel(dataset: &Dataset, bucket: usize, item: usize, x: usize, y: usize) -> [u8; 3] {
    let item = dataset.item(bucket, item).expect("an item");
    let start = (y * item.width + x) * 3;
    item.data[start..start + 3].try_into().expect("three channels")
}

#[test]
fn pixels_tokens_and_captions_come_back() {
    let bench = bench();
    let mut options = bench.options();
    options.sizes.push(BucketSize { width: 32, height: 8 });
    let report = bench.build(&options).expect("built");
    assert_eq!((report.items, report.candidates, report.cut_captions), (4, 4, 1));
    assert!(report.dropped.is_empty(), "{report:?}");
    let dataset = open(&bench);
    dataset.verify().expect("as it was written");
    // An aspect of 2 is as near to 1 as to 4: the first size wins.
    assert_eq!(dataset.buckets().len(), 1);
    assert_eq!(dataset.len(), 4);
    let words =
        ["<padding>", "<unknown>", "disc", "wide", "a", "blue", "four", "green", "quarters", "red", "very"];
    assert_eq!(dataset.vocabulary().words(), words);
    assert_eq!(dataset.item(0, 0).expect("an item").tokens, [9, 2, 0, 0]);
    assert_eq!(dataset.item(0, 2).expect("an item").tokens, [4, 3, 7, 2]);
    let captions = dataset.captions().expect("captions");
    assert_eq!(captions[0][2].caption, "a wide green disc, very wide");
    assert_eq!(captions[0][2].source, "a/wide.svg");
    assert_eq!(pixel(&dataset, 0, 0, 8, 8), RED);
    assert_eq!(pixel(&dataset, 0, 0, 0, 0), [255; 3]);
    assert_eq!(pixel(&dataset, 0, 3, 2, 2), RED);
    assert_eq!(pixel(&dataset, 0, 3, 13, 2), GREEN);
    assert_eq!(pixel(&dataset, 0, 3, 2, 13), BLUE);
    assert!(matches!(dataset.item(0, 4), Err(DatasetError::Item { count: 4, .. })));
    assert!(matches!(dataset.item(1, 0), Err(DatasetError::Item { count: 0, .. })));
}

#[test]
fn pictures_go_to_the_size_of_their_aspect() {
    let mut bench = bench();
    bench.picture("line.svg", "a line", disc((400, 40), "#c81414"));
    let mut options = bench.options();
    options.sizes.push(BucketSize { width: 24, height: 12 });
    options.picture.fit = nucleus_data::fit::Fit::Contain;
    let report = bench.build(&options).expect("built");
    assert_eq!(
        report.buckets.into_iter().collect::<Vec<_>>(),
        [("16x16".to_owned(), 3), ("24x12".to_owned(), 2)]
    );
    let dataset = open(&bench);
    let (wide, line) = (dataset.item(1, 0).expect("an item"), dataset.item(1, 1).expect("an item"));
    assert_eq!((wide.width, wide.height, wide.data.len()), (24, 12, 24 * 12 * 3));
    assert_eq!(pixel(&dataset, 1, 0, 12, 6), GREEN);
    // The line is ten times as wide as high: it fills the width, with background above and below,
    // beyond the three pixels that the filter reaches.
    assert_eq!(line.data[..24 * 3 * 2], [255; 24 * 3 * 2]);
}

#[test]
fn the_same_input_gives_the_same_bytes_on_any_number_of_threads() {
    let bench = bench();
    let mut options = bench.options();
    options.shard_bytes = 1700;
    let mut sets = Vec::new();
    for threads in [1, 2, 4] {
        options.threads = Some(threads);
        options.out = bench.path(&format!("set{threads}"));
        bench.build(&options).expect("built");
        let mut files = names(&options.out);
        assert_eq!(files, ["captions.jsonl", "dataset.json", "dropped.jsonl", "shards"]);
        files.pop();
        files.extend(names(&options.out.join("shards")).iter().map(|name| format!("shards/{name}")));
        assert_eq!(files.len(), 3 + 2, "two items fit in a shard");
        sets.push(
            files
                .into_iter()
                .map(|file| std::fs::read(options.out.join(file)).expect("read"))
                .collect::<Vec<_>>(),
        );
    }
    assert!(sets[0] == sets[1] && sets[1] == sets[2]);
    assert_eq!(bench.entries(), ["captions.jsonl", "pictures", "set1", "set2", "set4"]);
    let dataset = Dataset::open(&bench.path("set4")).expect("a data set");
    assert_eq!(pixel(&dataset, 0, 3, 2, 2), RED, "the last item is in the second shard");
    assert_eq!(dataset.captions().expect("captions")[0][3].index, 1);
}

#[test]
fn doubles_are_left_out_and_listed_and_colours_are_not_doubles() {
    let mut bench = bench();
    bench.picture("again.svg", "the same", disc((144, 144), "#c81414"));
    bench.picture(
        "nearly.png",
        "nearly",
        quarters(ImageFormat::Png, 64, [RED, GREEN, BLUE, [124, 118, 121]]),
    );
    let report = bench.build(&bench.options()).expect("built");
    assert_eq!(report.items, 4);
    assert_eq!(report.dropped.into_iter().collect::<Vec<_>>(), [("duplicate", 1), ("near-duplicate", 1)]);
    let text = std::fs::read_to_string(bench.path("set/dropped.jsonl")).expect("read");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["file"], &lines[0]["of"]), (&"again.svg".into(), &"red.svg".into()));
    assert_eq!((&lines[1]["file"], &lines[1]["of"]), (&"nearly.png".into(), &"quarters.png".into()));
    assert_eq!(lines[1]["difference"], 4);

    let mut options = bench.options();
    (options.near, options.replace) = (None, true);
    assert_eq!(bench.build(&options).expect("built").items, 5, "exact doubles are left out always");
}

#[test]
fn transparent_pixels_show_the_background_and_jpegs_are_read() {
    let mut bench = Bench::new();
    let glass =
        image::RgbaImage::from_fn(16, 16, |x, _| image::Rgba([255, 0, 0, if x < 8 { 0 } else { 128 }]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    glass.write_to(&mut bytes, ImageFormat::Png).expect("encoded");
    bench.picture("glass.png", "glass", bytes.into_inner());
    bench.picture("photo.JPG", "photo", quarters(ImageFormat::Jpeg, 128, [GREY; 4]));
    let mut options = bench.options();
    options.picture.background = "0000ff".parse().expect("a colour");
    bench.build(&options).expect("built");
    let dataset = open(&bench);
    assert_eq!(pixel(&dataset, 0, 0, 3, 3), [0, 0, 255]);
    assert_eq!(pixel(&dataset, 0, 0, 12, 3), [128, 0, 127]);
    let grey = pixel(&dataset, 0, 1, 5, 5);
    assert!(grey.iter().all(|value| value.abs_diff(120) <= 1), "{grey:?}");
}

#[test]
fn a_contact_sheet_shows_the_pictures() {
    let bench = bench();
    bench.build(&bench.options()).expect("built");
    let png = nucleus_data::contact_sheet::contact_sheet(&open(&bench), 120, 2).expect("drawn");
    let page = image::load_from_memory(&png).expect("a PNG").into_rgb8();
    // Cells of 128 pixels, 8 times the pictures' size, with margins of 6: the middle of the first.
    assert_eq!(page.get_pixel(6 + 64, 6 + 64).0, RED);
    assert_eq!(page.width(), 2 * (128 + 6) + 6);
    assert!(
        page.enumerate_rows()
            .skip(6 + 128 + 2)
            .take(8)
            .any(|(_, mut row)| row.any(|(_, _, p)| p.0 == [0; 3]))
    );
}
