//! From text to syntax tree: recursive descent, with precedence climbing for expressions.
//!
//! The parser reports several independent errors in one run. A production that fails has reported why and returns
//! `Reported`; the nearest list of statements or items then skips to a place where the next one begins. Nesting is limited, so
//! that neither the parser nor anything that walks the tree can run out of stack.

mod expressions;
mod items;
mod statements;
mod strings;
mod types;

use crate::ast::{Module, Name};
use crate::diagnostics::Diagnostic;
use crate::dtype::DType;
use crate::lexer::{MAX_SOURCE_BYTES, Token, TokenKind, lex_range};
use crate::source::{FileId, SourceMap, Span, Spanned};

/// After this many errors the parser gives up.
pub const MAX_ERRORS: usize = 50;
/// The largest depth of a syntax tree, counted in expressions, blocks and types.
pub const MAX_DEPTH: u32 = 128;

/// Parses a text. The tree is whole only if none of the diagnostics is an error.
pub fn parse(sources: &SourceMap, file: FileId) -> (Module, Vec<Diagnostic>) {
    let Some(source) = sources.get(file) else {
        return (Module::default(), vec![Diagnostic::error("there is no such source file")]);
    };
    let text: &str = &source.text;
    if text.len() > MAX_SOURCE_BYTES {
        let diagnostic = Diagnostic::error(format!(
            "the text has {} bytes, more than {} MiB",
            text.len(),
            MAX_SOURCE_BYTES >> 20
        ));
        return (Module::default(), vec![diagnostic.label(Span::new(file, 0..0), "")]);
    }
    let (tokens, diagnostics) = lex_range(file, text, 0..text.len());
    let mut parser = Parser {
        file,
        text,
        tokens,
        position: 0,
        previous_end: 0,
        end: "the end of the text",
        depth: 0,
        deepest: 0,
        reported_at: None,
        diagnostics,
    };
    let module = parser.module();
    let mut diagnostics = parser.diagnostics;
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().map(|span| span.start));
    (module, diagnostics)
}

/// A production failed and has said why.
#[derive(Clone, Copy, Debug)]
struct Reported;

type Parsed<T> = Result<T, Reported>;

