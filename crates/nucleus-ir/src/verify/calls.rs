//! Calls: of functions, entries, builtin functions and ops.

use std::collections::HashSet;

use crate::ast::{Expr, Item, Name};
use crate::diagnostics::Diagnostic;
use crate::ops::{OpInfo, OperandCount, op_info, op_table};
use crate::source::Span;
use crate::suggest::nearest;

use super::{BUILTINS, Definition, Place, Verifier, builtin};

/// What takes arguments by position or by name.
struct Signature<'a> {
    /// `function`, `entry`, `builtin function`.
    what: &'static str,
    /// Parameters, and whether they must be given.
    params: Vec<(&'a str, bool)>,
    /// Where it is defined, if in a text.
    defined: Option<Span>,
}

impl<'a> Verifier<'a> {
    pub(super) fn call(&mut self, callee: &'a Name, args: &'a [Expr], named: &'a [(Name, Expr)]) {
        args.iter().chain(named.iter().map(|(_, value)| value)).for_each(|value| self.expression(value));
        let name = callee.node.as_str();
        if let Some(global) = self.globals.get_mut(name) {
            global.used = true;
            let global = *global;
            let (signature, item) = match global.definition {
                Definition::Function(function, item) => {
                    let params = function.params.iter();
                    let params = params.map(|param| (param.name.node.as_str(), param.default.is_none()));
                    let defined = Some(function.name.span);
                    (Signature { what: "function", params: params.collect(), defined }, item)
                }
                Definition::Entry(entry, item) => {
                    let inputs = entry.inputs.iter();
                    let params = inputs.map(|input| (input.name.node.as_str(), input.default.is_none()));
                    let defined = Some(entry.name.span);
                    (Signature { what: "entry", params: params.collect(), defined }, item)
                }
                Definition::Unknown => return,
                Definition::Key(_) | Definition::Const(_) | Definition::Dim => {
                    return self.not_a_function(callee, global.definition.kind().unwrap_or("a value"));
                }
            };
            if !global.imported {
                match self.place {
                    Place::Item(own) | Place::Const(own) => self.dependencies.add(own, item, callee.span),
                    Place::Default(_) | Place::Length => {
                        let message =
                            format!("`{name}` is a function of this module; a config cannot call it");
                        self.error(Diagnostic::error(message).label(callee.span, "called here"));
                    }
                    Place::Module => {}
                }
            }
            self.check_arguments(callee, &signature, args, named);
        } else if let Some(builtin) = builtin(name) {
            let signature =
                Signature { what: "builtin function", params: builtin.params.to_vec(), defined: None };
            self.check_arguments(callee, &signature, args, named);
        } else if let Some(row) = op_info(name) {
            self.check_op(callee, &row, args, named);
        } else if let Some(local) = self.locals.get(name).copied() {
            self.locals.mark_used(name);
            self.not_a_function(callee, &format!("a {}", local.kind.name()));
        } else {
            self.unknown_function(callee);
        }
    }

    fn not_a_function(&mut self, callee: &Name, kind: &str) {
        let message = format!("`{}` is {kind}, not a function", callee.node);
        self.error(Diagnostic::error(message).label(callee.span, "called here"));
    }

    fn unknown_function(&mut self, callee: &Name) {
        if self.is_full() {
            return;
        }
        let name = callee.node.as_str();
        let mut diagnostic =
            Diagnostic::error(format!("there is no function `{name}`")).label(callee.span, "called here");
        let mut modules: Vec<&str> = self.imports.keys().copied().collect();
        modules.sort_unstable();
        let found = modules.into_iter().find(|module| {
            self.imports[module]
                .items
                .iter()
                .any(|item| matches!(item, Item::Function(function) if function.name.node == name))
        });
        if let Some(module) = found {
            diagnostic = diagnostic.help(format!("`{module}` has it: add it to `use {module} {{ … }}`"));
            return self.error(diagnostic);
        }
        let functions = self.globals.iter().filter(|(_, global)| global.definition.is_callable());
        let functions = functions.map(|(name, _)| *name);
        let builtins = BUILTINS.iter().map(|builtin| builtin.name);
        let ops = op_table().into_iter().map(|row| row.name);
        if let Some(near) = nearest(name, builtins.chain(ops).chain(functions)) {
            let kind = if self.globals.contains_key(near) {
                "a function"
            } else if builtin(near).is_some() {
                "a builtin function"
            } else {
                "an op"
            };
            diagnostic = diagnostic.help(format!("there is {kind} `{near}`"));
        }
        self.error(diagnostic);
    }

