//! Pictures of what a model makes and of how it routes: samples with captions, heat maps of expert choice.

mod canvas;
mod grid;
mod heat;
mod png_file;
mod routing;
mod unpack;

use std::path::PathBuf;

use nucleus_runtime::TensorError;
use thiserror::Error;

pub use canvas::Picture;
pub use grid::{GridOptions, grid};
pub use routing::{RoutingTrace, experts_per_token, layers_of_choice, tokens_of_experts};
pub use unpack::unpack;

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum PictureError {
    /// More pixels than a picture may have.
    #[error("a picture of {width} × {height} pixels is too large: at most {} are drawn", canvas::MAX_PIXELS)]
    TooLarge {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Pixels that do not fill a picture.
    #[error("{bytes} bytes are no picture of {width} × {height} pixels with three colours each")]
    Pixels {
        /// Bytes given.
        bytes: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A tensor that cannot be drawn.
    #[error("{what} is {given}: it must be {wanted}")]
    Tensor {
        /// Which tensor.
        what: &'static str,
        /// Its type and shape.
        given: String,
        /// What can be drawn.
        wanted: String,
    },
    /// A slot that names no token.
    #[error("slot {slot} of expert {expert} holds token {token}, and there are {tokens} tokens")]
    Token {
        /// The expert.
        expert: usize,
        /// The slot.
        slot: usize,
        /// What it holds.
        token: i32,
        /// How many there are.
        tokens: usize,
    },
    /// There is no such image, layer or time in a trace.
    #[error("there is no {what} {index}: the trace has {count}")]
    Index {
        /// Image, layer or time.
        what: &'static str,
        /// The one asked for, from 0.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A tensor of another type.
    #[error(transparent)]
    Type(#[from] TensorError),
    /// The file cannot be written.
    #[error("cannot write picture `{}`: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
