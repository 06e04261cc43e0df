//! Training: recipes, data, optimisers, schedules and checkpoints, on the runtime.
//!
//! The crate holds its place in the workspace: the training graph is not compiled yet.
