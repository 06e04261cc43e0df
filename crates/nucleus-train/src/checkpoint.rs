//! A run's checkpoints: folders `checkpoint-<step>` that diffusers opens and that a run continues from.
//!
//! ```text
//! OUT/checkpoint-<step>/
//!   transformer/config.json, diffusion_pytorch_model.safetensors   as diffusers' save_pretrained lays them out
//!   optimizer.safetensors    the optimisers' state by name, and the f32 weights where `transformer` holds bf16
//!   trainer.json             step, seed, recipe, and digests of everything above
//! ```
//!
//! *Invariant:* a folder of that name is complete. It is made under another name, brought to the disk and renamed; what a kill leaves
//! behind has a name that begins with a dot, and goes when the next [`Store`] opens the folder.

mod digest;
mod error;
mod folder;
mod read;
mod run;
mod state;
mod store;

pub use error::CheckpointError;
pub use folder::{latest, list};
pub(crate) use folder::{remove_folder, sync_folder};
pub use read::SavedCheckpoint;
pub use run::RunCheckpoints;
pub use state::RunState;
pub use store::{Snapshot, Store, StoreOptions};

/// The subfolder with the weights, as in a diffusers pipeline.
pub const TRANSFORMER: &str = "transformer";
/// The file with the optimisers' state.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The file with the run's state.
pub const TRAINER: &str = "trainer.json";

/// The model's configuration, in [`TRANSFORMER`].
const CONFIG: &str = "config.json";

/// What the f32 weights are called in `optimizer.safetensors` where `transformer` holds rounded ones: this, then the weight's name.
const MASTER: &str = "master/";
