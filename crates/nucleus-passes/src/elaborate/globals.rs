//! The values at the top level of modules: dims, config keys, constants, and what they require.

use std::collections::HashMap;
use std::rc::Rc;

use nucleus_ir::Dim;
use nucleus_ir::ast::{ConfigKey, ConfigType};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::suggest::nearest;

use super::config::{Config, ConfigValue};
use super::evaluator::{Eval, Evaluator, Frame};
use super::limits;
use super::locals::Locals;
use super::term::Term;

impl<'p> Evaluator<'p> {
    /// Computes the global values of every module and checks what the modules require.
    pub(super) fn globals(&mut self, config: &Config) -> Eval<()> {
        self.graph.dims = self.dims();
        self.unknown_keys(config)?;
        let program = self.program;
        for (module, loaded) in program.modules.iter().enumerate() {
            self.frame = Frame { module, locals: Locals::default() };
            let dims = loaded.dims().map(|name| (name.node.as_str(), Term::Dim(Dim::symbol(&name.node))));
            self.globals.push(dims.collect::<HashMap<_, _>>());
            // Lengths of lists may use the other keys.
            let is_list = |key: &&ConfigKey| matches!(key.ty, ConfigType::List(..));
            let scalars = loaded.keys().filter(|key| !is_list(key));
            for key in scalars.chain(loaded.keys().filter(is_list)) {
                let value = self.key(key, config)?;
                self.globals[module].insert(&key.name.node, value);
            }
            for (name, value) in loaded.consts() {
                let value = self.expr(value)?;
                self.globals[module].insert(&name.node, value);
            }
            for require in loaded.requires() {
                self.require(require)?;
            }
        }
        Ok(())
    }

    /// The value of a name in the current call or its module.
    pub(super) fn lookup(&self, name: &str) -> Option<&Term> {
        if let Some(local) = self.frame.locals.get(name) {
            return Some(local);
        }
        let home = self.program.home(self.frame.module, name)?;
        self.globals.get(home)?.get(name)
    }

    fn unknown_keys(&mut self, config: &Config) -> Eval<()> {
        let known: Vec<&str> = self.program.config_keys().iter().map(|key| key.name.as_str()).collect();
        for (name, _) in config.iter().filter(|(name, _)| !known.contains(name)) {
            let mut diagnostic = Diagnostic::error(format!("there is no config key `{name}`"));
            if let Some(near) = nearest(name, known.iter().copied()) {
                diagnostic = diagnostic.help(format!("there is a key `{near}`"));
            } else if known.is_empty() {
                diagnostic = diagnostic.help("the module has no config");
            }
            self.report(diagnostic)?;
        }
        Ok(())
    }

    fn key(&mut self, key: &'p ConfigKey, config: &Config) -> Eval<Term> {
        let given = config.get(&key.name.node);
        let (term, span) = match (given, &key.default) {
            (Some(given), _) => (term_of(given), key.name.span),
            (None, Some(default)) => (self.expr(default)?, default.span),
            (None, None) => {
                let message = format!("config key `{}` must be given", key.name.node);
                return self.poison(Diagnostic::error(message).label(key.name.span, "it has no default"));
            }
        };
        self.conform(term, &key.ty, key, given, span)
    }

