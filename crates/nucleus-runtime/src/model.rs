//! Models: a text in the language with the values of its config.

use std::path::{Path, PathBuf};

use nucleus_ir::DType;
use nucleus_ir::Graph;
use nucleus_ir::diagnostics::{Diagnostic, render};
use nucleus_ir::source::SourceMap;
use nucleus_ir::verify_graph::verify_graph;
use nucleus_passes::PassError;
use nucleus_passes::elaborate::{Config, ConfigValue, Program, SettingError, SourceText, elaborate};
use nucleus_passes::pipeline::{CompileError, CompileOptions, Form, Observer, PASSES, compile_to};
use nucleus_plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// The most bytes that a source file may have.
pub const MAX_SOURCE_BYTES: u64 = 16 << 20;

/// The models that come with the program, by the names under which others use them.
const SHIPPED: [(&str, &str); 1] = [("nucleus_image", include_str!("../../../ir-specs/nucleus_image.ir"))];

/// Why a model could not be read.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A source file cannot be read.
    #[error("cannot read model `{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A source file is too large.
    #[error("model `{}` has {bytes} bytes, more than the {MAX_SOURCE_BYTES} that a source file may have", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A source file is not text.
    #[error("model `{}` is not UTF-8 text (byte {position}); expected a .ir file or a compiled .nuc artifact", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        position: usize,
    },
    /// The text is wrong; the diagnostics are rendered with their places.
    #[error("{}", .rendered.trim_end())]
    Diagnostics {
        /// For people.
        rendered: String,
    },
    /// A `key=value` setting cannot be read.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A value of `config.json` that the language has no form for.
    #[error("`{}`: key `{key}`: {why}", .path.display())]
    ConfigValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no such entry.
    #[error("the model has no entry `{name}`; its entries are {}", known.join(", "))]
    NoEntry {
        /// The name.
        name: String,
        /// The entries there are.
        known: Vec<String>,
    },
    /// A pass gave up.
    #[error("entry `{entry}`: {source}")]
    Pass {
        /// The entry.
        entry: String,
        /// Why.
        source: PassError,
    },
    /// Elaboration made a graph that is not well formed: a defect of the compiler, not of the text.
    #[error("internal error: elaboration of `{entry}` made an ill-formed graph: {first}")]
    IllFormed {
        /// The entry.
        entry: String,
        /// The first problem.
        first: String,
    },
}

/// The texts of a model, enough to read it again without its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelText {
    /// The name of the main text and the text.
    pub main: (String, String),
    /// Module names and texts that it uses, other than `std`.
    pub modules: Vec<(String, String, String)>,
}

/// A model: its parsed and verified text and the values of its config keys.
#[derive(Debug)]
pub struct Model {
    sources: SourceMap,
    program: Program,
    config: Config,
    text: ModelText,
}

