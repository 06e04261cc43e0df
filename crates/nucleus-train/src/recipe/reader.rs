//! Typed access to TOML tables: unknown keys, other types and values out of range are errors with their place.

use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::RecipeError;

/// What sizes are measured in, in bytes.
const UNITS: [(&str, f64); 9] = [
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];
/// Sizes are below 2^63.
const MOST_BYTES: f64 = 9_223_372_036_854_775_808.0;

/// The text of a recipe, for turning byte offsets into lines.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn error(&self, offset: usize, message: impl Into<String>) -> RecipeError {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        RecipeError::Text { path: self.path.to_path_buf(), line, column, message: message.into() }
    }
}

/// One table of the recipe under its name, for example `[run]`.
pub(super) struct Table<'a> {
    source: &'a Source<'a>,
    /// As it is written in messages: `[run]`.
    pub(super) name: String,
    /// Where the table starts, for errors about keys that are missing.
    offset: usize,
    /// `None` for a table that the recipe leaves out.
    entries: Option<&'a DeTable<'a>>,
}

/// A value with its place.
pub(super) struct Value<'a> {
    table: &'a Table<'a>,
    key: &'static str,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Table<'a> {
    pub(super) fn root(source: &'a Source<'a>, root: &'a Spanned<DeTable<'a>>) -> Table<'a> {
        Table::new(source, "the recipe".to_owned(), 0, Some(root.get_ref()))
    }

    fn new(
        source: &'a Source<'a>,
        name: String,
        offset: usize,
        entries: Option<&'a DeTable<'a>>,
    ) -> Table<'a> {
        Table { source, name, offset, entries }
    }

    /// An error about the table as a whole.
    pub(super) fn error(&self, message: impl Into<String>) -> RecipeError {
        self.source.error(self.offset, message)
    }

    pub(super) fn get(&'a self, key: &'static str) -> Option<Value<'a>> {
        let value = self.entries?.get(key)?;
        Some(Value { table: self, key, value })
    }

    pub(super) fn require(&'a self, key: &'static str) -> Result<Value<'a>, RecipeError> {
        self.get(key).ok_or_else(|| self.error(format!("{} needs `{key}`", self.name)))
    }

    /// The table under `key`, with no other keys than `keys`; an empty one when it is left out.
    pub(super) fn table(
        &'a self,
        key: &'static str,
        keys: &[&'static str],
    ) -> Result<Table<'a>, RecipeError> {
        let name = format!("[{key}]");
        let Some(value) = self.get(key) else { return Ok(Table::new(self.source, name, 0, None)) };
        let DeValue::Table(entries) = value.value.get_ref() else {
            return Err(value.wrong(&format!("a table `{name}`")));
        };
        let table = Table::new(self.source, name, value.value.span().start, Some(entries));
        table.only(keys)?;
        Ok(table)
    }

    /// The tables of the array `key`; `name` is how a table of it is written.
    pub(super) fn tables(&'a self, key: &'static str, name: &str) -> Result<Vec<Table<'a>>, RecipeError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let DeValue::Array(items) = value.value.get_ref() else {
            return Err(value.wrong(&format!("tables `{name}`")));
        };
        let one = |(number, item): (usize, &'a Spanned<DeValue<'a>>)| match item.get_ref() {
            DeValue::Table(entries) => Ok(Table::new(
                self.source,
                format!("{name} number {}", number + 1),
                item.span().start,
                Some(entries),
            )),
            _ => Err(value.wrong(&format!("tables `{name}`"))),
        };
        items.iter().enumerate().map(one).collect()
    }

    /// Refuses every key but these. Comes before any other check, so that a misspelt key is not reported as a missing one.
    pub(super) fn only(&self, keys: &[&'static str]) -> Result<(), RecipeError> {
        let unknown = |entries: &'a DeTable<'a>| {
            let others = entries.keys().filter(|key| !keys.contains(&key.get_ref().as_ref()));
            others.min_by_key(|key| key.span().start)
        };
        let Some(key) = self.entries.and_then(unknown) else { return Ok(()) };
        let known: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        let message = format!(
            "unknown key `{}` in {}; its keys are {}",
            key.get_ref().escape_debug(),
            self.name,
            known.join(", ")
        );
        Err(self.source.error(key.span().start, message))
    }
}

/// The kind of a value as recipes call it.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a bool",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A range as people write it.
fn shown<T: ToString>(range: &impl RangeBounds<T>) -> String {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(low), Bound::Included(high)) => {
            format!("{} to {}", low.to_string(), high.to_string())
        }
        (Bound::Included(low), Bound::Excluded(high)) => {
            format!("at least {} and below {}", low.to_string(), high.to_string())
        }
        (Bound::Excluded(low), _) => format!("above {}", low.to_string()),
        (Bound::Included(low), _) => format!("at least {}", low.to_string()),
        (Bound::Unbounded, Bound::Included(high)) => format!("at most {}", high.to_string()),
        (Bound::Unbounded, _) => "any".to_owned(),
    }
}