    /// The value as the key's type has it, or an error that names key, expected and given.
    fn conform(
        &mut self,
        term: Term,
        ty: &'p ConfigType,
        key: &'p ConfigKey,
        given: Option<&ConfigValue>,
        span: Span,
    ) -> Eval<Term> {
        let name = &key.name.node;
        match (ty, term) {
            (_, Term::Poison) => Ok(Term::Poison),
            (ConfigType::Optional(_), Term::Null) => Ok(Term::Null),
            (ConfigType::Optional(inner), term) => self.conform(term, inner, key, given, span),
            (ConfigType::Int, term @ Term::Int(_))
            | (ConfigType::Float, term @ Term::Float(_))
            | (ConfigType::Bool, term @ Term::Bool(_)) => Ok(term),
            (ConfigType::String, Term::Str(text)) if text.len() <= limits::STRING_BYTES => {
                Ok(Term::Str(text))
            }
            (ConfigType::Float, Term::Int(value)) => Ok(Term::Float(value as f64)),
            (ConfigType::List(element, length), Term::List(items)) => {
                if items.len() > limits::LIST_LENGTH {
                    let message =
                        format!("config key `{name}` has more than {} elements", limits::LIST_LENGTH);
                    return self.poison(Diagnostic::error(message).label(span, ""));
                }
                if let Some(length) = length {
                    let Some(least) = self.list_length(length, key)? else { return Ok(Term::Poison) };
                    if items.len() < least {
                        let message = format!(
                            "config key `{name}` has {} elements, needs at least {least}",
                            items.len()
                        );
                        let diagnostic = Diagnostic::error(message).label(span, "these elements");
                        return self.poison(diagnostic.label(length.span, format!("this length is {least}")));
                    }
                }
                let mut conformed = Vec::with_capacity(items.len());
                for item in items.iter() {
                    let item = self.conform(item.clone(), element, key, given, span)?;
                    if item.is_poison() {
                        return Ok(Term::Poison);
                    }
                    conformed.push(item);
                }
                Ok(Term::List(conformed.into()))
            }
            (
                ConfigType::List(element, Some(length)),
                term @ (Term::Int(_) | Term::Float(_) | Term::Bool(_) | Term::Str(_)),
            ) => {
                let item = self.conform(term, element, key, given, span)?;
                let Some(count) = self.list_length(length, key)? else { return Ok(Term::Poison) };
                if item.is_poison() {
                    return Ok(Term::Poison);
                }
                Ok(Term::List(vec![item; count].into()))
            }
            (_, term) => {
                let given = given.map_or_else(|| term.to_string(), ToString::to_string);
                let message = format!("config key `{name}` must be {}, given {given}", kind(&key.ty));
                self.poison(Diagnostic::error(message).label(span, ""))
            }
        }
    }

    fn list_length(&mut self, length: &'p nucleus_ir::ast::Expr, key: &ConfigKey) -> Eval<Option<usize>> {
        let name = &key.name.node;
        let value = match self.expr(length)? {
            Term::Poison => return Ok(None),
            Term::Int(value) => value,
            other => {
                let message =
                    format!("the length of config key `{name}` must be an int, it is {}", other.kind());
                self.report(Diagnostic::error(message).label(length.span, ""))?;
                return Ok(None);
            }
        };
        match usize::try_from(value) {
            Ok(count) if count <= limits::LIST_LENGTH => Ok(Some(count)),
            _ => {
                let message = format!(
                    "config key `{name}` would have {value} elements, a list has 0 to {}",
                    limits::LIST_LENGTH
                );
                self.report(
                    Diagnostic::error(message).label(length.span, format!("this length is {value}")),
                )?;
                Ok(None)
            }
        }
    }
}

fn term_of(value: &ConfigValue) -> Term {
    match value {
        ConfigValue::Null => Term::Null,
        ConfigValue::Bool(value) => Term::Bool(*value),
        ConfigValue::Int(value) => Term::Int(*value),
        ConfigValue::Float(value) => Term::Float(*value),
        ConfigValue::Str(value) => Term::Str(Rc::from(value.as_str())),
        ConfigValue::List(items) => Term::List(items.iter().map(term_of).collect()),
    }
}

fn kind(ty: &ConfigType) -> String {
    match ty {
        ConfigType::Int => "an int".to_owned(),
        ConfigType::Float => "a float".to_owned(),
        ConfigType::Bool => "a bool".to_owned(),
        ConfigType::String => format!("a string of at most {} bytes", limits::STRING_BYTES),
        ConfigType::List(element, _) => format!("a list, each element {}", kind(element)),
        ConfigType::Optional(inner) => format!("{} or null", kind(inner)),
    }
}
