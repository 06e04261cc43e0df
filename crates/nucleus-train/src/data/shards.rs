//! Batches cut from a data set: shuffled epochs, one bucket in a batch.

use std::path::Path;

use half::{bf16, f16};
use nucleus_data::{Bucket, Dataset, Description, Item, Kind};
use nucleus_ir::DType;
use nucleus_runtime::safetensors_file::StoredDType;
use nucleus_runtime::{HostTensor, TensorMap};

use super::{Batch, DataError, Draws, Place, Source, grid_dims, pack, sizes};
use crate::random::Purpose;
use crate::recipe::{Stage, Stages};

/// Largest side of the squares over which pixels are averaged for a smaller resolution.
const MAX_REDUCTION: usize = 16;

/// How a data set becomes batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardOptions {
    /// Side of the model's patches, in pixels or latents.
    pub patch_size: usize,
    /// Probability that an item loses its text.
    pub text_dropout: f64,
    /// Mirror half of the pictures.
    pub flip: bool,
}

/// A bucket at the size that a stage wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    bucket: usize,
    /// Side of the squares that become one pixel.
    reduction: usize,
}

/// The order of one epoch.
#[derive(Debug)]
struct Epoch {
    stage: usize,
    number: u64,
    /// Items of a batch.
    size: usize,
    choices: Vec<Choice>,
    /// For each chosen bucket the order of its items.
    orders: Vec<Vec<usize>>,
    /// Chosen bucket and place in its order where the batch starts.
    batches: Vec<(usize, usize)>,
}

/// Batches of a data set.
#[derive(Debug)]
pub struct Shards {
    dataset: Dataset,
    options: ShardOptions,
    draws: Draws,
    /// The epoch that was asked for last.
    epoch: Option<Epoch>,
}

