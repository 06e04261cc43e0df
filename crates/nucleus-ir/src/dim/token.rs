//! The serialised form of a dim.

use serde::{Deserialize, Serialize};

use super::{Atom, Dim, DimError, MAX_COMPLEXITY, Symbol};
use crate::float::Float;

/// One piece of a dim in postfix order: the serialised form. It is flat, and reading it back goes through the checked operations, so
/// hostile input can neither nest without bound nor break the normal form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Token {
    Constant(i64),
    Symbol(Symbol),
    Add,
    Mul,
    CeilDiv,
    FloorDiv,
    Max,
    Min,
    CeilScale(Float, Float),
}

impl From<Dim> for Vec<Token> {
    fn from(dim: Dim) -> Vec<Token> {
        let mut tokens = Vec::new();
        write_tokens(&dim, &mut tokens);
        tokens
    }
}

fn write_tokens(dim: &Dim, tokens: &mut Vec<Token>) {
    if dim.terms.is_empty() {
        tokens.push(Token::Constant(0));
    }
    for (index, (monomial, coefficient)) in dim.terms.iter().enumerate() {
        tokens.push(Token::Constant(*coefficient));
        for atom in monomial {
            let mut pair = |a: &Dim, b: &Dim, token: Token| {
                write_tokens(a, tokens);
                write_tokens(b, tokens);
                tokens.push(token);
            };
            match atom {
                Atom::Symbol(symbol) => tokens.push(Token::Symbol(symbol.clone())),
                Atom::CeilDiv(a, b) => pair(a, b, Token::CeilDiv),
                Atom::FloorDiv(a, b) => pair(a, b, Token::FloorDiv),
                Atom::Max(a, b) => pair(a, b, Token::Max),
                Atom::Min(a, b) => pair(a, b, Token::Min),
                Atom::CeilScale { size, factor, divisor } => {
                    write_tokens(size, tokens);
                    tokens.push(Token::CeilScale(*factor, *divisor));
                }
            }
            tokens.push(Token::Mul);
        }
        if index > 0 {
            tokens.push(Token::Add);
        }
    }
}

impl TryFrom<Vec<Token>> for Dim {
    type Error = String;

    fn try_from(tokens: Vec<Token>) -> Result<Dim, String> {
        let malformed = || "a serialised size is malformed".to_owned();
        // A size within the limits takes at most four tokens for each of its terms and atoms; reading more would only take time.
        if tokens.len() > 4 * MAX_COMPLEXITY {
            return Err(DimError::TooComplex.to_string());
        }
        let mut stack: Vec<Dim> = Vec::new();
        for token in tokens {
            let mut pop = || stack.pop().ok_or_else(malformed);
            let dim = match token {
                Token::Constant(value) => Dim::constant(value),
                Token::Symbol(symbol) => Dim::atom(Atom::Symbol(symbol)),
                Token::CeilScale(factor, divisor) => {
                    pop()?.ceil_scale(factor.0, divisor.0).map_err(|error| error.to_string())?
                }
                binary => {
                    let (b, a) = (pop()?, pop()?);
                    let result = match binary {
                        Token::Add => a.add(&b),
                        Token::Mul => a.mul(&b),
                        Token::CeilDiv => a.ceil_div(&b),
                        Token::FloorDiv => a.floor_div(&b),
                        Token::Max => Dim::max(&a, &b),
                        _ => Dim::min(&a, &b),
                    };
                    result.map_err(|error| error.to_string())?
                }
            };
            stack.push(dim);
        }
        match (stack.pop(), stack.is_empty()) {
            (Some(dim), true) => Ok(dim),
            _ => Err(malformed()),
        }
    }
}
