//! SIGHUP: access rules and the log's level are read again; everything else stays as it was.
//!
//! Invariant: settings that cannot be used change nothing at all. Called by the run of `serve`.

use crate::config::{Config, ConfigError, Effective, Environment, Flags, SETTINGS, Source, load};

/// Settings that a reload changes, besides the access rules.
const RELOADED: [&str; 1] = ["log"];

/// New settings, and the names of those that wait for a restart.
#[derive(Debug)]
pub(super) struct Reloaded {
    pub(super) config: Config,
    pub(super) waiting: Vec<&'static str>,
}

/// Reads the settings again. `running` is what the recorder was started with.
///
/// # Errors
/// As [`load`]; the settings in force stay.
pub(super) fn reload(
    flags: &Flags,
    environment: &Environment,
    running: &Effective,
) -> Result<Reloaded, ConfigError> {
    let config = load(flags, environment)?;
    let waiting = waiting(running, &config.effective);
    Ok(Reloaded { config, waiting })
}

fn waiting(running: &Effective, new: &Effective) -> Vec<&'static str> {
    let value = |of: &Effective, name: &str| of.get(name).map(|given| given.value.clone());
    let is_given = |of: &Effective, name: &str| {
        let source = of.get(name).map(|given| &given.source);
        source.is_some_and(|source| *source != Source::Default)
    };
    SETTINGS
        .iter()
        .map(|setting| setting.name)
        .filter(|name| !RELOADED.contains(name))
        .filter(|name| value(running, name) != value(new, name))
        // A default that follows from another setting changes with that one, which is named.
        .filter(|name| is_given(running, name) || is_given(new, name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_takes_rules_and_the_log_and_names_what_waits_for_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tailtape.toml");
        let needed = "store = \"memory://\"\ncontrol_url = \"http://127.0.0.1:8080\"\n";
        let write = |more: &str| std::fs::write(&file, format!("{needed}{more}")).unwrap();
        let flags = Flags {
            file: Some(file.clone()),
            ..Flags::default()
        };
        let environment = Environment::of(&[("HOME", "/home/op")]);
        write("");
        let running = load(&flags, &environment).unwrap().effective;

        write(
            "log = \"debug\"\nrecordings_max = 5\n[[access]]\nrole = \"viewer\"\nusers = [\"a\"]\n",
        );
        let reloaded = reload(&flags, &environment, &running).unwrap();
        assert_eq!(reloaded.config.log, "debug");
        assert_eq!(reloaded.config.access.len(), 1);
        assert_eq!(reloaded.waiting, ["recordings_max"]);

        write("recordings_max = \"many\"\n");
        let error = reload(&flags, &environment, &running).unwrap_err();
        assert!(matches!(error, ConfigError::Value { .. }), "{error:?}");
    }
}