impl Shards {
    /// Opens the data set in a folder.
    ///
    /// # Errors
    /// It is broken, or cannot be used with these options.
    pub fn open(folder: &Path, options: ShardOptions, draws: Draws) -> Result<Shards, DataError> {
        let dataset = Dataset::open(folder)?;
        if options.flip && dataset.description().kind == Kind::Latents {
            return Err(DataError::folder(
                folder,
                "`flip` mirrors pictures, but the data set holds latents: a mirrored latent is not that of the mirrored picture",
            ));
        }
        if options.patch_size == 0 {
            return Err(DataError::folder(folder, "the model's patch_size is 0"));
        }
        for bucket in dataset.buckets() {
            if bucket.height() % options.patch_size != 0 || bucket.width() % options.patch_size != 0 {
                let (height, width) = (bucket.height(), bucket.width());
                let patch = options.patch_size;
                let problem = format!(
                    "items of {height} × {width} cannot be cut into patches of {patch} × {patch}, as the model's patch_size asks"
                );
                return Err(DataError::folder(folder, problem));
            }
        }
        Ok(Shards { dataset, options, draws, epoch: None })
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The sizes of the batch with the most tokens of any stage.
    ///
    /// # Errors
    /// A stage has no data.
    pub fn largest(&self, stages: &Stages) -> Result<Vec<(String, i64)>, DataError> {
        let text = self.dataset.description().token_length;
        let mut largest = (0, Vec::new());
        for (number, stage) in stages.iter().enumerate() {
            for choice in self.plan(number, stage)?.0 {
                let bucket = &self.dataset.buckets()[choice.bucket];
                let token = choice.reduction * self.options.patch_size;
                let grid = (bucket.height() / token, bucket.width() / token);
                let tokens = stage.batch * (grid.0 * grid.1 + text);
                if tokens > largest.0 && bucket.len() >= stage.batch {
                    largest = (tokens, sizes(stage.batch, grid, text));
                }
            }
        }
        Ok(largest.1)
    }

    /// The buckets of a resolution, averaged down only where the data set has none of that size.
    fn choose(&self, resolution: Option<usize>) -> Result<Vec<Choice>, String> {
        let buckets = self.dataset.buckets().iter().enumerate().filter(|(_, bucket)| !bucket.is_empty());
        let Some(resolution) = resolution else {
            return Ok(buckets.map(|(bucket, _)| Choice { bucket, reduction: 1 }).collect());
        };
        let fits = |bucket: &Bucket, reduction: usize| {
            let step = self.options.patch_size * reduction;
            let size = ((bucket.height() * bucket.width()) as f64).sqrt() / reduction as f64;
            bucket.height().is_multiple_of(step)
                && bucket.width().is_multiple_of(step)
                && (size - resolution as f64).abs() * 8.0 <= resolution as f64
        };
        let whole: Vec<Choice> = buckets
            .clone()
            .filter(|(_, bucket)| fits(bucket, 1))
            .map(|(bucket, _)| Choice { bucket, reduction: 1 })
            .collect();
        if !whole.is_empty() {
            return Ok(whole);
        }
        let reduced: Vec<Choice> = buckets
            .clone()
            .filter(|_| self.dataset.description().kind == Kind::Pixels)
            .filter_map(|(number, bucket)| {
                let reduction = (2..=MAX_REDUCTION).find(|reduction| fits(bucket, *reduction))?;
                Some(Choice { bucket: number, reduction })
            })
            .collect();
        if !reduced.is_empty() {
            return Ok(reduced);
        }
        let sizes: Vec<String> =
            buckets.map(|(_, bucket)| format!("{} × {}", bucket.height(), bucket.width())).collect();
        Err(format!(
            "no bucket is of resolution {resolution}, or a multiple that can be averaged to it; there are {}",
            sizes.join(", ")
        ))
    }

    /// The buckets of a stage and the number of batches in one of its epochs.
    fn plan(&self, number: usize, stage: &Stage) -> Result<(Vec<Choice>, u64), DataError> {
        let failed = |problem| DataError::Stage { stage: number + 1, problem };
        let choices = self.choose(stage.resolution).map_err(failed)?;
        let counts = || choices.iter().map(|choice| self.dataset.buckets()[choice.bucket].len());
        let batches: usize = counts().map(|count| count / stage.batch).sum();
        if batches == 0 {
            let largest = counts().max().unwrap_or(0);
            return Err(failed(format!(
                "a batch has {} items of one size, the largest bucket has {largest}: set a smaller `batch`",
                stage.batch
            )));
        }
        Ok((choices, batches as u64))
    }

    fn shuffled(&self, stage: usize, number: u64, size: usize, choices: Vec<Choice>) -> Epoch {
        let mut orders = Vec::with_capacity(choices.len());
        let mut batches = Vec::new();
        for (chosen, choice) in choices.iter().enumerate() {
            let count = self.dataset.buckets()[choice.bucket].len();
            let mut order: Vec<usize> = (0..count).collect();
            let place = [stage as u64, number, choice.bucket as u64];
            self.draws.streams.stream(Purpose::Items, &place).shuffle(&mut order);
            orders.push(order);
            batches.extend((0..count / size).map(|index| (chosen, index * size)));
        }
        self.draws.streams.stream(Purpose::Order, &[stage as u64, number]).shuffle(&mut batches);
        Epoch { stage, number, size, choices, orders, batches }
    }
}

impl Source for Shards {
    fn batch(&mut self, place: &Place<'_>) -> Result<Batch, DataError> {
        let (stage, items) = (place.at.number, place.at.stage.batch);
        let (choices, per_epoch) = self.plan(stage, place.at.stage)?;
        let number = place.index_in_stage / per_epoch;
        let known = self.epoch.take().filter(|epoch| {
            (epoch.stage, epoch.number, epoch.size) == (stage, number, items) && epoch.choices == choices
        });
        let epoch = known.unwrap_or_else(|| self.shuffled(stage, number, items, choices));
        let epoch = self.epoch.insert(epoch);
        let (chosen, start) = epoch.batches[(place.index_in_stage % per_epoch) as usize];
        let choice = epoch.choices[chosen];
        let bucket = &self.dataset.buckets()[choice.bucket];
        let members = &epoch.orders[chosen][start..start + items];

        let patch = self.options.patch_size;
        let (height, width) = (bucket.height() / choice.reduction, bucket.width() / choice.reduction);
        let (rows, columns) = (height / patch, width / patch);
        let Description { kind, channels, token_length: text, .. } = *self.dataset.description();
        let shape = [items, rows * columns, channels * patch * patch];
        let mut latents = HostTensor::zeros(DType::F32, &shape)?;
        let mut tokens = vec![0i32; items * text];
        let where_drawn = [place.step, place.microbatch];
        let mut flips = self.draws.streams.stream(Purpose::Flip, &where_drawn);
        let mut drops = self.draws.streams.stream(Purpose::TextDropout, &where_drawn);
        let each = latents.as_f32_mut()?.chunks_exact_mut(shape[1] * shape[2]);
        for ((number, out), tokens) in members.iter().zip(each).zip(tokens.chunks_exact_mut(text)) {
            let item = bucket.item(*number)?;
            // Drawn whether or not they are used, so that one option does not change what another draws.
            let flip = flips.chance(0.5) && self.options.flip;
            let drop = drops.chance(self.options.text_dropout);
            let size = [channels, height, width];
            match kind {
                Kind::Pixels => pack_pixels(&item, size, choice.reduction, flip, patch, out),
                Kind::Latents => pack_latents(&item, size, patch, out),
            }
            if !out.iter().all(|value| value.is_finite()) {
                let problem = format!("is not finite in item {number} of those of {height} × {width}");
                return Err(DataError::tensor(self.dataset.path(), "latents", problem));
            }
            if !drop {
                tokens.copy_from_slice(item.tokens);
            }
        }
        let mask: Vec<bool> = tokens.iter().map(|token| *token != 0).collect();
        let mut tensors = TensorMap::new();
        tensors.insert("noise", self.draws.noise(place, &shape)?);
        tensors.insert("timestep", self.draws.timestep(place, items, rows * columns)?);
        tensors.insert("latents", latents);
        tensors.insert("tokens", HostTensor::from_i32(&[items, text], &tokens)?);
        tensors.insert("encoder_hidden_states_mask", HostTensor::from_bool(&[items, text], &mask)?);
        Ok(Batch { tensors, dims: grid_dims(rows, columns), items, image_tokens: rows * columns })
    }

