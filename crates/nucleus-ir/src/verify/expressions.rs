//! Names inside bodies: what is declared, what is used, what is assigned.

use crate::ast::{Block, Expr, ExprKind, Let, Name, Statement, StringPart};
use crate::diagnostics::Diagnostic;
use crate::ops::op_info;
use crate::source::Span;
use crate::suggest::nearest;

use super::locals::LocalKind;
use super::{Definition, Place, Verifier, builtin};

impl<'a> Verifier<'a> {
    pub(super) fn block(&mut self, block: &'a Block) {
        let mark = self.locals.open();
        for statement in &block.statements {
            self.statement(statement);
        }
        if let Some(value) = &block.value {
            self.expression(value);
        }
        self.close(mark);
    }

    fn statement(&mut self, statement: &'a Statement) {
        match statement {
            Statement::Let(binding) => self.binding(binding),
            Statement::Assign { name, value } => {
                self.expression(value);
                self.assignment(name);
            }
            Statement::For { name, from, to, body } => {
                self.expression(from);
                self.expression(to);
                let mark = self.locals.open();
                self.declare(name, LocalKind::LoopVariable);
                self.block(body);
                self.close(mark);
            }
            Statement::Require(require) => {
                self.expression(&require.condition);
                self.expression(&require.message);
            }
            Statement::Expr(expr) => self.expression(expr),
        }
    }

    fn binding(&mut self, binding: &'a Let) {
        for ty in &binding.types {
            self.pattern(ty);
        }
        self.expression(&binding.value);
        let kind = if binding.mutable { LocalKind::Var } else { LocalKind::Let };
        // Any number that no other group in the block has: tuples are told apart by the names before them.
        let group = if binding.tuple { self.locals.open() as u32 + 1 } else { 0 };
        for name in &binding.names {
            self.declare_in_group(name, kind, group);
        }
        // A weight that is only named belongs to the model all the same.
        if matches!(&binding.value.kind, ExprKind::Call { callee, .. } if callee.node == "weight") {
            for name in &binding.names {
                self.locals.mark_used(&name.node);
            }
        }
    }

    fn assignment(&mut self, name: &'a Name) {
        if self.is_full() {
            return;
        }
        let Some(local) = self.locals.get(&name.node).copied() else {
            let diagnostic =
                match self.globals.get(name.node.as_str()).and_then(|global| global.definition.kind()) {
                    Some(kind) => {
                        Diagnostic::error(format!("`{}` is {kind} and cannot be assigned", name.node))
                            .label(name.span, "assigned here")
                    }
                    None => {
                        let near = nearest(&name.node, self.locals.names());
                        let diagnostic = Diagnostic::error(format!("there is no variable `{}`", name.node))
                            .label(name.span, "assigned here");
                        match near {
                            Some(near) => diagnostic.help(format!("there is `{near}`")),
                            None => diagnostic.help(format!("declare it with `var {} = …;`", name.node)),
                        }
                    }
                };
            return self.error(diagnostic);
        };
        if local.kind != LocalKind::Var {
            let message = format!("{} `{}` cannot be assigned", local.kind.name(), name.node);
            let mut diagnostic = Diagnostic::error(message)
                .label(name.span, "assigned here")
                .label(local.span, "defined here");
            if local.kind == LocalKind::Let {
                diagnostic = diagnostic.help(format!("declare it with `var {}`", name.node));
            }
            self.error(diagnostic);
        }
    }

    pub(super) fn expression(&mut self, expr: &'a Expr) {
        match &expr.kind {
            ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Bool(_)
            | ExprKind::Null
            | ExprKind::DType(_) => {}
            ExprKind::String(parts) => {
                for part in parts {
                    if let StringPart::Interpolation(inner) = part {
                        self.expression(inner);
                    }
                }
            }
            ExprKind::Name(name) => self.use_value(name, expr.span),
            ExprKind::List(items) | ExprKind::Tuple(items) => {
                items.iter().for_each(|item| self.expression(item));
            }
            ExprKind::Index(list, index) => {
                self.expression(list);
                self.expression(index);
            }
            ExprKind::Call { callee, args, named } => self.call(callee, args, named),
            ExprKind::Unary(_, operand) => self.expression(operand),
            ExprKind::Binary(_, left, right) => {
                self.expression(left);
                self.expression(right);
            }
            ExprKind::If { condition, then, otherwise } => {
                self.expression(condition);
                self.block(then);
                if let Some(otherwise) = otherwise {
                    self.expression(otherwise);
                }
            }
            ExprKind::Scope { name, body } => {
                self.expression(name);
                self.block(body);
            }
            ExprKind::Block(block) => self.block(block),
        }
    }

    fn use_value(&mut self, name: &'a str, span: Span) {
        if self.locals.mark_used(name) {
            return;
        }
        let Some(global) = self.globals.get_mut(name) else { return self.unknown_value(name, span) };
        global.used = true;
        let global = *global;
        match (global.definition, self.place) {
            (Definition::Function(..) | Definition::Entry(..), _) => {
                let message = format!("`{name}` is a function, not a value");
                self.error(Diagnostic::error(message).label(span, format!("call it: `{name}(…)`")));
            }
            // The values of another module are known before this one's.
            _ if global.imported => {}
            (Definition::Key(key), Place::Default(own)) if key >= own => {
                self.error(
                    Diagnostic::error(format!("config key `{name}` is used before its value is known"))
                        .label(span, "used here")
                        .label(global.span, "defined here")
                        .help("a default can use the keys that stand before its own"),
                );
            }
            (Definition::Const(_) | Definition::Dim, Place::Default(_) | Place::Length) => {
                let kind = global.definition.kind().unwrap_or("something else");
                self.error(
                    Diagnostic::error(format!("`{name}` is {kind}; a config can use only its own keys"))
                        .label(span, "used here")
                        .label(global.span, "defined here"),
                );
            }
            (Definition::Const(item), Place::Const(own)) => {
                if item >= own {
                    self.error(
                        Diagnostic::error(format!("constant `{name}` is used before it is known"))
                            .label(span, "used here")
                            .label(global.span, "defined here")
                            .help("constants are computed in the order of the text"),
                    );
                } else {
                    self.dependencies.add(own, item, span);
                }
            }
            (Definition::Const(item), Place::Item(own)) => self.dependencies.add(own, item, span),
            _ => {}
        }
    }

    fn unknown_value(&mut self, name: &str, span: Span) {
        if self.is_full() {
            return;
        }
        let mut diagnostic =
            Diagnostic::error(format!("there is no value `{name}`")).label(span, "not known here");
        if builtin(name).is_some() {
            diagnostic = diagnostic.help(format!("there is a builtin function: `{name}(…)`"));
        } else if op_info(name).is_some() {
            diagnostic = diagnostic.help(format!("there is an op: `{name}(…)`"));
        } else {
            let globals = self.globals.iter().filter(|(_, global)| !global.definition.is_callable());
            let known = self.locals.names().chain(globals.map(|(name, _)| *name));
            if let Some(near) = nearest(name, known) {
                diagnostic = diagnostic.help(format!("there is `{near}`"));
            }
        }
        self.error(diagnostic);
    }
}
