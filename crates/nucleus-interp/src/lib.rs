//! The reference evaluator: plain loops, one function per op, in f32 and f64.