    fn check(&self, stages: &Stages) -> Result<(), DataError> {
        stages.iter().enumerate().try_for_each(|(number, stage)| self.plan(number, stage).map(|_| ()))
    }
}

/// Pixels [height · k, width · k, channels] as tokens of their means over k × k, 0 … 255 as −1 … 1.
fn pack_pixels(item: &Item<'_>, size: [usize; 3], k: usize, flip: bool, patch: usize, out: &mut [f32]) {
    let [channels, _, width] = size;
    let value = |channel: usize, y: usize, x: usize| {
        let x = if flip { width - 1 - x } else { x };
        let mut sum = 0u32;
        for row in y * k..(y + 1) * k {
            for column in x * k..(x + 1) * k {
                sum += u32::from(item.data[(row * width * k + column) * channels + channel]);
            }
        }
        sum as f32 / (k * k) as f32 / 127.5 - 1.0
    };
    pack(size, patch, value, out);
}

/// Latents [channels, height, width] as tokens.
fn pack_latents(item: &Item<'_>, size: [usize; 3], patch: usize, out: &mut [f32]) {
    let [_, height, width] = size;
    let two = |index: usize| [item.data[2 * index], item.data[2 * index + 1]];
    let value = |channel: usize, y: usize, x: usize| {
        let index = (channel * height + y) * width + x;
        match item.dtype {
            StoredDType::BF16 => bf16::from_le_bytes(two(index)).to_f32(),
            StoredDType::F16 => f16::from_le_bytes(two(index)).to_f32(),
            // The reader lets no other type through than F32.
            _ => {
                let [low, high] = [two(2 * index), two(2 * index + 1)];
                f32::from_le_bytes([low[0], low[1], high[0], high[1]])
            }
        }
    };
    pack(size, patch, value, out);
}
