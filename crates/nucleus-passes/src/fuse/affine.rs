//! Coordinates as affine functions of an iteration space.
//!
//! A value is read inside a kernel at coordinates that are affine in the axes of the kernel's iteration space, one of them perhaps
//! through an index operand. Views are changes of coordinates: slicing moves an offset, broadcasting drops a coordinate, and a
//! reshape recombines coordinates where the extents of the axes show that quotient and remainder are affine again.

use std::rc::Rc;

use nucleus_ir::dim::Atom;
use nucleus_ir::{Dim, DimError};
use nucleus_plan::BufferId;

/// An element of a buffer: `offset + Σ factor · axis`, in elements. Terms are sorted by axis and have no zero factors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IndexAccess {
    pub(crate) buffer: BufferId,
    pub(crate) offset: Dim,
    pub(crate) terms: Vec<(usize, Dim)>,
}

/// A coordinate that is loaded: `factor ·` the index at `access`, which is below `bound`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IndirectTerm {
    pub(crate) access: IndexAccess,
    pub(crate) factor: Dim,
    pub(crate) bound: Dim,
}

/// One coordinate: `offset + Σ factor · axis + indirect`. Terms are sorted by axis and have no zero factors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Coord {
    pub(crate) offset: Dim,
    pub(crate) terms: Vec<(usize, Dim)>,
    pub(crate) indirect: Option<Rc<IndirectTerm>>,
}

/// The coordinates of a value, one per axis.
pub(crate) type Map = Vec<Coord>;

impl Coord {
    /// The same coordinate everywhere.
    pub(crate) fn constant(offset: Dim) -> Coord {
        Coord { offset, terms: Vec::new(), indirect: None }
    }

    /// Coordinate 0.
    pub(crate) fn zero() -> Coord {
        Coord::constant(Dim::constant(0))
    }

    /// The axis itself; 0 for an axis of one point.
    pub(crate) fn axis(axis: usize, extent: &Dim) -> Coord {
        if extent.is_constant(1) {
            return Coord::zero();
        }
        Coord { offset: Dim::constant(0), terms: vec![(axis, Dim::constant(1))], indirect: None }
    }

    fn is_zero(&self) -> bool {
        self.offset.is_constant(0) && self.terms.is_empty() && self.indirect.is_none()
    }

    pub(crate) fn shifted(&self, by: &Dim) -> Result<Coord, DimError> {
        Ok(Coord { offset: self.offset.add(by)?, ..self.clone() })
    }

    /// `self + factor · other`; `None` if both go through an index.
    pub(crate) fn plus(&self, other: &Coord, factor: &Dim) -> Result<Option<Coord>, DimError> {
        if other.is_zero() || factor.is_constant(0) {
            return Ok(Some(self.clone()));
        }
        let offset = self.offset.add(&other.offset.mul(factor)?)?;
        let mut terms = self.terms.clone();
        for (axis, stride) in &other.terms {
            let scaled = stride.mul(factor)?;
            match terms.binary_search_by_key(axis, |(axis, _)| *axis) {
                Ok(at) => {
                    let sum = terms[at].1.add(&scaled)?;
                    if sum.is_constant(0) {
                        terms.remove(at);
                    } else {
                        terms[at].1 = sum;
                    }
                }
                Err(at) => terms.insert(at, (*axis, scaled)),
            }
        }
        let indirect = match (&self.indirect, &other.indirect) {
            (Some(_), Some(_)) => return Ok(None),
            (Some(term), None) => Some(term.clone()),
            (None, Some(term)) => {
                let factor = term.factor.mul(factor)?;
                Some(Rc::new(IndirectTerm { access: term.access.clone(), factor, bound: term.bound.clone() }))
            }
            (None, None) => None,
        };
        Ok(Some(Coord { offset, terms, indirect }))
    }

    /// True if the coordinate is provably in `low .. high`, for axes of these extents.
    pub(crate) fn within(&self, low: &Dim, high: &Dim, extents: &[Dim]) -> Result<bool, DimError> {
        let one = Dim::constant(1);
        let mut largest = self.offset.clone();
        for (axis, stride) in &self.terms {
            if !is_nonnegative(stride) {
                return Ok(false);
            }
            largest = largest.add(&stride.mul(&extents[*axis].sub(&one)?)?)?;
        }
        if let Some(term) = &self.indirect {
            if !is_nonnegative(&term.factor) {
                return Ok(false);
            }
            largest = largest.add(&term.factor.mul(&term.bound.sub(&one)?)?)?;
        }
        let room = high.sub(&one)?.sub(&largest)?;
        Ok(is_nonnegative(&self.offset.sub(low)?) && is_nonnegative(&room))
    }

