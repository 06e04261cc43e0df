//! What a kernel refuses to compute.

/// An error of a kernel whose operands' *values* or sizes cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// More slots than there are tokens to choose from.
    #[error("expert_choice: capacity {capacity} exceeds the {tokens} tokens of one batch item")]
    CapacityExceedsTokens {
        /// Slots of one expert.
        capacity: usize,
        /// Tokens of one batch item.
        tokens: usize,
    },
    /// A size or token number that an i32 cannot hold.
    #[error("{kernel}: {what} is {value}, more than an i32 index can hold")]
    IndexTooLarge {
        /// The kernel's name.
        kernel: &'static str,
        /// The size's name.
        what: &'static str,
        /// Its value.
        value: usize,
    },
    /// An index outside its target.
    #[error("{kernel}: index [{batch}, {position}] is {value}, outside 0..{size}")]
    IndexOutOfRange {
        /// The kernel's name.
        kernel: &'static str,
        /// Batch item of the first offender.
        batch: usize,
        /// Its place within the batch item.
        position: usize,
        /// Its value.
        value: i32,
        /// The number of targets.
        size: usize,
    },
}
