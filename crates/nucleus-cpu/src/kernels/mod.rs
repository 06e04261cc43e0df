//! Hand-tuned machine kernels: matrix products, attention, expert choice.
//!
//! They know pointers, sizes and strides, and nothing of the graph or the Plan. Every kernel gives the same bits
//! whatever the number of threads: no sum is split over threads, and the order of a sum does not depend on how
//! rows are grouped into tiles.

mod attention;
mod combination;
mod element;
mod error;
mod expert_choice;
mod gemm;
mod invert_index;
mod isa;
mod pack;
mod partition;
mod rows;
mod simd;
mod token_partition;

pub use attention::{
    Attention, AttentionGrad, AttentionOutput, AttentionTile, Gradient, HeadView, KeyMask, KeySegment,
    attention, attention_grad,
};
pub use combination::{Combination, MOST_OUTPUTS, MOST_TERMS, Output, Term, combine};
pub use element::{Element, Operand, bf16_from_f32, f32_from_bf16, load_f32, store_f32};
pub use error::KernelError;
pub use expert_choice::{ExpertChoice, expert_choice};
pub use gemm::{Blocking, Epilogue, Gemm, Part, Product, Right, Tile, gemm};
pub use invert_index::{InvertIndex, invert_index};
pub use isa::{Isa, IsaError};
pub use pack::{Matrix, PackItem, PackedLayout, Packing, pack_all, pack_b, packed_bytes};
pub use rows::{RowBlock, RowSource};
pub use simd::{fetch, peak};
pub use token_partition::{TokenPartition, partition_tokens};
