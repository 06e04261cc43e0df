//! Elaboration of whole programs: the released model, configurations of every kind, mistakes, hostile programs, and printed graphs.

mod configs;
mod hostile;
mod language;
mod mistakes;
mod model;
mod modules;
mod round_trip;
mod support;
