//! Layout: documents that are printed on one line where they fit and broken where they do not (Wadler, "A prettier printer").

use std::borrow::Cow;

/// The number of columns that lines are broken at where they can be.
pub(super) const WIDTH: usize = 100;
const INDENT: usize = 4;

/// A piece of a text whose line breaks are not chosen yet.
#[derive(Clone, Debug)]
pub(super) enum Doc {
    /// Characters without a line break.
    Text(Cow<'static, str>),
    /// A space, or a line break in a broken group.
    Line,
    /// Nothing, or a line break in a broken group.
    SoftLine,
    /// A line break; it breaks every group around it.
    HardLine,
    /// Characters that stand only in a broken group.
    IfBroken(&'static str),
    /// Lines inside are indented by one more step.
    Indent(Vec<Doc>),
    /// Broken as a whole or not at all; the flag says that it must be broken.
    Group(Vec<Doc>, bool),
}

pub(super) fn text(text: impl Into<Cow<'static, str>>) -> Doc {
    Doc::Text(text.into())
}

pub(super) fn group(docs: Vec<Doc>) -> Doc {
    let must_break = docs.iter().any(has_break);
    Doc::Group(docs, must_break)
}

fn has_break(doc: &Doc) -> bool {
    match doc {
        Doc::HardLine => true,
        Doc::Group(_, must_break) => *must_break,
        Doc::Indent(docs) => docs.iter().any(has_break),
        Doc::Text(_) | Doc::Line | Doc::SoftLine | Doc::IfBroken(_) => false,
    }
}

/// `open item, item close`; broken, each item on its own line and a comma behind the last.
pub(super) fn list(open: &'static str, items: Vec<Vec<Doc>>, close: &'static str) -> Doc {
    enclosed(open, Doc::SoftLine, items, close, false)
}

/// As [`list`], but broken only between items that do not fit on the line.
pub(super) fn filled_list(open: &'static str, items: Vec<Vec<Doc>>, close: &'static str) -> Doc {
    enclosed(open, Doc::SoftLine, items, close, true)
}

/// As [`filled_list`], with spaces inside the brackets.
pub(super) fn spaced_list(open: &'static str, items: Vec<Vec<Doc>>, close: &'static str) -> Doc {
    enclosed(open, Doc::Line, items, close, true)
}

fn enclosed(open: &'static str, edge: Doc, items: Vec<Vec<Doc>>, close: &'static str, fill: bool) -> Doc {
    if items.is_empty() {
        return text(format!("{open}{close}"));
    }
    let last = items.len() - 1;
    let mut inside = vec![edge.clone()];
    for (index, mut item) in items.into_iter().enumerate() {
        if index < last {
            item.push(text(","));
        }
        if index == 0 {
            inside.append(&mut item);
        } else if fill {
            item.insert(0, Doc::Line);
            inside.push(group(item));
        } else {
            inside.push(Doc::Line);
            inside.append(&mut item);
        }
    }
    inside.push(Doc::IfBroken(","));
    group(vec![text(open), Doc::Indent(inside), edge, text(close)])
}

/// The text on one line, whatever its length.
pub(super) fn render_flat(docs: &[Doc], out: &mut String) {
    for doc in docs {
        match doc {
            Doc::Text(text) => out.push_str(text),
            Doc::Line | Doc::HardLine => out.push(' '),
            Doc::SoftLine | Doc::IfBroken(_) => {}
            Doc::Indent(docs) | Doc::Group(docs, _) => render_flat(docs, out),
        }
    }
}

/// A document that is yet to be printed: how far it is indented, and whether the group around it is broken.
#[derive(Clone, Copy)]
struct Rest<'a> {
    indent: usize,
    broken: bool,
    doc: &'a Doc,
}

/// The text, broken where it must be.
pub(super) fn render(docs: &[Doc], out: &mut String) {
    let mut column = 0;
    let mut rest: Vec<Rest<'_>> =
        docs.iter().rev().map(|doc| Rest { indent: 0, broken: true, doc }).collect();
    while let Some(Rest { indent, broken, doc }) = rest.pop() {
        match doc {
            Doc::Text(text) => {
                out.push_str(text);
                column += text.chars().count();
            }
            Doc::IfBroken(text) => {
                if broken {
                    out.push_str(text);
                    column += text.len();
                }
            }
            Doc::Line if !broken => {
                out.push(' ');
                column += 1;
            }
            Doc::SoftLine if !broken => {}
            Doc::Line | Doc::SoftLine | Doc::HardLine => {
                out.push('\n');
                let spaces = indent * INDENT;
                out.extend(std::iter::repeat_n(' ', spaces));
                column = spaces;
            }
            Doc::Indent(docs) => {
                rest.extend(docs.iter().rev().map(|doc| Rest { indent: indent + 1, broken, doc }));
            }
            Doc::Group(docs, must_break) => {
                let fits = !must_break && fits(docs, &rest, WIDTH.saturating_sub(column));
                rest.extend(docs.iter().rev().map(|doc| Rest { indent, broken: !fits, doc }));
            }
        }
    }
}

/// Whether the group on one line, and what follows it up to the next possible break, fits into `width` columns.
fn fits(docs: &[Doc], rest: &[Rest<'_>], mut width: usize) -> bool {
    let mut pending: Vec<(bool, &Doc)> = docs.iter().rev().map(|doc| (false, doc)).collect();
    let mut behind = rest.iter().rev();
    loop {
        let Some((broken, doc)) = pending.pop() else {
            let Some(next) = behind.next() else { return true };
            pending.push((next.broken, next.doc));
            continue;
        };
        let used = match doc {
            Doc::Text(text) => text.chars().count(),
            Doc::IfBroken(text) if broken => text.len(),
            Doc::HardLine => return true,
            Doc::Line | Doc::SoftLine if broken => return true,
            Doc::Line => 1,
            Doc::SoftLine | Doc::IfBroken(_) => 0,
            Doc::Indent(docs) | Doc::Group(docs, _) => {
                pending.extend(docs.iter().rev().map(|doc| (broken, doc)));
                0
            }
        };
        match width.checked_sub(used) {
            Some(left) => width = left,
            None => return false,
        }
    }
}
