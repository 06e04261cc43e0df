//! Top-level names, and the parts of items that are not bodies.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use crate::ast::{
    Block, ConfigType, Entry, Expr, ExprKind, Function, Item, Module, Name, ParamType, ResultType, Statement,
    TensorPattern,
};
use crate::diagnostics::Diagnostic;
use crate::dtype::DType;
use crate::ops::op_info;
use crate::source::Span;
use crate::suggest::nearest;

use super::locals::{Local, LocalKind};
use super::{Definition, Global, Place, Verifier, builtin};

impl<'a> Verifier<'a> {
    /// Enters every top-level name.
    pub(super) fn define_items(&mut self) {
        let module = self.module;
        let mut keys = 0;
        for (item, declared) in module.items.iter().enumerate() {
            match declared {
                Item::Use { module, names } => self.import(module, names),
                Item::Config(list) => {
                    for key in list {
                        self.define(&key.name, Definition::Key(keys), false);
                        keys += 1;
                    }
                }
                Item::Const { name, .. } => self.define(name, Definition::Const(item), false),
                Item::Dims(names) => {
                    for name in names {
                        self.define(name, Definition::Dim, false);
                    }
                }
                Item::Function(function) => {
                    self.define(&function.name, Definition::Function(function, item), false);
                }
                Item::Entry(entry) => self.define(&entry.name, Definition::Entry(entry, item), false),
                Item::Require(_) => {}
            }
        }
    }

    fn import(&mut self, module: &'a Name, names: &'a [Name]) {
        let source = self.imports.get(module.node.as_str()).copied();
        // Imported names are looked up together, so that a long list from a long module takes linear time.
        let exports = source.map(exports);
        for name in names {
            let definition = match &exports {
                None => Definition::Unknown,
                Some(exports) => match exports.get(name.node.as_str()) {
                    Some(definition) => *definition,
                    None => {
                        let message = format!("module `{}` has no `{}`", module.node, name.node);
                        let mut diagnostic = Diagnostic::error(message).label(name.span, "imported here");
                        if !self.is_full()
                            && let Some(near) = nearest(&name.node, exports.keys().copied())
                        {
                            diagnostic = diagnostic.help(format!("it has `{near}`"));
                        }
                        self.error(diagnostic);
                        Definition::Unknown
                    }
                },
            };
            self.define(name, definition, true);
        }
    }

    fn define(&mut self, name: &'a Name, definition: Definition<'a>, imported: bool) {
        let fixed = match (builtin(&name.node), op_info(&name.node)) {
            (Some(_), _) => Some("a builtin function"),
            (None, Some(_)) => Some("an op of the language"),
            (None, None) => None,
        };
        if let Some(fixed) = fixed {
            let message = format!("`{}` is {fixed} and cannot be defined again", name.node);
            self.error(Diagnostic::error(message).label(name.span, "defined here"));
            return;
        }
        let global = Global { definition, span: name.span, imported, used: false };
        match self.globals.entry(&name.node) {
            Slot::Vacant(slot) => {
                slot.insert(global);
            }
            Slot::Occupied(slot) => {
                let first = slot.get().span;
                let message = format!("`{}` is defined twice", name.node);
                self.error(
                    Diagnostic::error(message).label(name.span, "again here").label(first, "first here"),
                );
            }
        }
    }

    /// Walks through every item.
    pub(super) fn check_items(&mut self) {
        let module = self.module;
        let mut keys = 0;
        for (item, declared) in module.items.iter().enumerate() {
            match declared {
                Item::Use { .. } | Item::Dims(_) => {}
                Item::Config(list) => {
                    for key in list {
                        self.place = Place::Length;
                        self.config_type(&key.ty);
                        self.place = Place::Default(keys);
                        if let Some(default) = &key.default {
                            self.expression(default);
                        }
                        keys += 1;
                    }
                }
                Item::Const { value, .. } => {
                    self.place = Place::Const(item);
                    self.expression(value);
                }
                Item::Require(require) => {
                    self.place = Place::Module;
                    self.expression(&require.condition);
                    self.expression(&require.message);
                }
                Item::Function(function) => {
                    self.place = Place::Item(item);
                    self.function(function);
                }
                Item::Entry(entry) => {
                    self.place = Place::Item(item);
                    self.entry(entry);
                }
            }
        }
    }

