//! Damaged texts give diagnostics, never a panic: the definitions with bytes flipped, parts deleted, doubled and moved.

use std::collections::HashMap;

use nucleus_ir::ast::Module;
use nucleus_ir::diagnostics::has_errors;
use nucleus_ir::printer::print;
use nucleus_ir::source::SourceMap;
use nucleus_ir::{parse, render, verify};

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

const PIECES: [&str; 24] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\"",
    ";",
    ",",
    "..",
    "...",
    "=",
    "fn ",
    "let ",
    "scope ",
    "if ",
    "else ",
    "-> ",
    "é",
    "\u{0}",
    "99999999999999999999",
    "1e999",
    "//",
    "\\",
];

fn mutate(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        let length = random.below(40).min(bytes.len().saturating_sub(at));
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..at + length)),
            2 => {
                let part = bytes[at..at + length].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            3 => bytes.truncate(at),
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
    bytes
}

/// Parses, verifies, renders and prints; true if the text is fine.
fn survive(text: &str) -> bool {
    let mut sources = SourceMap::new();
    let file = sources.add("mutated.ir", text);
    let (module, mut diagnostics) = parse(&sources, file);
    if has_errors(&diagnostics) {
        // A broken tree is not meant to be used, but nothing may fall over it.
        print(&module);
    }
    diagnostics.extend(verify::<Module>(&module, &HashMap::new()));
    let shown = render(&sources, &diagnostics, false);
    assert_eq!(shown.is_empty(), diagnostics.is_empty());
    for diagnostic in &diagnostics {
        let span = diagnostic.span().expect("every diagnostic about a text has a place");
        assert!(span.start <= span.end && span.end as usize <= text.len(), "{diagnostic:?}");
    }
    if !has_errors(&diagnostics) {
        let mut sources = SourceMap::new();
        let file = sources.add("printed.ir", print(&module));
        assert_eq!(parse(&sources, file).0, module);
        return true;
    }
    false
}

#[test]
fn damaged_definitions_give_diagnostics() {
    let definitions =
        [include_str!("../../../ir-specs/std.ir"), include_str!("../../../ir-specs/nucleus_image.ir")];
    let mut random = Random(1);
    let mut fine = 0;
    for case in 0..3000 {
        let bytes = mutate(definitions[case % 2].as_bytes(), &mut random);
        fine += usize::from(survive(&String::from_utf8_lossy(&bytes)));
    }
    // Some damage is to comments and names; most is not.
    assert!((1..2000).contains(&fine), "{fine} texts are fine");
}

#[test]
fn random_pieces_give_diagnostics() {
    let mut random = Random(2);
    for _ in 0..3000 {
        let count = random.below(60);
        let mut text = String::new();
        for _ in 0..count {
            match random.below(4) {
                0 => text.push(char::from(random.below(128) as u8)),
                1 => text.push_str("x "),
                _ => text.push_str(PIECES[random.below(PIECES.len())]),
            }
        }
        survive(&text);
    }
}
