//! From a kernel of the plan to the text of a CUDA C++ translation unit, and how it is launched.
//!
//! A unit is, in this order: `prelude.cuh`, the kernel's `Arguments`, the printed slots, constants, and the template of its anchor with what it
//! includes. Nothing is left to include, so that NVRTC and the shim take the text as it is. Equal kernels give equal
//! texts: the text's hash is the kernel's identity in caches and artifacts.

mod attention;
mod attention_grad;
mod attention_operands;
mod contraction;
mod expert_choice;
mod function;
mod grid;
mod invert_index;
mod limits;
mod map;
mod pairs;
mod row_reduction;
mod segment_sum;
mod space;
mod templates;

use nucleus_plan::{Anchor, Kernel};
use thiserror::Error;

pub use function::{Direct, Names, Slot, constant, element, memory_type, value_type};
pub use grid::{Blocks, Grid, GridError, Tiles};
pub use limits::{Limit, LimitKind, limit_source};

use crate::architecture::Architecture;
use crate::facts::Facts;
use crate::tiles::{Tile, TileError};
use crate::tuning::TuningError;

/// Why a kernel cannot be printed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SourceError {
    /// The plan's verifier would have refused it.
    #[error("the function `{0}` of a kernel is malformed")]
    Malformed(String),
    /// The CUDA backend has no template for it.
    #[error("no CUDA template computes {0}")]
    Unsupported(String),
    /// The tile that it was given, see [`Facts::with_tile`], is none that it can have.
    #[error("the tile it is given: {0}")]
    Tile(#[from] TileError),
    /// The table of measured tiles has one for it that it cannot have.
    #[error(transparent)]
    Tuning(#[from] TuningError),
}

/// A `__global__` function of a unit, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name; C linkage.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// How many blocks.
    pub grid: Grid,
}

/// A kernel as CUDA C++.
///
/// Every function takes one parameter, `Arguments`: the operands' addresses, then the size arguments as `int`, then the address of the
/// scratch memory. The functions run one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    /// Anchor, element type and the first digits of the text's hash: `matmul_bf16_0d4c1f22a93b`.
    pub name: String,
    /// The translation unit.
    pub text: String,
    /// What a launch dispatches, in order.
    pub functions: Vec<Function>,
    /// Bytes of memory that the functions share in a launch.
    pub scratch: Blocks,
    /// The tile of a contraction.
    pub tile: Option<ChosenTile>,
}

/// The tile of a contraction, and who chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenTile {
    /// The tile.
    pub tile: Tile,
    /// True if the facts gave it, false if the cost model chose it.
    pub given: bool,
}

/// Prints a kernel.
///
/// # Errors
/// The kernel is malformed, or there is no template for it.
pub fn kernel_source(
    kernel: &Kernel,
    facts: &Facts,
    architecture: Architecture,
) -> Result<KernelSource, SourceError> {
    match &kernel.anchor {
        Anchor::Map(map) => map::source(kernel, map, facts),
        Anchor::Matmul(product) | Anchor::GroupedMatmul(product) => {
            contraction::source(kernel, product, kernel.anchor.name(), facts, architecture)
        }
        Anchor::RowReduction(reduction) => row_reduction::source(kernel, reduction, facts),
        Anchor::ExpertChoice(choice) => expert_choice::source(kernel, choice, facts),
        Anchor::InvertIndex(invert) => invert_index::source(kernel, invert),
        Anchor::SegmentSum(sum) => segment_sum::source(kernel, sum, facts),
        Anchor::Attention(it) => attention::source(kernel, it, facts, architecture),
        Anchor::AttentionGrad(it) => attention_grad::source(kernel, it, facts, architecture),
    }
}

/// Puts a unit together.
pub(crate) struct Unit<'a> {
    /// The kernel.
    pub(crate) kernel: &'a Kernel,
    /// What the name begins with: anchor and element type.
    pub(crate) name: &'a str,
    /// The printed slots.
    pub(crate) slots: Vec<String>,
    /// Constants that the template reads.
    pub(crate) constants: Vec<(&'static str, String)>,
    /// The template's file.
    pub(crate) template: &'static str,
    /// What a launch dispatches.
    pub(crate) functions: Vec<Function>,
    /// Scratch memory in bytes.
    pub(crate) scratch: Blocks,
}

impl Unit<'_> {
    /// The whole text.
    pub(crate) fn finish(self) -> Result<KernelSource, SourceError> {
        let mut included = Vec::new();
        let mut text = templates::flatten("prelude.cuh", &mut included)?;
        // An array of no elements is no C++.
        let (operands, sizes) = (self.kernel.operands.len().max(1), self.kernel.size_args.max(1));
        text.push_str(&format!(
            "\nstruct Arguments {{\n    void* o[{operands}];\n    int s[{sizes}];\n    void* scratch;\n}};\n\n"
        ));
        for (name, value) in &self.constants {
            text.push_str(&format!("constexpr int {name} = {value};\n"));
        }
        text.push('\n');
        for slot in &self.slots {
            text.push_str(slot);
            text.push('\n');
        }
        text.push_str(&templates::flatten(self.template, &mut included)?);
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let name = format!("{}_{}", self.name, &hash[..12]);
        Ok(KernelSource { name, text, functions: self.functions, scratch: self.scratch, tile: None })
    }
}
