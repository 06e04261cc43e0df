//! Which instructions a kernel must have, from the plan alone.

use nucleus_cuda::Facts;
use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Anchor, Kernel, KernelId, Plan, ScalarFunction, Step};

/// What must be in a kernel's machine code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expectation {
    /// Products on tensor cores: HMMA.
    pub(crate) tensor_cores: bool,
    /// Copies from global to shared memory that nobody waits for at once: LDGSTS.
    pub(crate) asynchronous: bool,
    /// Bytes that are made factors two at a time: HFMA2 or HADD2.
    pub(crate) widened: bool,
}

impl Expectation {
    /// Products in 16-bit types are for tensor cores; a factor that is loaded as it is, in pieces of 16 bytes, is copied asynchronously.
    pub(crate) fn of(plan: &Plan, id: KernelId) -> Expectation {
        let kernel = plan.kernel(id);
        let facts = Facts::of(plan, id);
        let (dtype, factors) = factors(kernel);
        if !matches!(dtype, Some(DType::Bf16 | DType::F16)) {
            return Expectation::default();
        }
        let any = |holds: fn(&ScalarFunction, &Kernel, &Facts) -> bool| {
            factors.iter().any(|factor| holds(factor, kernel, &facts))
        };
        Expectation { tensor_cores: true, asynchronous: any(copied), widened: any(widened) }
    }
}

/// The element type of a kernel's products and their factors.
fn factors(kernel: &Kernel) -> (Option<DType>, Vec<&ScalarFunction>) {
    match &kernel.anchor {
        Anchor::Matmul(product) | Anchor::GroupedMatmul(product) => {
            let right = product.parts.iter().map(|part| &part.b);
            (Some(product.dtype), right.chain([&product.a]).collect())
        }
        Anchor::Attention(attention) => {
            let keys = attention.segments.iter().flat_map(|segment| [&segment.k, &segment.v]);
            (Some(attention.dtype), keys.collect())
        }
        Anchor::AttentionGrad(attention) => {
            let keys = attention.segments.iter().flat_map(|segment| [&segment.keys.k, &segment.keys.v]);
            (Some(attention.dtype), keys.collect())
        }
        _ => (None, Vec::new()),
    }
}

/// Whether a factor lies in memory as it is multiplied, 16 bytes side by side.
fn copied(factor: &ScalarFunction, kernel: &Kernel, facts: &Facts) -> bool {
    let Some(access) = factor.as_load() else { return false };
    matches!(kernel.operands[access.operand as usize].dtype, DType::Bf16 | DType::F16)
        && side_by_side(access, kernel, facts)
}

/// Whether a factor is bytes that lie in memory 16 side by side.
fn widened(factor: &ScalarFunction, kernel: &Kernel, facts: &Facts) -> bool {
    let [Step::Load(access), Step::Apply { op: ScalarOp::Cast(_), .. }] = factor.steps.as_slice() else {
        return false;
    };
    kernel.operands[access.operand as usize].dtype == DType::I8 && side_by_side(access, kernel, facts)
}

fn side_by_side(access: &Access, kernel: &Kernel, facts: &Facts) -> bool {
    let lanes = 16 / kernel.operands[access.operand as usize].dtype.size() as i64;
    let unit = access.strides.iter().position(|stride| stride.is(1));
    unit.is_some_and(|axis| facts.alignment(access, axis) >= lanes)
}
