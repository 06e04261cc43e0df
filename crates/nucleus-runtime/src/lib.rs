//! What a service embeds: artifacts, weights, sessions, execution.

pub mod artifact;
pub mod checkpoint;
pub mod config_json;
pub mod convert;
pub mod gpu;
pub mod inputs;
pub mod limits;
pub mod machine;
pub mod model;
pub mod quantize;
pub mod random_weights;
pub mod reference;
pub mod routine;
pub mod safetensors_file;
pub mod safetensors_write;
pub mod session;
pub mod sizes;
pub mod tensor;
pub mod tensor_map;
pub mod weights;

pub use artifact::{Artifact, ArtifactError, Compiled};
pub use checkpoint::{Checkpoint, CheckpointError, Expected, Extras, WeightView, write_checkpoint};
pub use gpu::{Gpu, LimitError};
pub use inputs::{InputError, InputSpec, Signature};
pub use limits::Limits;
pub use model::{Model, ModelError, ModelText};
pub use nucleus_cpu::threads::Threads;
pub use nucleus_plan::Profile;
pub use random_weights::RandomWeights;
pub use routine::{Arguments, Routine, RoutineError, TensorMut, TensorRef};
pub use session::{MemoryUse, Prompt, Session, SessionError, SessionOptions};
pub use sizes::SizeError;
pub use tensor::{HostTensor, TensorError};
pub use tensor_map::{TensorFileError, TensorMap};
pub use weights::{NoWeights, WeightError, WeightSource, WeightSpec};
