//! Diagnostics: what is wrong with a text, where, and what to do about it, rendered in the manner of rustc.
//!
//! A [`Diagnostic`] is plain data; [`render`] draws a list of them with the lines they point at. Rendering accepts any span:
//! outside of the text, inside a multi-byte character, at the end of an empty file.

use std::fmt;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::source::{FileId, SourceFile, SourceMap, Span};

/// Lines longer than this many bytes are named by place but not shown.
const MAX_SHOWN_LINE: usize = 2000;
/// Labels over more lines than this mark the first line only.
const MAX_LABEL_LINES: usize = 8;
/// Messages are cut after this many characters, so that a hostile name cannot flood a terminal.
const MAX_MESSAGE: usize = 4000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The text can be used.
    Warning,
    /// The text cannot be used.
    Error,
}

/// A place with a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// The remark; empty for a bare mark.
    pub text: String,
}

/// A remark below the shown lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Why it is so.
    Note(String),
    /// What to do.
    Help(String),
}

/// A message about a text. The first label is the main place; the others are places that explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where, the main place first.
    pub labels: Vec<Label>,
    /// Remarks that belong to no place.
    pub notes: Vec<Note>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            message: message.into(),
            labels: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(message) }
    }

    /// Adds a place; the first one added is the main place.
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// Adds a `note:`.
    pub fn note(mut self, text: impl Into<String>) -> Diagnostic {
        self.notes.push(Note::Note(text.into()));
        self
    }

    /// Adds a `help:`.
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.notes.push(Note::Help(text.into()));
        self
    }

    /// True for an error, false for a warning.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The main place, if there is one.
    pub fn span(&self) -> Option<Span> {
        self.labels.first().map(|label| label.span)
    }
}

impl fmt::Display for Diagnostic {
    /// `error: message`, without the places.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.is_error() { "error" } else { "warning" };
        write!(f, "{severity}: {}", self.message)
    }
}

/// True if any of them is an error.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}

/// Draws the diagnostics for a terminal, an empty line between two; with `color`, ANSI escapes.
pub fn render(sources: &SourceMap, diagnostics: &[Diagnostic], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut text = String::new();
    for (index, diagnostic) in diagnostics.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&renderer.render(&[group(sources, diagnostic)]));
        text.push('\n');
    }
    text
}

fn group<'a>(sources: &'a SourceMap, diagnostic: &'a Diagnostic) -> Group<'a> {
    let level = if diagnostic.is_error() { Level::ERROR } else { Level::WARNING };
    let mut group = Group::with_title(level.primary_title(shorten(&diagnostic.message)));
    let mut files: Vec<FileId> = Vec::new();
    for label in &diagnostic.labels {
        if !files.contains(&label.span.file) {
            files.push(label.span.file);
        }
    }
    let main = diagnostic.labels.first();
    for id in files {
        let Some(file) = sources.get(id) else { continue };
        let labels: Vec<&Label> = diagnostic.labels.iter().filter(|label| label.span.file == id).collect();
        group = add_file(group, sources, file, &labels, main);
    }
    for note in &diagnostic.notes {
        group = group.element(match note {
            Note::Note(text) => Level::NOTE.message(shorten(text)),
            Note::Help(text) => Level::HELP.message(shorten(text)),
        });
    }
    group
}

/// Adds the lines of one file that its labels stand on.
fn add_file<'a>(
    group: Group<'a>,
    sources: &SourceMap,
    file: &'a SourceFile,
    labels: &[&'a Label],
    main: Option<&Label>,
) -> Group<'a> {
    let text: &str = &file.text;
    let ranges: Vec<(usize, usize)> = labels.iter().map(|label| clip(text, label.span)).collect();
    let start = ranges.iter().map(|range| line_start(text, range.0)).min().unwrap_or(0);
    let end = ranges.iter().map(|range| line_end(text, range.1)).max().unwrap_or(0);
    let too_long = |&(from, to): &(usize, usize)| {
        let (first, last) = (line_start(text, from), line_end(text, to));
        text[first..last].split('\n').any(|line| line.len() > MAX_SHOWN_LINE)
    };
    if text.is_empty() || ranges.iter().any(too_long) {
        let location = sources.locate(labels[0].span);
        return group
            .element(Origin::path(file.name.as_str()).line(location.line).char_column(location.column))
            .elements(
                labels
                    .iter()
                    .filter(|label| !label.text.is_empty())
                    .map(|label| Level::NOTE.message(shorten(&label.text))),
            );
    }
    let annotations = labels.iter().zip(&ranges).map(|(label, &(from, to))| -> Annotation<'a> {
        let kind = if main.is_some_and(|main| std::ptr::eq(main, *label)) {
            AnnotationKind::Primary
        } else {
            AnnotationKind::Context
        };
        let annotation = kind.span(from - start..to - start);
        if label.text.is_empty() { annotation } else { annotation.label(shorten(&label.text)) }
    });
    group.element(
        Snippet::source(&text[start..end])
            .line_start(text[..start].matches('\n').count() + 1)
            .path(file.name.as_str())
            .annotations(annotations),
    )
}

/// The bytes of a span as far as the text has them, at character boundaries, over few lines.
fn clip(text: &str, span: Span) -> (usize, usize) {
    let start = text.floor_char_boundary(span.start as usize);
    let end = text.ceil_char_boundary((span.end as usize).max(start));
    match text[start..end].match_indices('\n').nth(MAX_LABEL_LINES) {
        Some(_) => (start, line_end(text, start)),
        None => (start, end),
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline)
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str, labels: &[(usize, usize, &str)]) -> String {
        let mut sources = SourceMap::new();
        let file = sources.add("model.ir", text);
        let mut diagnostic = Diagnostic::error("something is wrong");
        for &(start, end, label) in labels {
            diagnostic = diagnostic.label(Span::new(file, start..end), label);
        }
        render(&sources, &[diagnostic.help("do this")], false)
    }

    #[test]
    fn labels_notes_and_lines() {
        let text = "const A = 1;\nconst B = 2;\nconst A = 3;\n";
        let shown = show(text, &[(32, 33, "again here"), (6, 7, "first here")]);
        let expected = "\
error: something is wrong
 --> model.ir:3:7
  |
1 | const A = 1;
  |       - first here
2 | const B = 2;
3 | const A = 3;
  |       ^ again here
  |
  = help: do this
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn any_span_can_be_shown() {
        for text in ["", "a", "\n", "é\tü\n", "日本\r\nx", "\t\tlet x = 1;", "\u{0}\u{1b}[31m"] {
            for start in 0..8 {
                for end in 0..8 {
                    let shown = show(text, &[(start, end, "here"), (end, start, "")]);
                    assert!(shown.starts_with("error: something is wrong"), "{shown}");
                }
            }
        }
    }

    #[test]
    fn very_long_lines_are_named_only() {
        let shown = show(&"x".repeat(100_000), &[(50_000, 50_001, "here")]);
        assert!(
            shown.len() < 1000 && shown.contains("model.ir:1:50001") && shown.contains("here"),
            "{shown}"
        );
    }

    #[test]
    fn long_spans_mark_their_first_line() {
        let text = "line\n".repeat(100);
        let shown = show(&text, &[(0, text.len(), "all of it")]);
        assert!(shown.lines().count() < 10 && shown.contains("all of it"), "{shown}");
    }

    #[test]
    fn colour_is_optional() {
        let diagnostics = [Diagnostic::warning("careful")];
        assert!(!render(&SourceMap::new(), &diagnostics, false).contains('\u{1b}'));
        assert!(render(&SourceMap::new(), &diagnostics, true).contains('\u{1b}'));
    }
}
