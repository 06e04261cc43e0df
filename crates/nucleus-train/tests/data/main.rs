//! Batches from files and from data sets: what is in them, that they can be drawn again, and what is said of broken data.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batches;
mod hostile_batches;
mod hostile_shards;
mod shards;
mod support;