    /// Quotient and remainder by `inner`, where both are affine for axes of these extents.
    fn divide(&self, inner: &Dim, extents: &[Dim]) -> Result<Option<(Coord, Coord)>, DimError> {
        let (mut high, mut low) = (Coord::zero(), Coord::zero());
        for (axis, stride) in &self.terms {
            match stride.exact_div(inner) {
                Some(quotient) => high.terms.push((*axis, quotient)),
                None => low.terms.push((*axis, stride.clone())),
            }
        }
        if let Some(term) = &self.indirect {
            match term.factor.exact_div(inner) {
                Some(factor) => {
                    let (access, bound) = (term.access.clone(), term.bound.clone());
                    high.indirect = Some(Rc::new(IndirectTerm { access, factor, bound }));
                }
                None => low.indirect = Some(term.clone()),
            }
        }
        if let Some(quotient) = self.offset.exact_div(inner) {
            high.offset = quotient;
        } else if let (Some(offset), Some(inner)) = (self.offset.as_constant(), inner.as_constant()) {
            if inner <= 0 {
                return Ok(None);
            }
            high.offset = Dim::constant(offset.div_euclid(inner));
            low.offset = Dim::constant(offset.rem_euclid(inner));
        } else {
            low.offset = self.offset.clone();
        }
        Ok(low.within(&Dim::constant(0), inner, extents)?.then_some((high, low)))
    }
}

/// `Σ coordinate · stride`, in elements; `None` if two coordinates go through an index.
pub(crate) fn linear(map: &[Coord], strides: &[Dim]) -> Result<Option<Coord>, DimError> {
    let mut sum = Coord::zero();
    for (coord, stride) in map.iter().zip(strides) {
        match sum.plus(coord, stride)? {
            Some(next) => sum = next,
            None => return Ok(None),
        }
    }
    Ok(Some(sum))
}

/// The strides of a dense row-major tensor.
pub(crate) fn row_major(shape: &[Dim]) -> Result<Vec<Dim>, DimError> {
    let mut strides = vec![Dim::constant(1); shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].mul(&shape[axis])?;
    }
    Ok(strides)
}

/// Coordinates in a tensor of shape `from` turned into coordinates in the same elements seen as shape `to`; `None` where they are
/// not affine. `extents` are those of the iteration axes.
pub(crate) fn reshape(
    map: &[Coord],
    from: &[Dim],
    to: &[Dim],
    extents: &[Dim],
) -> Result<Option<Map>, DimError> {
    let (from_products, to_products) = (prefix_products(from)?, prefix_products(to)?);
    let mut result = Vec::with_capacity(to.len());
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let Some((next_i, next_j)) = next_boundary(&from_products, &to_products, i, j) else {
            return Ok(None);
        };
        let inner = &to[j..next_j];
        if next_i == i + 1 && next_j == j + 1 && from[i] == to[j] {
            result.push(map[i].clone());
        } else {
            let Some(mut rest) = linear(&map[i..next_i], &row_major(&from[i..next_i])?)? else {
                return Ok(None);
            };
            for (axis, stride) in row_major(inner)?.iter().enumerate() {
                if axis + 1 == inner.len() {
                    result.push(rest.clone());
                    break;
                }
                let Some((high, low)) = rest.divide(stride, extents)? else { return Ok(None) };
                result.push(high);
                rest = low;
            }
        }
        (i, j) = (next_i, next_j);
    }
    // An axis of one point has coordinate 0, in whatever way it was computed.
    for (coord, extent) in result.iter_mut().zip(to) {
        if extent.is_constant(1) {
            *coord = Coord::zero();
        }
    }
    Ok(Some(result))
}

fn prefix_products(shape: &[Dim]) -> Result<Vec<Dim>, DimError> {
    let mut products = vec![Dim::constant(1)];
    for dim in shape {
        products.push(products[products.len() - 1].mul(dim)?);
    }
    Ok(products)
}

/// The nearest pair of positions after (i, j) up to which both shapes have the same number of elements.
fn next_boundary(from: &[Dim], to: &[Dim], i: usize, j: usize) -> Option<(usize, usize)> {
    let pairs = (i..from.len()).flat_map(|a| (j..to.len()).map(move |b| (a, b)));
    let equal = pairs.filter(|pair| *pair != (i, j) && from[pair.0] == to[pair.1]);
    // The shortest step, so that equal axes pass through as they are.
    equal.min_by_key(|(a, b)| ((a - i).max(b - j), a + b))
}

