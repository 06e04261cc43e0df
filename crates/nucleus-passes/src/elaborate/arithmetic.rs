//! Arithmetic on compile-time values: checked integers, binary64 floats, sizes and scaled sizes.

use nucleus_ir::ast::BinaryOperator;
use nucleus_ir::{Dim, DimError};

use super::term::Term;

/// Why an operation has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ArithmeticError {
    /// The operator is not defined for these kinds of values.
    Undefined,
    /// It is defined but fails here.
    Failed(String),
}

use ArithmeticError::{Failed, Undefined};

type Arithmetic = Result<Term, ArithmeticError>;

impl From<DimError> for ArithmeticError {
    fn from(error: DimError) -> ArithmeticError {
        Failed(error.to_string())
    }
}

fn overflow() -> ArithmeticError {
    Failed("the result does not fit a signed 64-bit integer".to_owned())
}

/// `left operator right` for every operator except `??`, `&&` and `||`, which look at one side first.
pub(super) fn binary(operator: BinaryOperator, left: &Term, right: &Term) -> Arithmetic {
    match operator {
        BinaryOperator::Equal => equal(left, right).map(Term::Bool),
        BinaryOperator::NotEqual => equal(left, right).map(|equal| Term::Bool(!equal)),
        BinaryOperator::Less => {
            order(left, right).map(|order| Term::Bool(order.is_some_and(|order| order.is_lt())))
        }
        BinaryOperator::LessEqual => {
            order(left, right).map(|order| Term::Bool(order.is_some_and(|order| order.is_le())))
        }
        BinaryOperator::Greater => {
            order(left, right).map(|order| Term::Bool(order.is_some_and(|order| order.is_gt())))
        }
        BinaryOperator::GreaterEqual => {
            order(left, right).map(|order| Term::Bool(order.is_some_and(|order| order.is_ge())))
        }
        BinaryOperator::Add => add(left, right),
        BinaryOperator::Sub => sub(left, right),
        BinaryOperator::Mul => mul(left, right),
        BinaryOperator::Div => div(left, right),
        BinaryOperator::Rem => rem(left, right),
        BinaryOperator::Coalesce | BinaryOperator::Or | BinaryOperator::And => Err(Undefined),
    }
}

fn add(left: &Term, right: &Term) -> Arithmetic {
    match (left, right) {
        (Term::Int(a), Term::Int(b)) => a.checked_add(*b).map(Term::Int).ok_or_else(overflow),
        _ => sizes(left, right, Dim::add)
            .or_else(|| floats(left, right, |a, b| a + b))
            .unwrap_or(Err(Undefined)),
    }
}

fn sub(left: &Term, right: &Term) -> Arithmetic {
    match (left, right) {
        (Term::Int(a), Term::Int(b)) => a.checked_sub(*b).map(Term::Int).ok_or_else(overflow),
        _ => sizes(left, right, Dim::sub)
            .or_else(|| floats(left, right, |a, b| a - b))
            .unwrap_or(Err(Undefined)),
    }
}

fn mul(left: &Term, right: &Term) -> Arithmetic {
    match (left, right) {
        (Term::Int(a), Term::Int(b)) => a.checked_mul(*b).map(Term::Int).ok_or_else(overflow),
        (Term::Dim(size), Term::Float(factor)) | (Term::Float(factor), Term::Dim(size)) => {
            Ok(Term::Scaled { size: size.clone(), factor: *factor, divisor: 1.0 })
        }
        (Term::Scaled { size, factor, divisor }, other) | (other, Term::Scaled { size, factor, divisor }) => {
            let by = other.as_float().ok_or(Undefined)?;
            // (f · s) · g equals (f · g) · s in binary64 only where one of the factors is a power of two.
            if *divisor == 1.0 && (power_of_two(by) || power_of_two(*factor)) {
                Ok(Term::Scaled { size: size.clone(), factor: factor * by, divisor: 1.0 })
            } else {
                Err(Failed(
                    "a scaled size is (factor * size) / divisor; multiply the floats before the size"
                        .to_owned(),
                ))
            }
        }
        _ => sizes(left, right, Dim::mul)
            .or_else(|| floats(left, right, |a, b| a * b))
            .unwrap_or(Err(Undefined)),
    }
}

