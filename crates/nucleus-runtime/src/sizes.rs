//! Run-time sizes: from the shapes of inputs and the caller's word to a value for every dim.

use nucleus_ir::dim::Atom;
use nucleus_ir::types::ShapeDisplay;
use nucleus_ir::{Bindings, Constraint, Dim, DimError, Symbol, TensorType};
use thiserror::Error;

/// The largest value of one dim.
pub const MAX_DIM: i64 = 1 << 31;

/// Why sizes could not be bound.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// A name that is not a dim of the entry.
    #[error("the model has no dim `{name}`; its dims are {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The entry's dims.
        known: Vec<String>,
    },
    /// A value outside 1 … [`MAX_DIM`].
    #[error("dim `{name}` is {value}; it must be between 1 and {MAX_DIM}")]
    Range {
        /// The dim.
        name: Symbol,
        /// The value.
        value: i64,
    },
    /// Two sources disagree.
    #[error("dim `{name}` is {first} by {first_source}, but {second} by {second_source}")]
    Conflict {
        /// The dim.
        name: Symbol,
        /// One value.
        first: i64,
        /// Where it comes from.
        first_source: String,
        /// The other value.
        second: i64,
        /// Where it comes from.
        second_source: String,
    },
    /// An input whose shape cannot be what the model asks for.
    #[error("input `{input}` has shape {given:?}, the model needs {wanted}{}", evaluated.as_ref().map(|shape| format!(" = {shape:?}")).unwrap_or_default())]
    Shape {
        /// The input.
        input: String,
        /// Its shape.
        given: Vec<usize>,
        /// The shape in the model.
        wanted: String,
        /// The same with the dims put in, where they are known.
        evaluated: Option<Vec<i64>>,
    },
    /// A dim that nothing decides.
    #[error(
        "dim `{name}` has no value: the inputs' shapes do not decide it; give it, for example `--dim {name}=64`"
    )]
    Undecided {
        /// The dim.
        name: Symbol,
    },
    /// A relation between sizes does not hold.
    #[error("{what}: {smaller} = {smaller_value} is more than {larger} = {larger_value}")]
    Constraint {
        /// What the relation means.
        what: String,
        /// Formula of what must be at most `larger`.
        smaller: Dim,
        /// Its value.
        smaller_value: i64,
        /// Formula of what must be at least `smaller`.
        larger: Dim,
        /// Its value.
        larger_value: i64,
    },
    /// Size arithmetic failed.
    #[error(transparent)]
    Dim(#[from] DimError),
}

