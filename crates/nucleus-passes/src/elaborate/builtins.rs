//! The functions that are built in: weights, and arithmetic on compile-time values and sizes.

use std::rc::Rc;

use nucleus_ir::ast::{Expr, Name};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::types::ShapeDisplay;
use nucleus_ir::verify::{Builtin, builtin};
use nucleus_ir::{DType, Dim, DimError, TensorType, Weight};

use super::arithmetic::{ArithmeticError, floats, sizes};
use super::evaluator::{Eval, Evaluator, complexity};
use super::limits;
use super::term::Term;

impl<'p> Evaluator<'p> {
    /// A call of a builtin; `None` if there is none of that name.
    pub(super) fn builtin(
        &mut self,
        name: &str,
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Option<Term>> {
        let Some(builtin) = builtin(name) else { return Ok(None) };
        let Some(terms) = self.builtin_arguments(builtin, args, named, span)? else {
            return Ok(Some(Term::Poison));
        };
        if terms.iter().flatten().any(Term::is_poison) {
            return Ok(Some(Term::Poison));
        }
        let argument = |index: usize| terms.get(index).cloned().flatten();
        let term = match (name, argument(0), argument(1), argument(2)) {
            ("weight", Some(name), Some(shape), dtype) => self.weight(name, shape, dtype, span)?,
            ("split", Some(x), Some(count), axis) => self.split_call(x, count, axis, span)?,
            (_, Some(Term::Tensor(x)), None, None) => match nucleus_ir::Op::new(name, &[]) {
                Ok(op) => self.tensor_op(op, &[x], span)?,
                Err(_) => self.no_tensor(name, x, span)?,
            },
            (_, Some(a), Some(b), None) if matches!(a, Term::Tensor(_)) || matches!(b, Term::Tensor(_)) => {
                match nucleus_ir::Op::new(name, &[]) {
                    Ok(op) => self.elementwise(op, vec![a, b], span)?,
                    Err(_) => {
                        let tensor = [a, b].iter().find_map(|term| match term {
                            Term::Tensor(value) => Some(*value),
                            _ => None,
                        });
                        match tensor {
                            Some(tensor) => self.no_tensor(name, tensor, span)?,
                            None => Term::Poison,
                        }
                    }
                }
            }
            (_, Some(a), b, c) => {
                for size in [Some(&a), b.as_ref()].into_iter().flatten().filter_map(Term::as_size) {
                    self.step(complexity(&size), span)?;
                }
                self.compute(name, &a, b.as_ref(), c.as_ref(), span)?
            }
            (_, None, _, _) => Term::Poison,
        };
        Ok(Some(term))
    }

    fn builtin_arguments(
        &mut self,
        builtin: &Builtin,
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Option<Vec<Option<Term>>>> {
        let (name, params) = (builtin.name, builtin.params);
        let mut terms: Vec<Option<Term>> = vec![None; params.len()];
        for (index, arg) in args.iter().enumerate() {
            let term = self.expr(arg)?;
            match terms.get_mut(index) {
                Some(slot) => *slot = Some(term),
                None => {
                    let message = format!("`{name}` takes {} arguments, given {}", params.len(), args.len());
                    self.report(Diagnostic::error(message).label(arg.span, "one too many"))?;
                    return Ok(None);
                }
            }
        }
        for (given, arg) in named {
            let term = self.expr(arg)?;
            let slot = params.iter().position(|(known, _)| *known == given.node);
            match slot.filter(|slot| terms[*slot].is_none()) {
                Some(slot) => terms[slot] = Some(term),
                None => {
                    let message = format!("`{name}` has no other parameter `{}`", given.node);
                    self.report(Diagnostic::error(message).label(given.span, ""))?;
                    return Ok(None);
                }
            }
        }
        for ((param, needed), term) in params.iter().zip(&terms) {
            if *needed && term.is_none() {
                let message = format!("`{name}` needs an argument for `{param}`");
                self.report(Diagnostic::error(message).label(span, "in this call"))?;
                return Ok(None);
            }
        }
        Ok(Some(terms))
    }

    fn no_tensor(&mut self, name: &str, tensor: nucleus_ir::Value, span: Span) -> Eval<Term> {
        let message = format!("`{name}` is not defined for a tensor {}", self.graph.ty(tensor));
        let mut diagnostic = Diagnostic::error(message).label(span, "in this call");
        if matches!(name, "float" | "int") {
            diagnostic = diagnostic.help("`cast(x, f32)` converts the elements of a tensor");
        }
        self.poison(diagnostic)
    }

    fn weight(&mut self, name: Term, shape: Term, dtype: Option<Term>, span: Span) -> Eval<Term> {
        let (name, dims, dtype) = match (name, shape, dtype) {
            (Term::Str(name), Term::List(dims), None) => (name, dims, DType::F32),
            (Term::Str(name), Term::List(dims), Some(Term::DType(dtype))) => (name, dims, dtype),
            (name, shape, dtype) => {
                let mut given = format!("{}, {}", name.describe(&self.graph), shape.describe(&self.graph));
                if let Some(dtype) = dtype {
                    given = format!("{given}, {}", dtype.describe(&self.graph));
                }
                let message = format!("`weight` takes a name, a shape and an element type, given {given}");
                return self.poison(Diagnostic::error(message).label(span, "in this call"));
            }
        };
        let name = self.weight_name(&name, span)?;
        let shape: Option<Vec<Dim>> = dims.iter().map(Term::as_size).collect();
        let Some(shape) = shape else {
            let message =
                format!("the shape of weight `{name}` has an element that is no size: {}", Term::List(dims));
            let diagnostic = Diagnostic::error(message).label(span, "in this call");
            return self.poison(diagnostic.help("`/` on ints is a float; use floor_div or ceil_div"));
        };
        let ty = TensorType::new(dtype, shape);
        let size_fits =
            |dim: &Dim| dim.as_constant().is_some_and(|size| (1..=limits::WEIGHT_SIZE).contains(&size));
        let counted = ty.bytes().is_ok_and(|bytes| bytes.as_constant().is_some());
        if ty.shape.iter().any(|dim| dim.as_constant().is_none()) {
            let message = format!(
                "weight `{name}` has shape {}: it cannot depend on run-time sizes",
                ShapeDisplay(&ty.shape)
            );
            return self.poison(Diagnostic::error(message).label(span, "in this call"));
        }
        if !counted || !ty.shape.iter().all(size_fits) || ty.rank() > nucleus_ir::infer::MAX_RANK {
            let message = format!(
                "weight `{name}` has shape {}: at most {} axes, sizes from 1 to 2^40, less than 2^63 bytes",
                ShapeDisplay(&ty.shape),
                nucleus_ir::infer::MAX_RANK
            );
            return self.poison(Diagnostic::error(message).label(span, "in this call"));
        }
        if let Some(known) = self.weights.get(&name) {
            let known = *known;
            let first = self.graph.ty(known);
            if *first == ty {
                return Ok(Term::Tensor(known));
            }
            let message = format!("weight `{name}` is {first} at its first mention and {ty} here");
            return self.poison(Diagnostic::error(message).label(span, "in this call"));
        }
        if self.weights.len() >= limits::WEIGHTS {
            return self.stop(format!("the graph has more than {} weights", limits::WEIGHTS), span);
        }
        let value = self.graph.add_weight(Weight::new(name.clone(), ty));
        self.weights.insert(name, value);
        Ok(Term::Tensor(value))
    }

    /// The name in the checkpoint: the scopes and the given name.
    fn weight_name(&mut self, name: &Rc<str>, span: Span) -> Eval<String> {
        let full = match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}.{name}", self.prefix),
        };
        self.step(full.len() as u64 / 16 + 16, span)?;
        Ok(full)
    }

