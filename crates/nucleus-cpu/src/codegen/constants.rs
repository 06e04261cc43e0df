//! Vector constants in memory.
//!
//! A constant of Cranelift's own is held in a register across a loop. An exponential has more of them than there are registers, and
//! what does not fit is copied to and from the stack in every round. A constant in memory costs nothing: it is an operand of the
//! instruction that uses it.

use nucleus_ir::ScalarOp;
use nucleus_plan::{ScalarFunction, Step};

/// 0 where instructions take no operands from memory.
const CAPACITY: usize = if cfg!(target_arch = "x86_64") { 256 } else { 0 };

/// The constants of a module's functions, at addresses that do not change. The first is the address of the pool, twice.
pub(super) struct ConstantPool {
    lanes: Box<[[u32; 4]]>,
    used: usize,
}

impl ConstantPool {
    pub(super) fn new() -> ConstantPool {
        let mut lanes = vec![[0; 4]; CAPACITY].into_boxed_slice();
        let address = lanes.as_ptr().expose_provenance() as u64;
        let mut used = 0;
        if let Some(first) = lanes.first_mut() {
            let halves = [address as u32, (address >> 32) as u32];
            *first = [halves[0], halves[1], halves[0], halves[1]];
            used = 1;
        }
        ConstantPool { lanes, used }
    }

    /// The address, if there is a pool on this machine.
    pub(super) fn address(&self) -> Option<i64> {
        (CAPACITY > 0).then(|| self.lanes.as_ptr().expose_provenance() as i64)
    }

    /// The distance of these lanes from the address; `None` for zero, which needs no memory, and if there is no room.
    pub(super) fn place(&mut self, lanes: [u32; 4]) -> Option<i32> {
        if lanes == [0; 4] {
            return None;
        }
        let known = self.lanes[..self.used].iter().position(|known| *known == lanes);
        let position = known.unwrap_or(self.used);
        *self.lanes.get_mut(position)? = lanes;
        self.used = self.used.max(position + 1);
        Some(16 * position as i32)
    }
}

/// True if one of the functions has an operation of many constants.
pub(super) fn has_many_constants<'a>(functions: impl IntoIterator<Item = &'a ScalarFunction>) -> bool {
    let many = |step: &Step| match step {
        Step::Apply { op, .. } => matches!(
            op,
            ScalarOp::Exp
                | ScalarOp::Log
                | ScalarOp::Tanh
                | ScalarOp::Sigmoid
                | ScalarOp::Sin
                | ScalarOp::Cos
        ),
        _ => false,
    };
    functions.into_iter().any(|function| function.steps.iter().any(many))
}
