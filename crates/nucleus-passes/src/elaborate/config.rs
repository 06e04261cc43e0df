//! Config values: from a checkpoint's `config.json` or the command line to the keys that a module declares.

use std::collections::BTreeMap;
use std::fmt;

/// A value given for a config key.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigValue {
    /// `null`
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<ConfigValue>),
}

/// Why a setting could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not of the form `key=value`.
    #[error("`{0}` is not a setting: expected key=value, for example num_layers=4")]
    Form(String),
    /// A value that cannot be read.
    #[error(
        "the value of `{key}` cannot be read: {why}; expected a number, true, false, null, a word, a \"string\" or a [list]"
    )]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// Values for config keys. Keys that are not given keep the defaults of the module; elaboration checks names and types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    values: BTreeMap<String, ConfigValue>,
}

impl Config {
    /// No values.
    pub fn new() -> Config {
        Config::default()
    }

    /// The pairs of a JSON object. Keys that begin with `_` belong to the writer of the file and are left out.
    pub fn from_json(pairs: impl IntoIterator<Item = (String, ConfigValue)>) -> Config {
        Config { values: pairs.into_iter().filter(|(key, _)| !key.starts_with('_')).collect() }
    }

    /// Gives `key` a value, replacing an earlier one.
    pub fn insert(&mut self, key: &str, value: ConfigValue) {
        self.values.insert(key.to_owned(), value);
    }

    /// Applies `key=value`, the value written as in the language; a word without quotes is a string.
    ///
    /// # Errors
    /// The text has no `=`, no key, or a value that cannot be read.
    pub fn set(&mut self, setting: &str) -> Result<(), SettingError> {
        let (key, text) = setting.split_once('=').ok_or_else(|| SettingError::Form(setting.to_owned()))?;
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|character| character.is_alphanumeric() || character == '_') {
            return Err(SettingError::Form(setting.to_owned()));
        }
        let mut reader = Reader { rest: text.trim(), depth: 0 };
        let value = reader.value().and_then(|value| {
            if reader.rest.trim().is_empty() {
                Ok(value)
            } else {
                Err(format!("`{}` is left over", reader.rest))
            }
        });
        let value = value.map_err(|why| SettingError::Value { key: key.to_owned(), why })?;
        self.values.insert(key.to_owned(), value);
        Ok(())
    }

    /// The value of `key`, if one is given.
    pub fn get(&self, key: &str) -> Option<&ConfigValue> {
        self.values.get(key)
    }

    /// The keys and values that are given, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ConfigValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// The deepest nesting of lists in a setting.
const MAX_DEPTH: usize = 8;

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn value(&mut self) -> Result<ConfigValue, String> {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('[') {
            self.rest = rest;
            return self.list();
        }
        if let Some(rest) = self.rest.strip_prefix('"') {
            self.rest = rest;
            return self.string();
        }
        let end = self.rest.find([',', ']']).filter(|_| self.depth > 0).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word_value(word.trim())
    }

    fn list(&mut self) -> Result<ConfigValue, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("lists are nested more than {MAX_DEPTH} deep"));
        }
        let mut items = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                self.depth -= 1;
                return Ok(ConfigValue::List(items));
            }
            items.push(self.value()?);
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None if self.rest.starts_with(']') => {}
                None => return Err("a list is not closed with `]`".to_owned()),
            }
        }
    }

    fn string(&mut self) -> Result<ConfigValue, String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((index, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[index + 1..];
                    return Ok(ConfigValue::Str(text));
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, other @ ('"' | '\\' | '{' | '}'))) => text.push(other),
                    _ => return Err("an escape in a string is none of \\\" \\\\ \\n \\t \\{ \\}".to_owned()),
                },
                other => text.push(other),
            }
        }
        Err("a string is not closed with `\"`".to_owned())
    }
}

