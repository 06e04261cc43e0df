//! Strings: escapes and interpolations.

use crate::ast::{Expr, ExprKind, StringPart};
use crate::diagnostics::Diagnostic;
use crate::lexer::{Opened, TokenKind, closing, lex_range};
use crate::source::Span;

use super::{Parsed, Parser};

impl Parser<'_> {
    pub(super) fn string(&mut self) -> Parsed<Expr> {
        let token = self.expect(TokenKind::String)?;
        // Behind the opening quote, up to the closing one.
        let end = token.end as usize - 1;
        let mut at = token.start as usize + 1;
        let mut parts = Vec::new();
        let mut text = String::new();
        while let Some(next) = self.text[at..end].chars().next() {
            match next {
                '\\' => {
                    let escape = self.text[at + 1..end].chars().next();
                    text.push(match escape {
                        Some(plain @ ('"' | '\\' | '{' | '}')) => plain,
                        Some('n') => '\n',
                        Some('t') => '\t',
                        _ => {
                            let width = 1 + escape.map_or(0, char::len_utf8);
                            let span = Span::new(self.file, at..at + width);
                            let diagnostic = Diagnostic::error("unknown escape in a string")
                                .label(span, "")
                                .help("the escapes are `\\\"`, `\\\\`, `\\n`, `\\t`, `\\{` and `\\}`");
                            return Err(self.report(diagnostic));
                        }
                    });
                    at += 2;
                }
                '{' => {
                    if !text.is_empty() {
                        parts.push(StringPart::Text(std::mem::take(&mut text)));
                    }
                    // The lexer has seen the closing brace; it is inside the string.
                    let length = closing(&self.text[at + 1..end], Opened::Braces).unwrap_or_else(|rest| rest);
                    parts.push(StringPart::Interpolation(self.interpolation(at + 1, at + length)?));
                    at += 1 + length;
                }
                plain => {
                    text.push(plain);
                    at += plain.len_utf8();
                }
            }
        }
        if !text.is_empty() {
            parts.push(StringPart::Text(text));
        }
        Ok(Expr { kind: ExprKind::String(parts), span: self.span_of(token) })
    }

    /// The expression in the bytes `start..end` of the text.
    fn interpolation(&mut self, start: usize, end: usize) -> Parsed<Expr> {
        let (tokens, diagnostics) = lex_range(self.file, self.text, start..end);
        let failed = !diagnostics.is_empty();
        let outside = std::mem::replace(&mut self.tokens, tokens);
        let position = std::mem::replace(&mut self.position, 0);
        let previous_end = std::mem::replace(&mut self.previous_end, start as u32);
        let end_name = std::mem::replace(&mut self.end, "the end of the interpolation");
        for diagnostic in diagnostics {
            self.report(diagnostic);
        }
        let mut result = self.expression();
        if result.is_ok() && !self.at(TokenKind::End) {
            result = Err(self.expected("`}`"));
        }
        self.tokens = outside;
        self.position = position;
        self.previous_end = previous_end;
        self.end = end_name;
        if failed { Err(super::Reported) } else { result }
    }
}