    fn check_arguments(
        &mut self,
        callee: &Name,
        signature: &Signature<'_>,
        args: &[Expr],
        named: &[(Name, Expr)],
    ) {
        let Signature { what, params, defined } = signature;
        let complain = |message: String, span: Span, text: &str| {
            let diagnostic = Diagnostic::error(message).label(span, text);
            match defined {
                Some(defined) => diagnostic.label(*defined, "defined here"),
                None => diagnostic,
            }
        };
        let name = &callee.node;
        if let Some(extra) = args.get(params.len()) {
            let message =
                format!("{what} `{name}` takes {}, given {}", count(params.len(), "argument"), args.len());
            return self.error(complain(message, extra.span, "one too many"));
        }
        let mut given: HashSet<&str> = params[..args.len()].iter().map(|(param, _)| *param).collect();
        let mut failed = false;
        for (argument, _) in named {
            if !params.iter().any(|(param, _)| *param == argument.node) {
                let message = format!("{what} `{name}` has no parameter `{}`", argument.node);
                let mut diagnostic = complain(message, argument.span, "given here");
                if let Some(near) = nearest(&argument.node, params.iter().map(|(param, _)| *param)) {
                    diagnostic = diagnostic.help(format!("there is a parameter `{near}`"));
                }
                self.error(diagnostic);
                failed = true;
            } else if !given.insert(&argument.node) {
                let message = format!("parameter `{}` of {what} `{name}` is given twice", argument.node);
                self.error(complain(message, argument.span, "again here"));
                failed = true;
            }
        }
        let missing: Vec<String> = params
            .iter()
            .filter(|(param, required)| *required && !given.contains(param))
            .map(|(param, _)| format!("`{param}`"))
            .collect();
        // A misspelt argument is not reported a second time as a missing one.
        if !missing.is_empty() && !failed {
            let message = format!("{what} `{name}` needs {}", missing.join(", "));
            self.error(complain(message, callee.span, "called here"));
        }
    }

    fn check_op(&mut self, callee: &Name, row: &OpInfo, args: &[Expr], named: &[(Name, Expr)]) {
        let op = row.name;
        let last = row.operands.last().map(|operand| operand.count);
        let fixed = matches!(last, None | Some(OperandCount::One));
        let least = row.operands.len() - usize::from(last == Some(OperandCount::Optional));
        let most = match last {
            Some(OperandCount::Many) => usize::MAX,
            _ => row.operands.len(),
        };
        let takes = match last {
            Some(OperandCount::Many) => format!("{least} or more operands"),
            Some(OperandCount::Optional) => format!("{least} or {most} operands"),
            _ => count(most, "operand"),
        };
        if args.len() < least {
            let message = format!("op `{op}` takes {takes}, given {}", args.len());
            let mut diagnostic = Diagnostic::error(message).label(callee.span, "called here");
            let operands = || row.operands.iter().map(|operand| operand.name);
            if let Some((argument, _)) =
                named.iter().find(|(name, _)| operands().any(|known| known == name.node))
            {
                diagnostic = diagnostic.label(argument.span, "operands are given by position");
            }
            return self.error(diagnostic);
        }
        // Attributes may follow the operands by position where the number of operands is fixed.
        let by_position = if fixed { args.len() - most } else { 0 };
        if by_position > row.attributes.len() || !fixed && args.len() > most {
            let message = match row.attributes.len() {
                attributes if fixed && attributes > 0 => format!(
                    "op `{op}` takes {takes} and {}, given {}",
                    count(attributes, "attribute"),
                    args.len()
                ),
                _ => format!("op `{op}` takes {takes}, given {}", args.len()),
            };
            let extra = if fixed { most + row.attributes.len() } else { most };
            let mut diagnostic = Diagnostic::error(message);
            if let Some(extra) = args.get(extra) {
                diagnostic = diagnostic.label(extra.span, "one too many");
            }
            if !fixed {
                diagnostic = diagnostic.help("the attributes of this op are given by name");
            }
            return self.error(diagnostic);
        }
        let mut given: HashSet<&str> =
            row.attributes[..by_position].iter().map(|attribute| attribute.name).collect();
        let mut failed = false;
        for (argument, _) in named {
            if !row.attributes.iter().any(|attribute| attribute.name == argument.node) {
                failed = true;
                let message = format!("op `{op}` has no attribute `{}`", argument.node);
                let mut diagnostic = Diagnostic::error(message).label(argument.span, "given here");
                if let Some(near) = nearest(&argument.node, row.attributes.iter().map(|known| known.name)) {
                    diagnostic = diagnostic.help(format!("there is an attribute `{near}`"));
                } else if row.operands.iter().any(|operand| operand.name == argument.node) {
                    diagnostic = diagnostic.help("operands are given by position");
                }
                self.error(diagnostic);
            } else if !given.insert(&argument.node) {
                failed = true;
                let message = format!("attribute `{}` of op `{op}` is given twice", argument.node);
                self.error(Diagnostic::error(message).label(argument.span, "again here"));
            }
        }
        let missing = row
            .attributes
            .iter()
            .filter(|attribute| attribute.default.is_none() && !given.contains(attribute.name));
        let missing: Vec<String> = missing.map(|attribute| format!("`{}`", attribute.name)).collect();
        if !missing.is_empty() && !failed {
            let noun = if missing.len() == 1 { "attribute" } else { "attributes" };
            let message = format!("op `{op}` needs {noun} {}", missing.join(", "));
            self.error(Diagnostic::error(message).label(callee.span, "called here"));
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
