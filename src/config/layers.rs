//! Flags over environment over file over defaults: which value counts, and where it came from.
//!
//! Invariants: every value in [`Effective`] is of its setting's kind and within its range; an unknown key in the file is an error. Called by
//! [`load`](super::load).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::{Environment, Flags, Kind, SETTINGS, Setting, Value, environment, rules};
use crate::access::Rule;
use crate::tell::without_secrets;

/// The key of the table of access rules, which is no setting: it has neither flag nor variable.
const RULES_KEY: &str = "access";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// The settings file.
    File(PathBuf),
    /// Nobody gave one.
    Default,
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The value.
    pub value: Value,
    /// By what it was given.
    pub source: Source,
}

/// The value of each setting that has one.
pub type Effective = BTreeMap<&'static str, Given>;

/// Merges the layers.
pub(super) fn merge(
    flags: &Flags,
    environment: &Environment,
    file: Option<(&Path, &str)>,
) -> Result<(Effective, Vec<Rule>), ConfigError> {
    let mut table = match file {
        None => toml::Table::new(),
        Some((path, text)) => text
            .parse()
            .map_err(|error| ConfigError::syntax(path.to_owned(), text, &error))?,
    };
    let path = file.map(|(path, _)| path).unwrap_or(Path::new(""));
    let rules = rules::read(table.remove(RULES_KEY), path)?;
    let mut effective = Effective::new();
    for setting in SETTINGS {
        let in_file = table.remove(setting.name);
        let given = match of_text(setting, flags, environment) {
            Some((source, text)) => Some(parsed(setting, &text, source)?),
            None => in_file
                .map(|value| of_file(setting, value, path))
                .transpose()?,
        };
        let default = (!setting.default.is_empty() || matches!(setting.kind, Kind::List))
            .then(|| parsed(setting, setting.default, Source::Default));
        if let Some(given) = given.map(Ok).or(default).transpose()? {
            effective.insert(setting.name, given);
        }
    }
    match table.keys().next() {
        None => Ok((effective, rules)),
        Some(key) => Err(ConfigError::UnknownKey {
            key: without_secrets(key),
            file: path.to_owned(),
            nearest: nearest(key),
        }),
    }
}

/// The text of a flag, or else of a variable.
fn of_text(
    setting: &Setting,
    flags: &Flags,
    environment: &Environment,
) -> Option<(Source, String)> {
    if let Some(text) = flags.values.get(setting.name) {
        return Some((Source::Flag(setting.flag()), text.clone()));
    }
    let (name, text) = environment.of_setting(setting)?;
    Some((Source::Variable(name), text.to_owned()))
}

fn parsed(setting: &Setting, text: &str, source: Source) -> Result<Given, ConfigError> {
    match setting.kind.parse(text) {
        Ok(value) => Ok(Given { value, source }),
        Err(remedy) => Err(ConfigError::value(setting.name, text, source, &remedy)),
    }
}

fn of_file(setting: &Setting, value: toml::Value, path: &Path) -> Result<Given, ConfigError> {
    let source = Source::File(path.to_owned());
    let wrong = |shown: String, source| {
        let remedy = match setting.kind {
            Kind::Text | Kind::Choice(_) => format!("{}, in quotes", setting.kind.remedy()),
            Kind::List | Kind::Count { .. } | Kind::Bytes { .. } | Kind::Duration { .. } => {
                setting.kind.remedy()
            }
        };
        ConfigError::value(setting.name, &shown, source, &remedy)
    };
    match (value, setting.kind) {
        (
            toml::Value::String(text),
            Kind::Text
            | Kind::Choice(_)
            | Kind::Count { .. }
            | Kind::Bytes { .. }
            | Kind::Duration { .. },
        ) => parsed(setting, &text, source),
        // A size or time without a unit is refused there, but for 0.
        (
            toml::Value::Integer(number),
            Kind::Count { .. } | Kind::Bytes { .. } | Kind::Duration { .. },
        ) => parsed(setting, &number.to_string(), source),
        (toml::Value::Array(items), Kind::List) => {
            let texts: Option<Vec<String>> = items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect();
            match texts {
                Some(texts) => Ok(Given {
                    value: Value::List(texts),
                    source,
                }),
                None => Err(wrong(toml::Value::Array(items).to_string(), source)),
            }
        }
        // A list or table may be of any size and hold anything.
        (toml::Value::Array(_), _) => Err(wrong("a list".to_owned(), source)),
        (toml::Value::Table(_), _) => Err(wrong("a table".to_owned(), source)),
        (
            other @ (toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)),
            _,
        ) => Err(wrong(other.to_string(), source)),
    }
}

/// The setting that takes the fewest changes to get to from `key`, if they are few.
fn nearest(key: &str) -> Option<&'static str> {
    let names = SETTINGS.iter().map(|setting| setting.name);
    nearest_of(key, names.chain([RULES_KEY]))
}

/// The same among others; what all of them begin with counts as little as if it were not there.
pub(super) fn nearest_of<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rest = |text: &'a str| text.strip_prefix(environment::PREFIX).unwrap_or(text);
    let key = key.strip_prefix(environment::PREFIX).unwrap_or(key);
    let nearest = names
        .map(|name| (distance(key, rest(name)), name))
        .min_by_key(|(distance, _)| *distance);
    nearest
        .filter(|(distance, name)| distance.saturating_mul(3) <= rest(name).len().max(6))
        .map(|(_, name)| name)
}

/// Single-letter changes, and swaps of neighbours, between the first 64 signs of both.
fn distance(one: &str, other: &str) -> usize {
    let first = |text: &str| text.chars().take(64).collect::<String>();
    strsim::osa_distance(&first(one), &first(other))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_single_changes() {
        for (one, other, changes) in [("", "ab", 2), ("stroe", "store", 1), ("log", "log", 0)] {
            assert_eq!(distance(one, other), changes);
        }
        assert_eq!(nearest("stores"), Some("store"));
        assert_eq!(nearest("stroe"), Some("store"), "and not state");
        assert_eq!(nearest("comit_interval"), Some("commit_interval"));
        assert_eq!(nearest("favourite_colour"), None);
    }
}
