//! Expressions.

use std::rc::Rc;

use nucleus_ir::ast::{BinaryOperator, Block, Expr, ExprKind, StringPart, UnaryOperator};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::suggest::nearest;

use super::arithmetic::{self, ArithmeticError};
use super::evaluator::{Eval, Evaluator, complexity};
use super::limits;
use super::term::Term;

impl<'p> Evaluator<'p> {
    pub(super) fn expr(&mut self, expr: &'p Expr) -> Eval<Term> {
        self.enter(expr.span)?;
        let term = self.expr_kind(expr)?;
        self.leave();
        Ok(term)
    }

    fn expr_kind(&mut self, expr: &'p Expr) -> Eval<Term> {
        match &expr.kind {
            ExprKind::Int(value) => Ok(Term::Int(*value)),
            ExprKind::Float(value) => Ok(Term::Float(value.0)),
            ExprKind::Bool(value) => Ok(Term::Bool(*value)),
            ExprKind::Null => Ok(Term::Null),
            ExprKind::DType(dtype) => Ok(Term::DType(*dtype)),
            ExprKind::String(parts) => self.string(parts, expr.span),
            ExprKind::Name(name) => match self.lookup(name) {
                Some(term) => Ok(term.clone()),
                None => self.unknown_name(name, expr.span),
            },
            ExprKind::List(items) => Ok(self.items(items)?.map_or(Term::Poison, Term::List)),
            ExprKind::Tuple(items) => Ok(self.items(items)?.map_or(Term::Poison, Term::Tuple)),
            ExprKind::Index(list, index) => self.index(list, index),
            ExprKind::Call { callee, args, named } => self.call(callee, args, named, expr.span),
            ExprKind::Unary(operator, operand) => self.unary(*operator, operand, expr.span),
            ExprKind::Binary(operator, left, right) => self.binary_expr(*operator, left, right, expr.span),
            ExprKind::If { condition, then, otherwise } => {
                let condition_span = condition.span;
                match self.expr(condition)? {
                    Term::Bool(true) => self.block(then),
                    Term::Bool(false) => match otherwise {
                        Some(otherwise) => self.expr(otherwise),
                        None => Ok(Term::Unit),
                    },
                    Term::Poison => Ok(Term::Poison),
                    other => {
                        let message = format!(
                            "a condition must be a compile-time bool, given {}",
                            other.describe(&self.graph)
                        );
                        let mut diagnostic =
                            Diagnostic::error(message).label(condition_span, "this condition");
                        if matches!(other, Term::Tensor(_)) {
                            diagnostic = diagnostic
                                .help("`select(condition, a, b)` chooses between elements at run time");
                        }
                        self.poison(diagnostic)
                    }
                }
            }
            ExprKind::Scope { name, body } => self.scope(name, body),
            ExprKind::Block(block) => self.block(block),
        }
    }

    fn unknown_name(&mut self, name: &str, span: Span) -> Eval<Term> {
        let mut diagnostic =
            Diagnostic::error(format!("there is no value `{name}`")).label(span, "not known here");
        let globals = self.globals.get(self.frame.module).into_iter().flat_map(|names| names.keys().copied());
        if let Some(near) = nearest(name, globals) {
            diagnostic = diagnostic.help(format!("there is `{near}`"));
        }
        self.poison(diagnostic)
    }

    fn items(&mut self, items: &'p [Expr]) -> Eval<Option<Rc<[Term]>>> {
        let mut terms = Vec::with_capacity(items.len().min(64));
        for item in items {
            if terms.len() >= limits::LIST_LENGTH {
                return self
                    .stop(format!("a list has more than {} elements", limits::LIST_LENGTH), item.span);
            }
            terms.push(self.expr(item)?);
        }
        Ok(if terms.iter().any(Term::is_poison) { None } else { Some(terms.into()) })
    }

