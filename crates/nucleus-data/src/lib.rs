//! From captioned pictures to training data sets, and the reader of these.
//!
//! `build` makes a data set: a folder of `dataset.json`, shards of pixels and tokens, and captions. [`Dataset`] reads one.
//! The format is described in `docs/data.md`. Everything but the reader belongs to the feature `build`, which is on by default.

#[cfg(feature = "build")]
pub mod build;
#[cfg(feature = "build")]
pub mod contact_sheet;
pub mod dataset;
#[cfg(feature = "build")]
pub mod drawing_cost;
#[cfg(feature = "build")]
pub mod fit;
pub mod format;
#[cfg(feature = "build")]
pub mod near;
#[cfg(feature = "build")]
pub mod picture;
#[cfg(feature = "build")]
pub mod report;
#[cfg(feature = "build")]
pub mod source;
pub mod words;
#[cfg(feature = "build")]
mod write;

#[cfg(feature = "build")]
pub use build::{BuildOptions, build};
pub use dataset::{Bucket, Dataset, Item};
pub use format::{Caption, DatasetError, Description, Kind};
#[cfg(feature = "build")]
pub use report::{BuildError, BuildReport};
pub use words::Vocabulary;