    fn config_type(&mut self, ty: &'a ConfigType) {
        match ty {
            ConfigType::Int | ConfigType::Float | ConfigType::Bool | ConfigType::String => {}
            ConfigType::Optional(inner) => self.config_type(inner),
            ConfigType::List(element, length) => {
                self.config_type(element);
                if let Some(length) = length {
                    self.expression(length);
                }
            }
        }
    }

    fn function(&mut self, function: &'a Function) {
        let mark = self.locals.open();
        // A default is computed before tensors and their dims are bound: it sees the compile-time parameters before it.
        let is_tensor = |ty: &ParamType| matches!(ty, ParamType::Tensor(_));
        for param in &function.params {
            if let Some(default) = &param.default {
                self.expression(default);
            }
            if !is_tensor(&param.ty) {
                self.declare(&param.name, LocalKind::Param);
            }
        }
        for param in function.params.iter().filter(|param| is_tensor(&param.ty)) {
            self.declare(&param.name, LocalKind::Param);
        }
        for param in &function.params {
            self.bind_dims(&param.ty);
        }
        for param in &function.params {
            self.param_type(&param.ty);
        }
        match &function.result {
            Some(ResultType::Tensor(pattern)) => self.pattern(pattern),
            Some(ResultType::Tuple(patterns)) => patterns.iter().for_each(|pattern| self.pattern(pattern)),
            Some(ResultType::Value(ty)) => self.param_type(ty),
            None => {}
        }
        self.block(&function.body);
        match &function.result {
            Some(ResultType::Tuple(patterns)) => {
                self.ends_with(&function.body, patterns.len(), true, "function", &function.name);
            }
            Some(_) => self.ends_with(&function.body, 1, false, "function", &function.name),
            None => {}
        }
        self.close(mark);
    }

    fn entry(&mut self, entry: &'a Entry) {
        let mark = self.locals.open();
        for input in &entry.inputs {
            self.fixed_pattern(&input.ty, "an input");
            if let Some(default) = &input.default {
                self.expression(default);
            }
        }
        let mut outputs: HashMap<&str, Span> = HashMap::new();
        for output in &entry.outputs {
            self.fixed_pattern(&output.ty, "an output");
            if let Some(first) = outputs.insert(&output.name.node, output.name.span) {
                let message = format!("output `{}` is defined twice", output.name.node);
                let diagnostic = Diagnostic::error(message).label(output.name.span, "again here");
                self.error(diagnostic.label(first, "first here"));
            }
        }
        for input in &entry.inputs {
            self.declare(&input.name, LocalKind::Input);
        }
        self.block(&entry.body);
        match entry.outputs.len() {
            0 => {}
            count => self.ends_with(&entry.body, count, true, "entry", &entry.name),
        }
        self.close(mark);
    }

    /// The type of an input or output: its sizes are known, nothing is bound.
    fn fixed_pattern(&mut self, pattern: &'a TensorPattern, what: &str) {
        if pattern.leading {
            let message = format!("the type of {what} cannot begin with `...`");
            self.error(Diagnostic::error(message).label(pattern.span.0, "every axis must be written"));
        }
        if pattern.dtype == Some(DType::I8) {
            let message = format!("{what} cannot be i8, which only weights may be");
            self.error(Diagnostic::error(message).label(pattern.span.0, "this type"));
        }
        self.pattern(pattern);
    }

    /// Enters the names that stand alone in a pattern and mean nothing yet.
    fn bind_dims(&mut self, ty: &'a ParamType) {
        match ty {
            ParamType::Tensor(pattern) => {
                for dim in &pattern.dims {
                    let ExprKind::Name(name) = &dim.kind else { continue };
                    let is_global = self
                        .globals
                        .get(name.as_str())
                        .is_some_and(|global| !global.definition.is_callable());
                    if !is_global && self.locals.get(name).is_none() {
                        self.add_local(name, dim.span, LocalKind::PatternDim, 0);
                    }
                }
            }
            ParamType::List(element) => self.bind_dims(element),
            ParamType::AnyTensor
            | ParamType::Int
            | ParamType::Float
            | ParamType::Bool
            | ParamType::String => {}
        }
    }

    fn param_type(&mut self, ty: &'a ParamType) {
        match ty {
            ParamType::Tensor(pattern) => self.pattern(pattern),
            ParamType::List(element) => self.param_type(element),
            ParamType::AnyTensor
            | ParamType::Int
            | ParamType::Float
            | ParamType::Bool
            | ParamType::String => {}
        }
    }

    pub(super) fn pattern(&mut self, pattern: &'a TensorPattern) {
        for dim in &pattern.dims {
            self.expression(dim);
        }
    }