    fn index(&mut self, list: &'p Expr, index: &'p Expr) -> Eval<Term> {
        let (items, position) = (self.expr(list)?, self.expr(index)?);
        match (&items, &position) {
            (Term::Poison, _) | (_, Term::Poison) => Ok(Term::Poison),
            (Term::List(items) | Term::Tuple(items), Term::Int(position)) => {
                match usize::try_from(*position).ok().and_then(|position| items.get(position)) {
                    Some(item) => Ok(item.clone()),
                    None => {
                        let message = format!("index {position} is outside of a list of {}", items.len());
                        let diagnostic = Diagnostic::error(message).label(index.span, "this index");
                        self.poison(diagnostic.label(list.span, format!("this has {} elements", items.len())))
                    }
                }
            }
            _ => {
                let (items, position) = (items.describe(&self.graph), position.describe(&self.graph));
                let message = format!("{items} cannot be indexed by {position}");
                self.poison(Diagnostic::error(message).label(list.span, ""))
            }
        }
    }

    fn string(&mut self, parts: &'p [StringPart], span: Span) -> Eval<Term> {
        let mut text = String::new();
        for part in parts {
            match part {
                StringPart::Text(part) => text.push_str(part),
                StringPart::Interpolation(expr) => match self.expr(expr)? {
                    Term::Poison => return Ok(Term::Poison),
                    term @ (Term::Tensor(_) | Term::Unit) => {
                        let message = format!("{} has no text", term.describe(&self.graph));
                        return self.poison(Diagnostic::error(message).label(expr.span, "in a string"));
                    }
                    term => text.push_str(&term.to_string()),
                },
            }
            if text.len() > limits::STRING_BYTES {
                return self.stop(format!("a string has more than {} bytes", limits::STRING_BYTES), span);
            }
        }
        self.step(text.len() as u64 / 16, span)?;
        Ok(Term::Str(text.into()))
    }

    fn scope(&mut self, name: &'p Expr, body: &'p Block) -> Eval<Term> {
        let text = match self.expr(name)? {
            Term::Str(text) if !text.is_empty() => text,
            Term::Poison => return Ok(Term::Poison),
            Term::Str(_) => {
                return self.poison(Diagnostic::error("a scope needs a name").label(name.span, ""));
            }
            other => {
                let message =
                    format!("the name of a scope is a string, given {}", other.describe(&self.graph));
                return self.poison(Diagnostic::error(message).label(name.span, ""));
            }
        };
        let (length, label) = (self.prefix.len(), self.label.clone());
        if length > 0 {
            self.prefix.push('.');
        }
        self.prefix.push_str(&text);
        if self.prefix.len() > limits::STRING_BYTES {
            let message = format!("the names of open scopes have more than {} bytes", limits::STRING_BYTES);
            return self.stop(message, name.span);
        }
        self.step(self.prefix.len() as u64 / 16, name.span)?;
        self.label = Some(self.prefix.as_str().into());
        let value = self.block(body)?;
        self.prefix.truncate(length);
        self.label = label;
        Ok(value)
    }

    fn unary(&mut self, operator: UnaryOperator, operand: &'p Expr, span: Span) -> Eval<Term> {
        let value = self.expr(operand)?;
        let result = match (operator, &value) {
            (_, Term::Poison) => Ok(Term::Poison),
            (UnaryOperator::Neg, Term::Float(value)) => Ok(Term::Float(-value)),
            (UnaryOperator::Neg, Term::Int(_) | Term::Dim(_)) => {
                arithmetic::binary(BinaryOperator::Mul, &value, &Term::Int(-1))
            }
            (UnaryOperator::Not, Term::Bool(value)) => Ok(Term::Bool(!value)),
            (UnaryOperator::Neg, Term::Tensor(tensor)) => {
                return self.tensor_op(nucleus_ir::Op::Neg, &[*tensor], span);
            }
            (UnaryOperator::Not, Term::Tensor(tensor)) => {
                return self.tensor_op(nucleus_ir::Op::Not, &[*tensor], span);
            }
            _ => Err(ArithmeticError::Undefined),
        };
        let sign = match operator {
            UnaryOperator::Neg => "-",
            UnaryOperator::Not => "!",
        };
        match result {
            Ok(term) => Ok(term),
            Err(ArithmeticError::Failed(why)) => self.poison(Diagnostic::error(why).label(span, "")),
            Err(ArithmeticError::Undefined) => {
                let message = format!("`{sign}` is not defined for {}", value.describe(&self.graph));
                self.poison(Diagnostic::error(message).label(span, ""))
            }
        }
    }

