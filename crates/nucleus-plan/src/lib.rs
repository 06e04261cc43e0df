//! The Plan: the seam between the compiler and the machines, the same for every backend, for inference and for training.
//!
//! A [`Plan`] is a list of [`Launch`]es of distinct [`Kernel`]s over [`Buffer`]s. A kernel is an *anchor* (a loop structure that a
//! backend has a template or micro-kernel for) with *scalar functions* in its slots: prologues that compute operands from loads,
//! and an epilogue that computes and stores results. Feature sizes are constants of a kernel; sizes that follow from the
//! run-time dims are its arguments, given by the launch, so repeated layers share kernels.
//!
//! *Architecture invariant:* nothing here assumes a CPU or a GPU, or inference.

pub mod bind;
pub mod bounds;
pub mod buffer;
pub mod cost;
pub mod dense;
pub mod in_place;
pub mod indices;
pub mod kernel;
pub mod lifetime;
pub mod plan;
pub mod profile;
pub mod races;
pub mod reference;
pub mod scalar;
pub mod text;
pub mod verify;

pub use bind::{BindError, BoundPlan};
pub use buffer::{Buffer, BufferId, Place};
pub use dense::DenseOperand;
pub use in_place::{in_place, next_values};
pub use indices::{IndexCheck, index_checks};
pub use kernel::{
    Anchor, Attention, AttentionGrad, ColumnGroups, Contraction, ExpertChoice, GradSegment, InverseMap,
    InvertIndex, Kernel, KernelId, KeySegment, Map, Operand, OperandMode, Part, PartSlot, Phase, Reduction,
    ReductionOp, RowReduction, SegmentSum, Tile,
};
pub use lifetime::{Life, lifetimes};
pub use plan::{Launch, Plan, PlanInput, PlanOutput};
pub use profile::Profile;
pub use races::check_races;
pub use scalar::{Access, Indirect, ScalarFunction, Size, Step, StepId};
pub use verify::{PlanError, verify_plan};
