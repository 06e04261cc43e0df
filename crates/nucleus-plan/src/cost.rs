//! The analytic cost model: what a launch costs on a machine, and which tile suits a contraction.
//!
//! A launch is bound by arithmetic, by memory, or by the time that starting it takes (Williams, Waterman and Patterson, "Roofline",
//! CACM 2009). Nothing is measured: the same plan has the same tiles everywhere. A tuning table overrides them.

use nucleus_ir::{Bindings, DType, DimError, Rate};

use crate::kernel::{Anchor, Contraction, Kernel, Part, Tile};
use crate::plan::{Launch, Plan};

/// What the model knows of a machine. Rates are those of the whole machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Its name, for reports.
    pub name: &'static str,
    /// Workers that compute tiles independently: threads, or multiprocessors.
    pub cores: u32,
    /// FLOP/s of products in `f32`.
    pub f32_flops: f64,
    /// FLOP/s of products in `bf16` and `f16`.
    pub bf16_flops: f64,
    /// FLOP/s of element-wise code.
    pub scalar_flops: f64,
    /// Bytes/s from and to main memory.
    pub bandwidth: f64,
    /// Bytes/s of all cores together from and to their caches.
    pub cache_bandwidth: f64,
    /// Bytes/s of all cores together from the cache that they share.
    pub far_bandwidth: f64,
    /// Bytes of an element of a product's left factor as micro-kernels read it: processors without products of its type widen it.
    pub word: u64,
    /// Bytes of the first-level cache of one core.
    pub l1: u64,
    /// Bytes of the second-level cache, or shared memory, of one core.
    pub l2: u64,
    /// The most rows that a micro-kernel computes at a time.
    pub micro_rows: u32,
    /// Rows that a micro-kernel computes are a multiple of this: CPUs have one for every number of rows.
    pub row_step: u32,
    /// Columns that a micro-kernel computes at a time.
    pub micro_columns: u32,
    /// Seconds to start a launch.
    pub launch: f64,
}

impl Machine {
    /// Two cores of a Zen 4 server: 230 GFLOP/s in `f32` and 460 in `bf16` were measured with multiply-adds in registers.
    pub fn cpu() -> Machine {
        Machine {
            name: "cpu",
            cores: 2,
            f32_flops: 230e9,
            bf16_flops: 460e9,
            scalar_flops: 30e9,
            bandwidth: 30e9,
            cache_bandwidth: 400e9,
            far_bandwidth: 60e9,
            word: 4,
            l1: 32 << 10,
            l2: 1 << 20,
            micro_rows: 12,
            row_step: 1,
            micro_columns: 32,
            launch: 5e-6,
        }
    }

    /// Bytes of the second-level caches of all cores.
    pub fn cache(&self) -> f64 {
        f64::from(self.cores) * self.l2 as f64
    }

    fn product_flops(&self, dtype: DType) -> f64 {
        if dtype == DType::F32 { self.f32_flops } else { self.bf16_flops }
    }
}

/// What limits a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Arithmetic,
    /// Memory traffic.
    Memory,
    /// The time to start it.
    Latency,
}

impl Bound {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Arithmetic => "arithmetic",
            Bound::Memory => "memory",
            Bound::Latency => "latency",
        }
    }
}

/// The predicted cost of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds.
    pub seconds: f64,
    /// What limits it.
    pub bound: Bound,
}

/// Predicts a launch of `kernel` at these sizes.
///
/// # Errors
///
/// A size without a value, or out of range.
pub fn predict(
    launch: &Launch,
    kernel: &Kernel,
    bindings: &Bindings,
    machine: &Machine,
) -> Result<Prediction, DimError> {
    let flops = launch.flops.eval(bindings)? as f64;
    let memory = launch.bytes.eval(bindings)? as f64 / machine.bandwidth;
    let arithmetic = match &kernel.anchor {
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => {
            let sizes =
                launch.sizes.iter().map(|size| size.eval(bindings)).collect::<Result<Vec<i64>, _>>()?;
            let problem = Problem::of(contraction, &sizes);
            match contraction.tile {
                Some(tile) => problem.seconds(tile, machine),
                None => flops / machine.product_flops(contraction.dtype),
            }
        }
        Anchor::Attention(attention) => flops / machine.product_flops(attention.dtype),
        // Factors are widened: two of each product's are f32.
        Anchor::AttentionGrad(_) => flops / machine.product_flops(DType::F32),
        _ => flops / machine.scalar_flops,
    };
    let (time, bound) =
        if arithmetic >= memory { (arithmetic, Bound::Arithmetic) } else { (memory, Bound::Memory) };
    let bound = if time < machine.launch { Bound::Latency } else { bound };
    Ok(Prediction { seconds: time + machine.launch, bound })
}