    fn binary_expr(
        &mut self,
        operator: BinaryOperator,
        left: &'p Expr,
        right: &'p Expr,
        span: Span,
    ) -> Eval<Term> {
        let a = self.expr(left)?;
        match (operator, &a) {
            (BinaryOperator::Coalesce, Term::Null) => return self.expr(right),
            (BinaryOperator::Coalesce, _) => return Ok(a),
            (BinaryOperator::And, Term::Bool(false)) | (BinaryOperator::Or, Term::Bool(true)) => {
                return Ok(a);
            }
            _ => {}
        }
        let b = self.expr(right)?;
        self.binary(operator, a, b, span)
    }

    /// `left operator right` for values of any kind, except for `??`.
    pub(super) fn binary(
        &mut self,
        operator: BinaryOperator,
        left: Term,
        right: Term,
        span: Span,
    ) -> Eval<Term> {
        let result = match (operator, &left, &right) {
            (_, Term::Poison, _) | (_, _, Term::Poison) => return Ok(Term::Poison),
            (_, Term::Tensor(_), _) | (_, _, Term::Tensor(_)) => {
                return self.tensor_binary(operator, left, right, span);
            }
            (BinaryOperator::And, Term::Bool(a), Term::Bool(b)) => Ok(Term::Bool(*a && *b)),
            (BinaryOperator::Or, Term::Bool(a), Term::Bool(b)) => Ok(Term::Bool(*a || *b)),
            (_, left, right) => {
                if let (Some(a), Some(b)) = (left.as_size(), right.as_size()) {
                    self.step((complexity(&a) * complexity(&b)).min(1 << 20), span)?;
                }
                arithmetic::binary(operator, left, right)
            }
        };
        match result {
            Ok(term) => Ok(term),
            Err(ArithmeticError::Failed(why)) => {
                self.poison(Diagnostic::error(why).label(span, "in this expression"))
            }
            Err(ArithmeticError::Undefined) => self.undefined(operator, &left, &right, span),
        }
    }

    pub(super) fn undefined(
        &mut self,
        operator: BinaryOperator,
        left: &Term,
        right: &Term,
        span: Span,
    ) -> Eval<Term> {
        let (a, b) = (left.describe(&self.graph), right.describe(&self.graph));
        let message = format!("`{}` is not defined for {a} and {b}", symbol(operator));
        let mut diagnostic = Diagnostic::error(message).label(span, "in this expression");
        if [left, right].iter().any(|term| matches!(term, Term::Scaled { .. })) {
            diagnostic = diagnostic.help("`ceil` makes a size of a scaled size");
        }
        self.poison(diagnostic)
    }
}

/// An operator as it is written.
pub(super) fn symbol(operator: BinaryOperator) -> &'static str {
    match operator {
        BinaryOperator::Coalesce => "??",
        BinaryOperator::Or => "||",
        BinaryOperator::And => "&&",
        BinaryOperator::Equal => "==",
        BinaryOperator::NotEqual => "!=",
        BinaryOperator::Less => "<",
        BinaryOperator::LessEqual => "<=",
        BinaryOperator::Greater => ">",
        BinaryOperator::GreaterEqual => ">=",
        BinaryOperator::Add => "+",
        BinaryOperator::Sub => "-",
        BinaryOperator::Mul => "*",
        BinaryOperator::Div => "/",
        BinaryOperator::Rem => "%",
    }
}
