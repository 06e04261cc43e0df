//! What functions, entries and constants use of one another.

use std::collections::HashMap;

use crate::ast::{Item, Module};
use crate::diagnostics::Diagnostic;
use crate::source::Span;

use super::Verifier;

/// A use of the item of position `target` at a place.
#[derive(Clone, Copy, Debug)]
struct Use {
    target: usize,
    span: Span,
}

/// The uses of every function, entry and constant, by the position of the item.
#[derive(Debug, Default)]
pub(super) struct Dependencies {
    uses: HashMap<usize, Vec<Use>>,
}

impl Dependencies {
    pub(super) fn add(&mut self, from: usize, target: usize, span: Span) {
        self.uses.entry(from).or_default().push(Use { target, span });
    }

    fn of(&self, item: usize) -> &[Use] {
        self.uses.get(&item).map_or(&[], Vec::as_slice)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Unseen,
    Open,
    Done,
}

impl Verifier<'_> {
    /// Finds circles, and constants that functions use before they are defined.
    pub(super) fn check_dependencies(&mut self) {
        let count = self.module.items.len();
        let mut marks = vec![Mark::Unseen; count];
        // The latest constant that a function needs, itself or through others.
        let mut latest: Vec<Option<usize>> = vec![None; count];
        for start in 0..count {
            if marks[start] == Mark::Unseen {
                self.visit(start, &mut marks, &mut latest);
            }
        }
        for (item, declared) in self.module.items.iter().enumerate() {
            let Item::Const { name, .. } = declared else { continue };
            let late = self.dependencies.of(item).iter().find_map(|used| {
                let needed = latest[used.target]?;
                let is_function = !matches!(self.module.items[used.target], Item::Const { .. });
                (is_function && needed >= item).then_some((used.span, needed))
            });
            if let Some((span, needed)) = late {
                let needed_name = item_name(self.module, needed);
                let message =
                    format!("constant `{}` needs constant `{needed_name}` before it is known", name.node);
                self.error(
                    Diagnostic::error(message)
                        .label(span, format!("this function uses `{needed_name}`"))
                        .help("constants are computed in the order of the text"),
                );
            }
        }
    }

    /// Depth-first search without recursion: a text may hold a chain of any length.
    fn visit(&mut self, start: usize, marks: &mut [Mark], latest: &mut [Option<usize>]) {
        // The open items, outermost first, each with the number of its uses that were followed.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        marks[start] = Mark::Open;
        while let Some((item, followed)) = path.last_mut() {
            let item = *item;
            let Some(used) = self.dependencies.of(item).get(*followed).copied() else {
                marks[item] = Mark::Done;
                if matches!(self.module.items[item], Item::Const { .. }) {
                    latest[item] = latest[item].max(Some(item));
                }
                path.pop();
                if let Some((user, _)) = path.last() {
                    latest[*user] = latest[*user].max(latest[item]);
                }
                continue;
            };
            *followed += 1;
            match marks[used.target] {
                Mark::Unseen => {
                    marks[used.target] = Mark::Open;
                    path.push((used.target, 0));
                }
                Mark::Open if self.is_full() => {}
                Mark::Open => {
                    let first = path.iter().position(|(open, _)| *open == used.target).unwrap_or(0);
                    let members: Vec<usize> = path[first..].iter().map(|(open, _)| *open).collect();
                    self.report_circle(&members, used.span);
                }
                Mark::Done => latest[item] = latest[item].max(latest[used.target]),
            }
        }
    }

    fn report_circle(&mut self, members: &[usize], closing: Span) {
        // Constants that use constants in a circle use a later one, which is reported where it is used.
        if members.iter().all(|item| matches!(self.module.items[*item], Item::Const { .. })) {
            return;
        }
        const SHOWN: usize = 8;
        let mut names: Vec<String> =
            members.iter().take(SHOWN).map(|item| format!("`{}`", item_name(self.module, *item))).collect();
        if members.len() > SHOWN {
            names.push("…".to_owned());
        }
        let first = item_name(self.module, members[0]);
        names.push(format!("`{first}`"));
        let message = if members.len() == 1 {
            format!("function `{first}` calls itself")
        } else {
            format!("functions use one another in a circle: {}", names.join(" → "))
        };
        let mut diagnostic = Diagnostic::error(message).label(closing, "the circle closes here");
        for (from, to) in members.iter().zip(&members[1..]).take(SHOWN) {
            let used = self.dependencies.of(*from).iter().find(|used| used.target == *to);
            if let Some(used) = used {
                let text =
                    format!("`{}` uses `{}`", item_name(self.module, *from), item_name(self.module, *to));
                diagnostic = diagnostic.label(used.span, text);
            }
        }
        self.error(diagnostic.help("functions are inlined where they are called; a `for` loop repeats"));
    }
}

fn item_name(module: &Module, item: usize) -> &str {
    match &module.items[item] {
        Item::Function(function) => &function.name.node,
        Item::Entry(entry) => &entry.name.node,
        Item::Const { name, .. } => &name.node,
        Item::Use { .. } | Item::Config(_) | Item::Dims(_) | Item::Require(_) => "",
    }
}
