//! Programs: a module with everything it uses, parsed, verified, and its names resolved.

use std::collections::{BTreeMap, HashMap};

use nucleus_ir::ast::{ConfigKey, ConfigType, Entry, Expr, Function, Item, Module, Name, Require};
use nucleus_ir::diagnostics::{Diagnostic, has_errors};
use nucleus_ir::source::{FileId, SourceMap, Span};
use nucleus_ir::{parse, verify};

/// The text of `std`, the functions that models share.
const STD: &str = include_str!("../../../../ir-specs/std.ir");

/// The most modules that one program may consist of.
const MAX_MODULES: usize = 256;

/// A text that a loader found.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// The name shown in diagnostics, usually a path.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A config key of a program, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigKeyInfo {
    /// Its name.
    pub name: String,
    /// Its type as the language writes it.
    pub ty: String,
    /// Its default as the text writes it; `None` if it must be given.
    pub default: Option<String>,
}

/// A module with everything it uses. Its texts have been parsed and verified; elaboration can still find type errors.
#[derive(Clone, Debug)]
pub struct Program {
    /// Every module after those that it uses; the last one is the one that was loaded.
    pub(super) modules: Vec<LoadedModule>,
    keys: Vec<ConfigKeyInfo>,
    warnings: Vec<Diagnostic>,
}

/// One module of a program.
#[derive(Clone, Debug)]
pub(super) struct LoadedModule {
    ast: Module,
    /// What every name at the top level means.
    names: HashMap<String, Definition>,
}

/// What a name at the top level of a module means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Definition {
    Key,
    Const,
    Dim,
    Function {
        item: usize,
    },
    Entry {
        item: usize,
    },
    /// The same name in another module.
    Imported {
        module: usize,
    },
}

