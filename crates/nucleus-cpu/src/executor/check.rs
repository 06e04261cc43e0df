//! Whether a kernel can be compiled: the types of its slots, and that they read only what there is.

use nucleus_ir::DType;
use nucleus_plan::{Anchor, Kernel, KeySegment, Phase, ScalarFunction, Size, Step};

use super::slots::slots;
use crate::codegen::{CodegenError, check};

/// What a plan that was not made here may have wrong.
///
/// # Errors
///
/// [`CodegenError::Malformed`], with the slot.
pub(super) fn check_kernel(number: usize, kernel: &Kernel) -> Result<(), CodegenError> {
    for slot in slots(&kernel.anchor) {
        let malformed =
            |why: String| CodegenError::Malformed { kernel: number, slot: slot.name.clone(), why };
        let operands = &kernel.operands;
        if let Some(access) =
            slot.function.accesses().find(|access| access.operand as usize >= operands.len())
        {
            return Err(malformed(format!("operand {} of {}", access.operand, operands.len())));
        }
        let dtypes = slot.function.dtypes(|operand| operands[operand as usize].dtype);
        check(slot.function, slot.extents.len(), operands, kernel.size_args, &dtypes).map_err(malformed)?;
        for size in slot.extents.iter().flat_map(|extent| &extent.0) {
            if matches!(size, Size::Arg(argument) if *argument >= kernel.size_args) {
                return Err(malformed(
                    "an extent is a size argument that the launch does not give".to_owned(),
                ));
            }
        }
    }
    check_anchor(kernel).map_err(|why| CodegenError::Malformed {
        kernel: number,
        slot: kernel.anchor.name().to_owned(),
        why,
    })
}

/// What the slots alone do not show.
fn check_anchor(kernel: &Kernel) -> Result<(), String> {
    let operand = |position: u32, dtype: DType| match kernel.operands.get(position as usize) {
        Some(operand) if operand.dtype == dtype => Ok(()),
        Some(operand) => Err(format!("operand {position} is {}, not {dtype}", operand.dtype)),
        None => Err(format!("operand {position} of {}", kernel.operands.len())),
    };
    let result = |name: &str, function: &ScalarFunction, dtype: DType| {
        let dtypes = function.dtypes(|operand| kernel.operands[operand as usize].dtype);
        let found = function.result.and_then(|id| dtypes[id.0 as usize]);
        if found == Some(dtype) { Ok(()) } else { Err(format!("the result of `{name}` is not {dtype}")) }
    };
    let sizes =
        |sizes: &[Size]| match sizes.iter().find(|s| matches!(s, Size::Arg(a) if *a >= kernel.size_args)) {
            Some(_) => Err("a size argument that the launch does not give".to_owned()),
            None => Ok(()),
        };
    let reduced = |phases: &[Phase]| {
        for phase in phases {
            let dtypes = phase.function.dtypes(|operand| kernel.operands[operand as usize].dtype);
            for reduction in &phase.reductions {
                if dtypes.get(reduction.value.0 as usize).copied().flatten() != Some(DType::F32) {
                    return Err("a reduced value is not f32".to_owned());
                }
            }
        }
        Ok(())
    };
    let accumulators = |function: &ScalarFunction, count: u32| {
        let reads = |step: &Step| matches!(step, Step::Accumulator(index) if *index >= count);
        match function.steps.iter().any(reads) {
            true => Err(format!("a function reads an accumulator beyond the {count} there are")),
            false => Ok(()),
        }
    };
    let heads = |dtype: DType, [heads, key_heads]: [u32; 2]| {
        if !dtype.is_float() || key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err("factors that are no floats, or heads that key heads do not divide".to_owned());
        }
        Ok(())
    };
    let keys = |segment: &KeySegment, dtype: DType| {
        result("k", &segment.k, dtype)?;
        result("v", &segment.v, dtype)?;
        segment.mask.as_ref().map_or(Ok(()), |mask| result("mask", mask, DType::Bool))
    };
    match &kernel.anchor {
        Anchor::Map(_) => Ok(()),
        Anchor::RowReduction(reduction) => {
            reduced(&reduction.phases)?;
            let mut count = 0;
            for phase in &reduction.phases {
                accumulators(&phase.function, count)?;
                count += phase.reductions.len() as u32;
            }
            accumulators(&reduction.row, count)?;
            accumulators(&reduction.element, count)
        }
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
            if c.parts.is_empty() || !c.dtype.is_float() {
                return Err("no parts, or factors that are no floats".to_owned());
            }
            result("a", &c.a, c.dtype)?;
            for (number, part) in c.parts.iter().enumerate() {
                if part.segments == 0 {
                    return Err(format!("part {number} has no segments"));
                }
                if !part.has_whole_groups() {
                    return Err(format!("part {number} has groups that are too large, or not whole"));
                }
                let phases = part.groups.as_ref().map_or(&[][..], |groups| &groups.phases);
                reduced(phases)?;
                for (phase, reduced) in phases.iter().enumerate() {
                    accumulators(&reduced.function, part.accumulators(phase) as u32)?;
                }
                accumulators(&part.epilogue, part.accumulators(phases.len()) as u32)?;
                result(&format!("b{number}"), &part.b, c.dtype)?;
            }
            Ok(())
        }
        Anchor::Attention(attention) => {
            heads(attention.dtype, [attention.heads, attention.key_heads])?;
            accumulators(&attention.epilogue, 1)?;
            result("q", &attention.q, attention.dtype)?;
            attention.segments.iter().try_for_each(|segment| keys(segment, attention.dtype))
        }
        Anchor::AttentionGrad(grad) => {
            heads(grad.dtype, [grad.heads, grad.key_heads])?;
            accumulators(&grad.dq, 1)?;
            result("q", &grad.q, grad.dtype)?;
            result("dy", &grad.dy, grad.dtype)?;
            for segment in &grad.segments {
                accumulators(&segment.dk, 1)?;
                accumulators(&segment.dv, 1)?;
                keys(&segment.keys, grad.dtype)?;
            }
            Ok(())
        }
        Anchor::ExpertChoice(choice) => {
            operand(choice.slot_token, DType::I32)?;
            if let Some(inverse) = choice.inverse {
                operand(inverse.offsets, DType::I32)?;
                operand(inverse.positions, DType::I32)?;
            }
            sizes(&[choice.capacity])?;
            accumulators(&choice.epilogue, 2)?;
            result("affinity", &choice.affinity, DType::F32)
        }
        Anchor::InvertIndex(invert) => {
            operand(invert.index, DType::I32)?;
            operand(invert.offsets_out, DType::I32)?;
            operand(invert.positions_out, DType::I32)?;
            sizes(&[invert.batch, invert.positions, invert.targets])
        }
        Anchor::SegmentSum(sum) => {
            operand(sum.offsets, DType::I32)?;
            operand(sum.positions, DType::I32)?;
            accumulators(&sum.epilogue, 1)?;
            result("base", &sum.base, DType::F32)?;
            result("update", &sum.update, DType::F32)
        }
    }
}
