//! The module verifier. It checks, in a module whose text has parsed:
//!
//! 1. Every item, imported name, config key and dim is defined once, and none has the name of an op or builtin function.
//! 2. In a function or entry, a parameter, a dim bound by a pattern, a loop variable or a local hides no other value.
//! 3. Every name that is used is defined there: a config key, constant, dim, parameter, dim bound by the pattern of a parameter,
//!    loop variable or local as a value; a function, entry, builtin function or op of the table where something is called.
//! 4. The default of a config key uses earlier keys only; a constant uses earlier constants only, also through the functions it calls.
//! 5. Calls give every required argument once and no argument that does not exist; an op gets as many operands as it takes, its
//!    attributes exist, are given once, and the required ones are given.
//! 6. Only variables declared with `var` are assigned.
//! 7. No function or entry calls itself, directly or through others.
//! 8. `...` stands only in the types of parameters and results of functions.
//! 9. A function with a result type and an entry with outputs end with a value; a tuple written there has as many parts.
//!
//! Where no error is found, imports, parameters and locals that are never used are warned of; names that begin with `_` may be
//! unused. Types are not checked here: functions are templates, their types are known when a call is elaborated.

mod builtins;
mod calls;
mod dependencies;
mod expressions;
mod items;
mod locals;

use std::borrow::Borrow;
use std::collections::HashMap;

pub use builtins::{BUILTINS, Builtin, builtin};

use crate::ast::{Entry, Function, Module};
use crate::diagnostics::Diagnostic;
use crate::source::Span;

use dependencies::Dependencies;
use locals::Locals;

/// At most so many errors, or else warnings, are reported.
pub const MAX_REPORTED: usize = 50;

/// Checks a module; see the [module documentation](self). `imports` are the modules that it uses, by name; of one that is
/// missing there, every name is taken to exist, because the one who could not load it has said so.
///
/// Errors, or if there are none, warnings, in the order of the text.
pub fn verify<M: Borrow<Module>>(module: &Module, imports: &HashMap<String, M>) -> Vec<Diagnostic> {
    let imports = imports.iter().map(|(name, module)| (name.as_str(), module.borrow())).collect();
    let mut verifier = Verifier {
        module,
        imports,
        globals: HashMap::new(),
        locals: Locals::default(),
        place: Place::Module,
        dependencies: Dependencies::default(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    verifier.define_items();
    verifier.check_items();
    verifier.check_dependencies();
    verifier.check_imports_used();
    let mut diagnostics = if verifier.errors.is_empty() { verifier.warnings } else { verifier.errors };
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().map(|span| span.start));
    diagnostics
}

struct Verifier<'a> {
    module: &'a Module,
    imports: HashMap<&'a str, &'a Module>,
    globals: HashMap<&'a str, Global<'a>>,
    locals: Locals<'a>,
    place: Place,
    dependencies: Dependencies,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// A name at the top level.
#[derive(Clone, Copy, Debug)]
struct Global<'a> {
    definition: Definition<'a>,
    span: Span,
    /// It comes from another module.
    imported: bool,
    used: bool,
}

#[derive(Clone, Copy, Debug)]
enum Definition<'a> {
    /// The config key of that position among all keys.
    Key(usize),
    /// The constant that is the item of that position; of another module, no matter which.
    Const(usize),
    Dim,
    /// A function, and its position among the items.
    Function(&'a Function, usize),
    /// An entry, and its position among the items.
    Entry(&'a Entry, usize),
    /// An imported name of a module that could not be loaded.
    Unknown,
}

impl Definition<'_> {
    /// What messages call it; `None` for what could be anything.
    fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Definition::Key(_) => "a config key",
            Definition::Const(_) => "a constant",
            Definition::Dim => "a dim",
            Definition::Function(..) => "a function",
            Definition::Entry(..) => "an entry",
            Definition::Unknown => return None,
        })
    }

    /// True for what can be called; values and what is called do not hide one another.
    fn is_callable(&self) -> bool {
        matches!(self, Definition::Function(..) | Definition::Entry(..))
    }
}

/// Where an expression stands: what it may use depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The default of the config key of that position: earlier keys.
    Default(usize),
    /// The length of a list in a config type: all keys.
    Length,
    /// The constant that is the item of that position: keys, dims, earlier constants.
    Const(usize),
    /// A function or entry that is the item of that position: everything.
    Item(usize),
    /// A requirement of the module: everything.
    Module,
}

impl Verifier<'_> {
    /// True once further errors are dropped: then it is not worth finding out more about them.
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_REPORTED
    }

    fn error(&mut self, diagnostic: Diagnostic) {
        if !self.is_full() {
            self.errors.push(diagnostic);
        }
    }

    fn warn(&mut self, diagnostic: Diagnostic) {
        if self.warnings.len() < MAX_REPORTED {
            self.warnings.push(diagnostic);
        }
    }
}

#[cfg(test)]
mod tests;
