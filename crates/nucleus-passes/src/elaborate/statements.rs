//! Blocks, statements and requirements.

use nucleus_ir::ast::{BinaryOperator, Block, Expr, ExprKind, Let, Require, Statement};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::{Constraint, Dim, Rate, ValueDef};

use super::evaluator::{Eval, Evaluator};
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
            for term in &terms {
                let Term::Tensor(value) = term else { continue };
                self.graph.set_rate(*value, rate);
                match self.graph.def(*value) {
                    // A weight under training has its rate in every stage.
                    ValueDef::Weight(position) if rate != Rate::Model => {
                        self.graph.weights[position].rate = rate
                    }
                    _ => self.rates_stated = true,
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
}
