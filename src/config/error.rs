//! Why the settings cannot be used: always the operator's to mend, so each says how.
//!
//! Invariant: each names the field, the value and the remedy, and none carries a secret. Made by the rest of the room, told by `main`.

use std::path::PathBuf;

use thiserror::Error;

use super::Source;

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
    /// A setting without a default was not given.
    #[error("{name} is not set")]
    Missing {
        /// The setting.
        name: &'static str,
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
    /// The file is not TOML.
    #[error("{} is not a TOML file", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file of settings or secrets cannot be read.
    #[error("cannot read {}", path.display())]
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
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Value { remedy, .. } => remedy.clone(),
            Self::Missing { name } => format!(
                "give --{}, or TAILTAPE_{} in the environment, or {name} in the settings file of serve",
                name.replace('_', "-"),
                name.to_uppercase()
            ),
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
            Self::Syntax { .. } => "mend the line that is shown".into(),
            Self::File { .. } => "name a file that this user may read".into(),
            Self::NoStateDirectory => "give --state a directory for the keys".into(),
        }
    }
}
