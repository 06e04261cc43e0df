//! Recipes, data, optimisers, schedules and checkpoints.
