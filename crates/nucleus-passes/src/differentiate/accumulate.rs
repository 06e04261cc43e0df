//! What the uses of a value contribute to its gradient, and their sum.
//!
//! A use of a slice or of gathered rows knows the gradient of a part only. Parts are not padded with zeros one by one: slices that lie side by
//! side are joined, and rows are added to the sum of all the rest.

use nucleus_ir::graph::Value;
use nucleus_ir::{Dim, Op};

use super::Backward;
use crate::error::PassError;
use crate::simplify::sizes::at_most;

/// What one use of a value contributes to its gradient.
pub(super) enum Contribution {
    /// To every element.
    Whole(Value),
    /// To the elements with `start ≤ i_axis < end`.
    Part { axis: usize, start: Dim, end: Dim, gradient: Value },
    /// `updates` to the rows that `index` names, as in `scatter_add`.
    Rows { index: Value, updates: Value },
}

/// A contribution to a slice along a known axis.
struct Piece {
    start: Dim,
    end: Dim,
    gradient: Value,
}

impl Backward {
    /// Adds to the gradient of `value`, if it has one.
    pub(super) fn contribute(&mut self, value: Value, contribution: Contribution) {
        if self.is_active(value) {
            let scope = self.scope.clone();
            self.contributions.entry(value).or_default().push((contribution, scope));
        }
    }

    /// The sum of all contributions; `None` without any. Every use must have contributed.
    pub(super) fn gradient(&mut self, value: Value) -> Result<Option<Value>, PassError> {
        let Some(contributions) = self.contributions.remove(&value) else { return Ok(None) };
        let outer = self.scope.clone();
        let shape = self.shape(value).to_vec();
        let mut sum = None;
        let mut pieces: Vec<Vec<Piece>> = shape.iter().map(|_| Vec::new()).collect();
        let mut rows = Vec::new();
        for (contribution, scope) in contributions {
            self.scope = scope;
            match contribution {
                Contribution::Whole(gradient) => sum = self.added(sum, gradient)?,
                Contribution::Part { axis, start, end, gradient } => {
                    pieces[axis].push(Piece { start, end, gradient });
                }
                Contribution::Rows { index, updates } => rows.push((index, updates)),
            }
        }
        for (axis, mut pieces) in pieces.into_iter().enumerate() {
            while !pieces.is_empty() {
                let joined = self.joined(&shape, axis, &mut pieces)?;
                sum = self.added(sum, joined)?;
            }
        }
        for (index, updates) in rows {
            let base = match sum {
                Some(sum) => sum,
                None => self.zeros(&shape)?,
            };
            sum = Some(self.emit(Op::ScatterAdd, &[base, index, updates])?);
        }
        self.scope = outer;
        Ok(sum)
    }

    fn added(&mut self, sum: Option<Value>, gradient: Value) -> Result<Option<Value>, PassError> {
        Ok(Some(match sum {
            Some(sum) => self.emit(Op::Add, &[sum, gradient])?,
            None => gradient,
        }))
    }

    /// Takes pieces that do not overlap, as far as their sizes show, and joins them with zeros in the gaps.
    fn joined(&mut self, shape: &[Dim], axis: usize, pieces: &mut Vec<Piece>) -> Result<Value, PassError> {
        let size = &shape[axis];
        let mut operands = Vec::new();
        let mut position = Dim::constant(0);
        while let Some(next) = following(&position, pieces) {
            let piece = pieces.remove(next);
            self.fill(shape, axis, (&position, &piece.start), &mut operands)?;
            operands.push(piece.gradient);
            position = piece.end;
        }
        self.fill(shape, axis, (&position, size), &mut operands)?;
        match operands[..] {
            [whole] => Ok(whole),
            _ => self.emit(Op::Concat { axis }, &operands),
        }
    }

    /// Zeros for `from ≤ i_axis < to`.
    fn fill(
        &mut self,
        shape: &[Dim],
        axis: usize,
        (from, to): (&Dim, &Dim),
        operands: &mut Vec<Value>,
    ) -> Result<(), PassError> {
        if from != to {
            let mut gap = shape.to_vec();
            gap[axis] = self.dim(to.sub(from))?;
            operands.push(self.zeros(&gap)?);
        }
        Ok(())
    }
}

/// The piece that starts at `position`, or else the first one behind it.
fn following(position: &Dim, pieces: &[Piece]) -> Option<usize> {
    if let Some(adjacent) = pieces.iter().position(|piece| piece.start == *position) {
        return Some(adjacent);
    }
    // Nothing starts before 0, even where the formula of a start does not show it.
    let is_behind = |piece: &Piece| position.is_constant(0) || at_most(position, &piece.start);
    let behind: Vec<usize> = (0..pieces.len()).filter(|piece| is_behind(&pieces[*piece])).collect();
    let first = |candidate: &&usize| {
        behind.iter().all(|other| at_most(&pieces[**candidate].start, &pieces[*other].start))
    };
    behind.iter().find(first).or(behind.first()).copied()
}