impl<'a> Value<'a> {
    /// An error at this value.
    pub(super) fn error(&self, message: impl Into<String>) -> RecipeError {
        self.table.source.error(self.value.span().start, message)
    }

    fn wrong(&self, wanted: &str) -> RecipeError {
        let found = kind(self.value.get_ref());
        self.error(format!("`{}` in {} must be {wanted}, here it is {found}", self.key, self.table.name))
    }

    pub(super) fn bool(&self) -> Result<bool, RecipeError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    pub(super) fn string(&self) -> Result<&'a str, RecipeError> {
        self.value.get_ref().as_str().ok_or_else(|| self.wrong("a string"))
    }

    /// A path relative to the recipe file.
    pub(super) fn path(&self) -> Result<PathBuf, RecipeError> {
        let text = self.string()?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.error(format!("`{}` in {} is no path", self.key, self.table.name)));
        }
        Ok(self.table.source.path.parent().unwrap_or(Path::new("")).join(text))
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, RecipeError> {
        let text = self.string()?;
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.error(format!(
                "`{}` in {} is \"{}\"; it can be {}",
                self.key,
                self.table.name,
                text.escape_debug(),
                words.join(", ")
            ))
        })
    }

    fn integer_of(&self, value: &DeValue<'_>) -> Result<i64, RecipeError> {
        let DeValue::Integer(integer) = value else { return Err(self.wrong("an integer")) };
        i64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| self.error(format!("`{}` in {} does not fit 64 bits", self.key, self.table.name)))
    }

    pub(super) fn integer(&self, range: impl RangeBounds<i64>) -> Result<u64, RecipeError> {
        let value = self.integer_of(self.value.get_ref())?;
        match u64::try_from(value) {
            Ok(natural) if range.contains(&value) => Ok(natural),
            _ => Err(self.error(format!(
                "`{}` in {} is {value}; it must be {}",
                self.key,
                self.table.name,
                shown(&range)
            ))),
        }
    }

    fn number_of(&self, value: &DeValue<'_>, range: &impl RangeBounds<f64>) -> Result<f64, RecipeError> {
        let number = match value {
            DeValue::Integer(_) => self.integer_of(value)? as f64,
            DeValue::Float(float) => float.as_str().parse().unwrap_or(f64::NAN),
            _ => return Err(self.wrong("a number")),
        };
        if number.is_finite() && range.contains(&number) {
            return Ok(number);
        }
        let wanted = shown(range);
        Err(self.error(format!("`{}` in {} is {number}; it must be {wanted}", self.key, self.table.name)))
    }

    pub(super) fn number(&self, range: impl RangeBounds<f64>) -> Result<f64, RecipeError> {
        self.number_of(self.value.get_ref(), &range)
    }

    /// A size such as `"1.5 GiB"`, or an integer of bytes.
    pub(super) fn bytes(&self) -> Result<u64, RecipeError> {
        if self.value.get_ref().is_integer() {
            return self.integer(1..);
        }
        let wrong = || self.wrong("a size such as \"2 GiB\" or \"500 MB\", or a number of bytes");
        let text = self.value.get_ref().as_str().ok_or_else(wrong)?.trim();
        let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(unit);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
        // No sign, no exponent, no name of a number.
        let plain = number.trim_end().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let number: f64 = number.trim_end().parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        let bytes = (number * factor).round();
        if (1.0..MOST_BYTES).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
    }

    fn items(&self, wanted: &str) -> Result<&'a [Spanned<DeValue<'a>>], RecipeError> {
        match self.value.get_ref() {
            DeValue::Array(items) => Ok(items),
            _ => Err(self.wrong(wanted)),
        }
    }

    pub(super) fn numbers(&self, range: impl RangeBounds<f64>) -> Result<Vec<f64>, RecipeError> {
        let items = self.items("a list of numbers")?;
        items.iter().map(|item| self.number_of(item.get_ref(), &range)).collect()
    }

    pub(super) fn strings(&self) -> Result<Vec<String>, RecipeError> {
        let items = self.items("a list of strings")?;
        let one = |item: &Spanned<DeValue<'a>>| {
            item.get_ref().as_str().map(str::to_owned).ok_or_else(|| self.wrong("a list of strings"))
        };
        items.iter().map(one).collect()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.get_ref().is_array()
    }
}
