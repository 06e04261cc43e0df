//! The dim algebra: symbolic sizes in a normal form that decides equality.
//!
//! A [`Dim`] is a polynomial with integer coefficients over *atoms*. An atom is a symbol (a run-time size such as `B`, at
//! least 1) or an opaque function of dims (`ceil_div`, `floor_div`, `max`, `min`, `ceil_scale`). Sums are kept sorted and
//! collected, so two dims are equal for every binding of the symbols if their normal forms are equal; the converse
//! holds for polynomials and is given up for the opaque functions, where only syntactic equality is seen.
//!
//! Everything is checked: arithmetic that overflows `i64`, or a form that grows beyond [`MAX_TERMS`], is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::float::Float;

mod token;

/// The largest number of terms in one normal form.
pub const MAX_TERMS: usize = 64;
/// The deepest nesting of opaque functions in one dim.
pub const MAX_DEPTH: usize = 16;
/// The most terms and atoms in one dim, those inside opaque functions included.
pub const MAX_COMPLEXITY: usize = 1024;

/// The name of a run-time size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// The symbol of that name.
    pub fn new(name: &str) -> Symbol {
        Symbol(Arc::from(name))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What can go wrong with dim arithmetic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// A coefficient or value left the range of `i64`.
    #[error("a size exceeds 2^63")]
    Overflow,
    /// The normal form has too many terms or is nested too deeply.
    #[error(
        "a size expression has more than {MAX_TERMS} terms, is nested more than {MAX_DEPTH} deep, or is too large"
    )]
    TooComplex,
    /// Division by zero.
    #[error("a size is divided by zero")]
    DivisionByZero,
    /// A symbol has no value.
    #[error("dim `{0}` has no value")]
    Unbound(Symbol),
    /// A scaled size is not a finite, non-negative number.
    #[error("a scaled size is not a finite number")]
    NotFinite,
}

/// A factor of a monomial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A run-time size.
    Symbol(Symbol),
    /// ⌈numerator / denominator⌉.
    CeilDiv(Dim, Dim),
    /// ⌊numerator / denominator⌋.
    FloorDiv(Dim, Dim),
    /// The larger of two sizes.
    Max(Dim, Dim),
    /// The smaller of two sizes.
    Min(Dim, Dim),
    /// ⌈(factor · size) / divisor⌉ in IEEE 754 binary64, evaluated left to right: what a float capacity factor gives.
    CeilScale {
        /// The size.
        size: Dim,
        /// What it is multiplied by first.
        factor: Float,
        /// What the product is divided by.
        divisor: Float,
    },
}

/// A symbolic size: a sum of integer multiples of products of atoms. See the [module documentation](self).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<token::Token>", into = "Vec<token::Token>")]
pub struct Dim {
    /// Sorted by monomial; no zero coefficients. A monomial is a sorted list of atoms; the empty one is 1.
    terms: Vec<(Vec<Atom>, i64)>,
}

impl Dim {
    /// The constant size `value`.
    pub fn constant(value: i64) -> Dim {
        Dim { terms: if value == 0 { Vec::new() } else { vec![(Vec::new(), value)] } }
    }

    /// The run-time size `name`.
    pub fn symbol(name: &str) -> Dim {
        Dim::atom(Atom::Symbol(Symbol::new(name)))
    }

    fn atom(atom: Atom) -> Dim {
        Dim { terms: vec![(vec![atom], 1)] }
    }

    /// The terms of the normal form: monomial and coefficient.
    pub fn terms(&self) -> &[(Vec<Atom>, i64)] {
        &self.terms
    }

