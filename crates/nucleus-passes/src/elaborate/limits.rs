//! What a program may use. A program beyond a limit gets a diagnostic at the place where it passed it.

/// Calls inside calls.
pub const CALL_DEPTH: usize = 64;
/// Expressions and blocks inside one another, through all open calls.
pub const EVALUATION_DEPTH: usize = 1024;
/// Iterations of all loops together.
pub const ITERATIONS: u64 = 1_000_000;
/// Steps of evaluation: about one per expression, more for long strings, wide size formulas and nodes.
pub const STEPS: u64 = 25_000_000;
/// Nodes of a graph; the released model has about 7,500.
pub const NODES: usize = 65_536;
/// Weights of a graph.
pub const WEIGHTS: usize = 100_000;
/// Relations between run-time sizes.
pub const CONSTRAINTS: usize = 4096;
/// Bytes of a string.
pub const STRING_BYTES: usize = 64 * 1024;
/// Elements of a list.
pub const LIST_LENGTH: usize = 1_000_000;
/// Errors after which elaboration gives up.
pub const ERRORS: usize = 20;
/// Labels that show the chain of calls which led to an error.
pub const CALL_LABELS: usize = 6;
/// The largest size along one axis of a weight.
pub const WEIGHT_SIZE: i64 = 1 << 40;

pub(super) const STACK_BYTES: usize = 64 << 20;
