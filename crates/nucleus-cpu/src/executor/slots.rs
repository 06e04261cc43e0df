//! The scalar functions of an anchor with the extents of their iteration spaces.

use nucleus_plan::{Anchor, Part, ScalarFunction, Size};

use crate::codegen::Extent;

/// One slot of an anchor.
pub(crate) struct Slot<'a> {
    pub(crate) name: String,
    pub(crate) extents: Vec<Extent>,
    pub(crate) function: &'a ScalarFunction,
}

fn slot<'a>(name: impl Into<String>, extents: &[&[Size]], function: &'a ScalarFunction) -> Slot<'a> {
    let extents = extents.iter().flat_map(|sizes| sizes.iter()).map(|&size| size.into()).collect();
    Slot { name: name.into(), extents, function }
}

/// The columns of all segments of a contraction's part.
pub(crate) fn all_columns(part: &Part) -> Extent {
    Extent(vec![part.columns, Size::Const(i64::from(part.segments))])
}

/// Every slot of an anchor.
pub(crate) fn slots(anchor: &Anchor) -> Vec<Slot<'_>> {
    match anchor {
        Anchor::Map(map) => vec![slot("function", &[&map.space], &map.function)],
        Anchor::RowReduction(reduction) => {
            let columns = [reduction.columns];
            let full: [&[Size]; 2] = [&reduction.rows, &columns];
            let phases = reduction.phases.iter().enumerate();
            let mut list: Vec<Slot> =
                phases.map(|(i, phase)| slot(format!("phase{i}"), &full, &phase.function)).collect();
            list.push(slot("row", &[&reduction.rows], &reduction.row));
            list.push(slot("element", &full, &reduction.element));
            list
        }
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
            let mut list = vec![slot("a", &[&c.batch, &c.rows, &[c.depth]], &c.a)];
            for (i, part) in c.parts.iter().enumerate() {
                let mut b = slot(format!("b{i}"), &[&c.batch, &[c.depth]], &part.b);
                b.extents.push(all_columns(part));
                list.push(b);
                let columns = part.column_axes();
                let axes: [&[Size]; 3] = [&c.batch, &c.rows, &columns];
                let phases = part.groups.iter().flat_map(|groups| &groups.phases).enumerate();
                list.extend(phases.map(|(j, phase)| slot(format!("phase{i}.{j}"), &axes, &phase.function)));
                list.push(slot(format!("epilogue{i}"), &axes, &part.epilogue));
            }
            list
        }
        Anchor::Attention(attention) => {
            let head_size = Size::Const(i64::from(attention.head_size));
            let heads = Size::Const(i64::from(attention.heads));
            let key_heads = Size::Const(i64::from(attention.key_heads));
            let queries = [attention.batch, attention.queries, heads, head_size];
            let mut list = vec![slot("q", &[&queries], &attention.q)];
            for (i, segment) in attention.segments.iter().enumerate() {
                let keys = [attention.batch, segment.length, key_heads, head_size];
                list.push(slot(format!("k{i}"), &[&keys], &segment.k));
                list.push(slot(format!("v{i}"), &[&keys], &segment.v));
                if let Some(mask) = &segment.mask {
                    list.push(slot(format!("mask{i}"), &[&keys[..2]], mask));
                }
            }
            list.push(slot("epilogue", &[&queries], &attention.epilogue));
            list
        }
        // Every axis has the extent of its size: as the plan says.
        Anchor::AttentionGrad(_) => {
            let slots = anchor.slots().into_iter();
            slots.map(|(name, extents, function)| slot(name, &[&extents], function)).collect()
        }
        Anchor::ExpertChoice(choice) => {
            vec![
                slot("affinity", &[&[choice.batch, choice.tokens, choice.experts]], &choice.affinity),
                slot("epilogue", &[&[choice.batch, choice.experts, choice.capacity]], &choice.epilogue),
            ]
        }
        Anchor::InvertIndex(_) => Vec::new(),
        Anchor::SegmentSum(sum) => {
            let target: [&[Size]; 2] = [&[sum.batch, sum.targets], &sum.rest];
            let position: [&[Size]; 2] = [&[sum.batch, sum.position_count], &sum.rest];
            vec![
                slot("base", &target, &sum.base),
                slot("update", &position, &sum.update),
                slot("epilogue", &target, &sum.epilogue),
            ]
        }
    }
}
