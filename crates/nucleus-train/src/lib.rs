//! Training: recipes, data, optimisers, schedules and checkpoints, on the runtime.

pub mod checkpoint;
pub mod merge;
pub mod pictures;
pub mod sampling;
