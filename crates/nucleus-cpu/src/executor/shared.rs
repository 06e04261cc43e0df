//! Compiled functions that parts of a kernel share.
//!
//! The epilogues of a contraction's parts often differ only in the operands and sizes that they are given, as those of the same layer
//! repeated do. Numbered in the order of first use they are one function, which is compiled once and called with operands and sizes of
//! each part's own.

use std::collections::HashMap;

use nucleus_plan::{Operand, Phase, ScalarFunction, Size};

use super::launch::LaunchContext;
use crate::codegen::{CodegenError, Extent, FunctionId, Region};

/// A compiled function, and which of the kernel's operands and size arguments it is called with.
#[derive(Clone, Debug)]
pub(crate) struct SharedFunction {
    function: FunctionId,
    operands: Vec<u32>,
    sizes: Vec<u32>,
}

/// A function over some axes, after phases if it has any, with operands and sizes of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Canonical {
    pub(crate) phases: Vec<Phase>,
    pub(crate) function: ScalarFunction,
    /// What else it is compiled for.
    pub(crate) segments: u32,
    pub(crate) axes: Vec<Extent>,
    pub(crate) operands: Vec<Operand>,
}

/// The functions of one kernel that were compiled so far.
#[derive(Default)]
pub(crate) struct SharedFunctions {
    compiled: HashMap<Canonical, FunctionId>,
}

impl SharedFunctions {
    /// `function` over `axes`, after `phases`, compiled by `compile` unless an equal one for as many segments was.
    pub(crate) fn get(
        &mut self,
        kernel_operands: &[Operand],
        axes: &[Extent],
        (segments, phases, function): (u32, &[Phase], &ScalarFunction),
        compile: impl FnOnce(&Canonical) -> Result<FunctionId, CodegenError>,
    ) -> Result<SharedFunction, CodegenError> {
        let (mut operands, mut sizes) = (Vec::new(), Vec::new());
        let mut size = |size: Size| match size {
            Size::Const(_) => size,
            Size::Arg(argument) => Size::Arg(position(&mut sizes, argument)),
        };
        let axes =
            axes.iter().map(|axis| Extent(axis.0.iter().map(|&extent| size(extent)).collect())).collect();
        let mut operand = |operand| position(&mut operands, operand);
        let phases = phases.iter().map(|phase| Phase {
            function: phase.function.renumbered(&mut operand, &mut size),
            reductions: phase.reductions.clone(),
        });
        let phases = phases.collect();
        let function = function.renumbered(&mut operand, &mut size);
        let known = operands.iter().map(|&operand| kernel_operands[operand as usize]).collect();
        let canonical = Canonical { phases, function, segments, axes, operands: known };
        let function = match self.compiled.get(&canonical) {
            Some(&function) => function,
            None => {
                let function = compile(&canonical)?;
                self.compiled.insert(canonical, function);
                function
            }
        };
        Ok(SharedFunction { function, operands, sizes })
    }
}

/// The place of a number in a list, at whose end it is put if it is new.
fn position(list: &mut Vec<u32>, number: u32) -> u32 {
    let known = list.iter().position(|&other| other == number);
    known.unwrap_or_else(|| {
        list.push(number);
        list.len() - 1
    }) as u32
}

/// A shared function with the addresses and values of one launch.
pub(crate) struct BoundFunction {
    function: FunctionId,
    operands: Vec<*mut u8>,
    sizes: Vec<i64>,
}

// SAFETY: addresses are shared between workers; each call states why its place belongs to one of them.
unsafe impl Sync for BoundFunction {}

impl LaunchContext<'_> {
    pub(crate) fn bind_function(&self, shared: &SharedFunction) -> BoundFunction {
        BoundFunction {
            function: shared.function,
            operands: shared.operands.iter().map(|&operand| self.operands[operand as usize]).collect(),
            sizes: shared.sizes.iter().map(|&size| self.sizes[size as usize]).collect(),
        }
    }

    /// Calls a shared function over a region; nothing happens if that is empty.
    ///
    /// # Safety
    /// As for [`LaunchContext::call`]; the function was bound in this launch.
    pub(crate) unsafe fn call_bound(&self, bound: &BoundFunction, region: &Region) {
        // SAFETY: passed on; the function was compiled for exactly these operands and sizes.
        unsafe { self.call_with(bound.function, (&bound.operands, &bound.sizes), region) }
    }
}

#[cfg(test)]
mod tests {
    use nucleus_ir::DType;
    use nucleus_plan::{Access, OperandMode, Step, StepId};

    use super::*;
    use crate::codegen::{Accumulators, Destination, Jit, LoopSpec, collapse};

    /// Copies operand `from` to operand `to`, rows of `size` elements apart.
    fn copy(from: u32, to: u32, size: u32) -> ScalarFunction {
        let access = |operand| Access {
            operand,
            offset: Size::Const(0),
            strides: vec![Size::Arg(size), Size::Const(1)],
            indirect: None,
        };
        let mut function = ScalarFunction::default();
        let value: StepId = function.push(Step::Load(access(from)));
        function.push(Step::Store { access: access(to), value });
        function
    }

    #[test]
    fn functions_that_differ_in_operands_and_sizes_alone_are_one() {
        let operand = |dtype, mode| Operand { dtype, mode };
        let operands = [
            operand(DType::F32, OperandMode::Read),
            operand(DType::F32, OperandMode::Read),
            operand(DType::Bf16, OperandMode::Read),
            operand(DType::F32, OperandMode::Write),
            operand(DType::F32, OperandMode::Write),
            operand(DType::Bf16, OperandMode::Write),
        ];
        let axes = [Extent(vec![Size::Arg(0)]), Extent(vec![Size::Const(8)])];
        let mut jit = Jit::new().unwrap();
        let mut shared = SharedFunctions::default();
        let mut get = |from, to, size| {
            shared.get(&operands, &axes, (1, &[], &copy(from, to, size)), |canonical| {
                let (space, function) = collapse(&canonical.axes, &canonical.function, true);
                jit.compile_loop(&LoopSpec {
                    name: "copy",
                    operands: &canonical.operands,
                    space: &space,
                    function: &function,
                    accumulators: Accumulators::Zero,
                    destination: Destination::None,
                })
            })
        };
        let first = get(0, 3, 2).unwrap();
        let second = get(1, 4, 3).unwrap();
        assert_eq!(first.function, second.function);
        assert_eq!((second.operands, second.sizes), (vec![1, 4], vec![0, 3]));
        // Another type, and a size that is used twice.
        assert_ne!(get(2, 5, 2).unwrap().function, first.function);
        assert_ne!(get(0, 3, 0).unwrap().function, first.function);
    }
}
