//! Plans run by the CPU backend and by the plan interpreter give the same outputs: every anchor, every dtype, odd sizes, any number of
//! threads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attention;
mod attention_shapes;
mod bytes;
mod case;
mod contractions;
mod errors;
mod graphs;
mod groups;
mod harness;
mod leading_axes;
mod maps;
mod models;
mod parts;
mod products;
mod races;
mod random_functions;
mod reductions;
mod routing;
mod row_structures;
mod slices;
