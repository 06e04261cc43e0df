//! Operands that an anchor reads or writes whole, not point by point.

use crate::kernel::Anchor;
use crate::scalar::Size;

/// An operand that an anchor reads or writes whole, densely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseOperand {
    /// The kernel operand.
    pub operand: u32,
    /// The batch extent.
    pub batch: Size,
    /// The product of these is the number of elements of a batch item …
    pub item: [Size; 2],
    /// … and one more for row offsets, which end with that of a row behind the last.
    pub one_more: bool,
}

impl DenseOperand {
    /// The number of elements; negative extents count as none.
    pub fn elements(&self, sizes: &[i64]) -> i128 {
        let extent = |size: Size| i128::from(size.value(sizes)).max(0);
        let item = extent(self.item[0]).saturating_mul(extent(self.item[1]));
        extent(self.batch).saturating_mul(item.saturating_add(i128::from(self.one_more)))
    }
}

impl Anchor {
    /// The operands that the anchor reads or writes whole.
    pub fn dense_operands(&self) -> Vec<DenseOperand> {
        let one = Size::Const(1);
        let dense = |operand, batch, item| DenseOperand { operand, batch, item, one_more: false };
        let offsets =
            |operand, batch, rows| DenseOperand { operand, batch, item: [rows, one], one_more: true };
        match self {
            Anchor::ExpertChoice(choice) => {
                let slots = [choice.experts, choice.capacity];
                let mut list = vec![dense(choice.slot_token, choice.batch, slots)];
                if let Some(inverse) = choice.inverse {
                    list.push(offsets(inverse.offsets, choice.batch, choice.tokens));
                    list.push(dense(inverse.positions, choice.batch, slots));
                }
                list
            }
            Anchor::InvertIndex(invert) => {
                let positions = [invert.positions, one];
                vec![
                    dense(invert.index, invert.batch, positions),
                    dense(invert.positions_out, invert.batch, positions),
                    offsets(invert.offsets_out, invert.batch, invert.targets),
                ]
            }
            Anchor::SegmentSum(sum) => vec![
                offsets(sum.offsets, sum.batch, sum.targets),
                dense(sum.positions, sum.batch, [sum.position_count, one]),
            ],
            Anchor::Map(_)
            | Anchor::RowReduction(_)
            | Anchor::Matmul(_)
            | Anchor::GroupedMatmul(_)
            | Anchor::Attention(_)
            | Anchor::AttentionGrad(_) => Vec::new(),
        }
    }
}
