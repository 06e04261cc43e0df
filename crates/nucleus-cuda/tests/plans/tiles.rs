//! Tiles that the cost model never chooses: whatever a table may hold computes the same. These are at the ends of what is allowed: the smallest
//! and the longest tiles, blocks with more threads than a tile has units to move, warps with as many accumulators as there may be, many stages.

use nucleus_cuda::tuning::{tile_choices, tile_table};
use nucleus_cuda::{Architecture, Tile, Tuning};

use crate::contractions::{PLAIN, parts};
use crate::groups::softmax;
use crate::harness::{Case, DEFAULT, check_tuned, plan};
use crate::products::{LEFT, RIGHT, aligned};

const fn tile([rows, columns, depth, stages, warps, across, blocks]: [u32; 7]) -> Tile {
    Tile { rows, columns, depth, stages, warps, across, blocks }
}

/// Rows, columns, depth, stages, warps, warps across, blocks.
const BF16: [Tile; 5] = [
    tile([16, 16, 32, 2, 1, 1, 16]),
    tile([64, 64, 32, 3, 1, 1, 2]),
    tile([16, 256, 64, 3, 16, 16, 1]),
    tile([256, 16, 32, 9, 16, 1, 1]),
    tile([128, 256, 64, 2, 16, 4, 1]),
];
const F32: [Tile; 3] =
    [tile([32, 16, 32, 16, 1, 1, 1]), tile([256, 16, 32, 2, 8, 1, 1]), tile([32, 256, 16, 4, 16, 16, 1])];

/// Checks a plan with this tile for all products, from a table as a harness writes it.
fn check_with(tile: Tile, text: &str, dims: &[(&str, i64)]) {
    let architectures = [Architecture::SM80, Architecture::SM90];
    let plan = plan(text);
    let mut choices = tile_choices([&plan], &architectures, &Tuning::default()).unwrap();
    choices.iter_mut().for_each(|choice| choice.tile.tile = tile);
    let tuning = Tuning::parse(&tile_table(&choices), "the test's").unwrap();
    let again = tile_choices([&plan], &architectures, &tuning).unwrap();
    assert!(!again.is_empty() && again.iter().all(|choice| choice.tile.tile == tile && choice.tile.given));
    check_tuned(Architecture::SM80, &tuning, &plan, &Case { text, dims, tolerance: 1e-5, ..DEFAULT });
}

#[test]
fn unusual_tiles_of_bf16() {
    for (number, tile) in BF16.into_iter().enumerate() {
        // Factors of no alignment, computed ones, segments; then asynchronous copies along depth and lines.
        if number % 2 == 0 {
            check_with(tile, &parts("bf16", PLAIN), &[("B", 3), ("S", 33), ("M", 40)]);
        }
        let (a, b) = (LEFT[number % 2], RIGHT[number / 2 % 2]);
        check_with(tile, &aligned("bf16", 8, a, b), &[("G", 2), ("M", 19), ("K", 13), ("N", 17)]);
    }
}

#[test]
fn unusual_tiles_of_f32() {
    for (number, tile) in F32.into_iter().enumerate() {
        if number % 2 == 0 {
            check_with(tile, &parts("f32", PLAIN), &[("B", 3), ("S", 33), ("M", 40)]);
        }
        let (a, b) = (LEFT[number % 2], RIGHT[number / 2 % 2]);
        check_with(tile, &aligned("f32", 4, a, b), &[("G", 2), ("M", 38), ("K", 26), ("N", 34)]);
    }
    // Groups that are wider than the tile.
    check_with(F32[1], &softmax(40, 3), &[("S", 40)]);
}
