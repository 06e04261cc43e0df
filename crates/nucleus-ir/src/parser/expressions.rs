//! Expressions, by precedence climbing.

use crate::ast::{BinaryOperator, Expr, ExprKind, Name, UnaryOperator};
use crate::diagnostics::Diagnostic;
use crate::dtype::DType;
use crate::float::Float;
use crate::lexer::{Token, TokenKind};
use crate::source::Spanned;

use super::{MAX_DEPTH, Parsed, Parser};

impl BinaryOperator {
    /// How strongly it binds: 0 for `??` up to 5 for `*`. All operators associate to the left, except that
    /// comparisons do not associate.
    pub const fn level(self) -> u8 {
        use BinaryOperator::*;
        match self {
            Coalesce => 0,
            Or => 1,
            And => 2,
            Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual => Self::COMPARISON,
            Add | Sub => 4,
            Mul | Div | Rem => 5,
        }
    }

    /// The level of the comparisons.
    pub const COMPARISON: u8 = 3;

    /// How it is written.
    pub const fn symbol(self) -> &'static str {
        use BinaryOperator::*;
        match self {
            Coalesce => "??",
            Or => "||",
            And => "&&",
            Equal => "==",
            NotEqual => "!=",
            Less => "<",
            LessEqual => "<=",
            Greater => ">",
            GreaterEqual => ">=",
            Add => "+",
            Sub => "-",
            Mul => "*",
            Div => "/",
            Rem => "%",
        }
    }

    fn of(kind: TokenKind) -> Option<BinaryOperator> {
        Some(match kind {
            TokenKind::Coalesce => BinaryOperator::Coalesce,
            TokenKind::Or => BinaryOperator::Or,
            TokenKind::And => BinaryOperator::And,
            TokenKind::Equal => BinaryOperator::Equal,
            TokenKind::NotEqual => BinaryOperator::NotEqual,
            TokenKind::Less => BinaryOperator::Less,
            TokenKind::LessEqual => BinaryOperator::LessEqual,
            TokenKind::Greater => BinaryOperator::Greater,
            TokenKind::GreaterEqual => BinaryOperator::GreaterEqual,
            TokenKind::Plus => BinaryOperator::Add,
            TokenKind::Minus => BinaryOperator::Sub,
            TokenKind::Star => BinaryOperator::Mul,
            TokenKind::Slash => BinaryOperator::Div,
            TokenKind::Percent => BinaryOperator::Rem,
            _ => return None,
        })
    }
}