    /// A body whose value is needed has one, and a tuple written there has as many parts as are needed.
    fn ends_with(&mut self, body: &'a Block, count: usize, tuple: bool, what: &str, name: &Name) {
        let Some(value) = &body.value else {
            let mut diagnostic =
                Diagnostic::error(format!("the body of {what} `{}` has no value", name.node))
                    .label(name.span, "a result is declared");
            if let Some(Statement::Expr(Expr { span, .. })) = body.statements.last() {
                diagnostic = diagnostic
                    .label(*span, "this ends with `;`, so it is not the value")
                    .help("a block's value is its last expression, without `;`");
            }
            self.error(diagnostic);
            return;
        };
        match &value.kind {
            ExprKind::Tuple(items) if !tuple || items.len() != count => {
                let needed = if count > 1 { format!("{count} results") } else { "one result".to_owned() };
                let message =
                    format!("{what} `{}` has {needed}, its body gives a tuple of {}", name.node, items.len());
                self.error(Diagnostic::error(message).label(value.span, "the value of the body"));
            }
            _ => {}
        }
    }

    /// Enters a local name that the text declares.
    pub(super) fn declare(&mut self, name: &'a Name, kind: LocalKind) {
        self.declare_in_group(name, kind, 0);
    }

    /// Enters a name of a `let`; `group` is that of its tuple.
    pub(super) fn declare_in_group(&mut self, name: &'a Name, kind: LocalKind, group: u32) {
        if name.node == "_" {
            return;
        }
        let before = match self.locals.get(&name.node) {
            Some(local) => Some((local.kind.name(), local.span)),
            None => self
                .globals
                .get(name.node.as_str())
                .filter(|global| !global.definition.is_callable())
                .and_then(|global| Some((global.definition.kind()?.split_once(' ')?.1, global.span))),
        };
        if let Some((kind, span)) = before {
            let message = format!("`{}` is defined already, as a {kind}", name.node);
            self.error(
                Diagnostic::error(message)
                    .label(name.span, "again here")
                    .label(span, "first here")
                    .help("give it another name, or declare a `var` and assign it"),
            );
            return;
        }
        self.add_local(&name.node, name.span, kind, group);
    }

    fn add_local(&mut self, name: &'a str, span: Span, kind: LocalKind, group: u32) {
        let exempt = matches!(kind, LocalKind::PatternDim | LocalKind::LoopVariable) || name.starts_with('_');
        // Outside of tuples every name is a group of its own.
        let group = if group == 0 { u32::MAX - self.locals.open() as u32 } else { group };
        self.locals.declare(Local { name, span, kind, used: exempt, group });
    }

    /// Ends a block or body and warns of what it did not use.
    pub(super) fn close(&mut self, mark: usize) {
        for local in self.locals.close(mark) {
            let message = format!("{} `{}` is not used", local.kind.name(), local.name);
            let diagnostic = Diagnostic::warning(message).label(local.span, "defined here");
            self.warn(diagnostic.help("a name that begins with `_` may be unused"));
        }
    }

    /// Warns of imported names that nothing uses.
    pub(super) fn check_imports_used(&mut self) {
        let mut unused: Vec<(Span, &str)> = self
            .globals
            .iter()
            .filter(|(_, global)| global.imported && !global.used)
            .map(|(name, global)| (global.span, *name))
            .collect();
        unused.sort();
        for (span, name) in unused {
            self.warn(
                Diagnostic::warning(format!("imported name `{name}` is not used"))
                    .label(span, "imported here"),
            );
        }
    }
}

/// What a module gives to those that use it.
fn exports(module: &Module) -> HashMap<&str, Definition<'_>> {
    let mut exports = HashMap::new();
    for (item, declared) in module.items.iter().enumerate() {
        match declared {
            Item::Config(keys) => {
                exports.extend(keys.iter().map(|key| (key.name.node.as_str(), Definition::Key(0))));
            }
            Item::Const { name, .. } => {
                exports.insert(name.node.as_str(), Definition::Const(item));
            }
            Item::Dims(names) => {
                exports.extend(names.iter().map(|name| (name.node.as_str(), Definition::Dim)));
            }
            Item::Function(function) => {
                exports.insert(&function.name.node, Definition::Function(function, item));
            }
            Item::Entry(entry) => {
                exports.insert(&entry.name.node, Definition::Entry(entry, item));
            }
            Item::Use { .. } | Item::Require(_) => {}
        }
    }
    exports
}
