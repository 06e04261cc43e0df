//! What a service embeds: artifacts, weights, sessions, execution.

pub mod checkpoint;
pub mod config_json;
pub mod convert;
pub mod safetensors_file;
pub mod safetensors_write;
pub mod tensor;
pub mod tensor_map;

pub use checkpoint::{Checkpoint, CheckpointError, Expected, Extras, WeightView, write_checkpoint};
pub use tensor::{HostTensor, TensorError};
pub use tensor_map::{TensorFileError, TensorMap};
