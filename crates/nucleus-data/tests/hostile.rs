//! Pictures, lists and data sets of people who mean harm, and full or locked disks.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use image::ImageFormat;
use nucleus_data::Dataset;
use support::{Bench, disc, quarters};

/// Why the picture is left out of a set in which there is also a good one.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let mut bench = Bench::new();
    bench.picture("good.svg", "good", disc((72, 72), "#c81414"));
    bench.picture(name, "bad", bytes);
    let start = Instant::now();
    let report = bench.build(&bench.options()).expect("the good one is enough");
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    assert_eq!((report.items, report.dropped.get("broken")), (1, Some(&1)), "{name}");
    let text = std::fs::read_to_string(bench.path("set/dropped.jsonl")).expect("read");
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one line of JSON");
    let mut strict = bench.options();
    (strict.strict, strict.out) = (true, bench.path("strict"));
    let error = bench.build(&strict).expect_err("strict").to_string();
    assert!(error.contains(name), "{error}");
    assert!(!bench.path("strict").exists());
    line["message"].as_str().expect("a message").to_owned()
}

#[test]
fn broken_pictures_are_left_out_with_a_reason() {
    let png = quarters(ImageFormat::Png, 64, [[0; 3], [255; 3], [9; 3], [99; 3]]);
    let jpeg = quarters(ImageFormat::Jpeg, 64, [[0; 3], [255; 3], [9; 3], [99; 3]]);
    for (name, bytes) in [
        ("cut.png", &png[..png.len() / 2]),
        ("cut.jpg", &jpeg[..40]),
        ("empty.png", &[]),
        ("no.jpeg", b"GIF89a"),
    ] {
        let message = refusal(name, bytes);
        assert!(message.contains("decoded"), "{name}: {message}");
    }
    for bytes in [
        &b""[..],
        b"<svg",
        b"\xff\xfe<svg/>",
        b"<html/>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 0 0'/>",
    ] {
        refusal("bad.svg", bytes);
    }
}

