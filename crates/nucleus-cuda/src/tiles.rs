//! Tiles of contractions: which there are, and which one takes the least time by an analytic model of the device.
//!
//! The time of the products is the largest of four bounds: multiplications, spread over the multiprocessors in whole tiles; what blocks read
//! through the second cache; what must come from memory at least once; and the wait for memory in a block that is alone with its pipeline.
//! Epilogues come on top, unless a multiprocessor has another block to go on with. The choice is deterministic and needs no device.
//! Measurements override it, see [`crate::tuning`].

use nucleus_ir::DType;

use crate::architecture::Architecture;

/// A device, as far as the choice of tiles depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// FLOP/s of `mma.sync` on 16-bit factors with f32 sums.
    pub matrix_flops: f64,
    /// FLOP/s of f32 multiply-adds.
    pub f32_flops: f64,
    /// Bytes per second from memory.
    pub bandwidth: f64,
    /// Bytes per second from the second cache.
    pub cache_bandwidth: f64,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_memory: u32,
    /// The most bytes of a block's.
    pub block_shared_memory: u32,
    /// Threads of a multiprocessor.
    pub threads: u32,
}

impl Device {
    /// The device that kernels of an architecture are tuned for: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090. Published figures; for Hopper
    /// `mma.sync` reaches about 62 % of the peak, which only `wgmma` does.
    pub fn of(architecture: Architecture) -> Device {
        let (multiprocessors, matrix, f32, memory, cache) = match architecture.capability() {
            80 => (108, 312e12, 19.5e12, 1.55e12, 4.5e12),
            86 => (82, 71e12, 35.6e12, 0.94e12, 2.5e12),
            89 => (128, 165e12, 82.6e12, 1.0e12, 5e12),
            90 => (132, 610e12, 67e12, 3.0e12, 6e12),
            100 => (148, 610e12, 75e12, 7e12, 10e12),
            _ => (170, 209e12, 104.8e12, 1.79e12, 6e12),
        };
        Device {
            multiprocessors,
            matrix_flops: matrix,
            f32_flops: f32,
            bandwidth: memory,
            cache_bandwidth: cache,
            shared_memory: architecture.shared_memory() + SYSTEM_SHARED,
            block_shared_memory: architecture.shared_memory(),
            threads: architecture.threads_per_multiprocessor(),
        }
    }
}

/// How a block computes a tile of a contraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Rows of accumulators, a power of two.
    pub rows: u32,
    /// Columns of accumulators, those of all segments together, a power of two.
    pub columns: u32,
    /// Elements along the depth of a stage: 32 or 64.
    pub depth: u32,
    /// Stages of the pipeline, at least 2.
    pub stages: u32,
    /// Warps.
    pub warps: u32,
    /// Warps side by side along the columns; divides `warps`.
    pub across: u32,
    /// Blocks that a multiprocessor should hold: it limits the registers of a thread.
    pub blocks: u32,
}

/// Shapes of tiles: rows, columns, warps, warps across, blocks. Warps of 64 x 64 read shared memory least; the others are for few rows or columns.
const MATRIX: [(u32, u32, u32, u32, u32); 10] = [
    (128, 256, 8, 4, 1),
    (128, 128, 4, 2, 2),
    (128, 64, 4, 2, 3),
    (64, 128, 4, 2, 3),
    (64, 64, 4, 2, 3),
    (64, 256, 4, 4, 2),
    (32, 128, 4, 4, 4),
    (32, 64, 4, 4, 4),
    (16, 128, 4, 4, 4),
    (16, 64, 4, 4, 4),
];

/// The same for f32: a warp has 8 x 4 threads of up to 8 x 8 accumulators.
const F32: [(u32, u32, u32, u32, u32); 6] = [
    (128, 128, 8, 4, 1),
    (128, 64, 4, 2, 2),
    (64, 64, 4, 2, 3),
    (64, 128, 4, 4, 2),
    (32, 64, 4, 4, 4),
    (32, 16, 1, 1, 8),
];

/// Bytes of a multiprocessor's shared memory that the system has of every block.
const SYSTEM_SHARED: u32 = 1024;
/// Registers of a multiprocessor.
const REGISTERS: u32 = 65536;
/// The most stages: more than that hides no more latency.
const MOST_STAGES: u32 = 6;
/// Seconds from the request of a stage to its arrival.
const LATENCY: f64 = 0.8e-6;
/// Seconds of a launch that are not the kernel's loop.
const LAUNCH: f64 = 3e-6;

