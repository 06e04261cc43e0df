//! How many blocks a launch has: formulas over its size arguments.

use nucleus_plan::Size;
use thiserror::Error;

/// ⌈product of `extents` / `each`⌉.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// What there is.
    pub extents: Vec<Size>,
    /// How much of it one block takes.
    pub each: u32,
}

/// ⌈product of counts and a constant / a divisor⌉, and further numbers that are added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The constant.
    pub factor: u32,
    /// The counts.
    pub tiles: Vec<Tiles>,
    /// The divisor.
    pub divisor: u32,
    /// What is added.
    pub more: Vec<Blocks>,
}

impl Blocks {
    /// No blocks, or no bytes.
    pub const NONE: Blocks = Blocks { factor: 0, tiles: Vec::new(), divisor: 1, more: Vec::new() };

    /// A constant.
    pub fn constant(factor: u32) -> Blocks {
        Blocks { factor, tiles: Vec::new(), divisor: 1, more: Vec::new() }
    }

    /// One for every point of a space.
    pub fn points(extents: &[Size]) -> Blocks {
        Blocks::constant(1).times(extents, 1)
    }

    /// The sum with another number.
    pub fn plus(mut self, other: Blocks) -> Blocks {
        self.more.push(other);
        self
    }

    /// The product with ⌈product of `extents` / `each`⌉. What was added is not multiplied.
    pub fn times(mut self, extents: &[Size], each: u32) -> Blocks {
        self.tiles.push(Tiles { extents: extents.to_vec(), each });
        self
    }

    /// ⌈this / `each`⌉.
    pub fn over(mut self, each: u32) -> Blocks {
        self.divisor = each;
        self
    }

    /// The number at these sizes; negative extents count 0. `None` above 2⁶³.
    pub fn count(&self, sizes: &[i64]) -> Option<u64> {
        let mut total = u128::from(self.factor);
        for tiles in &self.tiles {
            let mut extent = 1u128;
            for size in &tiles.extents {
                extent = extent.checked_mul(size.value(sizes).max(0) as u128)?;
            }
            total = total.checked_mul(extent.div_ceil(u128::from(tiles.each.max(1))))?;
        }
        let mut total = total.div_ceil(u128::from(self.divisor.max(1)));
        for more in &self.more {
            total += u128::from(more.count(sizes)?);
        }
        u64::try_from(total).ok().filter(|total| *total <= i64::MAX as u64)
    }
}

/// The extents of a grid of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// x, y and z.
    pub blocks: [Blocks; 3],
}

/// A grid larger than a device takes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "a launch needs {needed} blocks along axis {axis} of its grid; {limit} are possible: use smaller sizes"
)]
pub struct GridError {
    axis: usize,
    needed: u64,
    limit: u64,
}

/// The most blocks along x, y and z.
const LIMITS: [u64; 3] = [(1 << 31) - 1, 65_535, 65_535];

impl Grid {
    /// A grid of one axis.
    pub fn line(blocks: Blocks) -> Grid {
        Grid { blocks: [blocks, Blocks::constant(1), Blocks::constant(1)] }
    }

    /// The extents at these sizes; `None` if there is nothing to do.
    ///
    /// # Errors
    /// The grid is larger than a device takes.
    pub fn extents(&self, sizes: &[i64]) -> Result<Option<[u32; 3]>, GridError> {
        let mut extents = [0; 3];
        for (axis, blocks) in self.blocks.iter().enumerate() {
            let needed = blocks.count(sizes).unwrap_or(u64::MAX);
            if needed > LIMITS[axis] {
                return Err(GridError { axis, needed, limit: LIMITS[axis] });
            }
            extents[axis] = needed as u32;
        }
        Ok((!extents.contains(&0)).then_some(extents))
    }
}