#[test]
fn bombs_are_refused() {
    // A PNG header that claims 60,000 x 60,000 pixels.
    let mut header = b"IHDR".to_vec();
    header.extend([60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
    header.extend([8, 6, 0, 0, 0]);
    let crc = header.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT");
    let message = refusal("bomb.png", &png);
    assert!(message.contains("60000x60000") || message.contains("limit"), "{message}");

    let laughs = format!(
        "<!DOCTYPE svg [<!ENTITY a0 'x'>{}]><svg xmlns='http://www.w3.org/2000/svg'><desc>&a30;</desc></svg>",
        (1..=30)
            .map(|n| format!("<!ENTITY a{n} '{}'>", format!("&a{};", n - 1).repeat(50)))
            .collect::<String>()
    );
    assert!(refusal("laughs.svg", laughs.as_bytes()).contains("XML"));

    let uses: String = (1..12)
        .map(|n| format!("<g id='l{n}'>{}</g>", format!("<use href='#l{}'/>", n - 1).repeat(20)))
        .collect();
    let uses =
        format!("<svg xmlns='http://www.w3.org/2000/svg'><rect id='l0' width='1' height='1'/>{uses}</svg>");
    assert!(refusal("uses.svg", uses.as_bytes()).contains("unfolds"));

    let deep = format!(
        "<svg xmlns='http://www.w3.org/2000/svg'>{}{}</svg>",
        "<g>".repeat(50_000),
        "</g>".repeat(50_000)
    );
    assert!(refusal("deep.svg", deep.as_bytes()).contains("deep"));
    let deeper = "<g>".repeat(1_000_000);
    assert!(refusal("deeper.svg", deeper.as_bytes()).contains("XML"));
    let wide = "<svg xmlns='http://www.w3.org/2000/svg' width='1e30' height='1e-30'/>";
    let mut bench = Bench::new();
    bench.picture("wide.svg", "wide", wide);
    // Drawn or refused, it ends.
    let _ = bench.build(&bench.options());
}

#[test]
fn a_drawing_reads_no_other_file() {
    let secret =
        "<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/hostname' width='9' height='9'/></svg>";
    assert!(refusal("secret.svg", secret.as_bytes()).contains("image"));
    let entity = "<!DOCTYPE svg [<!ENTITY e SYSTEM '/etc/hostname'>]><svg xmlns='http://www.w3.org/2000/svg'><desc>&e;</desc></svg>";
    refusal("entity.svg", entity.as_bytes());
}

#[test]
fn what_the_list_gets_wrong_is_counted() {
    let mut bench = Bench::new();
    bench.picture("good.svg", "good", disc((72, 72), "#c81414"));
    bench.list("good.svg", "twice");
    bench.list("missing.svg", "missing");
    bench.list("../captions.jsonl", "outside");
    bench.picture("mute.svg", " - ", disc((72, 72), "#14c814"));
    bench.file("unlisted.svg", disc((72, 72), "#1414c8"));
    bench.file("notes.txt", "not a picture");
    let report = bench.build(&bench.options()).expect("built");
    let dropped: Vec<_> = report.dropped.into_iter().collect();
    assert_eq!((report.candidates, report.items), (6, 1));
    assert_eq!(dropped, [("broken", 2), ("listed-twice", 1), ("no-caption", 2)]);
}

#[test]
fn nothing_is_left_behind_when_building_fails() {
    let mut bench = Bench::new();
    bench.picture("bad.svg", "bad", "<svg");
    let error = bench.build(&bench.options()).expect_err("nothing left").to_string();
    assert!(error.contains("no picture is left of 1: 1 broken; `bad.svg` is not XML"), "{error}");
    assert_eq!(bench.entries(), ["captions.jsonl", "pictures"]);

    bench.picture("good.svg", "good", disc((72, 72), "#c81414"));
    let options = bench.options();
    std::fs::write(bench.path("set"), "in the way").expect("written");
    assert!(bench.build(&options).expect_err("in the way").to_string().contains("already exists"));
    let mut replacing = options.clone();
    replacing.replace = true;
    assert!(bench.build(&replacing).expect_err("no data set").to_string().contains("is no data set"));
    std::fs::remove_file(bench.path("set")).expect("removed");
    bench.build(&options).expect("built");
    bench.build(&options).expect_err("a data set is there");
    bench.build(&replacing).expect("replaced");
    assert_eq!(bench.entries(), ["captions.jsonl", "pictures", "set"]);

    let mut below_a_file = options.clone();
    below_a_file.out = bench.path("captions.jsonl/set");
    assert!(bench.build(&below_a_file).expect_err("below a file").to_string().contains("captions.jsonl"));
}

/// A data set of three discs, damaged by `damage`, and the message of opening and verifying it.
fn damaged(damage: impl Fn(&Path)) -> String {
    let mut bench = Bench::new();
    for (name, colour) in [("a", "#c81414"), ("b", "#14c814"), ("c", "#1414c8")] {
        bench.picture(&format!("{name}.svg"), name, disc((72, 72), colour));
    }
    bench.build(&bench.options()).expect("built");
    let set = bench.path("set");
    damage(&set);
    Dataset::open(&set).and_then(|dataset| dataset.verify()).expect_err("damaged").to_string()
}

fn edit(set: &Path, key: &str, value: serde_json::Value) {
    let path = set.join("dataset.json");
    let mut description: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    *description.pointer_mut(key).expect("the key") = value;
    std::fs::write(path, description.to_string()).expect("written");
}

#[test]
fn descriptions_that_lie_are_refused() {
    let cases: [(&str, serde_json::Value, &str); 12] = [
        ("/version", 2.into(), "version"),
        ("/kind", "latents".into(), "latents"),
        ("/channels", 4.into(), "channels"),
        ("/token_length", 0.into(), "token_length"),
        ("/token_length", 5.into(), "tokens"),
        ("/vocabulary", serde_json::json!(["a", "b"]), "vocabulary"),
        ("/vocabulary/3", "a".into(), "twice"),
        ("/buckets", serde_json::json!([]), "buckets"),
        ("/buckets/0/count", 4.into(), "count"),
        ("/buckets/0/width", u64::MAX.into(), "sides"),
        ("/buckets/0/shards/0/file", "../../captions.jsonl".into(), "below"),
        ("/buckets/0/shards/0/blake3", "00".into(), "BLAKE3"),
    ];
    for (key, value, word) in cases {
        let message = damaged(|set| edit(set, key, value.clone()));
        assert!(message.contains(word), "{key}: {message}");
    }
    let message = damaged(|set| {
        edit(set, "/buckets/0/count", 2.into());
        edit(set, "/buckets/0/shards/0/count", 2.into());
    });
    assert!(message.contains("[3, 16, 16, 3]") && message.contains("[2, 16, 16, 3]"), "{message}");
}

#[test]
fn damaged_files_are_refused() {
    const SHARD: &str = "shards/16x16-00000.safetensors";
    let cut = damaged(|set| {
        let bytes = std::fs::read(set.join(SHARD)).expect("read");
        std::fs::write(set.join(SHARD), &bytes[..bytes.len() - 1]).expect("written");
    });
    assert!(cut.contains("truncated"), "{cut}");
    let flipped = |place: fn(usize) -> usize, value| {
        damaged(move |set| {
            let mut bytes = std::fs::read(set.join(SHARD)).expect("read");
            let place = place(bytes.len());
            bytes[place] = value;
            std::fs::write(set.join(SHARD), bytes).expect("written");
        })
    };
    assert!(flipped(|len| len - 1, 7).contains("BLAKE3"));
    // Tokens stand before the pixels: the last byte of the last token makes it negative.
    let token = flipped(|len| len - 3 * 16 * 16 * 3 - 1, 0x80);
    assert!(token.contains("token 3 of item 2") && token.contains("ids 0 to 4"), "{token}");
    assert!(damaged(|set| std::fs::remove_file(set.join(SHARD)).expect("removed")).contains(SHARD));
    assert!(
        damaged(|set| std::fs::remove_file(set.join("captions.jsonl")).expect("removed"))
            .contains("captions.jsonl")
    );
    let lines = damaged(|set| std::fs::write(set.join("captions.jsonl"), "{}\n").expect("written"));
    assert!(lines.contains("line 1"), "{lines}");
}
