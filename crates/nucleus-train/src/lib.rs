//! Training: recipes, data, optimisers' groups, schedules, the loop, checkpoints and pictures, on the runtime. `docs/training.md` is the manual.

pub mod checkpoint;
pub mod curve;
pub mod data;
pub mod engine;
pub mod groups;
pub mod initial;
pub mod log;
pub mod merge;
pub mod pictures;
pub mod random;
pub mod recipe;
pub mod sampling;
pub mod schedule;
pub mod timesteps;
pub mod trainer;
