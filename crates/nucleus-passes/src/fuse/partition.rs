//! The token partition around an expert choice.
//!
//! Of the slots that experts fill with tokens, the rest of a layer wants the inverse (the slots of every token) and weights that are
//! normalised over the slots of a token: the affinities divided by their sum over a token, gathered back to the slots. One kernel
//! computes all of it, so that nothing is summed, gathered or launched on its own. What is looked for:
//!
//! ```text
//! (slot_token, affinity) = expert_choice(…)
//! (offsets, positions)   = invert_index(slot_token)             to as many targets as there are tokens
//! sum                    = segment_sum(0, offsets, positions, affinity)
//! sum_of_slot            = gather(sum, slot_token)              the only use of the sum
//! ```
//!
//! The inverse may be there without the sum. What follows from affinity and sum slot by slot joins like the consumers of any anchor.

use nucleus_ir::graph::{Node, Value};
use nucleus_ir::{DType, Op};

use super::affine::Coord;
use super::group::{Group, IsView, Kind};
use super::space::Space;
use super::state::State;
use crate::error::PassError;

impl State {
    /// The group of an expert choice with the inverse of its slots and the sums of its affinities, where these are wanted.
    pub(crate) fn form_choice(&mut self, node: Node) -> Result<(), PassError> {
        let data = self.graph.node(node).clone();
        let (slot_token, affinity) = (data.results[0], data.results[1]);
        let shape = self.graph.ty(affinity).shape.clone();
        let identity: Vec<Coord> =
            shape.iter().enumerate().map(|(axis, extent)| Coord::axis(axis, extent)).collect();
        let mut group =
            Group::new(Kind::Anchor(node), Space::direct(&shape), self.rate(affinity), &data.results);
        group.accumulators.push((affinity, identity.clone(), 0));
        if let Some(inverse) = self.inverse(node) {
            let lists = self.graph.node(inverse).results.clone();
            let sum = self.sum_of_slots(slot_token, affinity, &lists);
            group.owned.extend(lists);
            if let Some((sum, gathered)) = sum {
                group.owned.push(sum);
                group.owned.extend(&gathered);
                group.accumulators.extend(gathered.into_iter().map(|value| (value, identity.clone(), 1)));
            }
        }
        self.grow(group)?;
        Ok(())
    }

    /// The first inversion of an expert choice's slots to all its tokens.
    pub(crate) fn inverse(&self, choice: Node) -> Option<Node> {
        let data = self.graph.node(choice);
        let tokens = &self.graph.ty(data.operands[0]).shape[1];
        self.uses[data.results[0].index()].iter().copied().find(|user| {
            let inverse = self.graph.node(*user);
            matches!(&inverse.op, Op::InvertIndex { size } if size == tokens)
                && self.rate(inverse.results[0]) == self.rate(data.results[0])
        })
    }

    /// The sum of the affinities of every token, if nothing but the slots reads it, and where they do.
    fn sum_of_slots(
        &self,
        slot_token: Value,
        affinity: Value,
        lists: &[Value],
    ) -> Option<(Value, Vec<Value>)> {
        let node = self.uses[affinity.index()].iter().find(|user| {
            let data = self.graph.node(**user);
            matches!(data.op, Op::SegmentSum)
                && data.operands[1..] == [lists[0], lists[1], affinity]
                && self.is_positive_zero(data.operands[0])
        })?;
        let sum = self.graph.node(*node).results[0];
        if self.is_output[sum.index()] || self.output[sum.index()].is_some() {
            return None;
        }
        let mut gathered = Vec::new();
        for user in &self.uses[sum.index()] {
            let data = self.graph.node(*user);
            let result = data.results[0];
            let of_slots = matches!(data.op, Op::Gather) && data.operands == [sum, slot_token];
            if !of_slots || self.rate(result) != self.rate(affinity) {
                return None;
            }
            if !gathered.contains(&result) {
                gathered.push(result);
            }
        }
        (!gathered.is_empty()).then_some((sum, gathered))
    }

    /// True for the `f32` constant 0, which has no sign, in any shape.
    fn is_positive_zero(&self, mut value: Value) -> bool {
        while let Some((_, data)) = self.def(value) {
            match &data.op {
                op if op.is_view() => value = data.operands[0],
                Op::Constant { value, dtype: DType::F32 } => {
                    return value.0 == 0.0 && value.0.is_sign_positive();
                }
                _ => return false,
            }
        }
        false
    }

    /// True for what an anchor writes whole, not point by point: maps between slots and tokens.
    pub(crate) fn written_whole(&self, value: Value) -> bool {
        self.def(value).is_some_and(|(_, data)| match data.op {
            Op::ExpertChoice { .. } => data.results[0] == value,
            Op::InvertIndex { .. } => true,
            _ => false,
        })
    }
}
