//! The limits of the machine, measured: what times are compared with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nucleus_cpu::CpuProgram;
use nucleus_cpu::kernels::{Operand, peak};
use nucleus_ir::DType;
use nucleus_plan::{Anchor, Plan};

/// What a machine reaches at this moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// FLOP/s of multiply-adds that touch no memory, on everything there is: the limit of every product.
    pub flops: f64,
    /// On a GPU bytes per second, read and written, of copies in its memory.
    pub copy_bytes: Option<f64>,
}

/// FLOP/s that this machine reaches at this moment on all threads of a program with multiply-adds that touch no memory, in the type of the
/// program's products: the limit of every product. Takes about 20 ms.
pub(crate) fn peak_flops(program: &CpuProgram) -> f64 {
    let (threads, isa) = (program.threads(), program.isa());
    let operand = if product_dtype(program.plan()) == DType::Bf16 { Operand::Bf16 } else { Operand::F32 };
    let (mut iterations, mut rate) = (1 << 12, 0.0);
    loop {
        let done = AtomicU64::new(0);
        let start = Instant::now();
        threads.parallel_for(threads.count(), |_, _| {
            done.fetch_add(peak(isa, operand, iterations) as u64, Ordering::Relaxed);
        });
        let seconds = start.elapsed().as_secs_f64();
        if seconds > 0.0 {
            rate = done.into_inner() as f64 / seconds;
        }
        if seconds > 0.01 || iterations >= 1 << 30 {
            return rate;
        }
        iterations *= 4;
    }
}

/// The type of a plan's products: `bf16` if any is.
pub(crate) fn product_dtype(plan: &Plan) -> DType {
    let mut anchors = plan.kernels.iter().map(|kernel| &kernel.anchor);
    let bf16 = |anchor: &Anchor| matches!(anchor, Anchor::Matmul(c) | Anchor::GroupedMatmul(c) if c.dtype == DType::Bf16);
    if anchors.any(bf16) { DType::Bf16 } else { DType::F32 }
}