impl Model {
    /// Reads a `.ir` file and the modules that it uses: files beside it, or models that come with the program.
    ///
    /// # Errors
    /// A file cannot be read, or the texts have errors.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        let main = (path.display().to_string(), read_source(path)?);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        // A module that cannot be read is reported by the program as missing, with its place.
        Model::load(main, &|module| {
            let path = folder.join(format!("{module}.ir"));
            if !path.exists() {
                return shipped(module);
            }
            Some(SourceText { name: path.display().to_string(), text: read_source(&path).ok()? })
        })
    }

    /// A model that comes with the program: `nucleus_image`. `None` for any other name.
    ///
    /// # Errors
    /// None that a user could cause.
    pub fn shipped(name: &str) -> Option<Result<Model, ModelError>> {
        let SourceText { name, text } = shipped(name)?;
        Some(Model::load((name, text), &shipped))
    }

    /// Reads a model back from its texts.
    ///
    /// # Errors
    /// The texts have errors.
    pub fn from_text(text: &ModelText) -> Result<Model, ModelError> {
        Model::load(text.main.clone(), &|module| {
            let (_, name, text) = text.modules.iter().find(|(known, ..)| known == module)?;
            Some(SourceText { name: name.clone(), text: text.clone() })
        })
    }

    fn load(
        main: (String, String),
        loader: &dyn Fn(&str) -> Option<SourceText>,
    ) -> Result<Model, ModelError> {
        let mut sources = SourceMap::new();
        let file = sources.add(main.0.clone(), main.1.as_str());
        let modules = std::cell::RefCell::new(Vec::new());
        let recording = |module: &str| {
            let source = loader(module)?;
            modules.borrow_mut().push((module.to_owned(), source.name.clone(), source.text.clone()));
            Some(source)
        };
        let program = Program::load(&mut sources, file, &recording)
            .map_err(|diagnostics| rendered(&sources, &diagnostics))?;
        let text = ModelText { main, modules: modules.into_inner() };
        Ok(Model { sources, program, config: Config::new(), text })
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The values given for config keys.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The texts.
    pub fn text(&self) -> &ModelText {
        &self.text
    }

    /// The names of the entries, in order.
    pub fn entries(&self) -> Vec<&str> {
        self.program.entries()
    }

    /// Warnings about the text, rendered; empty if there are none.
    pub fn warnings(&self, color: bool) -> String {
        render(&self.sources, self.program.warnings(), color)
    }

    /// Replaces the values of the keys that a `config.json` gives.
    ///
    /// # Errors
    /// A value that the language has no form for: an object, or a number beyond 64 bits. Unknown keys and wrong types are reported when an
    /// entry is elaborated.
    pub fn apply_json(&mut self, path: &Path, map: &Map<String, Value>) -> Result<(), ModelError> {
        for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('_')) {
            let value = config_value(value, 0).map_err(|why| ModelError::ConfigValue {
                path: path.to_path_buf(),
                key: key.clone(),
                why,
            })?;
            self.config.insert(key, value);
        }
        Ok(())
    }

    /// Replaces the values of keys.
    pub fn apply_values(&mut self, values: &[(String, ConfigValue)]) {
        for (key, value) in values {
            self.config.insert(key, value.clone());
        }
    }

    /// Replaces the values of all keys.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Replaces the value of one key; `setting` is `key=value`.
    ///
    /// # Errors
    /// The setting cannot be read.
    pub fn set(&mut self, setting: &str) -> Result<(), ModelError> {
        Ok(self.config.set(setting)?)
    }

    /// The graph of an entry, elaborated and verified.
    ///
    /// # Errors
    /// There is no such entry, or config and text do not fit together; diagnostics are rendered with their places.
    pub fn graph(&self, entry: &str) -> Result<Graph, ModelError> {
        self.check_entry(entry)?;
        let graph = elaborate(&self.program, &self.config, entry)
            .map_err(|diagnostics| rendered(&self.sources, &diagnostics))?;
        verify_graph(&graph).map_err(|errors| ModelError::IllFormed {
            entry: entry.to_owned(),
            first: errors.first().map(ToString::to_string).unwrap_or_default(),
        })?;
        Ok(graph)
    }

    /// The plan of an entry for products in `dtype`, with nothing quantised; see [`Model::compile_with`].
    ///
    /// # Errors
    /// As for [`Model::compile_with`].
    pub fn compile(
        &self,
        entry: &str,
        dtype: DType,
        observer: &mut dyn Observer,
    ) -> Result<Plan, ModelError> {
        self.compile_with(entry, &CompileOptions { dtype, ..CompileOptions::default() }, observer)
    }

    /// The plan of an entry. `observer` is told of every pass: a `Vec<PassTiming>` collects times, a closure can print stages, `()` ignores
    /// them.
    ///
    /// # Errors
    /// There is no such entry, config and text do not fit together, or sizes go beyond the limits of the dim algebra.
    pub fn compile_with(
        &self,
        entry: &str,
        options: &CompileOptions,
        observer: &mut dyn Observer,
    ) -> Result<Plan, ModelError> {
        let last = PASSES.last().map_or("", |pass| pass.name);
        match self.compile_to(entry, options, observer, last)? {
            Form::Plan(plan) => Ok(plan),
            Form::Graph(_) => Err(unsupported(entry, last, "the last pass does not make a plan".to_owned())),
        }
    }

    /// The graph of an entry with the casts and scales that these options ask for: what a plan computes, as the evaluator can run it.
    ///
    /// # Errors
    /// As for [`Model::compile_with`].
    pub fn graph_in(&self, entry: &str, options: &CompileOptions) -> Result<Graph, ModelError> {
        let last = "quantize";
        match self.compile_to(entry, options, &mut (), last)? {
            Form::Graph(graph) => Ok(graph),
            Form::Plan(_) => Err(unsupported(entry, last, "the pass does not make a graph".to_owned())),
        }
    }

    fn compile_to(
        &self,
        entry: &str,
        options: &CompileOptions,
        observer: &mut dyn Observer,
        last: &'static str,
    ) -> Result<Form, ModelError> {
        self.check_entry(entry)?;
        compile_to(&self.program, &self.config, entry, options, observer, last).map_err(|error| match error {
            CompileError::Program(diagnostics) => rendered(&self.sources, &diagnostics),
            CompileError::Pass(source) => ModelError::Pass { entry: entry.to_owned(), source },
            error @ CompileError::NoStage { .. } => unsupported(entry, last, error.to_string()),
        })
    }

    /// The name of the entry to use: the one given, or the first.
    ///
    /// # Errors
    /// There is no such entry, or none at all.
    pub fn entry<'a>(&'a self, name: Option<&'a str>) -> Result<&'a str, ModelError> {
        let name = match name {
            Some(name) => name,
            None => self.entries().first().copied().unwrap_or(""),
        };
        self.check_entry(name)?;
        Ok(name)
    }

    fn check_entry(&self, name: &str) -> Result<(), ModelError> {
        let entries = self.entries();
        if entries.contains(&name) {
            return Ok(());
        }
        let known = entries.into_iter().map(str::to_owned).collect();
        Err(ModelError::NoEntry { name: name.to_owned(), known })
    }
}

