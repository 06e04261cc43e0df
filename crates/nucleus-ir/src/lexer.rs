//! From text to tokens, on logos. Every text gives tokens: what is not a token of the language becomes a diagnostic and is
//! left out, so that the parser goes on behind it.
//!
//! A string is one token, interpolations included; the parser lexes the inside of an interpolation with [`lex_range`].

use std::fmt;
use std::ops::Range;

use logos::Logos;

use crate::dtype::DType;

use crate::diagnostics::Diagnostic;
use crate::source::{FileId, Span};

/// The largest text, in bytes.
pub const MAX_SOURCE_BYTES: usize = 16 << 20;
/// The largest number of tokens in one text; it bounds the memory that a tree takes.
pub const MAX_TOKENS: usize = 4 << 20;

/// What a token is.
#[derive(Logos, Clone, Copy, Debug, PartialEq, Eq)]
#[logos(skip r"[ \t\r\n\f]+")]
#[logos(skip(r"//[^\n]*", allow_greedy = true))]
pub enum TokenKind {
    /// A name, also `use`, `config`, `dim`, `entry`, `in`, `per`, `at`, `optional`: they are words only where the grammar
    /// looks for them.
    #[regex(r"[A-Za-z_][A-Za-z0-9_]*")]
    Name,
    /// `42`, `1_000`
    #[regex(r"[0-9][0-9_]*", priority = 5)]
    Int,
    /// `1.5`, `1e-6`
    #[regex(r"[0-9][0-9_]*\.[0-9][0-9_]*([eE][+-]?[0-9_]+)?", priority = 5)]
    #[regex(r"[0-9][0-9_]*[eE][+-]?[0-9_]+", priority = 5)]
    Float,
    /// Digits and letters that are no number.
    #[regex(r"[0-9][0-9A-Za-z_]*", priority = 2)]
    #[regex(r"[0-9][0-9_]*\.[0-9][0-9A-Za-z_]*", priority = 2)]
    MalformedNumber,
    /// `"…"`
    #[token("\"", string)]
    String,
    /// `"…` up to the end of the line.
    UnclosedString,
    /// `const`
    #[token("const")]
    Const,
    /// `fn`
    #[token("fn")]
    Fn,
    /// `let`
    #[token("let")]
    Let,
    /// `var`
    #[token("var")]
    Var,
    /// `for`
    #[token("for")]
    For,
    /// `if`
    #[token("if")]
    If,
    /// `else`
    #[token("else")]
    Else,
    /// `scope`
    #[token("scope")]
    Scope,
    /// `require`
    #[token("require")]
    Require,
    /// `true`
    #[token("true")]
    True,
    /// `false`
    #[token("false")]
    False,
    /// `null`
    #[token("null")]
    Null,
    /// `(`
    #[token("(")]
    LeftParen,
    /// `)`
    #[token(")")]
    RightParen,
    /// `[`
    #[token("[")]
    LeftBracket,
    /// `]`
    #[token("]")]
    RightBracket,
    /// `{`
    #[token("{")]
    LeftBrace,
    /// `}`
    #[token("}")]
    RightBrace,
    /// `,`
    #[token(",")]
    Comma,
    /// `;`
    #[token(";")]
    Semicolon,
    /// `:`
    #[token(":")]
    Colon,
    /// `=`
    #[token("=")]
    Assign,
    /// `->`
    #[token("->")]
    Arrow,
    /// `..`
    #[token("..")]
    To,
    /// `...`
    #[token("...")]
    Ellipsis,
    /// `?`
    #[token("?")]
    Question,
    /// `??`
    #[token("??")]
    Coalesce,
    /// `||`
    #[token("||")]
    Or,
    /// `&&`
    #[token("&&")]
    And,
    /// `==`
    #[token("==")]
    Equal,
    /// `!=`
    #[token("!=")]
    NotEqual,
    /// `<`
    #[token("<")]
    Less,
    /// `<=`
    #[token("<=")]
    LessEqual,
    /// `>`
    #[token(">")]
    Greater,
    /// `>=`
    #[token(">=")]
    GreaterEqual,
    /// `+`
    #[token("+")]
    Plus,
    /// `-`
    #[token("-")]
    Minus,
    /// `*`
    #[token("*")]
    Star,
    /// `/`
    #[token("/")]
    Slash,
    /// `%`
    #[token("%")]
    Percent,
    /// `!`
    #[token("!")]
    Not,
    /// The end of the text.
    End,
}

