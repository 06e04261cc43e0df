//! Blocks and statements.

use crate::ast::{Block, Expr, ExprKind, Let, Statement};
use crate::diagnostics::Diagnostic;
use crate::lexer::TokenKind;
use crate::source::Spanned;

use super::{Parsed, Parser};

enum Step {
    Statement(Statement),
    Value(Expr),
}

impl Parser<'_> {
    pub(super) fn block(&mut self) -> Parsed<Block> {
        self.nested(|parser| {
            let open = parser.expect(TokenKind::LeftBrace)?;
            let mut block = Block::default();
            loop {
                if parser.at(TokenKind::RightBrace) || parser.at(TokenKind::End) || parser.at_item() {
                    break;
                }
                let first = parser.position;
                match parser.step() {
                    Ok(Step::Statement(statement)) => block.statements.push(statement),
                    Ok(Step::Value(value)) => {
                        block.value = Some(Box::new(value));
                        break;
                    }
                    Err(_) => parser.skip_statement(first),
                }
            }
            parser.expect_closing(TokenKind::RightBrace, open)?;
            Ok(block)
        })
    }

    /// Skips behind the broken statement that began at token `first`: behind its `;`, or to the `}` of its block, or to
    /// where another statement or an item begins.
    pub(super) fn skip_statement(&mut self, first: usize) {
        let mut open = 0usize;
        while !self.at(TokenKind::End) && !self.at_item() {
            match self.kind() {
                TokenKind::LeftBrace => open += 1,
                TokenKind::RightBrace if open == 0 => return,
                TokenKind::RightBrace => open -= 1,
                TokenKind::Let | TokenKind::Var | TokenKind::For | TokenKind::Require
                    if open == 0 && self.position > first =>
                {
                    return;
                }
                TokenKind::Semicolon if open == 0 => {
                    self.bump();
                    return;
                }
                _ => {}
            }
            self.bump();
        }
    }

    fn step(&mut self) -> Parsed<Step> {
        match self.kind() {
            TokenKind::Let | TokenKind::Var => Ok(Step::Statement(Statement::Let(self.binding()?))),
            TokenKind::For => Ok(Step::Statement(self.for_loop()?)),
            TokenKind::Require => Ok(Step::Statement(Statement::Require(self.require()?))),
            TokenKind::Name if self.token_at(1).kind == TokenKind::Assign => {
                let name = self.name("a variable")?;
                self.bump();
                let value = self.expression()?;
                self.expect(TokenKind::Semicolon)?;
                Ok(Step::Statement(Statement::Assign { name, value }))
            }
            TokenKind::If | TokenKind::Scope | TokenKind::LeftBrace => {
                let value = self.nested(Parser::block_like)?;
                Ok(if self.at(TokenKind::RightBrace) {
                    Step::Value(value)
                } else {
                    self.eat(TokenKind::Semicolon);
                    Step::Statement(Statement::Expr(value))
                })
            }
            _ => {
                let value = self.expression()?;
                if self.eat(TokenKind::Semicolon) {
                    return Ok(Step::Statement(Statement::Expr(value)));
                }
                if self.at(TokenKind::RightBrace) {
                    return Ok(Step::Value(value));
                }
                Err(self.expected("`;` or `}`"))
            }
        }
    }

    fn binding(&mut self) -> Parsed<Let> {
        let mutable = self.bump().kind == TokenKind::Var;
        let tuple = self.at(TokenKind::LeftParen);
        let names = if tuple {
            self.list(TokenKind::LeftParen, TokenKind::RightParen, |parser| parser.name("a name"))?
        } else {
            vec![self.name("a name")?]
        };
        let mut types = Vec::new();
        if self.eat(TokenKind::Colon) {
            let start = self.start();
            types = if tuple {
                self.list(TokenKind::LeftParen, TokenKind::RightParen, Parser::tensor_pattern)?
            } else {
                vec![self.tensor_pattern()?]
            };
            if types.len() != names.len() {
                let diagnostic =
                    Diagnostic::error(format!("{} names have {} types", names.len(), types.len()))
                        .label(self.span_from(start), "one type for each name is needed");
                return Err(self.report(diagnostic));
            }
        }
        let rate = if self.at_word("per") { Some(self.rate()?) } else { None };
        self.expect(TokenKind::Assign)?;
        let value = self.expression()?;
        let scope = if self.eat_word("at") { Some(self.plain_string("a scope")?) } else { None };
        self.expect(TokenKind::Semicolon)?;
        Ok(Let { mutable, names, tuple, types, rate, value, scope })
    }

    pub(super) fn plain_string(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let token = self.token();
        if token.kind != TokenKind::String {
            return Err(self.expected(&format!("{what} in quotes")));
        }
        let value = self.string()?;
        match value.kind {
            ExprKind::String(parts) => match parts.as_slice() {
                [] => return Ok(Spanned::new(String::new(), value.span)),
                [crate::ast::StringPart::Text(text)] => return Ok(Spanned::new(text.clone(), value.span)),
                _ => {}
            },
            _ => return Err(self.expected(what)),
        }
        let diagnostic = Diagnostic::error("this string must be plain: it takes no `{…}`")
            .label(value.span, format!("{what} is written out"));
        Err(self.report(diagnostic))
    }

    fn for_loop(&mut self) -> Parsed<Statement> {
        self.bump();
        let name = self.name("a loop variable")?;
        if !self.eat_word("in") {
            return Err(self.expected("`in`"));
        }
        let from = self.expression()?;
        self.expect(TokenKind::To)?;
        let to = self.expression()?;
        let body = self.block()?;
        self.eat(TokenKind::Semicolon);
        Ok(Statement::For { name, from, to, body })
    }
}
