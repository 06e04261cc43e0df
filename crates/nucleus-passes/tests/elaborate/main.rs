//! Elaboration of whole programs.

mod model;
mod support;
