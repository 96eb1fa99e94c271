//! Why the settings cannot be used: always the operator's to mend, so each says how.
//!
//! Invariant: each names the field, the value and the remedy, and none carries a secret: [`ConfigError::value`] hides what may be one. Made by the rest of
//! the room, told by `main`.

use std::path::PathBuf;

use thiserror::Error;

use super::Source;
use crate::tell::{is_like_a_key, without_secrets};

/// What to do about an auth key where the name of its file belongs.
const KEY_IS_NO_FILE: &str = "this looks like an auth key itself: write it into a file and name the file here. Others may have seen it: make a new key";

/// See the module.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value that cannot be used.
    #[error("{name} = {value:?} (from {from}) cannot be used")]
    Value {
        /// The setting.
        name: String,
        /// What was given.
        value: String,
        /// By what.
        from: Source,
        /// What would be right.
        remedy: String,
    },
    /// A place that cannot be used, as the system says.
    #[error("{name} = {value:?} (from {from}) cannot be used")]
    Place {
        /// The setting.
        name: &'static str,
        /// What was given, or follows from what was given.
        value: String,
        /// By what.
        from: Source,
        /// What was tried, and what the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A setting without a default was not given.
    #[error("{name} is not set")]
    Missing {
        /// The setting.
        name: &'static str,
        /// Whether a settings file is read for it.
        in_file: bool,
    },
    /// A key in the file that is no setting.
    #[error("{key} in {} is no setting", file.display())]
    UnknownKey {
        /// The key.
        key: String,
        /// The file.
        file: PathBuf,
        /// The setting that is spelled most like it.
        nearest: Option<&'static str>,
    },
    /// An `[[access]]` rule that cannot be used.
    #[error("rule {number} of [[access]] in {}: {what}", file.display())]
    Rule {
        /// Which, from 1.
        number: usize,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file is not TOML. What the line says is not told: it may be a secret.
    #[error("{} is not a TOML file: line {line}, column {column}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in signs.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// A file of settings or secrets cannot be read.
    #[error("cannot read {}", without_secrets(&path.to_string_lossy()))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Neither root nor a home to keep the state in.
    #[error("state is not set, and neither XDG_STATE_HOME nor HOME is")]
    NoStateDirectory,
}

impl ConfigError {
    /// A value that cannot be used, shown without what may be a secret in it.
    pub(super) fn value(name: &str, value: &str, from: Source, remedy: &str) -> Self {
        let is_key = name == "auth_key_file" && is_like_a_key(value);
        Self::Value {
            name: name.to_owned(),
            value: without_secrets(value),
            from,
            remedy: if is_key { KEY_IS_NO_FILE } else { remedy }.to_owned(),
        }
    }

    /// The file is not TOML: what the reader of it says, without the line that it would show.
    pub(super) fn syntax(path: PathBuf, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let column = before.rsplit('\n').next().unwrap_or_default().chars();
        Self::Syntax {
            path,
            line: before.matches('\n').count().saturating_add(1),
            column: column.count().saturating_add(1),
            what: without_secrets(error.message()),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Value { remedy, .. } => remedy.clone(),
            Self::Place { name, .. } => format!(
                "give --{} a place that this user may write, or make it writable",
                name.replace('_', "-")
            ),
            Self::Missing { name, in_file } => {
                let flag = name.replace('_', "-");
                let variable = name.to_uppercase();
                match in_file {
                    true => format!(
                        "give --{flag}, or TAILTAPE_{variable} in the environment, or {name} in the file of --config"
                    ),
                    false => format!("give --{flag}, or TAILTAPE_{variable} in the environment"),
                }
            }
            Self::UnknownKey {
                nearest: Some(nearest),
                ..
            } => format!("perhaps {nearest} is meant; docs/operations.md lists them all"),
            Self::UnknownKey { nearest: None, .. } => {
                "remove it; docs/operations.md lists the settings".into()
            }
            Self::Rule { .. } => {
                "a rule is role = \"…\" and at least one of users, tags and nodes".into()
            }
            Self::Syntax { .. } => "mend the line that is named".into(),
            Self::File { .. } => "name a file that this user may read".into(),
            Self::NoStateDirectory => "give --state a directory for the keys".into(),
        }
    }
}
