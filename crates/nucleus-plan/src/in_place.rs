//! Updates in place: outputs that may lie where an input lies.
//!
//! An output with the name and type of an input is that input's next value: a weight after a step of an optimiser, say. The two may share
//! memory if no launch reads the input after the output is first written, and the launch that writes it reads the input only where
//! it writes: both through the same access of one scalar function.

use nucleus_ir::TensorType;

use crate::buffer::Place;
use crate::kernel::{Kernel, OperandMode};
use crate::plan::Plan;
use crate::scalar::{Access, ScalarFunction, Step};

/// For every output the input that has its name and type, which is the one whose next value it is.
pub fn next_values(plan: &Plan) -> Vec<Option<u32>> {
    let input = |name: &str, ty: &TensorType| {
        plan.inputs.iter().position(|input| input.name == name && input.ty == *ty)
    };
    plan.outputs.iter().map(|output| input(&output.name, &output.ty).map(|input| input as u32)).collect()
}

/// For every output the input in whose memory it may be written, if there is one.
pub fn in_place(plan: &Plan) -> Vec<Option<u32>> {
    let next = next_values(plan).into_iter().enumerate();
    next.map(|(output, input)| input.filter(|input| may_share(plan, *input, output as u32))).collect()
}

fn may_share(plan: &Plan, input: u32, output: u32) -> bool {
    let place = |id: crate::buffer::BufferId| &plan.buffer(id).place;
    let mut written = false;
    for launch in &plan.launches {
        let kernel = plan.kernel(launch.kernel);
        let operands = || launch.operands.iter().enumerate();
        let reads: Vec<u32> = operands()
            .filter(|(_, id)| *place(**id) == Place::Input(input))
            .map(|(position, _)| position as u32)
            .collect();
        let writes: Vec<u32> = operands()
            .filter(|(_, id)| *place(**id) == Place::Output(output))
            .map(|(position, _)| position as u32)
            .collect();
        if written && !reads.is_empty() {
            return false;
        }
        match (reads.as_slice(), writes.as_slice()) {
            (_, []) => {}
            ([], _) => written = true,
            (reads, [write]) if updates(kernel, reads, *write) => written = true,
            _ => return false,
        }
    }
    written
}

/// True if a kernel reads the operands `reads` only at the elements that it writes to `write`, at the point that writes them.
fn updates(kernel: &Kernel, reads: &[u32], write: u32) -> bool {
    if kernel.operands[write as usize].mode != OperandMode::Write {
        return false;
    }
    let dense = kernel.anchor.dense_operands();
    if dense.iter().any(|dense| dense.operand == write || reads.contains(&dense.operand)) {
        return false;
    }
    let touches = |function: &ScalarFunction| {
        function.accesses().any(|access| access.operand == write || reads.contains(&access.operand))
    };
    let functions = kernel.anchor.functions();
    let mut touching = functions.iter().filter(|(_, _, function)| touches(function));
    let Some((_, _, function)) = touching.next() else { return false };
    if touching.next().is_some() {
        return false;
    }
    let same = |a: &Access, b: &Access| a.offset == b.offset && a.strides == b.strides;
    let stores: Vec<(usize, &Access)> = function
        .steps
        .iter()
        .enumerate()
        .filter_map(|(position, step)| match step {
            Step::Store { access, .. } if access.operand == write => Some((position, access)),
            _ => None,
        })
        .collect();
    let [(last, store)] = stores[..] else { return false };
    let direct = |access: &Access| access.indirect.is_none();
    let here = |(position, step): (usize, &Step)| match step {
        Step::Load(access) if reads.contains(&access.operand) => {
            position < last && direct(access) && same(access, store)
        }
        Step::Load(access) | Step::Store { access, .. } => {
            access.indirect.as_ref().is_none_or(|indirect| !reads.contains(&indirect.index.operand))
        }
        _ => true,
    };
    direct(store) && function.steps.iter().enumerate().all(here)
}

#[cfg(test)]
mod tests;