    fn split_call(&mut self, x: Term, count: Term, axis: Option<Term>, span: Span) -> Eval<Term> {
        let (x, count, axis) = match (x, count, axis) {
            (Term::Tensor(x), Term::Int(count), None) => (x, count, -1),
            (Term::Tensor(x), Term::Int(count), Some(Term::Int(axis))) => (x, count, axis),
            (x, count, _) => {
                let (x, count) = (x.describe(&self.graph), count.describe(&self.graph));
                let message = format!("`split` takes a tensor, an int and an axis, given {x} and {count}");
                return self.poison(Diagnostic::error(message).label(span, "in this call"));
            }
        };
        let rank = self.graph.ty(x).rank();
        match self.axis(axis, Some(rank), "split", span)? {
            Some(axis) => self.split(x, count, axis, span),
            None => Ok(Term::Poison),
        }
    }

    fn compute(
        &mut self,
        name: &str,
        a: &Term,
        b: Option<&Term>,
        c: Option<&Term>,
        span: Span,
    ) -> Eval<Term> {
        match compute(name, a, b, c) {
            Ok(term) => Ok(term),
            Err(ArithmeticError::Failed(why)) => {
                self.poison(Diagnostic::error(format!("`{name}`: {why}")).label(span, "in this call"))
            }
            Err(ArithmeticError::Undefined) => {
                let kinds: Vec<&str> = [Some(a), b, c].into_iter().flatten().map(Term::kind).collect();
                let message = format!("`{name}` is not defined for {}", kinds.join(" and "));
                let mut diagnostic = Diagnostic::error(message).label(span, "in this call");
                if name == "floor" && matches!(a, Term::Scaled { .. }) {
                    diagnostic = diagnostic
                        .help("a scaled size is rounded up, with `ceil`; `floor_div` divides sizes");
                }
                self.poison(diagnostic)
            }
        }
    }
}

