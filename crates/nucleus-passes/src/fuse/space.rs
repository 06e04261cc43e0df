//! Iteration spaces and where values lie in them.

use nucleus_ir::{Dim, DimError, dim::product};

use super::affine::{Coord, Map, reshape};

/// The points at which a kernel computes.
///
/// The *logical* shape is that of the values computed; each of its axes is an axis of the kernel, or unrolled: then the kernel
/// computes all of the axis's points at once (segments of a contraction, pieces of a concatenation).
#[derive(Clone, Debug)]
pub(crate) struct Space {
    logical: Vec<Dim>,
    /// For every logical axis its kernel axis; `None` for the unrolled one.
    axes: Vec<Option<usize>>,
    /// Extents of the kernel's axes.
    pub(crate) extents: Vec<Dim>,
    /// The number of points computed at once.
    pub(crate) unrolled: i64,
}

impl Space {
    /// Every logical axis is the kernel axis of the same position.
    pub(crate) fn direct(shape: &[Dim]) -> Space {
        let axes = (0..shape.len()).map(Some).collect();
        Space { logical: shape.to_vec(), axes, extents: shape.to_vec(), unrolled: 1 }
    }

    /// Logical axis i is kernel axis `axes[i]`.
    pub(crate) fn permuted(shape: &[Dim], axes: &[usize]) -> Space {
        let mut extents = shape.to_vec();
        for (dim, axis) in shape.iter().zip(axes) {
            extents[*axis] = dim.clone();
        }
        Space {
            logical: shape.to_vec(),
            axes: axes.iter().copied().map(Some).collect(),
            extents,
            unrolled: 1,
        }
    }

    /// The same space with logical axis `axis` split into an outer and an inner part, of which the one at `unrolled` (0 for the
    /// outer, 1 for the inner) is computed at once. `None` if the extents do not divide.
    pub(crate) fn unroll(&self, axis: usize, count: i64, unrolled: usize) -> Option<Space> {
        let rest = self.logical[axis].exact_div(&Dim::constant(count))?;
        let kernel_axis = self.axes[axis]?;
        let mut space = self.clone();
        space.extents[kernel_axis] = rest.clone();
        space.logical[axis] = rest;
        space.logical.insert(axis + unrolled, Dim::constant(count));
        space.axes.insert(axis + unrolled, None);
        space.unrolled = count;
        Some(space)
    }

    /// The rows of a space: without the logical axes that are the kernel axis `column` or unrolled. Kernel axes keep their numbers.
    pub(crate) fn rows(&self, column: usize) -> Space {
        let keep = |axis: &Option<usize>| axis.is_some_and(|axis| axis != column);
        let kept = || self.axes.iter().enumerate().filter(|(_, axis)| keep(axis));
        Space {
            logical: kept().map(|(position, _)| self.logical[position].clone()).collect(),
            axes: kept().map(|(_, axis)| *axis).collect(),
            extents: self.extents.clone(),
            unrolled: 1,
        }
    }

    /// The coordinates at which a value of this shape is computed, each element exactly once: one map, or one for every unrolled
    /// point. `None` if its elements are not those of the space in the same order.
    pub(crate) fn placements(&self, shape: &[Dim]) -> Result<Option<Vec<Map>>, DimError> {
        let elements = product(shape)?;
        let part: Vec<usize> = (0..self.axes.len()).filter(|axis| self.axes[*axis].is_some()).collect();
        let part_shape: Vec<Dim> = part.iter().map(|axis| self.logical[*axis].clone()).collect();
        if product(&part_shape)? == elements {
            let coords: Map = part.iter().map(|axis| self.coord(*axis, 0)).collect();
            let map = reshape(&coords, &part_shape, shape, &self.extents)?;
            return Ok(map.map(|map| vec![map]));
        }
        if product(&self.logical)? != elements {
            return Ok(None);
        }
        let mut maps = Vec::new();
        for point in 0..self.unrolled {
            let coords: Map = (0..self.axes.len()).map(|axis| self.coord(axis, point)).collect();
            match reshape(&coords, &self.logical, shape, &self.extents)? {
                Some(map) => maps.push(map),
                None => return Ok(None),
            }
        }
        Ok(Some(maps))
    }

    fn coord(&self, axis: usize, point: i64) -> Coord {
        match self.axes[axis] {
            Some(kernel_axis) => Coord::axis(kernel_axis, &self.logical[axis]),
            None => Coord::constant(Dim::constant(point)),
        }
    }
}
