//! The local names of one call.

use std::collections::HashMap;

use super::term::Term;

/// Names and values, innermost last. A block ends by forgetting the names it introduced.
#[derive(Debug, Default)]
pub(super) struct Locals<'p> {
    slots: Vec<Slot<'p>>,
    /// The innermost slot of every name.
    latest: HashMap<&'p str, usize>,
}

#[derive(Debug)]
struct Slot<'p> {
    name: &'p str,
    value: Term,
    /// The slot of the same name that this one hides.
    hidden: Option<usize>,
}

impl<'p> Locals<'p> {
    pub(super) fn declare(&mut self, name: &'p str, value: Term) {
        let hidden = self.latest.insert(name, self.slots.len());
        self.slots.push(Slot { name, value, hidden });
    }

    pub(super) fn get(&self, name: &str) -> Option<&Term> {
        self.latest.get(name).map(|slot| &self.slots[*slot].value)
    }

    /// Gives a declared name another value; `false` if there is no such name.
    pub(super) fn assign(&mut self, name: &str, value: Term) -> bool {
        let slot = self.latest.get(name).copied();
        if let Some(slot) = slot {
            self.slots[slot].value = value;
        }
        slot.is_some()
    }

    /// What [`Locals::close`] takes to forget everything declared from now on.
    pub(super) fn open(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn close(&mut self, mark: usize) {
        while self.slots.len() > mark {
            let Some(slot) = self.slots.pop() else { return };
            match slot.hidden {
                Some(hidden) => self.latest.insert(slot.name, hidden),
                None => self.latest.remove(slot.name),
            };
        }
    }
}
