//! From captioned pictures to training data sets, and the reader of these.
//!
//! [`build`](build::build) makes a data set: a folder of `dataset.json`, shards of pixels and tokens, and captions. [`Dataset`] reads one.
//! The format is described in `docs/data.md`.

pub mod build;
pub mod contact_sheet;
pub mod dataset;
pub mod drawing_cost;
pub mod fit;
pub mod format;
pub mod near;
pub mod picture;
pub mod report;
pub mod source;
pub mod words;
mod write;

pub use build::{BuildOptions, build};
pub use dataset::{Bucket, Dataset, Item};
pub use format::{Caption, DatasetError, Description, Kind};
pub use report::{BuildError, BuildReport};
pub use words::Vocabulary;