fn div(left: &Term, right: &Term) -> Arithmetic {
    let by = match right {
        Term::Dim(_) if left.as_size().is_some() || left.as_float().is_some() => {
            return Err(Failed(
                "a number cannot be divided by a run-time size; use floor_div or ceil_div for sizes"
                    .to_owned(),
            ));
        }
        other => other.as_float().ok_or(Undefined)?,
    };
    match left {
        Term::Int(_) | Term::Float(_) | Term::Dim(_) | Term::Scaled { .. } if by == 0.0 => {
            Err(Failed("division by zero".to_owned()))
        }
        Term::Dim(size) => Ok(Term::Scaled { size: size.clone(), factor: 1.0, divisor: by }),
        Term::Scaled { size, factor, divisor } => {
            if *divisor == 1.0 {
                Ok(Term::Scaled { size: size.clone(), factor: *factor, divisor: by })
            } else {
                Err(Failed("a scaled size is (factor * size) / divisor; it is divided only once".to_owned()))
            }
        }
        other => finite(other.as_float().ok_or(Undefined)?, by, |a, b| a / b),
    }
}

/// The remainder with the sign of the divisor.
fn rem(left: &Term, right: &Term) -> Arithmetic {
    match (left, right) {
        (Term::Int(_) | Term::Dim(_), Term::Int(0)) => Err(Failed("division by zero".to_owned())),
        (Term::Int(a), Term::Int(b)) => {
            // The one quotient that overflows, i64::MIN / −1, has remainder 0.
            let rest = a.checked_rem(*b).unwrap_or(0);
            Ok(Term::Int(if rest != 0 && (rest < 0) != (*b < 0) { rest + b } else { rest }))
        }
        (Term::Int(_) | Term::Dim(_), Term::Int(_) | Term::Dim(_)) => {
            let (a, b) = (left.as_size().ok_or(Undefined)?, right.as_size().ok_or(Undefined)?);
            Ok(Term::size(a.sub(&a.floor_div(&b)?.mul(&b)?)?))
        }
        _ => Err(Undefined),
    }
}

/// Applies a rule to sizes, if both are sizes or integers.
pub(super) fn sizes(
    left: &Term,
    right: &Term,
    rule: impl Fn(&Dim, &Dim) -> Result<Dim, DimError>,
) -> Option<Arithmetic> {
    let (a, b) = (left.as_size()?, right.as_size()?);
    Some(rule(&a, &b).map(Term::size).map_err(ArithmeticError::from))
}

/// Applies a rule to floats, if both are numbers.
pub(super) fn floats(left: &Term, right: &Term, rule: impl Fn(f64, f64) -> f64) -> Option<Arithmetic> {
    Some(finite(left.as_float()?, right.as_float()?, rule))
}

/// A float rule whose result may be infinite or NaN only where an operand is.
fn finite(a: f64, b: f64, rule: impl Fn(f64, f64) -> f64) -> Arithmetic {
    let result = rule(a, b);
    if result.is_finite() || !a.is_finite() || !b.is_finite() {
        Ok(Term::Float(result))
    } else {
        Err(Failed("the result is not a finite number".to_owned()))
    }
}

fn power_of_two(value: f64) -> bool {
    const FRACTION: u64 = (1 << 52) - 1;
    value.is_normal() && value.to_bits() & FRACTION == 0 && (1e-30..=1e30).contains(&value)
}

/// The difference of two sizes, if it is the same for all run-time dims.
fn difference(left: &Term, right: &Term) -> Option<Result<i64, ArithmeticError>> {
    let (a, b) = (left.as_size()?, right.as_size()?);
    Some(match a.sub(&b) {
        Ok(difference) => difference.as_constant().ok_or_else(|| {
            Failed(format!(
                "whether {a} and {b} compare so depends on run-time sizes; only `require` can state it"
            ))
        }),
        Err(error) => Err(error.into()),
    })
}

