//! Why a kernel cannot be compiled.

/// A scalar function that is not well formed, or a failure of the code generator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodegenError {
    /// The machine is not one that Cranelift generates code for.
    #[error("no code generator for this machine: {0}")]
    Host(String),
    /// A function that the plan verifier would have refused.
    #[error("kernel {kernel}, slot `{slot}`: {why}")]
    Malformed {
        /// The kernel's number in the plan.
        kernel: usize,
        /// The slot.
        slot: String,
        /// What is wrong.
        why: String,
    },
    /// Cranelift gave up.
    #[error("code generation of `{function}` failed: {why}")]
    Backend {
        /// The function.
        function: String,
        /// Cranelift's message.
        why: String,
    },
}