impl TokenKind {
    /// What messages call a token of this kind.
    pub const fn describe(self) -> &'static str {
        use TokenKind::*;
        match self {
            Name => "a name",
            Int => "an integer",
            Float => "a float",
            MalformedNumber => "a number",
            String | UnclosedString => "a string",
            Const => "`const`",
            Fn => "`fn`",
            Let => "`let`",
            Var => "`var`",
            For => "`for`",
            If => "`if`",
            Else => "`else`",
            Scope => "`scope`",
            Require => "`require`",
            True => "`true`",
            False => "`false`",
            Null => "`null`",
            LeftParen => "`(`",
            RightParen => "`)`",
            LeftBracket => "`[`",
            RightBracket => "`]`",
            LeftBrace => "`{`",
            RightBrace => "`}`",
            Comma => "`,`",
            Semicolon => "`;`",
            Colon => "`:`",
            Assign => "`=`",
            Arrow => "`->`",
            To => "`..`",
            Ellipsis => "`...`",
            Question => "`?`",
            Coalesce => "`??`",
            Or => "`||`",
            And => "`&&`",
            Equal => "`==`",
            NotEqual => "`!=`",
            Less => "`<`",
            LessEqual => "`<=`",
            Greater => "`>`",
            GreaterEqual => "`>=`",
            Plus => "`+`",
            Minus => "`-`",
            Star => "`*`",
            Slash => "`/`",
            Percent => "`%`",
            Not => "`!`",
            End => "the end of the text",
        }
    }

    /// True for words that cannot be names.
    pub const fn is_keyword(self) -> bool {
        use TokenKind::*;
        matches!(self, Const | Fn | Let | Var | For | If | Else | Scope | Require | True | False | Null)
    }
}

/// True if `text` can be a name.
pub fn is_name(text: &str) -> bool {
    let mut tokens = TokenKind::lexer(text);
    matches!(tokens.next(), Some(Ok(TokenKind::Name)))
        && tokens.span().len() == text.len()
        && DType::from_name(text).is_none()
        && !matches!(text, "inf" | "nan")
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// First byte in the file.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// Reads a string from behind its opening quote to its closing one.
fn string(lexer: &mut logos::Lexer<'_, TokenKind>) -> TokenKind {
    let rest = lexer.remainder();
    match closing(rest, Opened::String) {
        Ok(end) => {
            lexer.bump(end);
            TokenKind::String
        }
        Err(end) => {
            lexer.bump(end);
            TokenKind::UnclosedString
        }
    }
}

/// What [`closing`] looks for the end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A string: ends behind `"`.
    String,
    /// The braces of an interpolation: end behind `}`.
    Braces,
}

/// The length of the rest of a string or interpolation, across the interpolations and strings inside, with its closing
/// character; or, if it is not closed on this line, the length of the line.
pub(crate) fn closing(rest: &str, opened: Opened) -> Result<usize, usize> {
    let bytes = rest.as_bytes();
    let mut open = vec![opened];
    let mut at = 0;
    while let (Some(&byte), Some(&inside)) = (bytes.get(at), open.last()) {
        at += 1;
        match (byte, inside) {
            (b'\n', _) => return Err(at - 1),
            // The byte behind a backslash is skipped; the other bytes of a longer character match nothing here.
            (b'\\', Opened::String) if bytes.get(at).is_some_and(|next| *next != b'\n') => at += 1,
            (b'"', Opened::String) | (b'}', Opened::Braces) => {
                open.pop();
                if open.is_empty() {
                    return Ok(at);
                }
            }
            (b'"', Opened::Braces) => open.push(Opened::String),
            (b'{', _) => open.push(Opened::Braces),
            _ => {}
        }
    }
    Err(bytes.len())
}