fn equal(left: &Term, right: &Term) -> Result<bool, ArithmeticError> {
    match (left, right) {
        (Term::Int(a), Term::Int(b)) => Ok(a == b),
        (Term::Bool(a), Term::Bool(b)) => Ok(a == b),
        (Term::Str(a), Term::Str(b)) => Ok(a == b),
        (Term::DType(a), Term::DType(b)) => Ok(a == b),
        (Term::Null, Term::Null) => Ok(true),
        (Term::Tensor(_) | Term::Poison | Term::Unit, _)
        | (_, Term::Tensor(_) | Term::Poison | Term::Unit) => Err(Undefined),
        (Term::Null, _) | (_, Term::Null) => Ok(false),
        _ => {
            if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
                return Ok(a == b);
            }
            difference(left, right).unwrap_or(Err(Undefined)).map(|difference| difference == 0)
        }
    }
}

/// The order of two numbers or sizes; `None` where one is NaN.
fn order(left: &Term, right: &Term) -> Result<Option<std::cmp::Ordering>, ArithmeticError> {
    match (left, right) {
        (Term::Int(a), Term::Int(b)) => Ok(Some(a.cmp(b))),
        _ => {
            if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
                return Ok(a.partial_cmp(&b));
            }
            difference(left, right).unwrap_or(Err(Undefined)).map(|difference| Some(difference.cmp(&0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BinaryOperator::{Add, Div, Less, Mul, Rem};

    fn size(name: &str) -> Term {
        Term::Dim(Dim::symbol(name))
    }

    fn show(operator: BinaryOperator, left: Term, right: Term) -> Result<String, ArithmeticError> {
        binary(operator, &left, &right).map(|term| format!("{}: {term}", term.kind()))
    }

    fn value(text: &str) -> Result<String, ArithmeticError> {
        Ok(text.to_owned())
    }

    #[test]
    fn integers_are_checked_and_their_quotient_is_a_float() {
        assert_eq!(show(Div, Term::Int(7), Term::Int(2)), value("a float: 3.5"));
        assert_eq!(show(Rem, Term::Int(-7), Term::Int(4)), value("an int: 1"));
        assert_eq!(show(Rem, Term::Int(7), Term::Int(-4)), value("an int: -1"));
        assert_eq!(show(Rem, Term::Int(i64::MIN), Term::Int(-1)), value("an int: 0"));
        assert_eq!(show(Add, Term::Int(i64::MAX), Term::Int(1)), Err(overflow()));
        assert_eq!(show(Mul, Term::Int(i64::MIN), Term::Int(-1)), Err(overflow()));
        assert_eq!(show(Div, Term::Int(1), Term::Int(0)), Err(Failed("division by zero".to_owned())));
        assert_eq!(
            show(Mul, Term::Float(1e300), Term::Float(1e300)),
            Err(Failed("the result is not a finite number".to_owned()))
        );
    }

    #[test]
    fn sizes_cancel_back_to_integers() {
        let double = binary(Mul, &Term::Int(2), &size("B")).unwrap();
        assert_eq!(show(BinaryOperator::Sub, double.clone(), double.clone()), value("an int: 0"));
        assert_eq!(show(Rem, double, Term::Int(2)), value("an int: 0"));
        let next = binary(Add, &size("B"), &Term::Int(1)).unwrap();
        assert_eq!(show(Less, size("B"), next), value("a bool: true"));
        assert!(matches!(show(Less, size("B"), size("T")), Err(Failed(_))));
    }

    #[test]
    fn a_scaled_size_keeps_the_order_of_its_operations() {
        let scaled = binary(Mul, &Term::Float(1.3), &size("S")).unwrap();
        assert_eq!(show(Div, scaled.clone(), Term::Int(64)), value("a scaled size: 1.3 * (S) / 64.0"));
        assert_eq!(show(Mul, scaled.clone(), Term::Int(2)), value("a scaled size: 2.6 * (S) / 1.0"));
        assert!(matches!(show(Mul, scaled.clone(), Term::Float(1.1)), Err(Failed(_))));
        let divided = binary(Div, &scaled, &Term::Int(64)).unwrap();
        assert!(matches!(show(Div, divided.clone(), Term::Int(2)), Err(Failed(_))));
        assert_eq!(show(Add, divided, Term::Int(2)), Err(Undefined));
    }
}
