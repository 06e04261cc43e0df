//! Even and odd elements that are loaded and stored together.

use nucleus_ir::DType;
use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step, StepId};

use crate::codegen::{Accumulators, Destination, Extent, Jit, LoopSpec, Region, Space};

/// Swaps the elements of each of `count` pairs.
fn swap_neighbours(dtype: DType, bytes: &[u8], count: usize) -> Vec<u8> {
    let operands = [OperandMode::Read, OperandMode::Write].map(|mode| Operand { dtype, mode });
    let access = |operand, offset| Access {
        operand,
        offset: Size::Const(offset),
        strides: vec![Size::Const(2)],
        indirect: None,
    };
    let steps = vec![
        Step::Load(access(0, 1)),
        Step::Load(access(0, 0)),
        Step::Store { access: access(1, 0), value: StepId(0) },
        Step::Store { access: access(1, 1), value: StepId(1) },
    ];
    let function = ScalarFunction { steps, result: None };
    let space = Space { outer: vec![], inner: Extent(vec![Size::Arg(0)]) };
    let mut jit = Jit::new().unwrap();
    let spec = LoopSpec {
        name: "swap",
        operands: &operands,
        space: &space,
        function: &function,
        accumulators: Accumulators::Zero,
        destination: Destination::None,
    };
    let id = jit.compile_loop(&spec).unwrap();
    let code = jit.finish().unwrap();
    let mut result = vec![0xaa; bytes.len()];
    let table = [bytes.as_ptr().cast_mut(), result.as_mut_ptr()];
    let region = Region {
        outer_begin: 0,
        outer_end: 1,
        inner_begin: 0,
        inner_end: count as i64,
        block: std::ptr::null_mut(),
        row_stride: 0,
        segment_stride: 0,
    };
    // SAFETY: both operands hold at least twice as many elements as the region has points.
    unsafe { code.function(id)(table.as_ptr(), [count as i64].as_ptr(), &region) };
    result
}

#[test]
fn neighbours_are_exchanged_and_nothing_else_is_written() {
    let one: [(DType, u32); 4] =
        [(DType::F32, 0x3f80_0000), (DType::Bf16, 0x3f80), (DType::F16, 0x3c00), (DType::I32, 1)];
    for (dtype, one) in one {
        let size = dtype.size();
        for count in [0, 1, 3, 4, 7, 8, 13] {
            let elements: Vec<Vec<u8>> =
                (0..2 * count as u32 + 2).map(|i| (one + i).to_le_bytes()[..size].to_vec()).collect();
            let result = swap_neighbours(dtype, &elements.concat(), count);
            let mut want: Vec<Vec<u8>> = (0..2 * count).map(|i| elements[i ^ 1].clone()).collect();
            want.resize(2 * count + 2, vec![0xaa; size]);
            assert_eq!(result, want.concat(), "{count} pairs of {dtype}");
        }
    }
}