    /// The value, if no symbol occurs.
    pub fn as_constant(&self) -> Option<i64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [(monomial, value)] if monomial.is_empty() => Some(*value),
            _ => None,
        }
    }

    /// True if this is the constant `value`.
    pub fn is_constant(&self, value: i64) -> bool {
        self.as_constant() == Some(value)
    }

    fn from_map(map: BTreeMap<Vec<Atom>, i64>) -> Result<Dim, DimError> {
        let terms: Vec<_> = map.into_iter().filter(|(_, coefficient)| *coefficient != 0).collect();
        if terms.len() > MAX_TERMS || terms.iter().any(|(monomial, _)| monomial.len() > MAX_TERMS) {
            return Err(DimError::TooComplex);
        }
        let dim = Dim { terms };
        if dim.complexity() > MAX_COMPLEXITY { Err(DimError::TooComplex) } else { Ok(dim) }
    }

    /// The number of terms and atoms, those inside opaque functions included: how much work an operation on it is.
    pub fn complexity(&self) -> usize {
        let atom = |atom: &Atom| match atom {
            Atom::Symbol(_) => 1,
            Atom::CeilDiv(a, b) | Atom::FloorDiv(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                1 + a.complexity() + b.complexity()
            }
            Atom::CeilScale { size, .. } => 1 + size.complexity(),
        };
        self.terms.iter().map(|(monomial, _)| 1 + monomial.iter().map(atom).sum::<usize>()).sum()
    }

    /// The sum.
    pub fn add(&self, other: &Dim) -> Result<Dim, DimError> {
        let mut map: BTreeMap<Vec<Atom>, i64> = self.terms.iter().cloned().collect();
        for (monomial, coefficient) in &other.terms {
            let slot = map.entry(monomial.clone()).or_insert(0);
            *slot = slot.checked_add(*coefficient).ok_or(DimError::Overflow)?;
        }
        Dim::from_map(map)
    }

    /// The difference; it may be negative as an intermediate value.
    pub fn sub(&self, other: &Dim) -> Result<Dim, DimError> {
        self.add(&other.mul(&Dim::constant(-1))?)
    }

    /// The product.
    pub fn mul(&self, other: &Dim) -> Result<Dim, DimError> {
        if self.terms.len() * other.terms.len() > MAX_TERMS * MAX_TERMS {
            return Err(DimError::TooComplex);
        }
        let mut map: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (left, a) in &self.terms {
            for (right, b) in &other.terms {
                let mut monomial = left.clone();
                monomial.extend(right.iter().cloned());
                monomial.sort();
                let product = a.checked_mul(*b).ok_or(DimError::Overflow)?;
                let slot = map.entry(monomial).or_insert(0);
                *slot = slot.checked_add(product).ok_or(DimError::Overflow)?;
            }
        }
        Dim::from_map(map)
    }

    /// `self / divisor` where the normal form shows that it divides exactly, for a divisor of one term.
    pub fn exact_div(&self, divisor: &Dim) -> Option<Dim> {
        if let Some(1) = divisor.as_constant() {
            return Some(self.clone());
        }
        if self == divisor && !self.terms.is_empty() {
            return Some(Dim::constant(1));
        }
        let [(factors, by)] = divisor.terms.as_slice() else { return None };
        let mut terms = Vec::with_capacity(self.terms.len());
        for (monomial, coefficient) in &self.terms {
            let mut rest = monomial.clone();
            for factor in factors {
                let position = rest.iter().position(|atom| atom == factor)?;
                rest.remove(position);
            }
            if coefficient.checked_rem(*by)? != 0 {
                return None;
            }
            terms.push((rest, coefficient / by));
        }
        terms.sort();
        Some(Dim { terms })
    }

    /// ⌈self / divisor⌉.
    pub fn ceil_div(&self, divisor: &Dim) -> Result<Dim, DimError> {
        self.divide(divisor, ceil_div, Atom::CeilDiv)
    }

    /// ⌊self / divisor⌋.
    pub fn floor_div(&self, divisor: &Dim) -> Result<Dim, DimError> {
        self.divide(divisor, floor_div, Atom::FloorDiv)
    }

    fn divide(
        &self,
        divisor: &Dim,
        fold: fn(i64, i64) -> Result<i64, DimError>,
        atom: fn(Dim, Dim) -> Atom,
    ) -> Result<Dim, DimError> {
        if divisor.is_constant(0) {
            return Err(DimError::DivisionByZero);
        }
        if let (Some(a), Some(b)) = (self.as_constant(), divisor.as_constant()) {
            return Ok(Dim::constant(fold(a, b)?));
        }
        if let Some(quotient) = self.exact_div(divisor) {
            return Ok(quotient);
        }
        Dim::opaque(atom(self.clone(), divisor.clone()))
    }

    /// The larger of two sizes.
    pub fn max(&self, other: &Dim) -> Result<Dim, DimError> {
        self.choose(other, i64::max, Atom::Max)
    }

    /// The smaller of two sizes.
    pub fn min(&self, other: &Dim) -> Result<Dim, DimError> {
        self.choose(other, i64::min, Atom::Min)
    }

    fn choose(
        &self,
        other: &Dim,
        fold: fn(i64, i64) -> i64,
        atom: fn(Dim, Dim) -> Atom,
    ) -> Result<Dim, DimError> {
        if let (Some(a), Some(b)) = (self.as_constant(), other.as_constant()) {
            return Ok(Dim::constant(fold(a, b)));
        }
        if self == other {
            return Ok(self.clone());
        }
        // The smaller normal form first, so that max(a, b) and max(b, a) are the same atom.
        let (first, second) = if self <= other { (self, other) } else { (other, self) };
        Dim::opaque(atom(first.clone(), second.clone()))
    }

    /// ⌈(factor · self) / divisor⌉ as IEEE 754 binary64 computes it from left to right. Whole numbers below 2^31 give the
    /// exact `ceil_div`, where the two agree for every size below 2^20.
    pub fn ceil_scale(&self, factor: f64, divisor: f64) -> Result<Dim, DimError> {
        if !(factor.is_finite() && divisor.is_finite()) || divisor <= 0.0 || factor < 0.0 {
            return Err(DimError::NotFinite);
        }
        let whole =
            |value: f64| (value.fract() == 0.0 && value.abs() < 2_147_483_648.0).then_some(value as i64);
        if let (Some(a), Some(b)) = (whole(factor), whole(divisor)) {
            return self.mul(&Dim::constant(a))?.ceil_div(&Dim::constant(b));
        }
        if let Some(value) = self.as_constant() {
            return Ok(Dim::constant(ceil_scale(value, factor, divisor)?));
        }
        Dim::opaque(Atom::CeilScale { size: self.clone(), factor: Float(factor), divisor: Float(divisor) })
    }

    fn opaque(atom: Atom) -> Result<Dim, DimError> {
        let dim = Dim::atom(atom);
        if dim.depth() > MAX_DEPTH || dim.complexity() > MAX_COMPLEXITY {
            Err(DimError::TooComplex)
        } else {
            Ok(dim)
        }
    }

    fn depth(&self) -> usize {
        let atoms = self.terms.iter().flat_map(|(monomial, _)| monomial);
        atoms
            .map(|atom| match atom {
                Atom::Symbol(_) => 0,
                Atom::CeilDiv(a, b) | Atom::FloorDiv(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    1 + a.depth().max(b.depth())
                }
                Atom::CeilScale { size, .. } => 1 + size.depth(),
            })
            .max()
            .unwrap_or(0)
    }

    /// Adds every symbol that occurs to `symbols`.
    pub fn collect_symbols(&self, symbols: &mut std::collections::BTreeSet<Symbol>) {
        for atom in self.terms.iter().flat_map(|(monomial, _)| monomial) {
            match atom {
                Atom::Symbol(symbol) => {
                    symbols.insert(symbol.clone());
                }
                Atom::CeilDiv(a, b) | Atom::FloorDiv(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.collect_symbols(symbols);
                    b.collect_symbols(symbols);
                }
                Atom::CeilScale { size, .. } => size.collect_symbols(symbols),
            }
        }
    }

    /// The value under a binding of the symbols.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, DimError> {
        let mut sum = 0i64;
        for (monomial, coefficient) in &self.terms {
            let mut product = *coefficient;
            for atom in monomial {
                product = product.checked_mul(atom.eval(bindings)?).ok_or(DimError::Overflow)?;
            }
            sum = sum.checked_add(product).ok_or(DimError::Overflow)?;
        }
        Ok(sum)
    }
}

