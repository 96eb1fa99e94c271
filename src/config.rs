//! The settings of `tailtape serve`: flags, environment and file become one typed, complete and checked [`Config`].
//!
//! Invariants: this room alone reads the environment and secret files; one table ([`SETTINGS`]) names every setting, and flags, variables,
//! file keys, `--check` and docs/operations.md follow it; a secret is in no error, log or `Debug`. Called by `cli`, `main` and `serve`.

mod environment;
mod error;
mod layers;
mod rules;
mod secret;
mod setting;
mod typed;
mod unit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::tell::without_secrets;

pub use environment::{Environment, log_filter, socket_path, state_directory, store_url};
pub use error::ConfigError;
pub use layers::{Effective, Given, Source};
pub use secret::Secret;
pub use setting::{Group, Kind, SETTINGS, Setting, Value};
pub use typed::Config;

/// What was asked for on the command line: flag values by setting name, and the file. `Debug` hides what may be a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// Setting name to the text behind its flag.
    pub values: BTreeMap<&'static str, String>,
    /// `--config`.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |(name, value): (&&'static str, &String)| (*name, without_secrets(value));
        let values: BTreeMap<&str, String> = self.values.iter().map(shown).collect();
        f.debug_struct("Flags")
            .field("values", &values)
            .field("file", &self.file)
            .finish()
    }
}

/// Reads file and environment, lays the flags over them, and checks the whole.
///
/// # Errors
/// [`ConfigError`], which names field, value and remedy.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Config, ConfigError> {
    let file = flags
        .file
        .clone()
        .or_else(|| environment.text("TAILTAPE_CONFIG").map(PathBuf::from));
    let text = file.as_deref().map(read_file).transpose()?;
    let file = file.as_deref().zip(text.as_deref());
    let (effective, rules) = layers::merge(flags, environment, file)?;
    let mut config = Config::new(effective, rules, environment)?;
    config.notes.extend_from_slice(environment.notes());
    Ok(config)
}

/// The largest settings file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let limited = std::io::Read::take(file, FILE_BYTES_MAX);
    let read = std::io::Read::read_to_string(&mut { limited }, &mut text).map_err(failed)?;
    if u64::try_from(read).is_ok_and(|read| read >= FILE_BYTES_MAX) {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
