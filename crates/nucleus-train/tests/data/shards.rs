//! Data sets of shards.

use std::collections::BTreeSet;

use half::bf16;
use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_train::data::{Batch, ShardOptions, Shards, Source};
use tempfile::TempDir;

use crate::support::{
    TEXT, batch, describe, draws, i32_bytes, pixel, pixel_set, stages, tensor, tokens, write,
};

const PLAIN: ShardOptions = ShardOptions { patch_size: 2, text_dropout: 0.0, flip: false };

fn open(buckets: &[(usize, usize, &[usize])], options: ShardOptions, seed: u64) -> (TempDir, Shards) {
    let dir = tempfile::tempdir().unwrap();
    pixel_set(dir.path(), buckets);
    let shards = Shards::open(dir.path(), options, draws(seed)).unwrap();
    (dir, shards)
}

/// Bucket and number of every item, from its text.
fn items(batch: &Batch) -> Vec<(usize, usize)> {
    let words = tensor(batch, "tokens").as_i32().unwrap();
    words.chunks(TEXT).map(|text| (text[0] as usize - 2, text[1] as usize - 10)).collect()
}

#[test]
fn every_epoch_shows_every_item_at_most_once_and_batches_are_of_one_size() {
    let (_dir, mut shards) = open(&[(4, 4, &[5, 6]), (2, 8, &[7])], PLAIN, 1);
    let stages = stages(2, None);
    // 5 batches of 11 items, 3 of 7: 8 an epoch.
    let mut left_over = BTreeSet::new();
    for epoch in 0..20 {
        let mut seen = BTreeSet::new();
        for index in 0..8 {
            let batch = batch(&mut shards, &stages, epoch * 8 + index + 1);
            let items = items(&batch);
            assert_eq!(items.len(), 2);
            assert_eq!(items[0].0, items[1].0, "a batch mixes buckets");
            let grid = if items[0].0 == 0 {
                [("H".to_owned(), 2), ("W".to_owned(), 2)]
            } else {
                [("H".to_owned(), 1), ("W".to_owned(), 4)]
            };
            assert_eq!(batch.dims, grid);
            for item in items {
                assert!(seen.insert(item), "{item:?} twice in epoch {epoch}");
            }
        }
        assert_eq!(seen.len(), 16);
        left_over.extend((0..11).map(|item| (0, item)).filter(|item| !seen.contains(item)));
    }
    assert!(left_over.len() > 5, "always the same items are left over: {left_over:?}");
}

#[test]
fn a_batch_is_the_same_whenever_and_in_whatever_order_it_is_drawn() {
    let options = ShardOptions { text_dropout: 0.5, flip: true, ..PLAIN };
    let (dir, mut shards) = open(&[(4, 4, &[5, 6]), (2, 8, &[7])], options, 3);
    let stages = stages(2, None);
    let forward: Vec<Batch> = (1..=40).map(|step| batch(&mut shards, &stages, step)).collect();
    for step in [40, 1, 17, 16, 39, 8, 9] {
        assert_eq!(batch(&mut shards, &stages, step), forward[step as usize - 1]);
        let mut fresh = Shards::open(dir.path(), options, draws(3)).unwrap();
        assert_eq!(batch(&mut fresh, &stages, step), forward[step as usize - 1]);
    }
    let mut other = Shards::open(dir.path(), options, draws(4)).unwrap();
    assert_ne!(batch(&mut other, &stages, 1), forward[0]);
}

#[test]
fn pixels_become_tokens_between_minus_one_and_one() {
    let (_dir, mut shards) = open(&[(4, 6, &[3])], PLAIN, 1);
    let batch = batch(&mut shards, &stages(3, None), 1);
    let latents = tensor(&batch, "latents");
    assert_eq!(latents.shape(), [3, 6, 12]);
    assert_eq!((batch.items, batch.image_tokens), (3, 6));
    for ((_, item), picture) in items(&batch).into_iter().zip(latents.as_f32().unwrap().chunks(72)) {
        for (index, value) in picture.iter().enumerate() {
            let (token, inside) = (index / 12, index % 12);
            let (channel, dy, dx) = (inside / 4, inside / 2 % 2, inside % 2);
            let (y, x) = (token / 3 * 2 + dy, token % 3 * 2 + dx);
            assert_eq!(*value, f32::from(pixel(item, y, x, channel)) / 127.5 - 1.0);
        }
    }
    let mask = tensor(&batch, "encoder_hidden_states_mask").as_bool().unwrap();
    assert_eq!(mask, [true, true, false].repeat(3));
    assert_eq!(tensor(&batch, "noise").shape(), [3, 6, 12]);
    let levels = tensor(&batch, "timestep").as_f32().unwrap();
    assert!(levels.len() == 3 && levels.iter().all(|level| (0.0..=1.0).contains(level)));
}

