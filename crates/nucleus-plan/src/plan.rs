//! The plan itself.

use nucleus_ir::{Constraint, Dim, Float, Rate, Symbol, TensorType};
use serde::{Deserialize, Serialize};

use crate::buffer::{Buffer, BufferId};
use crate::kernel::{Kernel, KernelId};

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The kernel.
    pub kernel: KernelId,
    /// When it runs.
    pub stage: Rate,
    /// A buffer for each operand of the kernel.
    pub operands: Vec<BufferId>,
    /// A size for each size argument of the kernel.
    pub sizes: Vec<Dim>,
    /// Floating-point operations, for reports and the cost model.
    pub flops: Dim,
    /// Bytes that must cross the memory bus at least once, for reports and the cost model.
    pub bytes: Dim,
    /// The scope of the text it came from, e.g. `transformer_blocks.3.attn`.
    pub scope: Option<String>,
}

/// An input of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanInput {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// How often it may change.
    pub rate: Rate,
    /// The value of every element when it is not given; `None` for a required input.
    pub default: Option<Float>,
}

/// An output of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOutput {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
}

/// A program of kernels for one entry of a model. See the [crate documentation](crate).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The entry's name.
    pub entry: String,
    /// The run-time sizes.
    pub dims: Vec<Symbol>,
    /// Relations between sizes that must hold when they are bound.
    pub constraints: Vec<Constraint>,
    /// The inputs.
    pub inputs: Vec<PlanInput>,
    /// The outputs.
    pub outputs: Vec<PlanOutput>,
    /// Every weight of the entry, used or not, as the plan wants it: name and type.
    pub weights: Vec<(String, TensorType)>,
    /// The buffers.
    pub buffers: Vec<Buffer>,
    /// The distinct kernels.
    pub kernels: Vec<Kernel>,
    /// The launches in order: all of stage `model`, then `prompt`, then `step`, once scheduled.
    pub launches: Vec<Launch>,
    /// The byte size of the arena of each rate (model, prompt, step); `None` before allocation.
    pub arenas: Option<[Dim; 3]>,
}

impl Plan {
    /// A kernel.
    pub fn kernel(&self, id: KernelId) -> &Kernel {
        &self.kernels[id.0 as usize]
    }

    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }
}