impl Tile {
    /// The tiles that a device can run for products of that element type.
    pub fn all(dtype: DType, device: &Device) -> Vec<Tile> {
        let shapes: &[_] = if dtype == DType::F32 { &F32 } else { &MATRIX };
        let tile = |&(rows, columns, warps, across, blocks): &(u32, u32, u32, u32, u32)| {
            let mut tile = Tile { rows, columns, depth: 0, stages: 0, warps, across, blocks };
            let room = tile.room(device);
            // A stage is 64 or 128 bytes along the depth: deeper ones need fewer barriers, but more registers for addresses, of which blocks with
            // 128 accumulators for a thread have none to spare if there are two; and large tiles of f32 would be long code.
            let each = rows * columns / (warps * 32);
            let shallow =
                if dtype == DType::F32 { rows * columns >= 64 * 64 } else { each >= 128 && blocks > 1 };
            for bytes in if shallow { &[64][..] } else { &[128, 64] } {
                tile.depth = bytes / dtype.size() as u32;
                tile.stages = (room / tile.stage_bytes(dtype)).min(MOST_STAGES);
                if tile.stages >= 3 {
                    break;
                }
            }
            tile
        };
        shapes.iter().map(tile).filter(|tile| tile.stages >= 2).collect()
    }

    /// Bytes of shared memory that leave room for as many blocks as there should be.
    fn room(&self, device: &Device) -> u32 {
        let each = device.shared_memory / self.blocks.max(1);
        each.saturating_sub(SYSTEM_SHARED).min(device.block_shared_memory)
    }

    fn stage_bytes(&self, dtype: DType) -> u32 {
        (self.rows + self.columns) * self.depth * dtype.size() as u32
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.warps * 32
    }

    /// Rows whose accumulators fit into shared memory at a time, a power of two, at least 16.
    pub fn slice_rows(&self, dtype: DType, device: &Device) -> u32 {
        let room = self.room(device).max(self.stages * self.stage_bytes(dtype));
        let mut slice = self.rows;
        while slice > 16 && slice * self.staged_row_bytes() > room {
            slice /= 2;
        }
        slice
    }

    /// Bytes of a row of accumulators in shared memory: see `STAGED_ROW` in `matmul/epilogue.cuh`.
    fn staged_row_bytes(&self) -> u32 {
        (self.columns + 8) * 4
    }

    /// Bytes of shared memory of a block: the pipeline, and after it slices of accumulators.
    pub fn shared_bytes(&self, dtype: DType, device: &Device) -> u32 {
        let slice = self.slice_rows(dtype, device) * self.staged_row_bytes();
        (self.stages * self.stage_bytes(dtype)).max(slice)
    }

    /// Bytes of shared memory of a pipeline whose right factor comes as bytes, and of the two tiles that they are widened to.
    pub fn widened_bytes(&self, dtype: DType) -> u32 {
        let (stage, tiles) = self.widened_parts(dtype);
        self.stages * stage + tiles
    }

    /// A stage of such a pipeline, and its two tiles.
    fn widened_parts(&self, dtype: DType) -> (u32, u32) {
        let size = dtype.size() as u32;
        ((self.rows * size + self.columns) * self.depth, 2 * self.columns * self.depth * size)
    }

    /// The tile with as many stages as leave room to widen its right factor; `None` if there are not even two.
    pub fn widening(mut self, dtype: DType, device: &Device) -> Option<Tile> {
        let (stage, tiles) = self.widened_parts(dtype);
        let room = self.room(device).max(self.stages * self.stage_bytes(dtype));
        self.stages = self.stages.min(room.saturating_sub(tiles) / stage);
        (self.stages >= 2).then_some(self)
    }

    /// What is wrong with a tile that leaves no room to widen the right factor.
    pub fn without_room_to_widen(&self, dtype: DType, device: &Device) -> TileError {
        let most = self
            .widening(dtype, device)
            .map_or("no pipeline has".to_owned(), |tile| format!("at most {} stages have", tile.stages));
        TileError(format!(
            "`stages = {}`: {most} room for a right factor that is widened from bytes",
            self.stages
        ))
    }