/// True if `dim` is provably at least 0 for every binding of the symbols, which are at least 1: each negative term is a multiple of
/// a larger positive one.
pub(crate) fn is_nonnegative(dim: &Dim) -> bool {
    let (mut positive, mut negative) = (Vec::new(), Vec::new());
    for (monomial, coefficient) in dim.terms() {
        if *coefficient > 0 { &mut positive } else { &mut negative }.push((monomial, *coefficient));
    }
    for (small, mut needed) in negative {
        for (large, available) in &mut positive {
            if *available > 0 && needed < 0 && contains(large, small) {
                let taken = (*available).min(needed.saturating_neg());
                *available -= taken;
                needed += taken;
            }
        }
        if needed < 0 {
            return false;
        }
    }
    true
}

/// True if `large` is `small` times symbols. Other atoms may be 0.
fn contains(large: &[Atom], small: &[Atom]) -> bool {
    let mut rest: Vec<&Atom> = large.iter().collect();
    for atom in small {
        match rest.iter().position(|other| *other == atom) {
            Some(at) => drop(rest.remove(at)),
            None => return false,
        }
    }
    rest.iter().all(|atom| matches!(atom, Atom::Symbol(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(sizes: &[i64]) -> Vec<Dim> {
        sizes.iter().map(|size| Dim::constant(*size)).collect()
    }

    fn axes(extents: &[Dim]) -> Map {
        extents.iter().enumerate().map(|(axis, extent)| Coord::axis(axis, extent)).collect()
    }

    #[test]
    fn merged_axes_are_affine_and_split_ones_where_extents_show_it() {
        let (s, b) = (Dim::symbol("S"), Dim::symbol("B"));
        let heads = [b.clone(), s.clone(), Dim::constant(4), Dim::constant(8)];
        let flat = [b.clone(), s.clone(), Dim::constant(32)];
        let merged = reshape(&axes(&heads), &heads, &flat, &heads).unwrap().unwrap();
        assert_eq!(merged[2].terms, [(2, Dim::constant(8)), (3, Dim::constant(1))]);
        let split = reshape(&merged, &flat, &heads, &heads).unwrap().unwrap();
        assert_eq!(split, axes(&heads));
        assert_eq!(reshape(&axes(&flat), &flat, &heads, &flat).unwrap(), None);
    }

    #[test]
    fn symbolic_extents_split_where_they_divide() {
        let (h, w) = (Dim::symbol("H"), Dim::symbol("W"));
        let grid = [h.clone(), w.clone()];
        let flat = [h.mul(&w).unwrap()];
        let merged = reshape(&axes(&grid), &grid, &flat, &grid).unwrap().unwrap();
        assert_eq!(merged[0].terms, [(0, w), (1, Dim::constant(1))]);
        assert_eq!(reshape(&merged, &flat, &grid, &grid).unwrap().unwrap(), axes(&grid));
    }

    #[test]
    fn constant_offsets_divide_with_remainder() {
        let from = dims(&[12]);
        let coord = Coord { offset: Dim::constant(7), terms: vec![(0, Dim::constant(1))], indirect: None };
        let extents = dims(&[2]);
        let split = reshape(&[coord], &from, &dims(&[3, 4]), &extents).unwrap();
        // 7 + x for x below 2 crosses from row 1 to row 2.
        assert_eq!(split, None);
        let coord = Coord { offset: Dim::constant(6), terms: vec![(0, Dim::constant(1))], indirect: None };
        let split = reshape(&[coord], &from, &dims(&[3, 4]), &extents).unwrap().unwrap();
        assert_eq!(split[0], Coord::constant(Dim::constant(1)));
        assert_eq!(split[1].offset, Dim::constant(2));
    }

    #[test]
    fn signs_are_proved_by_domination() {
        let (h, w) = (Dim::symbol("H"), Dim::symbol("W"));
        let area = h.mul(&w).unwrap();
        assert!(is_nonnegative(&area.sub(&w).unwrap()));
        assert!(is_nonnegative(&area.add(&w).unwrap().sub(&Dim::constant(2)).unwrap()));
        assert!(!is_nonnegative(&w.sub(&h).unwrap()));
        assert!(!is_nonnegative(&w.sub(&Dim::constant(2)).unwrap()));
    }
}
