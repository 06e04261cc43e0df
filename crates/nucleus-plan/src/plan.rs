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

    /// Anchor and scope of a launch, for messages.
    pub fn describe(&self, launch: &Launch) -> String {
        let anchor = self.kernel(launch.kernel).anchor.name();
        match &launch.scope {
            Some(scope) => format!("{anchor} of `{scope}`"),
            None => anchor.to_owned(),
        }
    }

    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// Checks that a launch fits its kernel in number and type of operands and sizes.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check_launch(&self, launch: &Launch) -> Result<(), String> {
        let Some(kernel) = self.kernels.get(launch.kernel.0 as usize) else {
            return Err(format!("there is no kernel {}", launch.kernel.0));
        };
        let (given, wanted) = (launch.operands.len(), kernel.operands.len());
        if given != wanted {
            return Err(format!("{given} operands for a kernel of {wanted}"));
        }
        let (given, wanted) = (launch.sizes.len(), kernel.size_args as usize);
        if given != wanted {
            return Err(format!("{given} sizes for a kernel of {wanted}"));
        }
        for (position, (&buffer, operand)) in launch.operands.iter().zip(&kernel.operands).enumerate() {
            match self.buffers.get(buffer.0 as usize) {
                Some(buffer) if buffer.dtype == operand.dtype => {}
                Some(buffer) => {
                    return Err(format!(
                        "operand {position} is {}, its buffer {}",
                        operand.dtype, buffer.dtype
                    ));
                }
                None => return Err(format!("there is no buffer {}", buffer.0)),
            }
        }
        Ok(())
    }
}