impl Atom {
    fn eval(&self, bindings: &Bindings) -> Result<i64, DimError> {
        match self {
            Atom::Symbol(symbol) => bindings.get(symbol).ok_or_else(|| DimError::Unbound(symbol.clone())),
            Atom::CeilDiv(a, b) => ceil_div(a.eval(bindings)?, b.eval(bindings)?),
            Atom::FloorDiv(a, b) => floor_div(a.eval(bindings)?, b.eval(bindings)?),
            Atom::Max(a, b) => Ok(a.eval(bindings)?.max(b.eval(bindings)?)),
            Atom::Min(a, b) => Ok(a.eval(bindings)?.min(b.eval(bindings)?)),
            Atom::CeilScale { size, factor, divisor } => {
                ceil_scale(size.eval(bindings)?, factor.0, divisor.0)
            }
        }
    }
}

fn ceil_div(a: i64, b: i64) -> Result<i64, DimError> {
    let floor = floor_div(a, b)?;
    if floor.checked_mul(b) == Some(a) { Ok(floor) } else { floor.checked_add(1).ok_or(DimError::Overflow) }
}

fn floor_div(a: i64, b: i64) -> Result<i64, DimError> {
    if b == 0 {
        return Err(DimError::DivisionByZero);
    }
    let quotient = a.checked_div(b).ok_or(DimError::Overflow)?;
    Ok(if a % b != 0 && ((a < 0) != (b < 0)) { quotient - 1 } else { quotient })
}