/// Predicted seconds of all launches of a stage; those whose sizes have no value count nothing.
pub fn stage_seconds(plan: &Plan, stage: Rate, bindings: &Bindings, machine: &Machine) -> f64 {
    let launches = plan.launches.iter().filter(|launch| launch.stage == stage);
    let of = |launch: &Launch| predict(launch, plan.kernel(launch.kernel), bindings, machine).ok();
    launches.filter_map(of).map(|prediction| prediction.seconds).sum()
}

/// A part of a contraction at given sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProblemPart {
    /// Columns of one segment.
    pub columns: f64,
    /// The number of segments.
    pub segments: f64,
    /// Columns of a group that no tile cuts.
    pub group: f64,
    /// Half of the product is enough.
    pub symmetric: bool,
}

/// A contraction at given sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Independent products: the points of the batch axes.
    pub batch: f64,
    /// Rows of one product.
    pub rows: f64,
    /// The right factors.
    pub parts: Vec<ProblemPart>,
    /// The contracted extent.
    pub depth: f64,
    /// The element type of the factors.
    pub dtype: DType,
}

impl Problem {
    /// The problem that a launch with these size arguments solves.
    pub fn of(contraction: &Contraction, sizes: &[i64]) -> Problem {
        let extent = |axes: &[crate::scalar::Size]| -> f64 {
            axes.iter().map(|axis| axis.value(sizes) as f64).product()
        };
        Problem {
            batch: extent(&contraction.batch),
            rows: extent(&contraction.rows),
            parts: contraction
                .parts
                .iter()
                .map(|part| ProblemPart {
                    columns: part.columns.value(sizes) as f64,
                    segments: f64::from(part.segments),
                    group: f64::from(part.whole_groups(1)),
                    symmetric: part.symmetric,
                })
                .collect(),
            depth: contraction.depth.value(sizes) as f64,
            dtype: contraction.dtype,
        }
    }

    /// Predicted seconds with a tile: arithmetic of whole micro-kernels on the most loaded core, or the traffic below main memory,
    /// whichever is more. Rows are staged once; a column group reads them from the far cache, a block of rows each panel of the right
    /// factor; sums go to the near cache and back between chunks of the depth. The tiles of all parts share the cores.
    pub fn seconds(&self, tile: Tile, machine: &Machine) -> f64 {
        let (rows, columns, depth) = (f64::from(tile.rows), f64::from(tile.columns), f64::from(tile.depth));
        let micro = |size: f64, step: u32| (size / f64::from(step)).ceil() * f64::from(step);
        // Blocks and groups are of nearly the same size, and at the edge compute no more than the micro-kernels that they need.
        let blocks = (self.rows / rows).ceil().max(1.0);
        let tile_rows = micro(self.rows / blocks, machine.row_step);
        let (element, word) = (self.dtype.size() as f64, machine.word as f64);
        let spills = ((self.depth / depth).ceil() - 1.0).max(0.0);
        // A panel of narrower elements than micro-kernels read is widened once for every tile: read, written and read.
        let widening = if word > element { element + 2.0 * word } else { 0.0 };
        let (mut tiles, mut flops, mut widened, mut near, mut far) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for part in &self.parts {
            let ProblemPart { columns: part_columns, segments, group, symmetric } = *part;
            let columns = (columns / group).ceil() * group;
            let count = self.batch * blocks * (part_columns / columns).ceil();
            let tile_columns = micro(columns.min(part_columns), machine.micro_columns) * segments;
            tiles += count;
            // Below the diagonal, and micro-kernels across it whole.
            let half = 0.5 + 0.5 * (f64::from(machine.micro_columns) / part_columns).min(1.0);
            let computed = if symmetric { half } else { 1.0 };
            flops += computed * count * 2.0 * tile_rows * tile_columns * self.depth;
            widened += count * self.depth * tile_columns * widening;
            near += count * 2.0 * 4.0 * tile_rows * tile_columns * spills;
            far += count * self.depth * tile_rows * word;
            // The first block's reading is from memory and counted there.
            far += count * (blocks - 1.0) / blocks * self.depth * tile_columns * element;
        }
        if tiles == 0.0 {
            return 0.0;
        }
        // What the most loaded core takes of the whole.
        let share = (tiles / f64::from(machine.cores)).ceil() / tiles;
        let cores = share * f64::from(machine.cores);
        let arithmetic =
            cores * (flops / machine.product_flops(self.dtype) + widened / machine.cache_bandwidth);
        let traffic = cores * (near / machine.cache_bandwidth + far / machine.far_bandwidth);
        arithmetic.max(traffic) + 0.1 * arithmetic.min(traffic)
    }
}

