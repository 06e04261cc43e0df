//! What is known of symbolic sizes without their values.

use nucleus_ir::Dim;
use nucleus_ir::dim::Atom;

/// True if `smaller ≤ larger` for every value of the run-time sizes, as far as that shows: the difference is a sum of products of
/// sizes with positive coefficients. False means only that it does not show.
pub(crate) fn at_most(smaller: &Dim, larger: &Dim) -> bool {
    let Ok(difference) = larger.sub(smaller) else { return false };
    difference.terms().iter().all(|(monomial, coefficient)| {
        *coefficient >= 0 && monomial.iter().all(|atom| matches!(atom, Atom::Symbol(_)))
    })
}