fn unsupported(entry: &str, pass: &'static str, what: String) -> ModelError {
    ModelError::Pass { entry: entry.to_owned(), source: PassError::Unsupported { pass, what } }
}

fn rendered(sources: &SourceMap, diagnostics: &[Diagnostic]) -> ModelError {
    ModelError::Diagnostics { rendered: render(sources, diagnostics, false) }
}

fn shipped(name: &str) -> Option<SourceText> {
    let (_, text) = SHIPPED.iter().find(|(known, _)| *known == name)?;
    Some(SourceText { name: format!("{name}.ir"), text: (*text).to_owned() })
}

fn read_source(path: &Path) -> Result<String, ModelError> {
    let io = |source| ModelError::Io { path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    if metadata.len() > MAX_SOURCE_BYTES {
        return Err(ModelError::TooLarge { path: path.to_path_buf(), bytes: metadata.len() });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map_err(|error| ModelError::NotText {
        path: path.to_path_buf(),
        position: error.utf8_error().valid_up_to(),
    })
}

/// The deepest nesting of lists in a config value.
const MAX_CONFIG_DEPTH: usize = 8;

pub(crate) fn config_value(value: &Value, depth: usize) -> Result<ConfigValue, &'static str> {
    if depth > MAX_CONFIG_DEPTH {
        return Err("lists are nested too deeply");
    }
    Ok(match value {
        Value::Null => ConfigValue::Null,
        Value::Bool(value) => ConfigValue::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => ConfigValue::Int(value),
            (None, Some(value)) if number.is_f64() && value.is_finite() => ConfigValue::Float(value),
            _ => return Err("the number does not fit 64 bits"),
        },
        Value::String(value) => ConfigValue::Str(value.clone()),
        Value::Array(items) => ConfigValue::List(
            items.iter().map(|item| config_value(item, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Value::Object(_) => {
            return Err("the value is an object; config keys take numbers, booleans, strings, lists or null");
        }
    })
}
