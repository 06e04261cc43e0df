//! The algebra on small cases.

use super::token::Token;
use super::*;

fn b() -> Dim {
    Dim::symbol("B")
}

fn s() -> Dim {
    Dim::symbol("H").mul(&Dim::symbol("W")).unwrap()
}

#[test]
fn sums_and_products_commute_and_collect() {
    let left = s().add(&b()).unwrap().mul(&b()).unwrap();
    let right = b().mul(&b()).unwrap().add(&b().mul(&s()).unwrap()).unwrap();
    assert_eq!(left, right);
    assert_eq!(left.sub(&right).unwrap(), Dim::constant(0));
    assert_eq!(left.to_string(), "B*H*W + B*B");
}

#[test]
fn exact_division_sees_factors() {
    let total = b().mul(&s()).unwrap().mul(&Dim::constant(64)).unwrap();
    assert_eq!(total.exact_div(&s()).unwrap().to_string(), "64*B");
    let h = total.exact_div(&Dim::symbol("H").mul(&Dim::constant(16)).unwrap()).unwrap();
    assert_eq!(h.to_string(), "4*B*W");
    assert_eq!(b().exact_div(&Dim::constant(2)), None);
}

#[test]
fn capacity_of_the_released_model() {
    let capacity = s().ceil_scale(2.0, 64.0).unwrap();
    assert_eq!(capacity.to_string(), "ceil_div(2*H*W, 64)");
    for (h, w, want) in [(64, 64, 128), (48, 84, 126), (56, 74, 130), (52, 78, 127)] {
        let bindings = Bindings::from_iter([("H", h), ("W", w)]);
        assert_eq!(capacity.eval(&bindings).unwrap(), want);
    }
    let fractional = s().ceil_scale(1.3, 4.0).unwrap();
    assert_eq!(fractional.eval(&Bindings::from_iter([("H", 5), ("W", 7)])).unwrap(), 12);
}

#[test]
fn the_serialised_form_reads_back_and_is_checked() {
    let sum = s().ceil_scale(1.3, 4.0).unwrap().mul(&b()).unwrap().add(&Dim::constant(-7)).unwrap();
    let dim = Dim::max(&sum, &s().floor_div(&Dim::constant(3)).unwrap()).unwrap();
    assert_eq!(Dim::try_from(Vec::<Token>::from(dim.clone())), Ok(dim));
    let mut nested = vec![Token::Symbol(Symbol::new("B"))];
    for _ in 0..100_000 {
        nested.extend([Token::Constant(3), Token::CeilDiv]);
    }
    assert_eq!(Dim::try_from(nested), Err(DimError::TooComplex.to_string()));
    assert!(Dim::try_from(vec![Token::Add]).is_err());
}

#[test]
fn overflow_and_growth_are_errors() {
    let huge = Dim::constant(i64::MAX);
    assert_eq!(huge.add(&Dim::constant(1)), Err(DimError::Overflow));
    let mut dim = b().add(&Dim::constant(1)).unwrap();
    let error = (0..10).find_map(|i| {
        let next = dim.mul(&Dim::symbol(&format!("X{i}")).add(&Dim::constant(1)).unwrap());
        match next {
            Ok(next) => {
                dim = next;
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(error, Some(DimError::TooComplex));
    assert_eq!(b().eval(&Bindings::new()), Err(DimError::Unbound(Symbol::new("B"))));
    assert_eq!(Dim::constant(i64::MIN).floor_div(&Dim::constant(-1)), Err(DimError::Overflow));
}