fn ceil_scale(size: i64, factor: f64, divisor: f64) -> Result<i64, DimError> {
    let value = (factor * size as f64 / divisor).ceil();
    if value.is_finite() && value.abs() < 9e18 { Ok(value as i64) } else { Err(DimError::NotFinite) }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim::constant(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Highest degree first: people read `4*H*W + 64`.
        for (index, (monomial, coefficient)) in self.terms.iter().rev().enumerate() {
            match (index, *coefficient < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let magnitude = coefficient.unsigned_abs();
            if monomial.is_empty() || magnitude != 1 {
                write!(f, "{magnitude}")?;
            }
            for (position, atom) in monomial.iter().enumerate() {
                if position > 0 || magnitude != 1 {
                    f.write_str("*")?;
                }
                write!(f, "{atom}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(symbol) => write!(f, "{symbol}"),
            Atom::CeilDiv(a, b) => write!(f, "ceil_div({a}, {b})"),
            Atom::FloorDiv(a, b) => write!(f, "floor_div({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::CeilScale { size, factor, divisor } => write!(f, "ceil_scale({size}, {factor}, {divisor})"),
        }
    }
}

/// Values of run-time sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bindings(BTreeMap<Symbol, i64>);

impl Bindings {
    /// No symbol bound.
    pub fn new() -> Bindings {
        Bindings::default()
    }

    /// Gives `name` the value `value`, replacing an earlier one.
    pub fn bind(&mut self, name: &str, value: i64) {
        self.0.insert(Symbol::new(name), value);
    }

    /// The value of `symbol`.
    pub fn get(&self, symbol: &Symbol) -> Option<i64> {
        self.0.get(symbol).copied()
    }

    /// All pairs, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Symbol, i64)> {
        self.0.iter().map(|(symbol, value)| (symbol, *value))
    }
}

impl<'a> FromIterator<(&'a str, i64)> for Bindings {
    fn from_iter<I: IntoIterator<Item = (&'a str, i64)>>(pairs: I) -> Bindings {
        Bindings(pairs.into_iter().map(|(name, value)| (Symbol::new(name), value)).collect())
    }
}

/// The product of all sizes of a shape.
pub fn product(shape: &[Dim]) -> Result<Dim, DimError> {
    shape.iter().try_fold(Dim::constant(1), |total, dim| total.mul(dim))
}

#[cfg(test)]
mod tests;