fn compute(name: &str, a: &Term, b: Option<&Term>, c: Option<&Term>) -> Result<Term, ArithmeticError> {
    use ArithmeticError::Undefined;
    let both = |b: Option<&Term>, rule: fn(&Dim, &Dim) -> Result<Dim, DimError>| {
        b.and_then(|b| sizes(a, b, rule)).unwrap_or(Err(Undefined))
    };
    match name {
        "len" => match a {
            Term::List(items) | Term::Tuple(items) => Ok(Term::Int(items.len() as i64)),
            _ => Err(Undefined),
        },
        "floor" | "ceil" | "int" => match a {
            Term::Int(_) | Term::Dim(_) => Ok(a.clone()),
            Term::Float(value) => whole(match name {
                "floor" => value.floor(),
                "ceil" => value.ceil(),
                _ => value.trunc(),
            }),
            Term::Scaled { size, factor, divisor } if name == "ceil" => {
                Ok(Term::size(size.ceil_scale(*factor, *divisor)?))
            }
            Term::Bool(value) if name == "int" => Ok(Term::Int(i64::from(*value))),
            _ => Err(Undefined),
        },
        "float" => a.as_float().map(Term::Float).ok_or(Undefined),
        "floor_div" => both(b, Dim::floor_div),
        "ceil_div" => both(b, Dim::ceil_div),
        "ceil_scale" => match (a.as_size(), b.and_then(Term::as_float), c.and_then(Term::as_float)) {
            (Some(size), Some(factor), Some(divisor)) => Ok(Term::size(size.ceil_scale(factor, divisor)?)),
            _ => Err(Undefined),
        },
        "max" | "min" => {
            let b = b.ok_or(Undefined)?;
            if name == "max" {
                sizes(a, b, Dim::max).or_else(|| floats(a, b, f64::max)).unwrap_or(Err(Undefined))
            } else {
                sizes(a, b, Dim::min).or_else(|| floats(a, b, f64::min)).unwrap_or(Err(Undefined))
            }
        }
        "abs" => match a {
            Term::Int(value) => {
                value.checked_abs().map(Term::Int).ok_or_else(|| ArithmeticError::from(DimError::Overflow))
            }
            Term::Float(value) => Ok(Term::Float(value.abs())),
            _ => Err(Undefined),
        },
        _ => {
            let value = a.as_float().ok_or(Undefined)?;
            let result = match name {
                "sqrt" => value.sqrt(),
                "exp" => value.exp(),
                "log" => value.ln(),
                "sin" => value.sin(),
                "cos" => value.cos(),
                "tanh" => value.tanh(),
                _ => return Err(Undefined),
            };
            if result.is_finite() || !value.is_finite() {
                Ok(Term::Float(result))
            } else {
                Err(ArithmeticError::Failed(format!("the result for {a} is not a finite number")))
            }
        }
    }
}

fn whole(value: f64) -> Result<Term, ArithmeticError> {
    if value.is_finite() && value.abs() < 9.2e18 {
        Ok(Term::Int(value as i64))
    } else {
        Err(ArithmeticError::Failed(format!("{value} does not fit a signed 64-bit integer")))
    }
}