struct Parser<'a> {
    file: FileId,
    text: &'a str,
    tokens: Vec<Token>,
    position: usize,
    /// Where the last consumed token ended.
    previous_end: u32,
    /// What messages call the end of the tokens.
    end: &'static str,
    /// The depth of the production being parsed.
    depth: u32,
    /// The largest depth of any node of the expression parsed last, were it complete; see [`Parser::nested`].
    deepest: u32,
    /// The token at which an error was reported last: a second error there is a consequence of the first.
    reported_at: Option<u32>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    fn token(&self) -> Token {
        self.token_at(0)
    }

    fn token_at(&self, ahead: usize) -> Token {
        match self.tokens.get(self.position + ahead).or(self.tokens.last()) {
            Some(token) => *token,
            None => Token { kind: TokenKind::End, start: self.previous_end, end: self.previous_end },
        }
    }

    fn kind(&self) -> TokenKind {
        self.token().kind
    }

    fn at(&self, kind: TokenKind) -> bool {
        self.kind() == kind
    }

    fn text_of(&self, token: Token) -> &'a str {
        &self.text[token.start as usize..token.end as usize]
    }

    fn span_of(&self, token: Token) -> Span {
        Span { file: self.file, start: token.start, end: token.end }
    }

    /// From `start` to the end of the last consumed token.
    fn span_from(&self, start: u32) -> Span {
        Span { file: self.file, start, end: self.previous_end.max(start) }
    }

    fn start(&self) -> u32 {
        self.token().start
    }

    fn bump(&mut self) -> Token {
        let token = self.token();
        if token.kind != TokenKind::End {
            self.position += 1;
            self.previous_end = token.end;
        }
        token
    }

    fn eat(&mut self, kind: TokenKind) -> bool {
        let here = self.at(kind) && kind != TokenKind::End;
        if here {
            self.bump();
        }
        here
    }

    /// True at a word that has its meaning only here, such as `per`.
    fn at_word(&self, word: &str) -> bool {
        self.word_at(0, word)
    }

    fn word_at(&self, ahead: usize, word: &str) -> bool {
        let token = self.token_at(ahead);
        token.kind == TokenKind::Name && self.text_of(token) == word
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let here = self.at_word(word);
        if here {
            self.bump();
        }
        here
    }

    fn report(&mut self, diagnostic: Diagnostic) -> Reported {
        let here = Some(self.start());
        if self.diagnostics.len() < MAX_ERRORS && self.reported_at != here {
            self.reported_at = here;
            self.diagnostics.push(diagnostic);
        }
        if self.diagnostics.len() >= MAX_ERRORS {
            self.position = self.tokens.len().saturating_sub(1);
        }
        Reported
    }

    /// What messages call a token.
    fn found(&self, token: Token) -> String {
        match token.kind {
            TokenKind::End => self.end.to_owned(),
            TokenKind::Name | TokenKind::Int | TokenKind::Float => {
                let text = self.text_of(token);
                match text.char_indices().nth(40) {
                    Some((end, _)) => format!("`{}…`", &text[..end]),
                    None => format!("`{text}`"),
                }
            }
            kind => kind.describe().to_owned(),
        }
    }

    /// Reports that something else should stand here.
    fn expected(&mut self, what: &str) -> Reported {
        let token = self.token();
        let diagnostic = self.expectation(what, token);
        self.report(diagnostic)
    }

    fn expectation(&self, what: &str, token: Token) -> Diagnostic {
        if token.kind == TokenKind::UnclosedString {
            return Diagnostic::error("a string is not closed on its line")
                .label(self.span_of(token), "it begins here")
                .help("a line break in a string is written `\\n`");
        }
        let diagnostic = Diagnostic::error(format!("expected {what}, found {}", self.found(token)));
        let between = &self.text[self.previous_end.min(token.start) as usize..token.start as usize];
        if between.contains('\n') || token.kind == TokenKind::End {
            // The place behind what is there says more than the first token of a later line.
            let previous = self.text[..self.previous_end as usize].char_indices().next_back();
            let start = previous.map_or(0, |(start, _)| start as u32);
            let span = Span { file: self.file, start, end: self.previous_end };
            return diagnostic.label(span, format!("expected {what} behind this"));
        }
        diagnostic.label(self.span_of(token), format!("expected {what}"))
    }

    fn expect(&mut self, kind: TokenKind) -> Parsed<Token> {
        if self.at(kind) { Ok(self.bump()) } else { Err(self.expected(kind.describe())) }
    }

    /// The closing partner of an opening token.
    fn expect_closing(&mut self, kind: TokenKind, open: Token) -> Parsed<Token> {
        if self.at(kind) {
            return Ok(self.bump());
        }
        let diagnostic =
            self.expectation(kind.describe(), self.token()).label(self.span_of(open), "to close this");
        Err(self.report(diagnostic))
    }

    /// A name that is being defined or used.
    fn name(&mut self, what: &str) -> Parsed<Name> {
        let token = self.token();
        let text = self.text_of(token);
        if token.kind.is_keyword() {
            let diagnostic = Diagnostic::error(format!("expected {what}, found the keyword `{text}`"))
                .label(self.span_of(token), format!("expected {what}"));
            return Err(self.report(diagnostic));
        }
        if token.kind != TokenKind::Name {
            return Err(self.expected(what));
        }
        if DType::from_name(text).is_some() || matches!(text, "inf" | "nan") {
            let meaning = if text == "inf" || text == "nan" { "a float" } else { "an element type" };
            let diagnostic = Diagnostic::error(format!("`{text}` is {meaning} and cannot be a name"))
                .label(self.span_of(token), format!("expected {what}"));
            return Err(self.report(diagnostic));
        }
        self.bump();
        Ok(Spanned::new(text.to_owned(), self.span_of(token)))
    }

    /// Parses one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        let result = if self.depth > MAX_DEPTH { Err(self.too_deep()) } else { parse(self) };
        self.depth -= 1;
        result
    }

    fn too_deep(&mut self) -> Reported {
        let span = self.span_of(self.token());
        self.report(
            Diagnostic::error(format!("the text is nested more than {MAX_DEPTH} deep"))
                .label(span, "this is one level too many")
                .help("name a part of it with `let`"),
        )
    }

    /// Items up to `close`, separated by commas, one behind the last allowed.
    fn list<T>(
        &mut self,
        open: TokenKind,
        close: TokenKind,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let open = self.expect(open)?;
        let mut items = Vec::new();
        loop {
            if self.eat(close) {
                return Ok(items);
            }
            items.push(item(self)?);
            if !self.eat(TokenKind::Comma) {
                if !self.at(close) {
                    let what = format!("`,` or {}", close.describe());
                    let diagnostic =
                        self.expectation(&what, self.token()).label(self.span_of(open), "in this list");
                    return Err(self.report(diagnostic));
                }
                self.bump();
                return Ok(items);
            }
        }
    }

    /// True where an item begins that cannot stand inside a block: recovery stops here.
    fn at_item(&self) -> bool {
        let next = self.token_at(1).kind;
        match self.kind() {
            TokenKind::Fn | TokenKind::Const => true,
            TokenKind::Name => match self.text_of(self.token()) {
                "use" | "entry" | "dim" => next == TokenKind::Name,
                "config" => next == TokenKind::LeftBrace,
                _ => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
