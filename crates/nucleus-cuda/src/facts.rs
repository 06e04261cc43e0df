//! What is known of the launches of a kernel: what their sizes have in common decides which accesses may be vectors, what the sizes are at a
//! sample of the plan's dims which tiles are chosen.

use nucleus_ir::Dim;
use nucleus_plan::verify::largest_sample;
use nucleus_plan::{Access, KernelId, Plan, Size};

use crate::tiles::Tile;

/// What is known of a kernel's size arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// For every size argument a power of two that divides it in every launch of the plan, whatever the run-time sizes are.
    divisors: Vec<i64>,
    /// The size arguments of every launch at the largest sample of the plan's dims.
    samples: Vec<Vec<i64>>,
    /// The tile that contractions must take, e.g. one that was measured.
    tile: Option<Tile>,
}

/// The largest power of two that is of interest: no access is wider.
const LARGEST: i64 = 64;

impl Facts {
    /// The facts of a kernel of a plan.
    pub fn of(plan: &Plan, kernel: KernelId) -> Facts {
        let mut divisors = vec![LARGEST; plan.kernel(kernel).size_args as usize];
        let mut samples = Vec::new();
        let sample = largest_sample(plan);
        for launch in plan.launches.iter().filter(|launch| launch.kernel == kernel) {
            for (divisor, size) in divisors.iter_mut().zip(&launch.sizes) {
                *divisor = (*divisor).min(divisor_of(size));
            }
            let sizes = |bindings| launch.sizes.iter().map(|size| size.eval(bindings).ok()).collect();
            samples.extend(sample.as_ref().and_then(sizes));
        }
        Facts { divisors, samples, tile: None }
    }

    /// Nothing is known of `size_args` arguments.
    pub fn none(size_args: u32) -> Facts {
        Facts { divisors: vec![1; size_args as usize], samples: Vec::new(), tile: None }
    }

    /// The same with a tile for a contraction instead of the one that the cost model would choose.
    #[must_use]
    pub fn with_tile(self, tile: Tile) -> Facts {
        Facts { tile: Some(tile), ..self }
    }

    /// The tile that a contraction must take.
    pub fn tile(&self) -> Option<Tile> {
        self.tile
    }

    /// The size arguments of every launch of the kernel at the plan's largest sample: what structures and tiles are chosen by. They say what is
    /// typical and nothing of other sizes; empty where the plan has no sample.
    pub fn samples(&self) -> &[Vec<i64>] {
        &self.samples
    }

    /// What is known of arguments of which number j is any of `choices[..][j]`.
    pub(crate) fn of_any(&self, choices: &[Vec<u32>]) -> Facts {
        let count = choices.first().map_or(0, Vec::len);
        let least = |position: usize| {
            let divisors = choices.iter().map(|choice| self.divisor(Size::Arg(choice[position])));
            divisors.min().unwrap_or(1)
        };
        Facts { divisors: (0..count).map(least).collect(), samples: Vec::new(), tile: None }
    }

    /// A power of two, at most 64, that divides a size.
    pub fn divisor(&self, size: Size) -> i64 {
        match size {
            Size::Const(value) => power_of_two_in(value),
            Size::Arg(position) => self.divisors.get(position as usize).copied().unwrap_or(1),
        }
    }

    /// A power of two, at most 64, that divides the element number of `access` wherever the coordinate of `axis` is a multiple of it.
    /// Buffers begin at multiples of 64 bytes.
    pub fn alignment(&self, access: &Access, axis: usize) -> i64 {
        let others = access.strides.iter().enumerate().filter(|(other, _)| *other != axis);
        let through = access.indirect.iter().map(|indirect| &indirect.stride);
        let sizes = others.map(|(_, stride)| stride).chain(through).chain([&access.offset]);
        sizes.map(|size| self.divisor(*size)).min().unwrap_or(LARGEST)
    }
}

/// The largest power of two, at most [`LARGEST`], that divides `value`; everything divides 0.
fn power_of_two_in(value: i64) -> i64 {
    if value == 0 { LARGEST } else { (1 << value.trailing_zeros().min(6)).min(LARGEST) }
}

/// A power of two that divides every value of `size`: atoms are whole numbers, so what divides all coefficients divides the sum.
fn divisor_of(size: &Dim) -> i64 {
    size.terms().iter().map(|(_, coefficient)| power_of_two_in(*coefficient)).min().unwrap_or(LARGEST)
}
