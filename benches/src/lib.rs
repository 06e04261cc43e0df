//! What the benchmarks share: problem shapes of the released model and the measured limits of the machine.

pub mod kernel_cases;
