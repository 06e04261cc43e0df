//! Checkpoints on the disk: what a run writes and reads, and what is made of several.

mod merge;
mod run;
mod store;
mod support;