    /// Whether each number is one that some kernel can have, whatever its element type and device.
    ///
    /// # Errors
    /// The first that is not, with what is expected.
    pub fn check_numbers(&self) -> Result<(), TileError> {
        let power = |name, value: u32, least: u32, most: u32| {
            let fits = value.is_power_of_two() && (least..=most).contains(&value);
            let expected = || format!("`{name} = {value}`: expected a power of two from {least} to {most}");
            if fits { Ok(()) } else { Err(TileError(expected())) }
        };
        let number = |name, value: u32, least: u32, most: u32| {
            let expected = || format!("`{name} = {value}`: expected a number from {least} to {most}");
            if (least..=most).contains(&value) { Ok(()) } else { Err(TileError(expected())) }
        };
        power("rows", self.rows, 16, 256)?;
        power("columns", self.columns, 16, 256)?;
        power("depth", self.depth, 16, 64)?;
        number("stages", self.stages, 2, 16)?;
        power("warps", self.warps, 1, 16)?;
        power("across", self.across, 1, self.warps)?;
        number("blocks", self.blocks, 1, 16)
    }

    /// Whether kernels of that element type can be written with the numbers, and the device runs them; what is read from a table need not be so.
    ///
    /// # Errors
    /// What does not fit, with what would.
    pub fn check(&self, dtype: DType, device: &Device) -> Result<(), TileError> {
        self.check_numbers()?;
        let fail = |what: String| Err(TileError(what));
        let size = dtype.size() as u32;
        if ![64, 128].contains(&(self.depth * size)) {
            let (one, other) = (64 / size, 128 / size);
            return fail(format!("`depth = {}`: products in {dtype} have {one} or {other}", self.depth));
        }
        // A row of a tile is moved by no less than its elements' number of threads, if these are moved one by one.
        if self.depth > self.threads() {
            return fail(format!("`depth = {}` needs more than one warp", self.depth));
        }
        let down = self.warps / self.across;
        let (rows, columns) = (self.rows / down, self.columns / self.across);
        let warps = format!("{down} x {} warps of {rows} rows and {columns} columns each", self.across);
        if dtype == DType::F32 {
            // A warp is 8 x 4 threads, and each moves its accumulators four at a time.
            if ![32, 64].contains(&rows) || ![16, 32].contains(&columns) {
                return fail(format!("{warps}: those of {dtype} have 32 or 64 rows and 16 or 32 columns"));
            }
        } else if rows < 16 || columns < 16 || rows * columns > 64 * 64 {
            return fail(format!(
                "{warps}: those of {dtype} have at least 16 rows and columns, and at most 4096 accumulators"
            ));
        }
        let (shared, most) = (self.shared_bytes(dtype, device), device.block_shared_memory);
        if shared > most {
            let stages = self.stages;
            return fail(format!("{stages} stages take {shared} bytes of shared memory, a block has {most}"));
        }
        let (threads, blocks) = (self.threads(), self.blocks);
        if threads * blocks > device.threads {
            return fail(format!(
                "{blocks} blocks of {threads} threads: a multiprocessor has {} threads",
                device.threads
            ));
        }
        let all = blocks * (shared + SYSTEM_SHARED);
        if all > device.shared_memory {
            return fail(format!(
                "{blocks} blocks take {all} bytes of shared memory, a multiprocessor has {}",
                device.shared_memory
            ));
        }
        let (accumulators, registers) = (rows * columns / 32, REGISTERS / (blocks * threads));
        if accumulators >= registers {
            return fail(format!(
                "{blocks} blocks leave a thread {registers} registers, and its accumulators take {accumulators}"
            ));
        }
        Ok(())
    }
}

/// A tile that kernels cannot have: which number, and what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TileError(String);

/// A contraction at some sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The element type of the products.
    pub dtype: DType,
    /// Products of the batch.
    pub batch: f64,
    /// Rows.
    pub rows: f64,
    /// Contracted elements.
    pub depth: f64,
    /// For every part its columns and segments.
    pub parts: Vec<(f64, u32)>,
    /// Bytes that an epilogue reads and writes at one point, on average.
    pub epilogue_bytes: f64,
}

/// How a part of a contraction lies in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of one segment in a tile.
    pub each: u32,
    /// True if its accumulators pass through memory.
    pub wide: bool,
}

