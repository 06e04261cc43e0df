//! Shape patterns: the types of parameters, results and outputs.

use nucleus_ir::ast::{Expr, ExprKind, TensorPattern};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::types::ShapeDisplay;
use nucleus_ir::{DType, Dim};

use super::evaluator::{Eval, Evaluator};
use super::term::Term;

/// Whether a type has a pattern's form.
pub(super) enum Match {
    /// It has; the axes that `...` stands for.
    Yes(Vec<Dim>),
    /// It has not; what the pattern asks for.
    No(String),
    /// An error in the pattern itself was reported.
    Poison,
}

impl<'p> Evaluator<'p> {
    /// The sizes of a shape, evaluated in the current call; `None` after an error.
    pub(super) fn shape_of(&mut self, dims: &'p [Expr]) -> Eval<Option<Vec<Dim>>> {
        let mut shape = Some(Vec::with_capacity(dims.len().min(16)));
        for dim in dims {
            let size = self.size(dim)?;
            shape = shape.zip(size).map(|(mut shape, size)| {
                shape.push(size);
                shape
            });
        }
        Ok(shape)
    }

    fn size(&mut self, dim: &'p Expr) -> Eval<Option<Dim>> {
        match self.expr(dim)? {
            Term::Poison => Ok(None),
            term => match term.as_size() {
                Some(size) => Ok(Some(size)),
                None => {
                    let message = format!(
                        "a size must be an int or a run-time size, given {}",
                        term.describe(&self.graph)
                    );
                    let mut diagnostic = Diagnostic::error(message).label(dim.span, "this size");
                    match term {
                        Term::Float(_) => {
                            diagnostic = diagnostic.help("`/` on ints is a float; use floor_div or ceil_div")
                        }
                        Term::Scaled { .. } => {
                            diagnostic = diagnostic.help("`ceil` makes a size of a scaled size")
                        }
                        _ => {}
                    }
                    self.report(diagnostic)?;
                    Ok(None)
                }
            },
        }
    }

    /// Binds the names of `pattern` that mean nothing yet to sizes of `shape`, axis by axis. What binds nothing is left to
    /// [`Evaluator::matches`].
    pub(super) fn bind_pattern(&mut self, pattern: &'p TensorPattern, shape: &[Dim]) {
        let Some(skipped) = shape.len().checked_sub(pattern.dims.len()) else { return };
        for (dim, size) in pattern.dims.iter().zip(&shape[skipped..]) {
            if let ExprKind::Name(name) = &dim.kind
                && self.lookup(name).is_none()
            {
                self.frame.locals.declare(name, Term::size(size.clone()));
            }
        }
    }

    /// Compares a type with a pattern all of whose names are known.
    pub(super) fn matches(&mut self, pattern: &'p TensorPattern, dtype: DType, shape: &[Dim]) -> Eval<Match> {
        let Some(want) = self.shape_of(&pattern.dims)? else { return Ok(Match::Poison) };
        let want_dtype = pattern.dtype.unwrap_or(DType::F32);
        let skipped = shape.len().checked_sub(want.len()).filter(|skipped| pattern.leading || *skipped == 0);
        if let Some(skipped) = skipped
            && shape[skipped..] == want[..]
            && dtype == want_dtype
        {
            return Ok(Match::Yes(shape[..skipped].to_vec()));
        }
        let text = ShapeDisplay(&want).to_string();
        let text = match (pattern.leading, want.is_empty()) {
            (true, true) => "[...]".to_owned(),
            (true, false) => format!("[..., {}", &text[1..]),
            (false, _) => text,
        };
        Ok(Match::No(format!("{want_dtype}{text}")))
    }

    /// The term if it is a tensor of the pattern's type, else an error at `span` that calls it `what`. Axes of `...` must be `leading`
    /// where that is given. Plain numbers become scalars.
    pub(super) fn check_tensor(
        &mut self,
        pattern: &'p TensorPattern,
        term: Term,
        span: Span,
        what: &str,
        leading: Option<&[Dim]>,
    ) -> Eval<Term> {
        let Term::Tensor(value) = term else {
            if term.is_poison() {
                return Ok(term);
            }
            let message = format!("{what} must be a tensor, given {}", term.describe(&self.graph));
            let mut diagnostic = Diagnostic::error(message).label(span, "this value");
            if matches!(term, Term::Int(_) | Term::Float(_) | Term::Bool(_) | Term::Dim(_)) {
                diagnostic = diagnostic.help("`broadcast(value, shape)` makes a tensor of a number");
            }
            return self.poison(diagnostic.label(pattern.span.0, "the stated type"));
        };
        let ty = self.graph.ty(value).clone();
        let expected = match self.matches(pattern, ty.dtype, &ty.shape)? {
            Match::Poison => return Ok(Term::Poison),
            Match::Yes(axes) => match leading {
                Some(leading) if axes != leading => {
                    format!("the leading axes {}", ShapeDisplay(leading))
                }
                _ => return Ok(term),
            },
            Match::No(expected) => expected,
        };
        let message = format!("{what} has type {ty}, expected {expected}");
        self.poison(
            Diagnostic::error(message).label(span, "this value").label(pattern.span.0, "the stated type"),
        )
    }
}
