//! What the benchmarks share: problem shapes of the released model and the measured limits of the machine.

pub mod codegen_cases;
pub mod kernel_cases;
pub mod reduction_cases;
pub mod training_cases;