/// Binds every dim: first the given values, then what the shapes of the inputs decide.
///
/// A shape decides a dim where an axis of the input's type is that dim, or a product whose other factors are known.
///
/// # Errors
/// Unknown or undecided dims, values out of range, contradictions between inputs, shapes that do not fit.
pub fn bind_sizes(
    dims: &[Symbol],
    given: &[(String, i64)],
    inputs: &[(&str, &TensorType, &[usize])],
) -> Result<Bindings, SizeError> {
    let mut known: Vec<(Symbol, i64, String)> = Vec::new();
    for (name, value) in given {
        let symbol = dims.iter().find(|symbol| symbol.as_str() == name).ok_or_else(|| {
            SizeError::Unknown { name: name.clone(), known: dims.iter().map(ToString::to_string).collect() }
        })?;
        decide(&mut known, symbol, *value, "the value given")?;
    }
    for (name, ty, shape) in inputs {
        if ty.rank() != shape.len() {
            return Err(shape_error(name, ty, shape, None));
        }
    }
    // A product becomes decidable when another axis fixes a factor, so repeat until nothing new is learnt.
    loop {
        let before = known.len();
        let bindings: Bindings = known.iter().map(|(symbol, value, _)| (symbol.as_str(), *value)).collect();
        for (name, ty, shape) in inputs {
            for (axis, (dim, size)) in ty.shape.iter().zip(*shape).enumerate() {
                let size = i64::try_from(*size).map_err(|_| DimError::Overflow)?;
                if let Some((symbol, rest)) = single_unknown(dim, &bindings)? {
                    if rest == 0 || size % rest != 0 {
                        return Err(shape_error(name, ty, shape, None));
                    }
                    decide(&mut known, &symbol, size / rest, &format!("axis {axis} of input `{name}`"))?;
                }
            }
        }
        if known.len() == before {
            break;
        }
    }
    let bindings: Bindings = known.iter().map(|(symbol, value, _)| (symbol.as_str(), *value)).collect();
    for (name, ty, shape) in inputs {
        let wanted: Vec<i64> = match ty.shape.iter().map(|dim| dim.eval(&bindings)).collect() {
            Ok(wanted) => wanted,
            Err(DimError::Unbound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        if !wanted.iter().zip(*shape).all(|(wanted, given)| i64::try_from(*given) == Ok(*wanted)) {
            return Err(shape_error(name, ty, shape, Some(wanted)));
        }
    }
    match dims.iter().find(|symbol| bindings.get(symbol).is_none()) {
        Some(symbol) => Err(SizeError::Undecided { name: symbol.clone() }),
        None => Ok(bindings),
    }
}

/// Checks the relations that an entry needs between its sizes.
///
/// # Errors
/// The first relation that does not hold.
pub fn check_constraints(constraints: &[Constraint], bindings: &Bindings) -> Result<(), SizeError> {
    for Constraint { smaller, larger, what } in constraints {
        let (smaller_value, larger_value) = (smaller.eval(bindings)?, larger.eval(bindings)?);
        if smaller_value > larger_value {
            return Err(SizeError::Constraint {
                what: what.clone(),
                smaller: smaller.clone(),
                smaller_value,
                larger: larger.clone(),
                larger_value,
            });
        }
    }
    Ok(())
}

fn shape_error(input: &str, ty: &TensorType, given: &[usize], evaluated: Option<Vec<i64>>) -> SizeError {
    let wanted = ShapeDisplay(&ty.shape).to_string();
    // A shape of a file may have any rank; its first extents say enough.
    SizeError::Shape {
        input: input.to_owned(),
        given: given.iter().take(16).copied().collect(),
        wanted,
        evaluated,
    }
}

fn decide(
    known: &mut Vec<(Symbol, i64, String)>,
    symbol: &Symbol,
    value: i64,
    source: &str,
) -> Result<(), SizeError> {
    if !(1..=MAX_DIM).contains(&value) {
        return Err(SizeError::Range { name: symbol.clone(), value });
    }
    match known.iter().find(|(name, ..)| name == symbol) {
        Some((_, first, first_source)) if *first != value => Err(SizeError::Conflict {
            name: symbol.clone(),
            first: *first,
            first_source: first_source.clone(),
            second: value,
            second_source: source.to_owned(),
        }),
        Some(_) => Ok(()),
        None => {
            known.push((symbol.clone(), value, source.to_owned()));
            Ok(())
        }
    }
}

/// For a product with exactly one unknown symbol, that symbol and the value of the other factors. A bare symbol counts even when it is
/// known, so that contradictions between inputs are noticed with both sources named.
fn single_unknown(dim: &Dim, bindings: &Bindings) -> Result<Option<(Symbol, i64)>, DimError> {
    let [(monomial, coefficient)] = dim.terms() else { return Ok(None) };
    if let ([Atom::Symbol(symbol)], 1) = (monomial.as_slice(), *coefficient) {
        return Ok(Some((symbol.clone(), 1)));
    }
    let mut rest = *coefficient;
    let mut unknown = None;
    for atom in monomial {
        let Atom::Symbol(symbol) = atom else { return Ok(None) };
        match bindings.get(symbol) {
            Some(value) => rest = rest.checked_mul(value).ok_or(DimError::Overflow)?,
            None if unknown.is_none() => unknown = Some(symbol.clone()),
            None => return Ok(None),
        }
    }
    Ok(unknown.map(|symbol| (symbol, rest)))
}

#[cfg(test)]
mod tests {
    use nucleus_ir::DType;

    use super::*;

    fn dims() -> Vec<Symbol> {
        ["B", "H", "W", "T"].map(Symbol::new).to_vec()
    }

    fn image() -> TensorType {
        let tokens = Dim::symbol("H").mul(&Dim::symbol("W")).unwrap();
        TensorType::new(DType::F32, vec![Dim::symbol("B"), tokens, Dim::constant(8)])
    }

    fn text() -> TensorType {
        TensorType::new(DType::F32, vec![Dim::symbol("B"), Dim::symbol("T"), Dim::constant(4)])
    }

    #[test]
    fn shapes_decide_what_they_can() {
        let (image, text) = (image(), text());
        let inputs = [("x", &image, &[2, 35, 8][..]), ("text", &text, &[2, 7, 4][..])];
        let bound = bind_sizes(&dims(), &[("H".to_owned(), 5)], &inputs).unwrap();
        assert_eq!(bound, Bindings::from_iter([("B", 2), ("H", 5), ("W", 7), ("T", 7)]));
        assert_eq!(
            bind_sizes(&dims(), &[], &inputs).unwrap_err().to_string(),
            "dim `H` has no value: the inputs' shapes do not decide it; give it, for example `--dim H=64`"
        );
    }

    #[test]
    fn contradictions_name_both_sides() {
        let (image, text) = (image(), text());
        let message = |given: &[(&str, i64)], x: &[usize], t: &[usize]| {
            let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            bind_sizes(&dims(), &given, &[("x", &image, x), ("text", &text, t)]).unwrap_err().to_string()
        };
        assert_eq!(
            message(&[("H", 5), ("W", 7)], &[2, 35, 8], &[3, 7, 4]),
            "dim `B` is 2 by axis 0 of input `x`, but 3 by axis 0 of input `text`"
        );
        assert_eq!(
            message(&[("H", 5), ("W", 6)], &[2, 35, 8], &[2, 7, 4]),
            "input `x` has shape [2, 35, 8], the model needs [B, H*W, 8] = [2, 30, 8]"
        );
        assert_eq!(
            message(&[("H", 4)], &[2, 35, 8], &[2, 7, 4]),
            "input `x` has shape [2, 35, 8], the model needs [B, H*W, 8]"
        );
        assert_eq!(
            message(&[("Q", 4)], &[2, 35, 8], &[2, 7, 4]),
            "the model has no dim `Q`; its dims are B, H, W, T"
        );
        assert_eq!(
            message(&[("H", 0)], &[2, 35, 8], &[2, 7, 4]),
            "dim `H` is 0; it must be between 1 and 2147483648"
        );
        assert_eq!(
            message(&[("H", 5)], &[2, 35], &[2, 7, 4]),
            "input `x` has shape [2, 35], the model needs [B, H*W, 8]"
        );
    }
}
