//! Calls of ops of the table: operands by position, attributes by name or, where the operand count is fixed, by position after them.

use nucleus_ir::ast::{Expr, Name};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::ops::{Attribute, AttributeInfo, AttributeKind, OpInfo, OperandCount};
use nucleus_ir::source::Span;
use nucleus_ir::suggest::nearest;
use nucleus_ir::{Op, Value};

use super::evaluator::{Eval, Evaluator};
use super::tensors::{canonical, natural_dtype};
use super::term::Term;

impl<'p> Evaluator<'p> {
    pub(super) fn op_call(
        &mut self,
        info: &OpInfo,
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Term> {
        let fixed = info.operands.iter().all(|operand| operand.count == OperandCount::One);
        let operand_count = if fixed { info.operands.len().min(args.len()) } else { args.len() };
        let (operand_args, attribute_args) = args.split_at(operand_count);
        if attribute_args.len() > info.attributes.len() {
            let message = format!(
                "op `{}` takes {} operands and {} attributes, given {}",
                info.name,
                info.operands.len(),
                info.attributes.len(),
                args.len()
            );
            return self.poison(Diagnostic::error(message).label(span, "in this call"));
        }
        let mut operands = Vec::with_capacity(operand_args.len());
        for arg in operand_args {
            operands.push(self.expr(arg)?);
        }
        let mut given: Vec<(&AttributeInfo, Term, Span)> = Vec::new();
        for (attribute, arg) in info.attributes.iter().zip(attribute_args) {
            given.push((attribute, self.expr(arg)?, arg.span));
        }
        for (name, arg) in named {
            let term = self.expr(arg)?;
            let Some(attribute) = info.attributes.iter().find(|attribute| attribute.name == name.node) else {
                self.unknown_attribute(info, name)?;
                return Ok(Term::Poison);
            };
            if given.iter().any(|(other, ..)| other.name == attribute.name) {
                let message = format!("attribute `{}` of op `{}` is given twice", attribute.name, info.name);
                return self.poison(Diagnostic::error(message).label(name.span, "the second time"));
            }
            given.push((attribute, term, arg.span));
        }
        if operands.iter().chain(given.iter().map(|(_, term, _)| term)).any(Term::is_poison) {
            return Ok(Term::Poison);
        }
        let Some(attributes) = self.attributes(info, &operands, given, span)? else {
            return Ok(Term::Poison);
        };
        let op = match Op::new(info.name, &attributes) {
            Ok(op) => op,
            Err(error) => {
                return self.poison(Diagnostic::error(error.to_string()).label(span, "in this call"));
            }
        };
        if op.scalar().is_some() && operands.len() == info.operands.len() {
            return self.elementwise(op, operands, span);
        }
        let mut values: Vec<Value> = Vec::with_capacity(operands.len());
        for operand in &operands {
            let dtype = natural_dtype(std::slice::from_ref(operand));
            match self.lift(operand, dtype, info.name, span)? {
                Some(value) => values.push(value),
                None => return Ok(Term::Poison),
            }
        }
        Ok(match self.node(op, &values, span)? {
            None => Term::Poison,
            Some(results) => match results.as_slice() {
                [one] => Term::Tensor(*one),
                results => Term::Tuple(results.iter().map(|result| Term::Tensor(*result)).collect()),
            },
        })
    }

    fn unknown_attribute(&mut self, info: &OpInfo, name: &Name) -> Eval<()> {
        let message = format!("op `{}` has no attribute `{}`", info.name, name.node);
        let mut diagnostic = Diagnostic::error(message).label(name.span, "");
        if info.operands.iter().any(|operand| operand.name == name.node) {
            diagnostic = diagnostic.help(format!("operand `{}` is given by position", name.node));
        } else if let Some(near) = nearest(&name.node, info.attributes.iter().map(|attribute| attribute.name))
        {
            diagnostic = diagnostic.help(format!("there is `{near}`"));
        }
        self.report(diagnostic)
    }

    /// The attributes as the op has them. Shapes come first: the axes of `iota` are those of its shape.
    fn attributes(
        &mut self,
        info: &OpInfo,
        operands: &[Term],
        given: Vec<(&AttributeInfo, Term, Span)>,
        span: Span,
    ) -> Eval<Option<Vec<(String, Attribute)>>> {
        let mut rank = operands.iter().find_map(|operand| match operand {
            Term::Tensor(value) => Some(self.graph.ty(*value).rank()),
            _ => None,
        });
        let mut attributes: Vec<(String, Attribute)> = Vec::with_capacity(given.len());
        let is_axis = |kind| matches!(kind, AttributeKind::Axis | AttributeKind::Axes);
        let (axes, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|(known, ..)| is_axis(known.kind));
        for (known, term, place) in others.into_iter().chain(axes) {
            let attribute = match (known.kind, &term) {
                (AttributeKind::Bool, Term::Bool(value)) => Some(Attribute::Bool(*value)),
                (AttributeKind::Float, Term::Bool(value)) if info.name == "constant" => {
                    Some(Attribute::Float(canonical(f64::from(u8::from(*value)))))
                }
                (AttributeKind::Float, Term::Int(_) | Term::Float(_)) => {
                    term.as_float().map(|value| Attribute::Float(canonical(value)))
                }
                (AttributeKind::DType, Term::DType(dtype)) => Some(Attribute::DType(*dtype)),
                (AttributeKind::Dim, term) => term.as_size().map(Attribute::Dim),
                (AttributeKind::Shape, Term::List(items)) => {
                    items.iter().map(Term::as_size).collect::<Option<Vec<_>>>().map(Attribute::Shape)
                }
                (AttributeKind::Axis, Term::Int(axis)) => match self.axis(*axis, rank, info.name, place)? {
                    Some(axis) => Some(Attribute::Axis(axis)),
                    None => return Ok(None),
                },
                (AttributeKind::Axes, Term::List(items)) => {
                    let mut axes = Vec::with_capacity(items.len().min(16));
                    for item in items.iter() {
                        let Term::Int(axis) = item else { break };
                        match self.axis(*axis, rank, info.name, place)? {
                            Some(axis) => axes.push(axis),
                            None => return Ok(None),
                        }
                    }
                    (axes.len() == items.len()).then_some(Attribute::Axes(axes))
                }
                _ => None,
            };
            let Some(attribute) = attribute else {
                let message = format!(
                    "attribute `{}` of op `{}` must be a {}, given {}",
                    known.name,
                    info.name,
                    known.kind.name(),
                    term.describe(&self.graph)
                );
                let mut diagnostic = Diagnostic::error(message).label(place, "");
                match (known.kind, term) {
                    (_, Term::Scaled { .. }) => {
                        diagnostic = diagnostic.help("`ceil` makes a size of a scaled size");
                    }
                    (AttributeKind::Dim, Term::Float(_)) => {
                        diagnostic = diagnostic.help("`/` on ints is a float; use floor_div or ceil_div");
                    }
                    _ => {}
                }
                self.report(diagnostic)?;
                return Ok(None);
            };
            if let (Attribute::Shape(shape), true) = (&attribute, operands.is_empty()) {
                rank = Some(shape.len());
            }
            attributes.push((known.name.to_owned(), attribute));
        }
        let missing = info
            .attributes
            .iter()
            .find(|known| known.default.is_none() && attributes.iter().all(|(name, _)| name != known.name));
        if let Some(missing) = missing {
            let message = format!("op `{}` needs attribute `{}`", info.name, missing.name);
            self.report(Diagnostic::error(message).label(span, "in this call"))?;
            return Ok(None);
        }
        Ok(Some(attributes))
    }

    /// An axis counted from 0, for one that may be counted from the end.
    pub(super) fn axis(
        &mut self,
        axis: i64,
        rank: Option<usize>,
        op: &str,
        span: Span,
    ) -> Eval<Option<usize>> {
        let rank = rank.unwrap_or(0);
        let counted = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
        match counted.and_then(|axis| usize::try_from(axis).ok()).filter(|axis| *axis < rank) {
            Some(axis) => Ok(Some(axis)),
            None => {
                let message = format!("`{op}`: there is no axis {axis} among {rank} axes");
                let mut diagnostic = Diagnostic::error(message).label(span, "this axis");
                if rank > 0 {
                    diagnostic =
                        diagnostic.help(format!("axes are 0 … {} or, from the end, -1 … -{rank}", rank - 1));
                }
                self.report(diagnostic)?;
                Ok(None)
            }
        }
    }
}
