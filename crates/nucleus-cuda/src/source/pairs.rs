//! Accesses whose elements alternate: one takes the even elements of a row, another the odd ones, as rotary embeddings do. Together they
//! are vectors.

use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step};

/// Two loads or two stores, by the numbers of their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// That of the even elements.
    pub(super) even: usize,
    /// That of the odd ones.
    pub(super) odd: usize,
}

impl Pair {
    /// The step that comes first.
    pub(super) fn first(self) -> usize {
        self.even.min(self.odd)
    }
}

/// The pairs of a function along an axis. Loads may be made where the first of them is: nothing is written to what they read. Stores may be
/// made where the second is: nothing between them reads what they write.
pub(super) fn pairs(function: &ScalarFunction, operands: &[Operand], axis: usize) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    let access = |step: usize| match &function.steps[step] {
        Step::Load(access) => Some((access, false)),
        Step::Store { access, .. } => Some((access, true)),
        _ => None,
    };
    for even in 0..function.steps.len() {
        let Some((one, stores)) = access(even).filter(|(one, _)| is_even(one, axis)) else { continue };
        let odd = (0..function.steps.len()).find(|step| {
            access(*step).is_some_and(|(other, also)| also == stores && follows(one, other))
                && !pairs.iter().any(|pair| pair.odd == *step)
        });
        let Some(odd) = odd else { continue };
        let free = if stores {
            let between = even.min(odd)..even.max(odd);
            !function.steps[between].iter().any(|step| {
                let Step::Load(load) = step else { return false };
                let index = load.indirect.iter().map(|indirect| indirect.index.operand);
                index.chain([load.operand]).any(|operand| operand == one.operand)
            })
        } else {
            operands.get(one.operand as usize).is_some_and(|operand| operand.mode == OperandMode::Read)
        };
        if free {
            pairs.push(Pair { even, odd });
        }
    }
    pairs
}

/// True if the access has the even elements along the axis.
fn is_even(access: &Access, axis: usize) -> bool {
    access.strides.get(axis).is_some_and(|stride| stride.is(2))
        && matches!(access.offset, Size::Const(offset) if offset % 2 == 0)
        && access.indirect.is_none()
}

/// True if `other` has the elements behind those of `one`.
fn follows(one: &Access, other: &Access) -> bool {
    let (Size::Const(first), Size::Const(second)) = (one.offset, other.offset) else { return false };
    one.operand == other.operand
        && one.strides == other.strides
        && other.indirect.is_none()
        && first.checked_add(1) == Some(second)
}