/// The tokens of `text[range]`, then one [`TokenKind::End`]; and a diagnostic for each run of bytes that is no token.
pub fn lex_range(file: FileId, text: &str, range: Range<usize>) -> (Vec<Token>, Vec<Diagnostic>) {
    let base = range.start;
    let end = range.end;
    let mut tokens = Vec::new();
    let mut diagnostics: Vec<Diagnostic> = Vec::new();
    let mut unknown: Option<Range<usize>> = None;
    let mut lexer = TokenKind::lexer(&text[range]);
    while let Some(kind) = lexer.next() {
        let place = lexer.span().start + base..lexer.span().end + base;
        let Ok(kind) = kind else {
            match &mut unknown {
                Some(before) if before.end == place.start => before.end = place.end,
                _ => {
                    report_unknown(file, text, unknown.take(), &mut diagnostics);
                    unknown = Some(place);
                }
            }
            continue;
        };
        if tokens.len() == MAX_TOKENS {
            diagnostics.push(
                Diagnostic::error(format!("the text has more than {MAX_TOKENS} tokens"))
                    .label(Span::new(file, place), "the first one too many"),
            );
            break;
        }
        tokens.push(Token { kind, start: place.start as u32, end: place.end as u32 });
    }
    report_unknown(file, text, unknown, &mut diagnostics);
    tokens.push(Token { kind: TokenKind::End, start: end as u32, end: end as u32 });
    (tokens, diagnostics)
}

fn report_unknown(file: FileId, text: &str, place: Option<Range<usize>>, diagnostics: &mut Vec<Diagnostic>) {
    // The parser reports a bounded number; lexing must not collect millions of them first.
    let Some(place) = place.filter(|_| diagnostics.len() < crate::parser::MAX_ERRORS) else { return };
    let found: String = text[place.clone()].chars().take(20).collect();
    let mut diagnostic = Diagnostic::error(format!("`{}` is not part of the language", found.escape_debug()))
        .label(Span::new(file, place), "");
    diagnostic = match found.as_str() {
        "&" => diagnostic.help("logical and is `&&`"),
        "|" => diagnostic.help("logical or is `||`"),
        "'" => diagnostic.help("strings are written with double quotes"),
        "#" => diagnostic.help("comments begin with `//`"),
        _ => diagnostic,
    };
    diagnostics.push(diagnostic);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> (Vec<TokenKind>, usize) {
        let (tokens, diagnostics) = lex_range(FileId(0), text, 0..text.len());
        (tokens.into_iter().map(|token| token.kind).collect(), diagnostics.len())
    }

    #[test]
    fn numbers_and_ranges() {
        use TokenKind::*;
        assert_eq!(
            kinds("0..n 1_000 1.5 1e-6 2.5E+3 1e5 12ab 1.x"),
            (
                vec![Int, To, Name, Int, Float, Float, Float, Float, MalformedNumber, Int, Name, End],
                1 // the point of `1.x`
            )
        );
    }

    #[test]
    fn strings_end_at_their_own_quote() {
        use TokenKind::*;
        assert_eq!(kinds(r#""a" "a\"b" "x{f("y{z}")}" end"#), (vec![String, String, String, Name, End], 0));
        assert_eq!(kinds("\"open\nnext"), (vec![UnclosedString, Name, End], 0));
        assert_eq!(kinds("\"{open"), (vec![UnclosedString, End], 0));
        assert_eq!(kinds("\"\\é\" x"), (vec![String, Name, End], 0));
        assert_eq!(kinds("\"\\"), (vec![UnclosedString, End], 0));
    }

    #[test]
    fn words_and_punctuation() {
        use TokenKind::*;
        assert_eq!(
            kinds("let letter .. ... ? ?? -> - // comment\n== = at per"),
            (
                vec![
                    Let, Name, To, Ellipsis, Question, Coalesce, Arrow, Minus, Equal, Assign, Name, Name, End
                ],
                0
            )
        );
    }

    #[test]
    fn unknown_bytes_are_reported_once_per_run() {
        let text = "a ééé b # c";
        let (tokens, diagnostics) = lex_range(FileId(0), text, 0..text.len());
        assert_eq!(tokens.len(), 4);
        assert_eq!(diagnostics.len(), 2);
        assert_eq!(diagnostics[0].message, "`ééé` is not part of the language");
        assert_eq!(diagnostics[0].span(), Some(Span::new(FileId(0), 2..8)));
    }
}
