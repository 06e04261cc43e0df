//! Training: recipes, data, optimisers, schedules, the loop, checkpoints and pictures, on the runtime. `docs/training.md` is the manual.

pub mod assemble;
pub mod checkpoint;
pub mod current;
pub mod curve;
pub mod data;
pub mod engine;
pub mod graph_engine;
pub mod groups;
pub mod initial;
pub mod log;
pub mod merge;
pub mod optimizers;
pub mod parameters;
pub mod pictures;
pub mod random;
pub mod recipe;
pub mod samples;
pub mod sampling;
pub mod schedule;
pub mod start;
pub mod timesteps;
pub mod trainer;
