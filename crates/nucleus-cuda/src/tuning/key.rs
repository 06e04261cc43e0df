//! What a tile is measured for: a kernel and the power of two that its sizes are rounded to.

use std::fmt;

use nucleus_ir::DType;
use nucleus_plan::{Anchor, Contraction, Kernel, Size};

use crate::facts::Facts;

/// A contraction at some sizes. It follows from the plan alone, so that it is the same wherever the plan is compiled or loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// BLAKE3 of the kernel as plans print it.
    pub(super) kernel: [u8; 32],
    /// Batch, rows, columns of all parts, depth, each rounded up to a power of two.
    pub(super) shape: [u64; 4],
}

impl Problem {
    /// That of the largest launch of a kernel at the plan's largest sample; `None` for what is no contraction, and for a plan without a sample.
    pub fn of(kernel: &Kernel, facts: &Facts) -> Option<Problem> {
        let shape = shape(contraction(kernel)?, facts)?;
        Some(Problem { kernel: *blake3::hash(kernel.to_string().as_bytes()).as_bytes(), shape })
    }

    /// BLAKE3 of the kernel as plans print it, in hexadecimal digits.
    pub fn kernel(&self) -> String {
        blake3::Hash::from_bytes(self.kernel).to_hex().to_string()
    }

    /// Batch, rows, columns of all parts and depth, each rounded up to a power of two: `1x4096x2048x2048`.
    pub fn shape(&self) -> String {
        self.shape.map(|extent| extent.to_string()).join("x")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} at {}", self.kernel(), self.shape())
    }
}

fn contraction(kernel: &Kernel) -> Option<&Contraction> {
    match &kernel.anchor {
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => Some(contraction),
        _ => None,
    }
}

/// The element type of a contraction's products.
pub(super) fn dtype(kernel: &Kernel) -> Option<DType> {
    contraction(kernel).map(|contraction| contraction.dtype)
}

/// The bucket of the largest launch of a contraction; `None` if it has none.
fn shape(contraction: &Contraction, facts: &Facts) -> Option<[u64; 4]> {
    let extents = |sizes: &[i64]| {
        let product = |extents: &[Size]| {
            extents.iter().fold(1i64, |product, extent| product.saturating_mul(extent.value(sizes).max(0)))
        };
        let columns = contraction.parts.iter();
        let columns =
            columns.map(|part| part.columns.value(sizes).max(0).saturating_mul(part.segments.into()));
        let columns = columns.fold(0, i64::saturating_add);
        [
            product(&contraction.batch),
            product(&contraction.rows),
            columns,
            contraction.depth.value(sizes).max(0),
        ]
    };
    let volume = |extents: &[i64; 4]| {
        extents.iter().fold(1u128, |volume, extent| volume.saturating_mul(u128::from(extent.unsigned_abs())))
    };
    let largest = facts.samples().iter().map(|sizes| extents(sizes)).max_by_key(volume)?;
    Some(largest.map(|extent| extent.unsigned_abs().next_power_of_two()))
}