/// The most parts of a merged contraction: the released model has half as many layers.
pub const MAX_MERGED_PARTS: usize = 64;
/// The most columns of a group, of all segments, that a product reduces itself: what a job of a product takes at a time.
pub const MAX_REDUCED_COLUMNS: i64 = 256;
/// The most steps of an epilogue that each of several reductions would compute again.
pub const MAX_REPEATED_STEPS: usize = 8;
/// The most operands of a merged contraction.
pub const MAX_MERGED_OPERANDS: usize = 256;

/// A product that may run earlier, in company with another of the same left factor. In bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Company {
    /// The left factor, which is read once for both.
    pub left: f64,
    /// The product's results, which wait longer for their use.
    pub results: f64,
    /// What the launches touch that run while they wait.
    pub between: f64,
}

impl Company {
    /// Seconds that company saves, or loses if negative: a launch and the reading of the left factor, less a round trip to memory for
    /// results that leave the caches while they wait, if they were small enough to stay there.
    pub fn saves(&self, machine: &Machine) -> f64 {
        let rate = if self.left > machine.cache() { machine.bandwidth } else { machine.cache_bandwidth };
        let leaves = self.results <= machine.cache() && self.results + self.between > machine.cache();
        let round_trip = if leaves { 2.0 * self.results / machine.bandwidth } else { 0.0 };
        machine.launch + self.left / rate - round_trip
    }
}

/// The tiles that a machine can use for a contraction: a chunk of the rows and their sums in most of the second-level cache, a panel's
/// chunk in a few first-level ones.
pub fn legal_tiles(contraction: &Contraction, machine: &Machine) -> Vec<Tile> {
    let element = contraction.dtype.size() as u64;
    // What the widest part makes of a tile's columns.
    let all_columns = |columns: u32| {
        let of = |part: &Part| u64::from(part.whole_groups(columns)) * u64::from(part.segments);
        contraction.parts.iter().map(of).max().unwrap_or(columns.into())
    };
    let mut tiles = Vec::new();
    for depth in [128u32, 256, 512, 1024] {
        for row_blocks in [1u32, 2, 4, 8, 16, 22, 32] {
            for column_blocks in [1u32, 2, 4, 8, 16] {
                let rows = row_blocks * machine.micro_rows;
                let columns = column_blocks * machine.micro_columns;
                let sums = 4 * all_columns(columns);
                let near = u64::from(rows).saturating_mul(u64::from(depth) * machine.word + sums);
                let panel = u64::from(depth) * u64::from(machine.micro_columns) * element;
                if near.saturating_mul(8) <= machine.l2 * 7 && panel <= machine.l1 {
                    tiles.push(Tile { rows, columns, depth });
                }
            }
        }
    }
    tiles
}