#[test]
fn text_is_dropped_and_pictures_are_mirrored_as_often_as_asked() {
    let options = ShardOptions { text_dropout: 0.25, flip: true, ..PLAIN };
    let (dir, mut shards) = open(&[(2, 4, &[64])], options, 5);
    let mut plain = Shards::open(dir.path(), PLAIN, draws(5)).unwrap();
    let stages = stages(64, None);
    let (mut dropped, mut mirrored, rounds) = (0, 0, 60);
    for step in 1..=rounds {
        let (changed, whole) = (batch(&mut shards, &stages, step), batch(&mut plain, &stages, step));
        let texts = |batch: &Batch| tensor(batch, "tokens").as_i32().unwrap().to_vec();
        for (changed, whole) in texts(&changed).chunks(3).zip(texts(&whole).chunks(3)) {
            assert!(changed == whole || changed == [0; 3]);
            dropped += usize::from(changed != whole);
        }
        let pictures = |batch: &Batch| tensor(batch, "latents").as_f32().unwrap().to_vec();
        for (changed, whole) in pictures(&changed).chunks(24).zip(pictures(&whole).chunks(24)) {
            let reversed: Vec<f32> = (0..24)
                .map(|index| {
                    let (token, inside) = (index / 12, index % 12);
                    whole[(1 - token) * 12 + inside / 2 * 2 + (1 - inside % 2)]
                })
                .collect();
            assert!(changed == whole || changed == reversed);
            mirrored += usize::from(changed != whole);
        }
    }
    let count = (64 * rounds) as f64;
    // Five standard errors of a share p of n: 5 √(p (1 − p) / n).
    assert!((dropped as f64 / count - 0.25).abs() < 5.0 * (0.1875 / count).sqrt(), "{dropped}");
    assert!((mirrored as f64 / count - 0.5).abs() < 5.0 * (0.25 / count).sqrt(), "{mirrored}");
}

#[test]
fn a_resolution_takes_its_buckets_or_averages_larger_ones() {
    let (_dir, mut shards) = open(&[(16, 16, &[2]), (8, 32, &[2]), (32, 32, &[2])], PLAIN, 1);
    let mut grids = |resolution| {
        let stages = stages(1, Some(resolution));
        (1..=12)
            .map(|step| batch(&mut shards, &stages, step))
            .map(|batch| (batch.dims[0].1, batch.dims[1].1))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(grids(16), BTreeSet::from([(8, 8), (4, 16)]));
    assert_eq!(grids(32), BTreeSet::from([(16, 16)]));
    // No bucket has 8: 16 × 16 and 8 × 32 are halved, 32 × 32 becomes a quarter.
    assert_eq!(grids(8), BTreeSet::from([(4, 4), (2, 8)]));

    let stages = stages(1, Some(8));
    let batch = (1..=12)
        .map(|step| batch(&mut shards, &stages, step))
        .find(|batch| batch.dims[0].1 == 4 && items(batch)[0].0 == 0)
        .unwrap();
    let item = items(&batch)[0].1;
    let sum: u32 =
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(y, x)| u32::from(pixel(item, y, x, 0))).iter().sum();
    assert_eq!(tensor(&batch, "latents").as_f32().unwrap()[0], sum as f32 / 4.0 / 127.5 - 1.0);
}

#[test]
fn latents_of_every_float_type_are_packed() {
    let value = |index: usize| index as f32 / 8.0 - 4.0;
    for (dtype, bytes) in [
        (StoredDType::F32, (0..32).flat_map(|index| value(index).to_le_bytes()).collect::<Vec<u8>>()),
        (StoredDType::BF16, (0..32).flat_map(|index| bf16::from_f32(value(index)).to_le_bytes()).collect()),
        (
            StoredDType::F16,
            (0..32).flat_map(|index| half::f16::from_f32(value(index)).to_le_bytes()).collect(),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("shards/a.safetensors");
        let text = i32_bytes(tokens(0, 0));
        write(
            &shard,
            &[("latents", dtype, vec![1, 4, 2, 4], bytes), ("tokens", StoredDType::I32, vec![1, 3], text)],
        );
        let bucket = serde_json::json!({"height": 2, "width": 4, "count": 1, "shards": [{"file": "shards/a.safetensors", "count": 1, "blake3": ""}]});
        describe(dir.path(), "latents", 4, vec![bucket]);
        let mut shards = Shards::open(dir.path(), PLAIN, draws(1)).unwrap();
        let batch = batch(&mut shards, &stages(1, None), 1);
        let latents = tensor(&batch, "latents");
        assert_eq!(latents.shape(), [1, 2, 16]);
        // Token 0: channel 0 at (0,0), (0,1), (1,0), (1,1), then channel 1.
        let expected = [0, 1, 4, 5, 8, 9, 12, 13].map(value);
        assert_eq!(latents.as_f32().unwrap()[..8], expected);
    }
}

#[test]
fn stages_without_data_are_found_before_the_first_step() {
    let (_dir, shards) = open(&[(16, 16, &[3])], PLAIN, 1);
    let message = |batch, resolution| shards.check(&stages(batch, resolution)).unwrap_err().to_string();
    assert_eq!(
        message(4, None),
        "stage 1 has no batch: a batch has 4 items of one size, the largest bucket has 3: set a smaller `batch`"
    );
    assert_eq!(
        message(1, Some(64)),
        "stage 1 has no batch: no bucket is of resolution 64, or a multiple that can be averaged to it; there are 16 × 16"
    );
    shards.check(&stages(3, Some(8))).unwrap();
}
