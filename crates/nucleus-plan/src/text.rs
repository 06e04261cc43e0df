//! Plans as text: a printer for people and diffs, and a parser that reads back exactly what was printed.
//!
//! ```text
//! plan velocity {
//!     dim B, H, W;
//!     input x: f32[B, H*W, 64] per step;
//!     buffer b0: f32[B, H*W, 64] input 0;
//!     kernel k0(read f32, read bf16, write f32) sizes 1 matmul bf16 {
//!         rows s0; columns 2048; segments 1; depth 64;
//!         a { v0 = load o0[64*i0 + i1]; v1 = cast(v0, bf16); return v1; }
//!         …
//!     }
//!     launch k0(b0, b1, b2) sizes B*H*W per step flops 262144*B*H*W bytes … at "img_in";
//! }
//! ```
//!
//! In a scalar function `i0`, `i1`, … are the coordinates of its iteration space, `o0`, … the kernel's operands, `s0`, … its size
//! arguments and `v0`, … its steps. An access lists `offset + stride*coordinate + …` in elements; `stride*o2[…]` goes through an index.
//! A contraction of several parts has, instead of its columns and segments, `part columns 2048; segments 1;` before `b` and `epilogue` of
//! each. [`with_predictions`] adds, as comments, what the cost model expects of every launch.

mod parser;
mod predictions;
mod printer;

pub use parser::{PlanTextError, parse_plan};
pub use predictions::with_predictions;

#[cfg(test)]
mod tests;