impl Parser<'_> {
    pub(super) fn expression(&mut self) -> Parsed<Expr> {
        self.nested(|parser| parser.binary(0))
    }

    /// Parses a chain that wraps what came before it. Each wrap puts everything inside one level deeper, so the depth
    /// of the left side is tracked here and not by recursion.
    fn wrap(&mut self) -> Parsed<()> {
        self.deepest += 1;
        if self.deepest > MAX_DEPTH { Err(self.too_deep()) } else { Ok(()) }
    }

    fn binary(&mut self, weakest: u8) -> Parsed<Expr> {
        let outside = std::mem::replace(&mut self.deepest, self.depth);
        let start = self.start();
        let mut left = self.unary()?;
        while let Some(operator) = BinaryOperator::of(self.kind()).filter(|found| found.level() >= weakest) {
            self.wrap()?;
            self.bump();
            let right = self.nested(|parser| parser.binary(operator.level() + 1))?;
            left = Expr {
                kind: ExprKind::Binary(operator, Box::new(left), Box::new(right)),
                span: self.span_from(start),
            };
            let again = BinaryOperator::of(self.kind());
            if operator.level() == BinaryOperator::COMPARISON
                && again.is_some_and(|next| next.level() == BinaryOperator::COMPARISON)
            {
                let diagnostic = Diagnostic::error("comparisons cannot be chained")
                    .label(self.span_of(self.token()), "")
                    .help("combine two comparisons with `&&`, or use parentheses");
                return Err(self.report(diagnostic));
            }
        }
        self.deepest = self.deepest.max(outside);
        Ok(left)
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let start = self.start();
        let operator = match self.kind() {
            TokenKind::Minus => UnaryOperator::Neg,
            TokenKind::Not => UnaryOperator::Not,
            _ => return self.postfix(),
        };
        self.bump();
        let operand = self.nested(Parser::unary)?;
        Ok(Expr { kind: ExprKind::Unary(operator, Box::new(operand)), span: self.span_from(start) })
    }

    fn postfix(&mut self) -> Parsed<Expr> {
        let outside = std::mem::replace(&mut self.deepest, self.depth);
        let start = self.start();
        let mut base = self.primary()?;
        loop {
            match self.kind() {
                TokenKind::LeftBracket => {
                    self.wrap()?;
                    let open = self.bump();
                    let index = self.expression()?;
                    self.expect_closing(TokenKind::RightBracket, open)?;
                    base = Expr {
                        kind: ExprKind::Index(Box::new(base), Box::new(index)),
                        span: self.span_from(start),
                    };
                }
                TokenKind::LeftParen => {
                    let message = match base.kind {
                        ExprKind::DType(dtype) => {
                            format!("`{dtype}` is an element type; convert with `cast(x, {dtype})`")
                        }
                        _ => "only a function that is named can be called".to_owned(),
                    };
                    let span = self.span_of(self.token());
                    return Err(self.report(Diagnostic::error(message).label(span, "the call")));
                }
                _ => break,
            }
        }
        self.deepest = self.deepest.max(outside);
        Ok(base)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.token();
        let kind = match token.kind {
            TokenKind::Int => self.int(token)?,
            TokenKind::Float => self.float(token)?,
            TokenKind::True => ExprKind::Bool(true),
            TokenKind::False => ExprKind::Bool(false),
            TokenKind::Null => ExprKind::Null,
            TokenKind::String => return self.string(),
            TokenKind::Name => return self.name_or_call(),
            TokenKind::LeftParen => return self.parenthesised(),
            TokenKind::LeftBracket => {
                let list = self.list(TokenKind::LeftBracket, TokenKind::RightBracket, Parser::expression)?;
                return Ok(Expr { kind: ExprKind::List(list), span: self.span_from(token.start) });
            }
            TokenKind::If | TokenKind::Scope | TokenKind::LeftBrace => return self.block_like(),
            _ => return Err(self.expected("an expression")),
        };
        self.bump();
        Ok(Expr { kind, span: self.span_of(token) })
    }

    fn int(&mut self, token: Token) -> Parsed<ExprKind> {
        match self.text_of(token).replace('_', "").parse() {
            Ok(value) => Ok(ExprKind::Int(value)),
            Err(_) => {
                let diagnostic = Diagnostic::error("the integer does not fit 64 bits")
                    .label(self.span_of(token), "above 2^63 − 1");
                Err(self.report(diagnostic))
            }
        }
    }

    fn float(&mut self, token: Token) -> Parsed<ExprKind> {
        let span = self.span_of(token);
        match self.text_of(token).replace('_', "").parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(ExprKind::Float(Float(value))),
            Ok(_) => {
                let diagnostic = Diagnostic::error("the float does not fit binary64")
                    .label(span, "above 1.8e308")
                    .help("infinity is written `inf`");
                Err(self.report(diagnostic))
            }
            Err(_) => Err(self.report(Diagnostic::error("malformed number").label(span, ""))),
        }
    }

    fn name_or_call(&mut self) -> Parsed<Expr> {
        let token = self.bump();
        let span = self.span_of(token);
        let text = self.text_of(token);
        let kind = match (text, DType::from_name(text)) {
            ("inf", _) => ExprKind::Float(Float(f64::INFINITY)),
            ("nan", _) => ExprKind::Float(Float(f64::NAN)),
            (_, Some(dtype)) => ExprKind::DType(dtype),
            _ if self.at(TokenKind::LeftParen) => {
                return self.call(Spanned::new(text.to_owned(), span));
            }
            _ => ExprKind::Name(text.to_owned()),
        };
        Ok(Expr { kind, span })
    }

    fn call(&mut self, callee: Name) -> Parsed<Expr> {
        let start = callee.span.start;
        let mut args = Vec::new();
        let mut named: Vec<(Name, Expr)> = Vec::new();
        self.list(TokenKind::LeftParen, TokenKind::RightParen, |parser| {
            if parser.at(TokenKind::Name) && parser.token_at(1).kind == TokenKind::Assign {
                let name = parser.name("an argument's name")?;
                parser.bump();
                let value = parser.expression()?;
                named.push((name, value));
                return Ok(());
            }
            let value = parser.expression()?;
            if let Some((name, _)) = named.first() {
                let diagnostic =
                    Diagnostic::error("an argument by position stands behind an argument by name")
                        .label(value.span, "give it a name, or move it to the front")
                        .label(name.span, "the first argument by name");
                return Err(parser.report(diagnostic));
            }
            args.push(value);
            Ok(())
        })?;
        Ok(Expr { kind: ExprKind::Call { callee, args, named }, span: self.span_from(start) })
    }

    /// `(a)` is `a`; `()`, `(a,)` and `(a, b)` are tuples.
    fn parenthesised(&mut self) -> Parsed<Expr> {
        let start = self.start();
        let mut items = self.list(TokenKind::LeftParen, TokenKind::RightParen, Parser::expression)?;
        let before_close = self.tokens.get(self.position.saturating_sub(2)).map(|token| token.kind);
        if items.len() == 1
            && before_close != Some(TokenKind::Comma)
            && let Some(inner) = items.pop()
        {
            return Ok(Expr { kind: inner.kind, span: self.span_from(start) });
        }
        Ok(Expr { kind: ExprKind::Tuple(items), span: self.span_from(start) })
    }

    /// `if`, `scope` or a block: what needs no semicolon as a statement.
    pub(super) fn block_like(&mut self) -> Parsed<Expr> {
        let start = self.start();
        let kind = match self.kind() {
            TokenKind::If => {
                self.bump();
                let condition = Box::new(self.expression()?);
                let then = self.block()?;
                let otherwise = if self.eat(TokenKind::Else) {
                    if !self.at(TokenKind::If) && !self.at(TokenKind::LeftBrace) {
                        return Err(self.expected("`{` or `if`"));
                    }
                    Some(Box::new(self.nested(Parser::block_like)?))
                } else {
                    None
                };
                ExprKind::If { condition, then, otherwise }
            }
            TokenKind::Scope => {
                self.bump();
                let name = Box::new(self.expression()?);
                ExprKind::Scope { name, body: self.block()? }
            }
            _ => ExprKind::Block(self.block()?),
        };
        Ok(Expr { kind, span: self.span_from(start) })
    }
}