/// The tile with the least predicted time over these problems; of equal ones the smallest. `None` if no tile is legal.
pub fn choose_tile(contraction: &Contraction, problems: &[Problem], machine: &Machine) -> Option<Tile> {
    let cost = |tile: &Tile| -> f64 { problems.iter().map(|problem| problem.seconds(*tile, machine)).sum() };
    let scored = legal_tiles(contraction, machine).into_iter().map(|tile| (cost(&tile), tile));
    scored.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, tile)| tile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::{ScalarFunction, Size};

    fn contraction(rows: i64, columns: i64, depth: i64) -> Contraction {
        let part = Part {
            columns: Size::Const(columns),
            segments: 1,
            interleaved: false,
            symmetric: false,
            b: ScalarFunction::default(),
            groups: None,
            epilogue: ScalarFunction::default(),
        };
        Contraction {
            batch: Vec::new(),
            rows: vec![Size::Const(rows)],
            depth: Size::Const(depth),
            a: ScalarFunction::default(),
            dtype: DType::Bf16,
            tile: None,
            parts: vec![part],
        }
    }

    fn tile(rows: i64, columns: i64, depth: i64) -> Tile {
        let contraction = contraction(rows, columns, depth);
        let problem = Problem::of(&contraction, &[]);
        choose_tile(&contraction, &[problem], &Machine::cpu()).unwrap()
    }

    #[test]
    fn large_products_reach_the_arithmetic_limit() {
        let machine = Machine::cpu();
        let contraction = contraction(4096, 2048, 2048);
        let problem = Problem::of(&contraction, &[]);
        let limit = 2.0 * 4096.0 * 2048.0 * 2048.0 / machine.bf16_flops;
        let tile = choose_tile(&contraction, std::slice::from_ref(&problem), &machine).unwrap();
        assert!(problem.seconds(tile, &machine) < 1.2 * limit, "{tile:?}");
    }

    #[test]
    fn one_row_is_not_given_a_tall_tile() {
        assert_eq!(tile(1, 8192, 2048).rows, Machine::cpu().micro_rows);
    }

    #[test]
    fn few_rows_still_occupy_every_core() {
        let chosen = tile(12, 64, 512);
        assert!(chosen.columns <= 32, "{chosen:?}");
    }

    #[test]
    fn company_saves_unless_small_results_wait_long() {
        let machine = Machine::cpu();
        let saves = |left, results, between| Company { left, results, between }.saves(&machine) > 0.0;
        // Neighbours, large results, and a modulation vector; not a megabyte that would have stayed in the cache.
        assert!(saves(1e6, 1e6, 0.0));
        assert!(saves(1e6, 1e7, 1e9));
        assert!(saves(4e3, 3e4, 1e9));
        assert!(!saves(1e6, 1e6, 1e9));
    }

    #[test]
    fn parts_share_the_cores() {
        let machine = Machine::cpu();
        let of = |parts: usize| {
            let mut contraction = contraction(12, 32, 512);
            contraction.parts = vec![contraction.parts[0].clone(); parts];
            Problem::of(&contraction, &[]).seconds(Tile { rows: 12, columns: 32, depth: 512 }, &machine)
        };
        // One tile leaves a core idle, two do not.
        assert!((of(2) - of(1)).abs() < 1e-12);
        assert!((of(4) - 2.0 * of(2)).abs() < 1e-12);
    }

    #[test]
    fn half_of_a_symmetric_product_takes_little_more_than_half_the_time() {
        let machine = Machine::cpu();
        let tile = Tile { rows: 96, columns: 256, depth: 256 };
        let mut contraction = contraction(512, 512, 2048);
        let whole = Problem::of(&contraction, &[]).seconds(tile, &machine);
        contraction.parts[0].symmetric = true;
        let half = Problem::of(&contraction, &[]).seconds(tile, &machine);
        assert!((0.5..0.65).contains(&(half / whole)), "{half} of {whole}");
    }

    #[test]
    fn every_tile_fits_the_caches() {
        let machine = Machine::cpu();
        for tile in legal_tiles(&contraction(100, 100, 100), &machine) {
            let [rows, columns, depth] = [tile.rows, tile.columns, tile.depth].map(u64::from);
            assert!(4 * rows * (depth + columns) <= machine.l2, "{tile:?}");
            assert!(2 * depth * u64::from(machine.micro_columns) <= machine.l1, "{tile:?}");
        }
    }

    #[test]
    fn rows_are_not_read_again_for_every_panel_where_sums_have_room() {
        let chosen = tile(1024, 2048, 2048);
        assert!(chosen.columns >= 128 && chosen.rows >= 128 && chosen.depth >= 256, "{chosen:?}");
    }
}