/// Something that can be called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Callable<'p> {
    Function(&'p Function),
    Entry(&'p Entry),
}

impl Program {
    /// Parses `file`, loads what it uses, and verifies everything. `std` is built in; `loader` gives the text of other modules by name.
    ///
    /// # Errors
    /// Everything that is wrong with the texts, and modules that use one another in a circle.
    pub fn load(
        sources: &mut SourceMap,
        file: FileId,
        loader: &dyn Fn(&str) -> Option<SourceText>,
    ) -> Result<Program, Vec<Diagnostic>> {
        let mut load = Loader {
            sources,
            loader,
            loaded: BTreeMap::new(),
            open: Vec::new(),
            modules: Vec::new(),
            diagnostics: Vec::new(),
        };
        load.module(file);
        load.check_shared_names();
        let Loader { modules, diagnostics, .. } = load;
        if has_errors(&diagnostics) {
            return Err(diagnostics);
        }
        let keys = modules.iter().flat_map(LoadedModule::keys).map(|key| key_info(key, sources)).collect();
        Ok(Program { modules, keys, warnings: diagnostics })
    }

    /// What the verifier warned of.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// The names of the entries of the loaded module, in order.
    pub fn entries(&self) -> Vec<&str> {
        let items = self.modules.last().map_or(&[][..], |root| &root.ast.items);
        items
            .iter()
            .filter_map(|item| match item {
                Item::Entry(entry) => Some(entry.name.node.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The config keys of all modules, in order.
    pub fn config_keys(&self) -> &[ConfigKeyInfo] {
        &self.keys
    }

    /// The entry `name` of the loaded module.
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.modules.last()?.ast.items.iter().find_map(|item| match item {
            Item::Entry(entry) if entry.name.node == name => Some(entry),
            _ => None,
        })
    }

    /// The function or entry that `name` means in a module, with the module that defines it.
    pub(super) fn callable(&self, module: usize, name: &str) -> Option<(usize, Callable<'_>)> {
        let loaded = &self.modules[module];
        match *loaded.names.get(name)? {
            Definition::Function { item } => match &loaded.ast.items[item] {
                Item::Function(function) => Some((module, Callable::Function(function))),
                _ => None,
            },
            Definition::Entry { item } => match &loaded.ast.items[item] {
                Item::Entry(entry) => Some((module, Callable::Entry(entry))),
                _ => None,
            },
            Definition::Imported { module } => self.callable(module, name),
            Definition::Key | Definition::Const | Definition::Dim => None,
        }
    }

    /// The module in which the value `name` of `module` is declared, if there is such a key, constant or dim.
    pub(super) fn home(&self, module: usize, name: &str) -> Option<usize> {
        match *self.modules[module].names.get(name)? {
            Definition::Imported { module } => self.home(module, name),
            Definition::Key | Definition::Const | Definition::Dim => Some(module),
            Definition::Function { .. } | Definition::Entry { .. } => None,
        }
    }
}

impl LoadedModule {
    /// The config keys, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ConfigKey> {
        self.ast.items.iter().flat_map(|item| match item {
            Item::Config(keys) => keys.as_slice(),
            _ => &[],
        })
    }

    /// The dims, in order.
    pub(super) fn dims(&self) -> impl Iterator<Item = &Name> {
        self.ast.items.iter().flat_map(|item| match item {
            Item::Dims(names) => names.as_slice(),
            _ => &[],
        })
    }

    /// The constants, in order.
    pub(super) fn consts(&self) -> impl Iterator<Item = (&Name, &Expr)> {
        self.ast.items.iter().filter_map(|item| match item {
            Item::Const { name, value } => Some((name, value)),
            _ => None,
        })
    }

    /// The requirements at the top level, in order.
    pub(super) fn requires(&self) -> impl Iterator<Item = &Require> {
        self.ast.items.iter().filter_map(|item| match item {
            Item::Require(require) => Some(require),
            _ => None,
        })
    }
}

struct Loader<'a> {
    sources: &'a mut SourceMap,
    loader: &'a dyn Fn(&str) -> Option<SourceText>,
    /// Modules by name; `None` for one that has errors.
    loaded: BTreeMap<String, Option<usize>>,
    /// The modules that are being loaded, outermost first.
    open: Vec<String>,
    modules: Vec<LoadedModule>,
    diagnostics: Vec<Diagnostic>,
}

impl Loader<'_> {
    /// Loads the module in `file` after everything it uses; its position, or `None` if it cannot be used.
    fn module(&mut self, file: FileId) -> Option<usize> {
        let (ast, diagnostics) = parse(self.sources, file);
        let broken = has_errors(&diagnostics);
        self.diagnostics.extend(diagnostics);
        if broken {
            return None;
        }
        let mut imports: HashMap<String, usize> = HashMap::new();
        for item in &ast.items {
            if let Item::Use { module, .. } = item
                && let Some(position) = self.import(module)
            {
                imports.insert(module.node.clone(), position);
            }
        }
        let exports: HashMap<String, &Module> =
            imports.iter().map(|(name, position)| (name.clone(), &self.modules[*position].ast)).collect();
        let found = verify(&ast, &exports);
        let broken = has_errors(&found);
        self.diagnostics.extend(found);
        if broken {
            return None;
        }
        let names = define(&ast, &imports);
        self.modules.push(LoadedModule { ast, names });
        Some(self.modules.len() - 1)
    }

    fn import(&mut self, name: &Name) -> Option<usize> {
        if let Some(known) = self.loaded.get(&name.node) {
            return *known;
        }
        if let Some(start) = self.open.iter().position(|open| *open == name.node) {
            let circle: Vec<&str> =
                self.open[start..].iter().chain([&name.node]).map(String::as_str).collect();
            let message = format!("modules use one another in a circle: {}", circle.join(" → "));
            self.diagnostics.push(Diagnostic::error(message).label(name.span, "the circle closes here"));
            return None;
        }
        let text = if name.node == "std" {
            Some(SourceText { name: "std.ir".to_owned(), text: STD.to_owned() })
        } else {
            (self.loader)(&name.node)
        };
        let Some(text) = text else {
            let message = format!("there is no module `{}`", name.node);
            let help = format!("a module is `std` or a file `{}.ir` beside the one that uses it", name.node);
            self.diagnostics.push(Diagnostic::error(message).label(name.span, "used here").help(help));
            return None;
        };
        if self.loaded.len() + self.open.len() >= MAX_MODULES {
            let message = format!("a program may have at most {MAX_MODULES} modules");
            self.diagnostics.push(Diagnostic::error(message).label(name.span, "one too many"));
            return None;
        }
        let file = self.sources.add(text.name, text.text);
        self.open.push(name.node.clone());
        let position = self.module(file);
        self.open.pop();
        self.loaded.insert(name.node.clone(), position);
        position
    }

    /// Config keys are one name space for a program: a value in `config.json` belongs to one of them.
    fn check_shared_names(&mut self) {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        let mut errors = Vec::new();
        for key in self.modules.iter().flat_map(LoadedModule::keys) {
            if let Some(first) = seen.insert(&key.name.node, key.name.span)
                && first.file != key.name.span.file
            {
                let message = format!("config key `{}` is declared in two modules", key.name.node);
                errors.push(Diagnostic::error(message).label(key.name.span, "here").label(first, "and here"));
            }
        }
        self.diagnostics.extend(errors);
    }
}

fn define(ast: &Module, imports: &HashMap<String, usize>) -> HashMap<String, Definition> {
    let mut names = HashMap::new();
    for (item, declared) in ast.items.iter().enumerate() {
        match declared {
            Item::Use { module, names: used } => {
                for name in used {
                    if let Some(&module) = imports.get(&module.node) {
                        names.insert(name.node.clone(), Definition::Imported { module });
                    }
                }
            }
            Item::Config(keys) => {
                for key in keys {
                    names.insert(key.name.node.clone(), Definition::Key);
                }
            }
            Item::Const { name, .. } => {
                names.insert(name.node.clone(), Definition::Const);
            }
            Item::Dims(dims) => {
                names.extend(dims.iter().map(|name| (name.node.clone(), Definition::Dim)));
            }
            Item::Require(_) => {}
            Item::Function(function) => {
                names.insert(function.name.node.clone(), Definition::Function { item });
            }
            Item::Entry(entry) => {
                names.insert(entry.name.node.clone(), Definition::Entry { item });
            }
        }
    }
    names
}

fn key_info(key: &ConfigKey, sources: &SourceMap) -> ConfigKeyInfo {
    let text = |expr: &Expr| {
        let file = sources.get(expr.span.file);
        file.and_then(|file| file.text.get(expr.span.range())).unwrap_or_default().to_owned()
    };
    ConfigKeyInfo {
        name: key.name.node.clone(),
        ty: type_text(&key.ty, &text),
        default: key.default.as_ref().map(text),
    }
}

/// A config type as the language writes it.
fn type_text(ty: &ConfigType, text: &dyn Fn(&Expr) -> String) -> String {
    match ty {
        ConfigType::Int => "int".to_owned(),
        ConfigType::Float => "float".to_owned(),
        ConfigType::Bool => "bool".to_owned(),
        ConfigType::String => "string".to_owned(),
        ConfigType::List(element, None) => format!("[{}]", type_text(element, text)),
        ConfigType::List(element, Some(length)) => {
            format!("[{}; {}]", type_text(element, text), text(length))
        }
        ConfigType::Optional(inner) => format!("{}?", type_text(inner, text)),
    }
}
