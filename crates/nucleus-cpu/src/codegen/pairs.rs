//! Neighbours two by two: what one access of a function takes at even elements and another at odd ones, as rotary embeddings do, is one
//! contiguous piece of memory for four points of a row.

use std::collections::HashMap;

use cranelift_codegen::ir::immediates::V128Imm;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use nucleus_ir::DType;
use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step};

use super::emit::Emit;

/// Two loads or two stores of a function: the steps of the even and the odd elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) even: usize,
    pub(super) odd: usize,
}

impl Pair {
    /// The step of the two that comes later.
    pub(super) fn last(self) -> usize {
        self.even.max(self.odd)
    }
}

/// For each step the pair that it belongs to. Loads are paired where the operand is only read and stores where it is only written, so
/// that moving one to the place of the other changes nothing.
pub(super) fn find(function: &ScalarFunction, operands: &[Operand]) -> Vec<Option<Pair>> {
    let candidate = |step: &Step| {
        let (access, mode) = match step {
            Step::Load(access) => (access, OperandMode::Read),
            Step::Store { access, .. } => (access, OperandMode::Write),
            _ => return None,
        };
        let operand = operands[access.operand as usize];
        let apart = access.strides.last().is_some_and(|stride| stride.is(2)) && access.indirect.is_none();
        (operand.mode == mode && !matches!(operand.dtype, DType::Bool | DType::I8) && apart)
            .then(|| access.clone())
    };
    let candidates: Vec<Option<Access>> = function.steps.iter().map(candidate).collect();
    let mut steps: HashMap<&Access, Vec<usize>> = HashMap::new();
    for (step, access) in candidates.iter().enumerate().rev() {
        if let Some(access) = access {
            steps.entry(access).or_default().push(step);
        }
    }
    let mut pairs = vec![None; candidates.len()];
    for (even, access) in candidates.iter().enumerate() {
        let Some(access) = access.as_ref().filter(|_| pairs[even].is_none()) else { continue };
        let Size::Const(offset) = access.offset else { continue };
        let Some(next) = offset.checked_add(1) else { continue };
        let neighbour = Access { offset: Size::Const(next), ..access.clone() };
        let Some(neighbours) = steps.get_mut(&neighbour) else { continue };
        // One that is the even element of another pair is of no use.
        while let Some(odd) = neighbours.pop() {
            if pairs[odd].is_none() {
                pairs[even] = Some(Pair { even, odd });
                pairs[odd] = pairs[even];
                break;
            }
        }
    }
    pairs
}

/// Bytes of a shuffle that takes these lanes of two vectors, numbered one behind the other.
fn lanes(lanes: [u8; 4]) -> [u8; 16] {
    std::array::from_fn(|byte| 4 * lanes[byte / 4] + (byte % 4) as u8)
}

impl Emit<'_, '_> {
    fn shuffle(&mut self, x: Value, y: Value, order: [u8; 4]) -> Value {
        let ty = self.builder.func.dfg.value_type(x);
        let (x, y) = (self.bitcast(types::I8X16, x), self.bitcast(types::I8X16, y));
        let mask = V128Imm::from(lanes(order).as_slice());
        let mask = self.builder.func.dfg.immediates.push(mask.into());
        let shuffled = self.builder.ins().shuffle(x, y, mask);
        self.bitcast(ty, shuffled)
    }

    /// The four even and the four odd elements of the eight at an address.
    pub(super) fn load_pair(&mut self, dtype: DType, address: Value, flags: MemFlagsData) -> [Value; 2] {
        let stored = match dtype {
            DType::Bf16 | DType::F16 => {
                let words = self.builder.ins().load(types::I32X4, flags, address, 0);
                [self.and_constant(words, 0xffff), self.shift_right(words, 16)]
            }
            DType::F32 | DType::I32 | DType::Bool | DType::I8 => {
                let ty = if dtype == DType::F32 { types::F32X4 } else { types::I32X4 };
                let low = self.builder.ins().load(ty, flags, address, 0);
                let high = self.builder.ins().load(ty, flags, address, 16);
                [[0, 2, 4, 6], [1, 3, 5, 7]].map(|order| self.shuffle(low, high, order))
            }
        };
        stored.map(|lanes| self.widen(dtype, lanes))
    }

    /// Writes four even and four odd elements.
    pub(super) fn store_pair(
        &mut self,
        dtype: DType,
        [even, odd]: [Value; 2],
        address: Value,
        flags: MemFlagsData,
    ) {
        let [even, odd] = [even, odd].map(|value| self.narrow(dtype, value));
        match dtype {
            DType::Bf16 | DType::F16 => {
                let odd = self.shift_left(odd, 16);
                let words = self.bor(even, odd);
                self.builder.ins().store(flags, words, address, 0);
            }
            DType::F32 | DType::I32 | DType::Bool | DType::I8 => {
                for (order, offset) in [([0, 4, 1, 5], 0), ([2, 6, 3, 7], 16)] {
                    let part = self.shuffle(even, odd, order);
                    self.builder.ins().store(flags, part, address, offset);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nucleus_plan::StepId;

    use super::*;

    fn access(operand: u32, offset: i64, stride: i64) -> Access {
        Access {
            operand,
            offset: Size::Const(offset),
            strides: vec![Size::Arg(0), Size::Const(stride)],
            indirect: None,
        }
    }

    fn operands(dtype: DType) -> [Operand; 3] {
        [OperandMode::Read, OperandMode::Write, OperandMode::ReadWrite].map(|mode| Operand { dtype, mode })
    }

    fn pairs(steps: &[Step]) -> Vec<(usize, usize)> {
        let function = ScalarFunction { steps: steps.to_vec(), result: None };
        let found = find(&function, &operands(DType::F32));
        let ends = |(step, pair): (usize, Option<Pair>)| pair.filter(|pair| pair.last() == step);
        found.into_iter().enumerate().filter_map(ends).map(|pair| (pair.even, pair.odd)).collect()
    }

    #[test]
    fn loads_and_stores_of_neighbours_are_paired() {
        let load = |offset| Step::Load(access(0, offset, 2));
        let store = |offset, value| Step::Store { access: access(1, offset, 2), value: StepId(value) };
        assert_eq!(pairs(&[load(0), load(1), store(1, 0), store(0, 1)]), [(0, 1), (3, 2)]);
        assert_eq!(pairs(&[load(2), load(0), load(1)]), [(1, 2)]);
    }

    #[test]
    fn what_is_apart_or_may_have_changed_in_between_is_not() {
        let load = |operand, offset, stride| Step::Load(access(operand, offset, stride));
        assert_eq!(pairs(&[load(0, 0, 2), load(0, 2, 2)]), []);
        assert_eq!(pairs(&[load(0, 0, 3), load(0, 1, 3)]), []);
        assert_eq!(pairs(&[load(2, 0, 2), load(2, 1, 2)]), []);
        let store = Step::Store { access: access(1, 1, 2), value: StepId(0) };
        assert_eq!(pairs(&[load(0, 0, 2), store]), []);
    }
}
