//! Types of parameters, results, inputs and `let`s, and rates.

use crate::ast::{Expr, ParamType, SpanOnly, TensorPattern};
use crate::dtype::DType;
use crate::lexer::TokenKind;
use crate::types::Rate;

use super::{Parsed, Parser};

impl Parser<'_> {
    /// The type that a word names where it is not the element type of a tensor.
    fn value_type(&self) -> Option<ParamType> {
        let token = self.token();
        if token.kind != TokenKind::Name {
            return None;
        }
        Some(match self.text_of(token) {
            "tensor" => ParamType::AnyTensor,
            "int" => ParamType::Int,
            "float" => ParamType::Float,
            "string" => ParamType::String,
            "bool" if self.token_at(1).kind != TokenKind::LeftBracket => ParamType::Bool,
            _ => return None,
        })
    }

    pub(super) fn param_type(&mut self) -> Parsed<ParamType> {
        self.nested(|parser| {
            if let Some(ty) = parser.value_type() {
                parser.bump();
                return Ok(ty);
            }
            if parser.at_list_type() {
                let open = parser.bump();
                let element = parser.param_type()?;
                parser.expect_closing(TokenKind::RightBracket, open)?;
                return Ok(ParamType::List(Box::new(element)));
            }
            Ok(ParamType::Tensor(parser.tensor_pattern()?))
        })
    }

    /// At `[int]` or `[[int]]`, which are lists, not shapes.
    fn at_list_type(&self) -> bool {
        if !self.at(TokenKind::LeftBracket) {
            return false;
        }
        let next = self.token_at(1);
        match next.kind {
            TokenKind::LeftBracket => true,
            TokenKind::Name => {
                matches!(self.text_of(next), "tensor" | "int" | "float" | "string" | "bool")
                    && self.token_at(2).kind == TokenKind::RightBracket
            }
            _ => false,
        }
    }

    pub(super) fn tensor_pattern(&mut self) -> Parsed<TensorPattern> {
        let start = self.start();
        let dtype = match self.kind() {
            TokenKind::Name => DType::from_name(self.text_of(self.token())),
            _ => None,
        };
        if dtype.is_some() {
            self.bump();
        }
        if !self.at(TokenKind::LeftBracket) {
            let what = if dtype.is_some() { "`[` and a shape" } else { "a type" };
            return Err(self.expected(what));
        }
        let mut leading = false;
        let mut first = true;
        let dims: Vec<Option<Expr>> =
            self.list(TokenKind::LeftBracket, TokenKind::RightBracket, |parser| {
                if std::mem::take(&mut first) && parser.eat(TokenKind::Ellipsis) {
                    leading = true;
                    return Ok(None);
                }
                if parser.at(TokenKind::Ellipsis) {
                    let diagnostic = parser
                        .expectation("a size", parser.token())
                        .help("`...` stands in front of the other sizes");
                    return Err(parser.report(diagnostic));
                }
                parser.expression().map(Some)
            })?;
        let dims = dims.into_iter().flatten().collect();
        Ok(TensorPattern { dtype, leading, dims, span: SpanOnly(self.span_from(start)) })
    }

    /// `per model`, `per prompt`, `per step`.
    pub(super) fn rate(&mut self) -> Parsed<Rate> {
        self.bump();
        let token = self.token();
        let rate = if token.kind == TokenKind::Name { Rate::from_name(self.text_of(token)) } else { None };
        let Some(rate) = rate else { return Err(self.expected("`model`, `prompt` or `step`")) };
        self.bump();
        Ok(rate)
    }
}