fn word_value(word: &str) -> Result<ConfigValue, String> {
    match word {
        "" => return Err("a value is missing".to_owned()),
        "true" => return Ok(ConfigValue::Bool(true)),
        "false" => return Ok(ConfigValue::Bool(false)),
        "null" => return Ok(ConfigValue::Null),
        _ => {}
    }
    let digits = word.strip_prefix('-').unwrap_or(word);
    if !digits.starts_with(|character: char| character.is_ascii_digit()) {
        return if word.contains(['"', '[', '{', '}', ',', ']']) {
            Err(format!("`{word}` is not a word"))
        } else {
            Ok(ConfigValue::Str(word.to_owned()))
        };
    }
    let plain = word.replace('_', "");
    if digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_') {
        return plain
            .parse()
            .map(ConfigValue::Int)
            .map_err(|_| format!("`{word}` does not fit a signed 64-bit integer"));
    }
    match plain.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(ConfigValue::Float(value)),
        Ok(_) => Err(format!("`{word}` does not fit a 64-bit float")),
        Err(_) => Err(format!("`{word}` is not a number")),
    }
}

impl fmt::Display for ConfigValue {
    /// As the language writes it; long lists are cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigValue::Null => f.write_str("null"),
            ConfigValue::Bool(value) => write!(f, "{value}"),
            ConfigValue::Int(value) => write!(f, "{value}"),
            ConfigValue::Float(value) => write!(f, "{value:?}"),
            ConfigValue::Str(value) => write!(f, "{value:?}"),
            ConfigValue::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().take(8).enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str(if items.len() > 8 { ", …]" } else { "]" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(setting: &str) -> Result<ConfigValue, String> {
        let mut config = Config::new();
        config.set(setting).map_err(|error| error.to_string())?;
        Ok(config.get("key").unwrap().clone())
    }

    #[test]
    fn settings_are_written_as_in_the_language() {
        assert_eq!(read("key=12"), Ok(ConfigValue::Int(12)));
        assert_eq!(read(" key = -1_000 "), Ok(ConfigValue::Int(-1000)));
        assert_eq!(read("key=1e-6"), Ok(ConfigValue::Float(1e-6)));
        assert_eq!(read("key=false"), Ok(ConfigValue::Bool(false)));
        assert_eq!(read("key=null"), Ok(ConfigValue::Null));
        assert_eq!(read("key=all_moe"), Ok(ConfigValue::Str("all_moe".to_owned())));
        assert_eq!(read(r#"key="a \"b\", c""#), Ok(ConfigValue::Str("a \"b\", c".to_owned())));
        let list = ConfigValue::List(vec![
            ConfigValue::Int(0),
            ConfigValue::Float(1.5),
            ConfigValue::Str("x".to_owned()),
        ]);
        assert_eq!(read("key=[0, 1.5, x]"), Ok(list.clone()));
        assert_eq!(read("key=[ 0,1.5, \"x\", ]"), Ok(list));
        assert_eq!(read("key=[]"), Ok(ConfigValue::List(Vec::new())));
    }

    #[test]
    fn broken_settings_say_what_is_wrong() {
        let form = "`key` is not a setting: expected key=value, for example num_layers=4";
        assert_eq!(read("key"), Err(form.to_owned()));
        assert_eq!(read("=3"), Err(form.replace("`key`", "`=3`")));
        let value = |why: &str| {
            Err(format!(
                "the value of `key` cannot be read: {why}; expected a number, true, false, null, a word, a \"string\" or a [list]"
            ))
        };
        assert_eq!(read("key="), value("a value is missing"));
        assert_eq!(
            read("key=99999999999999999999"),
            value("`99999999999999999999` does not fit a signed 64-bit integer")
        );
        assert_eq!(read("key=1e999"), value("`1e999` does not fit a 64-bit float"));
        assert_eq!(read("key=12abc"), value("`12abc` is not a number"));
        assert_eq!(read("key=[1, 2"), value("a list is not closed with `]`"));
        assert_eq!(read("key=\"abc"), value("a string is not closed with `\"`"));
        assert_eq!(read("key=[1] 2"), value("` 2` is left over"));
        assert_eq!(read(&format!("key={}", "[".repeat(100_000))), value("lists are nested more than 8 deep"));
    }

    #[test]
    fn keys_of_the_writer_are_left_out() {
        let pairs = [("_class_name", ConfigValue::Null), ("num_layers", ConfigValue::Int(2))];
        let config = Config::from_json(pairs.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(config.iter().collect::<Vec<_>>(), [("num_layers", &ConfigValue::Int(2))]);
    }
}
