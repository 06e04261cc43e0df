//! Training: recipes, data, optimisers' groups, schedules and the loop, on the runtime. `docs/training.md` is the manual.

pub mod curve;
pub mod data;
pub mod engine;
pub mod groups;
pub mod initial;
pub mod log;
pub mod random;
pub mod recipe;
pub mod schedule;
pub mod timesteps;
pub mod trainer;
