//! The values visible inside one function or entry.

use std::collections::HashMap;

use crate::source::Span;

/// What a local value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalKind {
    Param,
    Input,
    /// A dim that the pattern of a parameter binds.
    PatternDim,
    Let,
    Var,
    LoopVariable,
}

impl LocalKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            LocalKind::Param => "parameter",
            LocalKind::Input => "input",
            LocalKind::PatternDim => "dim",
            LocalKind::Let => "value",
            LocalKind::Var => "variable",
            LocalKind::LoopVariable => "loop variable",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Local<'a> {
    pub(super) name: &'a str,
    pub(super) span: Span,
    pub(super) kind: LocalKind,
    /// Read somewhere, or of a kind that need not be read.
    pub(super) used: bool,
    /// Names of one tuple pattern share a number: one that is used is enough.
    pub(super) group: u32,
}

/// The visible values, innermost last. No two have the same name.
#[derive(Debug, Default)]
pub(super) struct Locals<'a> {
    slots: Vec<Local<'a>>,
    by_name: HashMap<&'a str, usize>,
}

impl<'a> Locals<'a> {
    pub(super) fn declare(&mut self, local: Local<'a>) {
        self.by_name.insert(local.name, self.slots.len());
        self.slots.push(local);
    }

    pub(super) fn get(&self, name: &str) -> Option<&Local<'a>> {
        self.by_name.get(name).map(|slot| &self.slots[*slot])
    }

    /// Marks the value as used; `false` if there is none of that name.
    pub(super) fn mark_used(&mut self, name: &str) -> bool {
        let slot = self.by_name.get(name);
        if let Some(slot) = slot {
            self.slots[*slot].used = true;
        }
        slot.is_some()
    }

    /// The visible names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.slots.iter().rev().map(|local| local.name)
    }

    /// What [`Locals::close`] takes to forget everything declared from now on.
    pub(super) fn open(&self) -> usize {
        self.slots.len()
    }

    /// Ends a block: forgets its names and gives back those that nothing used.
    pub(super) fn close(&mut self, mark: usize) -> Vec<Local<'a>> {
        let closed = self.slots.split_off(mark);
        for local in &closed {
            self.by_name.remove(local.name);
        }
        let mut unused = Vec::new();
        for group in closed.chunk_by(|a, b| a.group == b.group) {
            if group.iter().all(|local| !local.used) {
                unused.extend(group.first().copied());
            }
        }
        unused
    }
}
