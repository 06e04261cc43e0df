//! Items: `use`, `config`, `const`, `dim`, `require`, `fn`, `entry`.

use crate::ast::{
    ConfigKey, ConfigType, Entry, EntryInput, EntryOutput, Function, Item, Module, Name, Param, Require,
    ResultType,
};
use crate::diagnostics::Diagnostic;
use crate::lexer::TokenKind;

use super::{Parsed, Parser};

impl Parser<'_> {
    pub(super) fn module(&mut self) -> Module {
        let mut items = Vec::new();
        while !self.at(TokenKind::End) {
            match self.item() {
                Ok(item) => items.push(item),
                Err(_) => self.skip_to_item(),
            }
        }
        Module { items }
    }

    /// Skips behind the broken item: to its `;` or its last `}`, or to where another item begins.
    fn skip_to_item(&mut self) {
        let mut open = 0usize;
        loop {
            if self.at_item() || self.at(TokenKind::End) {
                return;
            }
            match self.bump().kind {
                TokenKind::LeftBrace => open += 1,
                TokenKind::RightBrace => {
                    open = open.saturating_sub(1);
                    if open == 0 {
                        return;
                    }
                }
                TokenKind::Semicolon if open == 0 => return,
                _ => {}
            }
        }
    }

    /// Skips to where an item begins, from something that is none.
    fn skip_stray(&mut self) {
        while !self.at_item() && !self.at(TokenKind::End) {
            self.bump();
        }
    }

    fn item(&mut self) -> Parsed<Item> {
        match self.kind() {
            TokenKind::Const => self.constant(),
            TokenKind::Fn => self.function(),
            TokenKind::Require => Ok(Item::Require(self.require()?)),
            TokenKind::Name if self.at_word("use") => self.use_item(),
            TokenKind::Name if self.at_word("config") => self.config(),
            TokenKind::Name if self.at_word("dim") => self.dims(),
            TokenKind::Name if self.at_word("entry") => self.entry(),
            _ => {
                let what = "an item (`use`, `config`, `const`, `dim`, `require`, `fn` or `entry`)";
                let reported = self.expected(what);
                self.skip_stray();
                Err(reported)
            }
        }
    }

    fn use_item(&mut self) -> Parsed<Item> {
        self.bump();
        let module = self.name("the name of a module")?;
        let names = self.list(TokenKind::LeftBrace, TokenKind::RightBrace, |parser| {
            parser.name("the name of a function or constant")
        })?;
        self.expect(TokenKind::Semicolon)?;
        Ok(Item::Use { module, names })
    }

    fn config(&mut self) -> Parsed<Item> {
        self.bump();
        let open = self.expect(TokenKind::LeftBrace)?;
        let mut keys = Vec::new();
        while !self.at(TokenKind::RightBrace) {
            if self.at(TokenKind::End) || self.at_item() {
                break;
            }
            let first = self.position;
            match self.config_key() {
                Ok(key) => keys.push(key),
                Err(_) => self.skip_statement(first),
            }
        }
        self.expect_closing(TokenKind::RightBrace, open)?;
        Ok(Item::Config(keys))
    }

    fn config_key(&mut self) -> Parsed<ConfigKey> {
        let name = self.name("a config key")?;
        self.expect(TokenKind::Colon)?;
        let ty = self.config_type()?;
        let default = if self.eat(TokenKind::Assign) { Some(self.expression()?) } else { None };
        self.expect(TokenKind::Semicolon)?;
        Ok(ConfigKey { name, ty, default })
    }

    fn config_type(&mut self) -> Parsed<ConfigType> {
        self.nested(|parser| {
            let token = parser.token();
            let mut ty = if token.kind == TokenKind::LeftBracket {
                parser.bump();
                let element = parser.config_type()?;
                let length = if parser.eat(TokenKind::Semicolon) {
                    Some(Box::new(parser.expression()?))
                } else {
                    None
                };
                parser.expect_closing(TokenKind::RightBracket, token)?;
                ConfigType::List(Box::new(element), length)
            } else {
                let ty = match parser.text_of(token) {
                    "int" => ConfigType::Int,
                    "float" => ConfigType::Float,
                    "bool" => ConfigType::Bool,
                    "string" => ConfigType::String,
                    _ => {
                        return Err(parser
                            .expected("a config type (`int`, `float`, `bool`, `string` or a list of them)"));
                    }
                };
                parser.bump();
                ty
            };
            if parser.eat(TokenKind::Question) {
                ty = ConfigType::Optional(Box::new(ty));
            }
            Ok(ty)
        })
    }

    fn constant(&mut self) -> Parsed<Item> {
        self.bump();
        let name = self.name("the name of a constant")?;
        self.expect(TokenKind::Assign)?;
        let value = self.expression()?;
        self.expect(TokenKind::Semicolon)?;
        Ok(Item::Const { name, value })
    }

    fn dims(&mut self) -> Parsed<Item> {
        self.bump();
        let mut names = vec![self.name("the name of a dim")?];
        while self.eat(TokenKind::Comma) {
            if self.at(TokenKind::Semicolon) {
                break;
            }
            names.push(self.name("the name of a dim")?);
        }
        self.expect(TokenKind::Semicolon)?;
        Ok(Item::Dims(names))
    }

    pub(super) fn require(&mut self) -> Parsed<Require> {
        self.expect(TokenKind::Require)?;
        let condition = self.expression()?;
        if !self.at(TokenKind::Comma) {
            let diagnostic = self
                .expectation("`,` and a message", self.token())
                .help("`require condition, \"what must hold\";`");
            return Err(self.report(diagnostic));
        }
        self.bump();
        let message = self.expression()?;
        self.eat(TokenKind::Comma);
        self.expect(TokenKind::Semicolon)?;
        Ok(Require { condition, message })
    }

    fn function(&mut self) -> Parsed<Item> {
        self.bump();
        let name = self.name("the name of a function")?;
        let params = self.list(TokenKind::LeftParen, TokenKind::RightParen, |parser| {
            let name = parser.name("a parameter")?;
            parser.expect(TokenKind::Colon)?;
            let ty = parser.param_type()?;
            let default = if parser.eat(TokenKind::Assign) { Some(parser.expression()?) } else { None };
            Ok(Param { name, ty, default })
        })?;
        let result = if self.eat(TokenKind::Arrow) { Some(self.result_type()?) } else { None };
        let body = self.block()?;
        Ok(Item::Function(Function { name, params, result, body }))
    }

    fn result_type(&mut self) -> Parsed<ResultType> {
        if self.at(TokenKind::LeftParen) {
            let types = self.list(TokenKind::LeftParen, TokenKind::RightParen, Parser::tensor_pattern)?;
            return Ok(ResultType::Tuple(types));
        }
        Ok(match self.param_type()? {
            crate::ast::ParamType::Tensor(pattern) => ResultType::Tensor(pattern),
            other => ResultType::Value(other),
        })
    }

    fn entry(&mut self) -> Parsed<Item> {
        self.bump();
        let name = self.name("the name of an entry")?;
        let inputs = self.list(TokenKind::LeftParen, TokenKind::RightParen, Parser::entry_input)?;
        self.expect(TokenKind::Arrow)?;
        let outputs = self.list(TokenKind::LeftParen, TokenKind::RightParen, |parser| {
            let name = parser.output_name()?;
            parser.expect(TokenKind::Colon)?;
            Ok(EntryOutput { name, ty: parser.tensor_pattern()? })
        })?;
        let body = self.block()?;
        Ok(Item::Entry(Entry { name, inputs, outputs, body }))
    }

    /// A name, or in quotes what is none: the weight whose gradient it is.
    fn output_name(&mut self) -> Parsed<Name> {
        if !self.at(TokenKind::String) {
            return self.name("an output");
        }
        self.plain_string("the name of an output")
    }

    fn entry_input(&mut self) -> Parsed<EntryInput> {
        let name = self.name("an input")?;
        self.expect(TokenKind::Colon)?;
        let ty = self.tensor_pattern()?;
        if !self.at_word("per") {
            let diagnostic = self
                .expectation("`per` and a rate", self.token())
                .help("say how often the input changes: `per model`, `per prompt` or `per step`");
            return Err(self.report(diagnostic));
        }
        let rate = self.rate()?;
        let mut default = None;
        if self.at_word("optional") {
            let word = self.bump();
            if !self.eat(TokenKind::Assign) {
                let diagnostic =
                    Diagnostic::error(format!("the optional input `{}` has no value", name.node))
                        .label(self.span_of(word), "expected `= value` behind this")
                        .help("`optional = true` gives every element that value when the input is not given");
                return Err(self.report(diagnostic));
            }
            default = Some(self.expression()?);
        }
        Ok(EntryInput { name, ty, rate, default })
    }
}
