//! Checkpoints on the disk: what a run writes and reads, and what is made of several.

mod merge;
mod store;
mod support;
