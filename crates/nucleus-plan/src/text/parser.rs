//! Text → plan. It reads what the printer writes; whether the plan makes sense is the verifier's question.

use std::ops::Range;

use logos::Logos;
use nucleus_ir::{Constraint, DType, Dim, DimError, Float, Rate, Symbol, TensorType};

use crate::buffer::{Buffer, BufferId, Place};
use crate::kernel::KernelId;
use crate::plan::{Launch, Plan, PlanInput, PlanOutput};
use crate::scalar::Size;

mod functions;
mod kernels;

/// Why a text is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plan text, line {line}: {message}")]
pub struct PlanTextError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

#[derive(Logos, Clone, Copy, Debug, PartialEq)]
#[logos(skip r"[ \t\r\n]+", skip(r"//[^\n]*", allow_greedy = true))]
enum Token {
    #[regex(r"[A-Za-z_][A-Za-z0-9_]*")]
    Name,
    #[regex(r"[0-9]+", priority = 3)]
    Int,
    #[regex(r"[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?")]
    Float,
    #[regex(r#""([^"\\]|\\.)*""#)]
    String,
    #[token("<=")]
    LessEqual,
    #[regex(r"[{}()\[\],;:=+*-]")]
    Punctuation,
}

/// The plan that [`Plan`]'s `Display` printed as `text`.
pub fn parse_plan(text: &str) -> Result<Plan, PlanTextError> {
    let mut parser = Parser { text, tokens: Vec::new(), next: 0 };
    for (token, range) in Token::lexer(text).spanned() {
        let token = token.map_err(|()| parser.error_at(range.start, "not a token"))?;
        parser.tokens.push((token, range));
    }
    let plan = parser.plan()?;
    match parser.peek() {
        None => Ok(plan),
        Some(_) => Err(parser.error("text after the plan")),
    }
}

type Parsed<T> = Result<T, PlanTextError>;

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Range<usize>)>,
    next: usize,
}

/// The deepest nesting of size expressions.
const MAX_NESTING: usize = 64;

impl<'a> Parser<'a> {
    fn error_at(&self, position: usize, message: &str) -> PlanTextError {
        let before = self.text.get(..position).unwrap_or(self.text);
        PlanTextError { line: before.matches('\n').count() + 1, message: message.to_owned() }
    }

