//! Blocks, statements and expressions.

use std::rc::Rc;

use nucleus_ir::ast::{
    BinaryOperator, Block, Expr, ExprKind, Let, Require, Statement, StringPart, UnaryOperator,
};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::suggest::nearest;
use nucleus_ir::{Constraint, Dim};

use super::arithmetic::{self, ArithmeticError};
use super::evaluator::{Eval, Evaluator, complexity};
use super::limits;
use super::term::Term;

impl<'p> Evaluator<'p> {
    pub(super) fn block(&mut self, block: &'p Block) -> Eval<Term> {
        let mark = self.frame.locals.open();
        for statement in &block.statements {
            self.statement(statement)?;
        }
        let value = match &block.value {
            Some(value) => self.expr(value)?,
            None => Term::Unit,
        };
        self.frame.locals.close(mark);
        Ok(value)
    }

    fn statement(&mut self, statement: &'p Statement) -> Eval<()> {
        match statement {
            Statement::Let(statement) => self.let_statement(statement),
            Statement::Assign { name, value } => {
                let value = self.expr(value)?;
                if !self.frame.locals.assign(&name.node, value) {
                    let message = format!("there is no variable `{}`", name.node);
                    self.report(Diagnostic::error(message).label(name.span, "assigned here"))?;
                }
                Ok(())
            }
            Statement::For { name, from, to, body } => {
                let (first, last) = (self.expr(from)?, self.expr(to)?);
                let bound = |term: &Term| if let Term::Int(value) = term { Some(*value) } else { None };
                let (Some(first), Some(last)) = (bound(&first), bound(&last)) else {
                    for (term, expr) in [(&first, from), (&last, to)] {
                        if !term.is_poison() && bound(term).is_none() {
                            let message =
                                format!("a loop runs over ints, given {}", term.describe(&self.graph));
                            self.report(Diagnostic::error(message).label(expr.span, "this bound"))?;
                        }
                    }
                    return Ok(());
                };
                for value in first..last {
                    self.iterations += 1;
                    if self.iterations > limits::ITERATIONS {
                        let message = format!("loops run more than {} times", limits::ITERATIONS);
                        return self.stop(message, name.span);
                    }
                    let mark = self.frame.locals.open();
                    self.frame.locals.declare(&name.node, Term::Int(value));
                    self.block(body)?;
                    self.frame.locals.close(mark);
                }
                Ok(())
            }
            Statement::Require(require) => self.require(require),
            Statement::Expr(expr) => self.expr(expr).map(|_| ()),
        }
    }

    fn let_statement(&mut self, statement: &'p Let) -> Eval<()> {
        let outer = self.label.clone();
        if let Some(scope) = &statement.scope {
            self.label = Some(scope.node.as_str().into());
        }
        let value = self.expr(&statement.value)?;
        self.label = outer;
        let mut terms = if !statement.tuple {
            vec![value]
        } else {
            match value {
                Term::Tuple(items) if items.len() == statement.names.len() => items.to_vec(),
                value => {
                    if !value.is_poison() {
                        let given = match &value {
                            Term::Tuple(items) => format!("a tuple of {}", items.len()),
                            other => other.describe(&self.graph),
                        };
                        let message = format!("{} names for {given}", statement.names.len());
                        self.report(Diagnostic::error(message).label(statement.value.span, "this value"))?;
                    }
                    vec![Term::Poison; statement.names.len()]
                }
            }
        };
        for ((ty, term), name) in statement.types.iter().zip(&mut terms).zip(&statement.names) {
            let given = std::mem::replace(term, Term::Poison);
            *term = self.check_tensor(ty, given, statement.value.span, &format!("`{}`", name.node), None)?;
        }
        if let Some(rate) = statement.rate {
            self.rates_stated = true;
            for term in &terms {
                if let Term::Tensor(value) = term {
                    self.graph.set_rate(*value, rate);
                }
            }
        }
        for (name, term) in statement.names.iter().zip(terms) {
            self.frame.locals.declare(&name.node, term);
        }
        Ok(())
    }

    /// Compile-time conditions must hold now; relations between run-time sizes become constraints of the graph.
    pub(super) fn require(&mut self, require: &'p Require) -> Eval<()> {
        self.require_condition(&require.condition, require)
    }

    fn require_condition(&mut self, condition: &'p Expr, require: &'p Require) -> Eval<()> {
        use BinaryOperator::{And, Equal, Greater, GreaterEqual, Less, LessEqual};
        let holds = match &condition.kind {
            ExprKind::Binary(And, left, right) => {
                self.require_condition(left, require)?;
                return self.require_condition(right, require);
            }
            ExprKind::Binary(operator @ (Equal | Less | LessEqual | Greater | GreaterEqual), left, right) => {
                let (a, b) = (self.expr(left)?, self.expr(right)?);
                let is_run_time = matches!(a, Term::Dim(_)) || matches!(b, Term::Dim(_));
                if let (true, Some(a), Some(b)) = (is_run_time, a.as_size(), b.as_size()) {
                    return self.relation(*operator, &a, &b, condition.span, require);
                }
                self.binary(*operator, a, b, condition.span)?
            }
            _ => self.expr(condition)?,
        };
        match holds {
            Term::Bool(true) | Term::Poison => Ok(()),
            Term::Bool(false) => self.unmet(condition.span, require),
            other => {
                let message = format!("a requirement must be a bool, given {}", other.describe(&self.graph));
                self.report(Diagnostic::error(message).label(condition.span, ""))
            }
        }
    }

    fn unmet(&mut self, span: Span, require: &'p Require) -> Eval<()> {
        match self.expr(&require.message)? {
            Term::Poison => Ok(()),
            message => self.report(Diagnostic::error(message.to_string()).label(span, "this does not hold")),
        }
    }

    fn relation(
        &mut self,
        operator: BinaryOperator,
        a: &Dim,
        b: &Dim,
        span: Span,
        require: &'p Require,
    ) -> Eval<()> {
        let one = Dim::constant(1);
        let pairs = match operator {
            BinaryOperator::LessEqual => vec![(Ok(a.clone()), b)],
            BinaryOperator::GreaterEqual => vec![(Ok(b.clone()), a)],
            BinaryOperator::Less => vec![(a.add(&one), b)],
            BinaryOperator::Greater => vec![(b.add(&one), a)],
            _ => vec![(Ok(a.clone()), b), (Ok(b.clone()), a)],
        };
        for (smaller, larger) in pairs {
            let smaller = match smaller {
                Ok(smaller) => smaller,
                Err(error) => return self.report(Diagnostic::error(error.to_string()).label(span, "")),
            };
            if smaller == *larger {
                continue;
            }
            let difference = larger.sub(&smaller).ok().and_then(|difference| difference.as_constant());
            if difference.is_some_and(|difference| difference < 0) {
                return self.unmet(span, require);
            }
            let what = match self.expr(&require.message)? {
                Term::Poison => return Ok(()),
                what => what.to_string(),
            };
            let constraint = Constraint { smaller, larger: larger.clone(), what };
            self.step(self.graph.constraints.len() as u64 / 4, span)?;
            if !self.graph.constraints.contains(&constraint) {
                if self.graph.constraints.len() >= limits::CONSTRAINTS {
                    let message =
                        format!("the graph has more than {} relations between sizes", limits::CONSTRAINTS);
                    return self.stop(message, span);
                }
                self.graph.constraints.push(constraint);
            }
        }
        Ok(())
    }

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
