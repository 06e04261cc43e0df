//! Which values need a group that is being formed.
//!
//! A value may join a group only if what else it needs can be computed first, so every candidate asks whether its operands need a
//! result of the group. The answer is a search from the group's results towards the asked value, in the order of the graph: operands
//! come before their uses, so nothing beyond the asked value matters, except where a kernel reaches over it: a kernel needs all its
//! operands before any of its results, an earlier result too. The search therefore goes on to the first place that no kernel reaches
//! over. In a model that is a few nodes further; that all searches together are bounded on any graph is what the budget is for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use nucleus_ir::graph::{Value, ValueDef};

use super::state::State;

/// The most uses that all searches of one graph follow; the released model takes less than a hundredth. Beyond it a value counts as
/// dependent, and kernels take over less.
pub(super) const BUDGET: usize = 1 << 25;

/// The search for the group being formed, and what earlier groups say about where it may stop.
#[derive(Debug)]
pub(crate) struct Dependence {
    /// For every value, the number of the last search that reached it.
    reached: Vec<u32>,
    search: u32,
    pending: BinaryHeap<Reverse<Value>>,
    /// Kernels that the search has entered, the group itself included.
    entered: HashSet<usize>,
    /// For every value, the next value after which no kernel reaches from before to behind; a union-find structure.
    ends: Vec<usize>,
    pub(super) budget: usize,
}

impl Dependence {
    /// Nothing reached, no kernels, for a graph of `values` values.
    pub(crate) fn new(values: usize) -> Dependence {
        Dependence {
            reached: vec![0; values],
            search: 0,
            pending: BinaryHeap::new(),
            entered: HashSet::new(),
            ends: (0..values).collect(),
            budget: BUDGET,
        }
    }

    /// Begins the search for what needs `seeds`, the results so far of group `id`.
    pub(crate) fn begin(&mut self, id: usize, seeds: &[Value]) {
        self.search += 1;
        self.pending = seeds.iter().copied().map(Reverse).collect();
        self.entered = HashSet::from([id]);
    }

    /// True if `value` is a seed or needs one first; also where the search gave up.
    pub(crate) fn depends(&mut self, state: &State, value: Value) -> bool {
        if !matches!(state.graph.def(value), ValueDef::Result { .. }) {
            return false;
        }
        let end = self.end(value.index());
        while self.reached[value.index()] != self.search
            && let Some(Reverse(next)) = self.pending.peek().copied()
            && next.index() <= end
        {
            if self.budget == 0 {
                return true;
            }
            self.pending.pop();
            self.visit(state, next);
        }
        self.reached[value.index()] == self.search
    }

    fn visit(&mut self, state: &State, value: Value) {
        if std::mem::replace(&mut self.reached[value.index()], self.search) == self.search {
            return;
        }
        let (uses, waits) = (&state.uses[value.index()], &state.waits[value.index()]);
        self.budget = self.budget.saturating_sub(1 + uses.len() + waits.len());
        for node in uses.iter().chain(waits) {
            for result in &state.graph.node(*node).results {
                self.push(*result);
                if let Some(owner) = state.owner[result.index()]
                    && self.entered.insert(owner)
                {
                    let owned = &state.groups[owner].owned;
                    self.budget = self.budget.saturating_sub(owned.len());
                    owned.iter().for_each(|value| self.push(*value));
                }
            }
        }
    }

    fn push(&mut self, value: Value) {
        if self.reached[value.index()] != self.search {
            self.pending.push(Reverse(value));
        }
    }

    /// Takes note of a kernel that computes `owned`.
    pub(crate) fn add_kernel(&mut self, owned: &[Value]) {
        let (Some(first), Some(last)) = (owned.iter().min(), owned.iter().max()) else { return };
        let mut at = self.end(first.index());
        while at < last.index() {
            self.ends[at] = at + 1;
            at = self.end(at + 1);
        }
    }

    fn end(&mut self, mut at: usize) -> usize {
        while self.ends[at] != at {
            // Halving the path keeps later walks short.
            self.ends[at] = self.ends[self.ends[at]];
            at = self.ends[at];
        }
        at
    }
}