    fn error(&self, message: &str) -> PlanTextError {
        let position = self.tokens.get(self.next).map_or(self.text.len(), |(_, range)| range.start);
        match self.peek() {
            Some(found) => self.error_at(position, &format!("{message}, found `{found}`")),
            None => self.error_at(position, &format!("{message}, found the end")),
        }
    }

    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.next).map(|(_, range)| &self.text[range.clone()])
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Parsed<()> {
        if self.accept(text) { Ok(()) } else { Err(self.error(&format!("expected `{text}`"))) }
    }

    fn take(&mut self, token: Token, what: &str) -> Parsed<&'a str> {
        match self.tokens.get(self.next) {
            Some((found, range)) if *found == token => {
                self.next += 1;
                Ok(&self.text[range.clone()])
            }
            _ => Err(self.error(&format!("expected {what}"))),
        }
    }

    fn name(&mut self) -> Parsed<&'a str> {
        self.take(Token::Name, "a name")
    }

    fn string(&mut self) -> Parsed<String> {
        let quoted = self.take(Token::String, "a string")?;
        let mut text = String::with_capacity(quoted.len());
        let mut characters = quoted[1..quoted.len() - 1].chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some('n') => text.push('\n'),
                    Some(escaped) => text.push(escaped),
                    None => {}
                },
                _ => text.push(character),
            }
        }
        Ok(text)
    }

    /// `prefix` directly followed by a number, e.g. `b12`.
    fn numbered(&mut self, prefix: &str) -> Parsed<u32> {
        let name =
            self.peek().and_then(|name| name.strip_prefix(prefix)).and_then(|digits| digits.parse().ok());
        let number = name.ok_or_else(|| self.error(&format!("expected `{prefix}` and a number")))?;
        self.next += 1;
        Ok(number)
    }

    fn unsigned(&mut self) -> Parsed<u32> {
        let text = self.take(Token::Int, "a number")?;
        text.parse().map_err(|_| self.error("a number is too large"))
    }

    fn integer(&mut self) -> Parsed<i64> {
        let negative = self.accept("-");
        let magnitude: i128 = self
            .take(Token::Int, "an integer")?
            .parse()
            .map_err(|_| self.error("an integer is too large"))?;
        i64::try_from(if negative { -magnitude } else { magnitude })
            .map_err(|_| self.error("an integer is too large"))
    }

    fn float(&mut self) -> Parsed<Float> {
        let negative = self.accept("-");
        let text = self.peek().unwrap_or_default();
        let value: f64 = text.parse().map_err(|_| self.error("expected a number"))?;
        self.next += 1;
        Ok(Float(if negative { -value } else { value }))
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let dtype =
            self.peek().and_then(DType::from_name).ok_or_else(|| self.error("expected an element type"))?;
        self.next += 1;
        Ok(dtype)
    }

    fn rate(&mut self) -> Parsed<Rate> {
        let rate = self
            .peek()
            .and_then(Rate::from_name)
            .ok_or_else(|| self.error("expected model, prompt or step"))?;
        self.next += 1;
        Ok(rate)
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Parser<'a>) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.accept(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn dim(&mut self) -> Parsed<Dim> {
        self.dim_at(0)
    }

    fn dim_at(&mut self, depth: usize) -> Parsed<Dim> {
        if depth > MAX_NESTING {
            return Err(self.error("a size is nested too deeply"));
        }
        let mut sum = Dim::constant(0);
        let mut negative = self.accept("-");
        loop {
            let mut term = Dim::constant(if negative { -1 } else { 1 });
            loop {
                let factor = self.dim_factor(depth)?;
                term = self.checked(term.mul(&factor))?;
                if !self.accept("*") {
                    break;
                }
            }
            sum = self.checked(sum.add(&term))?;
            negative = match self.peek() {
                Some("+") => false,
                Some("-") => true,
                _ => return Ok(sum),
            };
            self.next += 1;
        }
    }

    fn dim_factor(&mut self, depth: usize) -> Parsed<Dim> {
        if matches!(self.tokens.get(self.next), Some((Token::Int, _))) {
            return Ok(Dim::constant(self.integer()?));
        }
        let name = self.name()?;
        if !self.accept("(") {
            return Ok(Dim::symbol(name));
        }
        let first = self.dim_at(depth + 1)?;
        self.expect(",")?;
        let dim = if name == "ceil_scale" {
            let factor = self.float()?;
            self.expect(",")?;
            first.ceil_scale(factor.0, self.float()?.0)
        } else {
            let second = self.dim_at(depth + 1)?;
            match name {
                "ceil_div" => first.ceil_div(&second),
                "floor_div" => first.floor_div(&second),
                "max" => Dim::max(&first, &second),
                "min" => Dim::min(&first, &second),
                _ => return Err(self.error(&format!("`{name}` is not a function of sizes"))),
            }
        };
        self.expect(")")?;
        self.checked(dim)
    }

    fn checked(&self, dim: Result<Dim, DimError>) -> Parsed<Dim> {
        dim.map_err(|error| self.error(&error.to_string()))
    }

    fn ty(&mut self) -> Parsed<TensorType> {
        let dtype = self.dtype()?;
        self.expect("[")?;
        let shape = if self.peek() == Some("]") { Vec::new() } else { self.list(Parser::dim)? };
        self.expect("]")?;
        Ok(TensorType::new(dtype, shape))
    }

    fn plan(&mut self) -> Parsed<Plan> {
        self.expect("plan")?;
        let mut plan = Plan { entry: self.name()?.to_owned(), ..Plan::default() };
        self.expect("{")?;
        while !self.accept("}") {
            match self.name()? {
                "dim" => {
                    plan.dims = self.list(|parser| Ok(Symbol::new(parser.name()?)))?;
                    self.expect(";")?;
                }
                "input" => plan.inputs.push(self.input()?),
                "output" => {
                    let quoted = self.tokens.get(self.next).is_some_and(|(token, _)| *token == Token::String);
                    let name = if quoted { self.string()? } else { self.name()?.to_owned() };
                    self.expect(":")?;
                    plan.outputs.push(PlanOutput { name, ty: self.ty()? });
                    self.expect(";")?;
                }
                "require" => {
                    let smaller = self.dim()?;
                    self.expect("<=")?;
                    let larger = self.dim()?;
                    self.expect(",")?;
                    plan.constraints.push(Constraint { smaller, larger, what: self.string()? });
                    self.expect(";")?;
                }
                "weight" => {
                    let name = self.string()?;
                    self.expect(":")?;
                    plan.weights.push((name, self.ty()?));
                    self.expect(";")?;
                }
                "arenas" => {
                    self.expect("model")?;
                    let model = self.dim()?;
                    self.expect(",")?;
                    self.expect("prompt")?;
                    let prompt = self.dim()?;
                    self.expect(",")?;
                    self.expect("step")?;
                    plan.arenas = Some([model, prompt, self.dim()?]);
                    self.expect(";")?;
                }
                "buffer" => {
                    self.expect_number("b", plan.buffers.len())?;
                    self.expect(":")?;
                    plan.buffers.push(self.buffer()?);
                }
                "kernel" => {
                    self.expect_number("k", plan.kernels.len())?;
                    plan.kernels.push(self.kernel()?);
                }
                "launch" => plan.launches.push(self.launch()?),
                _ => {
                    self.next -= 1;
                    return Err(self.error("expected an item of a plan"));
                }
            }
        }
        Ok(plan)
    }

    fn expect_number(&mut self, prefix: &str, want: usize) -> Parsed<()> {
        let number = self.numbered(prefix)?;
        if number as usize == want {
            Ok(())
        } else {
            Err(self.error(&format!("expected `{prefix}{want}` before this")))
        }
    }

    fn input(&mut self) -> Parsed<PlanInput> {
        let name = self.name()?.to_owned();
        self.expect(":")?;
        let ty = self.ty()?;
        self.expect("per")?;
        let rate = self.rate()?;
        let default = if self.accept("optional") {
            self.expect("=")?;
            Some(self.float()?)
        } else {
            None
        };
        self.expect(";")?;
        Ok(PlanInput { name, ty, rate, default })
    }

    fn buffer(&mut self) -> Parsed<Buffer> {
        let TensorType { dtype, shape } = self.ty()?;
        let place = match self.name()? {
            "weight" => Place::Weight(self.string()?),
            "input" => Place::Input(self.unsigned()?),
            "output" => Place::Output(self.unsigned()?),
            "state" => Place::State(self.string()?),
            "arena" => {
                let rate = self.rate()?;
                let offset = if self.accept("at") { Some(self.dim()?) } else { None };
                Place::Arena { rate, offset }
            }
            _ => return Err(self.error("expected weight, input, output, state or arena before this")),
        };
        self.expect(";")?;
        Ok(Buffer { dtype, shape, place })
    }

    fn launch(&mut self) -> Parsed<Launch> {
        let kernel = KernelId(self.numbered("k")?);
        self.expect("(")?;
        let operands = if self.peek() == Some(")") {
            Vec::new()
        } else {
            self.list(|parser| Ok(BufferId(parser.numbered("b")?)))?
        };
        self.expect(")")?;
        let sizes = if self.accept("sizes") { self.list(Parser::dim)? } else { Vec::new() };
        self.expect("per")?;
        let stage = self.rate()?;
        self.expect("flops")?;
        let flops = self.dim()?;
        self.expect("bytes")?;
        let bytes = self.dim()?;
        let scope = if self.accept("at") { Some(self.string()?) } else { None };
        self.expect(";")?;
        Ok(Launch { kernel, stage, operands, sizes, flops, bytes, scope })
    }

    fn field<T>(&mut self, name: &str, value: impl FnOnce(&mut Parser<'a>) -> Parsed<T>) -> Parsed<T> {
        self.expect(name)?;
        let value = value(self)?;
        self.expect(";")?;
        Ok(value)
    }

    fn size(&mut self) -> Parsed<Size> {
        match self.peek() {
            Some(text) if text.starts_with('s') => Ok(Size::Arg(self.numbered("s")?)),
            _ => Ok(Size::Const(self.integer()?)),
        }
    }

    fn sizes(&mut self, name: &str) -> Parsed<Vec<Size>> {
        self.expect(name)?;
        let sizes = if self.peek() == Some(";") { Vec::new() } else { self.list(Parser::size)? };
        self.expect(";")?;
        Ok(sizes)
    }
}
