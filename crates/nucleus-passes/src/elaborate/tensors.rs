//! Element-wise operations on tensors: numbers become constants, sizes become `size` nodes, and shapes are brought together by the
//! rules of numpy, all as nodes of the graph.

use nucleus_ir::ast::BinaryOperator;
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::types::ShapeDisplay;
use nucleus_ir::{DType, Dim, Float, Op, Value};

use super::evaluator::{Eval, Evaluator};
use super::term::Term;

impl Evaluator<'_> {
    /// Applies an op to tensors as they are.
    pub(super) fn tensor_op(&mut self, op: Op, operands: &[Value], span: Span) -> Eval<Term> {
        Ok(self.value(op, operands, span)?.map_or(Term::Poison, Term::Tensor))
    }

    /// An operator of which at least one side is a tensor.
    pub(super) fn tensor_binary(
        &mut self,
        operator: BinaryOperator,
        left: Term,
        right: Term,
        span: Span,
    ) -> Eval<Term> {
        let op = match operator {
            BinaryOperator::Add => Op::Add,
            BinaryOperator::Sub => Op::Sub,
            BinaryOperator::Mul => Op::Mul,
            BinaryOperator::Div => Op::Div,
            BinaryOperator::Less | BinaryOperator::Greater => Op::Less,
            BinaryOperator::LessEqual | BinaryOperator::GreaterEqual => Op::LessEqual,
            BinaryOperator::Equal | BinaryOperator::NotEqual => Op::Equal,
            BinaryOperator::And => Op::And,
            BinaryOperator::Or => Op::Or,
            BinaryOperator::Rem | BinaryOperator::Coalesce => {
                return self.undefined(operator, &left, &right, span);
            }
        };
        let operands = match operator {
            BinaryOperator::Greater | BinaryOperator::GreaterEqual => vec![right, left],
            _ => vec![left, right],
        };
        let result = self.elementwise(op, operands, span)?;
        match (operator, result) {
            (BinaryOperator::NotEqual, Term::Tensor(equal)) => self.tensor_op(Op::Not, &[equal], span),
            (_, result) => Ok(result),
        }
    }

    /// An element-wise op on tensors and numbers, with conversions and broadcasting.
    pub(super) fn elementwise(&mut self, op: Op, operands: Vec<Term>, span: Span) -> Eval<Term> {
        if operands.iter().any(Term::is_poison) {
            return Ok(Term::Poison);
        }
        // The condition of `select` has its own element type.
        let typed = if matches!(op, Op::Select) { 1.min(operands.len()) } else { 0 };
        let tensor_dtype = operands[typed..].iter().find_map(|operand| match operand {
            Term::Tensor(value) => Some(self.graph.ty(*value).dtype),
            _ => None,
        });
        let dtype = tensor_dtype.unwrap_or_else(|| natural_dtype(&operands[typed..]));
        let mut values = Vec::with_capacity(operands.len());
        for (index, operand) in operands.iter().enumerate() {
            let dtype = if index < typed { DType::Bool } else { dtype };
            match self.lift(operand, dtype, op.name(), span)? {
                Some(value) => values.push(value),
                None => return Ok(Term::Poison),
            }
        }
        match self.broadcast_together(&values, span)? {
            Some(values) => self.tensor_op(op, &values, span),
            None => Ok(Term::Poison),
        }
    }

    /// The operand as a tensor: itself, or a scalar of element type `dtype`.
    pub(super) fn lift(&mut self, operand: &Term, dtype: DType, op: &str, span: Span) -> Eval<Option<Value>> {
        let number = match (operand, dtype) {
            (Term::Tensor(value), _) => return Ok(Some(*value)),
            (Term::Poison, _) => return Ok(None),
            (Term::Bool(value), DType::Bool) => Some(f64::from(u8::from(*value))),
            (Term::Int(value), DType::I32) if i32::try_from(*value).is_ok() => Some(*value as f64),
            (Term::Int(_) | Term::Float(_), dtype) if dtype.is_float() => operand.as_float(),
            (Term::Dim(dim), dtype) if dtype != DType::Bool => {
                let size = self.value(Op::Size { dim: dim.clone() }, &[], span)?;
                return match size {
                    Some(size) if dtype != DType::I32 => self.value(Op::Cast { to: dtype }, &[size], span),
                    size => Ok(size),
                };
            }
            _ => None,
        };
        match number {
            Some(number) => self.value(Op::Constant { value: canonical(number), dtype }, &[], span),
            None => {
                let mut text = operand.describe(&self.graph);
                if matches!(operand, Term::Int(_) | Term::Float(_)) {
                    text = format!("{text} {operand}");
                }
                let message = format!("`{op}` on elements of {dtype} does not take {text}");
                let mut diagnostic = Diagnostic::error(message).label(span, "in this operation");
                if matches!(operand, Term::Scaled { .. }) {
                    diagnostic = diagnostic.help("`ceil` makes a size of a scaled size");
                }
                self.report(diagnostic)?;
                Ok(None)
            }
        }
    }

    /// The values with one shape, aligned at the last axis; an axis of size 1 is repeated.
    fn broadcast_together(&mut self, values: &[Value], span: Span) -> Eval<Option<Vec<Value>>> {
        let rank = values.iter().map(|value| self.graph.ty(*value).rank()).max().unwrap_or(0);
        let mut shape = vec![Dim::constant(1); rank];
        for value in values {
            let from = &self.graph.ty(*value).shape;
            for (size, have) in shape.iter_mut().rev().zip(from.iter().rev()) {
                if size.is_constant(1) {
                    *size = have.clone();
                } else if !have.is_constant(1) && have != size {
                    let shapes: Vec<String> =
                        values.iter().map(|value| self.graph.ty(*value).to_string()).collect();
                    let message = format!("shapes do not broadcast: {}", shapes.join(" and "));
                    let label = format!("one side has {size} where another has {have}");
                    self.report(Diagnostic::error(message).label(span, label))?;
                    return Ok(None);
                }
            }
        }
        let mut broadcast = Vec::with_capacity(values.len());
        for value in values {
            let same = self.graph.ty(*value).shape == shape;
            let value = if same {
                Some(*value)
            } else {
                self.value(Op::Broadcast { shape: shape.clone() }, &[*value], span)?
            };
            match value {
                Some(value) => broadcast.push(value),
                None => return Ok(None),
            }
        }
        Ok(Some(broadcast))
    }

    /// `split(x, n, axis)`: n equal parts along an axis.
    pub(super) fn split(&mut self, x: Value, count: i64, axis: usize, span: Span) -> Eval<Term> {
        let ty = self.graph.ty(x).clone();
        let part = if count >= 1 { ty.shape[axis].exact_div(&Dim::constant(count)) } else { None };
        let Some(part) = part.filter(|_| count <= 1024) else {
            let message =
                format!("axis {axis} of {} does not split into {count} equal parts", ShapeDisplay(&ty.shape));
            let diagnostic = Diagnostic::error(message).label(span, "in this operation");
            return self.poison(diagnostic.help("the count is from 1 to 1024 and divides the size"));
        };
        let mut parts = Vec::with_capacity(count as usize);
        for index in 0..count {
            let bound = |index: i64| part.mul(&Dim::constant(index));
            let (start, end) = match (bound(index), bound(index + 1)) {
                (Ok(start), Ok(end)) => (start, end),
                (Err(error), _) | (_, Err(error)) => {
                    return self
                        .poison(Diagnostic::error(error.to_string()).label(span, "in this operation"));
                }
            };
            match self.value(Op::Slice { axis, start, end }, &[x], span)? {
                Some(part) => parts.push(Term::Tensor(part)),
                None => return Ok(Term::Poison),
            }
        }
        Ok(Term::Tuple(parts.into()))
    }
}

/// The element type of operands that are all compile-time values.
pub(super) fn natural_dtype(operands: &[Term]) -> DType {
    if operands.iter().any(|operand| matches!(operand, Term::Float(_))) {
        DType::F32
    } else if operands.iter().any(|operand| matches!(operand, Term::Bool(_))) {
        DType::Bool
    } else {
        DType::I32
    }
}

/// One NaN per sign, so that a printed graph reads back as the same one.
pub(super) fn canonical(value: f64) -> Float {
    Float(if value.is_nan() { f64::NAN.copysign(value) } else { value })
}
