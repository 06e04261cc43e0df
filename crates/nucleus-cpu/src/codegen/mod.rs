//! Machine code for the scalar functions of a plan, by Cranelift.
//!
//! A scalar function becomes a loop nest over its iteration space: one loop over the flat number of a row (all axes but the
//! last) and inner loops over the last axis, four lanes at a time and then one. Both do the same arithmetic, so a result never
//! depends on its position. Reductions run along their rows, or over many rows at a time where these lie side by side in memory.

mod constants;
mod emit;
mod error;
mod function;
mod groups;
mod jit;
mod loops;
mod math;
mod memory;
mod pairs;
mod partial;
mod reduction;
mod scalar_op;
mod space;

#[cfg(test)]
mod tests;

pub use error::CodegenError;
pub use groups::GroupSpec;
pub use jit::{Code, FunctionId, Jit, LoopFunction, Region};
pub use loops::{Accumulators, Destination, LoopSpec};
pub use partial::PartialSpec;
pub use space::{Extent, Space};
pub(crate) use space::{append_unit_axis, check, collapse, for_each_strides, permute_axes};