impl Problem {
    /// Seconds that a launch takes by the model, given for every part how it lies in tiles.
    pub fn time(&self, tile: &Tile, columns: &[Columns], device: &Device) -> f64 {
        let bytes = self.dtype.size() as f64;
        let up = |whole: f64, part: u32| (whole / f64::from(part.max(1))).ceil();
        let across: f64 =
            self.parts.iter().zip(columns).map(|((all, _), columns)| up(*all, columns.each)).sum();
        let blocks = self.batch * up(self.rows, tile.rows) * across;
        let multiprocessors = f64::from(device.multiprocessors);

        let shared =
            f64::from(device.shared_memory / (tile.shared_bytes(self.dtype, device) + SYSTEM_SHARED))
                .max(1.0);
        let threads = f64::from(device.threads / tile.threads()).max(1.0);
        let resident = shared.min(threads).min(f64::from(tile.blocks.max(1)));

        let (rows, width) = (f64::from(tile.rows), f64::from(tile.columns));
        let peak = if self.dtype == DType::F32 { device.f32_flops } else { device.matrix_flops };
        let depth = up(self.depth, tile.depth).max(1.0) * f64::from(tile.depth);
        // Multiprocessors take tiles until none is left; each has as many as the busiest. It needs several warps to be busy.
        let busiest = (blocks / multiprocessors).ceil();
        let together = resident.min(busiest).max(1.0);
        let warps = together * f64::from(tile.warps);
        let rate = peak / multiprocessors * efficiency(tile, self.dtype) * (warps / 8.0).min(1.0);
        let compute = busiest * 2.0 * rows * width * depth / rate;

        let cached = blocks * (rows + width) * depth * bytes / device.cache_bandwidth;
        let all: f64 = self.parts.iter().map(|(columns, segments)| columns * f64::from(*segments)).sum();
        let once = self.batch * (self.rows + all) * self.depth * bytes / device.bandwidth;
        // What a block has asked for and not yet got limits what it gets, in each of its stages.
        let waves = (busiest / together).ceil();
        let latency = waves * depth / f64::from(tile.depth) * LATENCY / f64::from(tile.stages - 1);
        let bounds = [compute, cached, once, latency];
        let largest = bounds.into_iter().fold(0.0, f64::max);
        // What is not the bound is not hidden wholly either.
        let product = largest + 0.1 * (bounds.into_iter().sum::<f64>() - largest);

        // Epilogues ask for memory and wait for it: many warps keep it busy. They are hidden only behind the loops of other blocks.
        let points: f64 = self.parts.iter().map(|(columns, _)| columns).sum();
        let busy = (warps / 16.0).min(1.0);
        let epilogue = self.batch * self.rows * points * self.epilogue_bytes / (device.bandwidth * busy);
        let both = product + epilogue - if together > 1.0 { 0.7 * product.min(epilogue) } else { 0.0 };
        let through: f64 = (self.parts.iter().zip(columns))
            .filter(|(_, columns)| columns.wide)
            .map(|((columns, segments), _)| 8.0 * self.batch * self.rows * columns * f64::from(*segments))
            .sum();
        let launches = if through > 0.0 { 2.0 } else { 1.0 };
        launches * LAUNCH + through / device.bandwidth + both
    }
}

/// The part of the peak that shared memory allows: a warp reads its share of both factors for the products of its share of the tile.
fn efficiency(tile: &Tile, dtype: DType) -> f64 {
    let (rows, columns) =
        (f64::from(tile.rows * tile.across / tile.warps), f64::from(tile.columns / tile.across));
    if dtype == DType::F32 {
        // 8 x 8 accumulators of a thread keep multipliers and shared memory equally busy.
        let (rows, columns) = (rows / 8.0, columns / 4.0);
        return (rows * columns / (rows + columns) / 4.0).min(1.0) * 0.8;
    }
    // 64 x 64 reads just what 128 bytes per cycle allow.
    (rows * columns / (rows + columns) / 32.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_find_room_to_be_widened_on_every_architecture() {
        for name in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
            let device = Device::of(name.parse().expect("it is known"));
            for dtype in [DType::Bf16, DType::F32] {
                let tiles = Tile::all(dtype, &device);
                let widening: Vec<Tile> =
                    tiles.iter().filter_map(|tile| tile.widening(dtype, &device)).collect();
                // The largest tile among them: weights of bytes are not to be slower where products are the bound.
                let largest = |tiles: &[Tile]| tiles.iter().map(|tile| tile.rows * tile.columns).max();
                assert_eq!(largest(&widening), largest(&tiles), "{dtype} on {name}");
                for tile in widening {
                    let bytes = tile.widened_bytes(dtype);
                    assert!(tile.stages >= 2 && bytes <= device.block_shared_memory, "{tile:?} on {name}");
                    assert!(bytes <= tile.room(&device), "{tile:?} on {name} leaves no room for its blocks");
                }
            }
        }
    }
}
