//! `serve --check`: the settings as they would be used, without secrets; the store proven; and what else a start needs, looked at.
//!
//! Invariant: no epoch is claimed and the tailnet is not touched, so it may run beside the recorder; nothing is made to stay but the store's directory. Called by
//! `main`.

mod start;

use std::io::Write;

use anyhow::Context;
use serde_json::{Value, json};

use crate::admin::{Output, OutputError};
use crate::config::{Config, ConfigError, Group, SETTINGS};
use crate::store::Store;
use crate::tell::{printable, printable_json, with_causes, without_keys, without_secrets};

use start::Finding;

/// Shows the settings on `out`, then what a start would find: each of it, also behind one that is at fault.
///
/// # Errors
/// The first thing that a start would fail on, a setting before all else; or `out` cannot be written.
pub async fn check(config: &Config, as_json: bool, mut out: impl Write) -> anyhow::Result<bool> {
    let proven = Store::prove(&config.store).await;
    let proven = proven.with_context(|| format!("cannot keep a store at {}", config.store));
    let room = match proven.is_ok() {
        true => Some(room(config).await),
        false => None,
    };
    let store = Finding {
        what: "store",
        told: proven.map(|()| "proven".to_owned()),
    };
    let mut findings = vec![store];
    findings.extend(room);
    findings.extend(start::look(config).await);
    for told in findings
        .iter_mut()
        .filter_map(|finding| finding.told.as_mut().ok())
    {
        *told = without_keys(told);
    }
    let shown = match as_json {
        true => printable_json(&format!("{}\n", settings_json(config, &findings))),
        false => settings_text(config) + &findings_text(&findings),
    };
    let written = |written: std::io::Result<()>| {
        match written.map_err(|error| OutputError::of(&Output::Stdout, error)) {
            // The exit code is the answer, whether or not anybody reads on.
            Err(OutputError::Closed) => Ok(()),
            written => written,
        }
    };
    written(out.write_all(shown.as_bytes()))?;
    let errors = findings
        .into_iter()
        .filter_map(|finding| finding.told.err());
    // A setting that is wrong stays wrong, whatever becomes of the rest: it decides the exit code.
    let gravest = errors.min_by_key(|error| !error.chain().any(|cause| cause.is::<ConfigError>()));
    if let Some(error) = gravest {
        return Err(error);
    }
    if !as_json {
        written(writeln!(
            out,
            "\nok: the settings can be used, and {} is proven to keep a store",
            printable(&without_secrets(&config.store.to_string()))
        ))?;
    }
    Ok(true)
}

/// Whether the first recording would be taken.
async fn room(config: &Config) -> Finding {
    let limit = config.disk_free_min;
    let told = match Store::room(&config.store, limit).await {
        Ok(Some(free)) => Ok(format!("{free} bytes are free, disk_free_min is {limit}")),
        Ok(None) => Ok("none below this store".to_owned()),
        Err(error) => Err(error.into()),
    };
    Finding { what: "disk", told }
}

fn findings_text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| match &finding.told {
        Ok(told) => format!("  {:7}  {}\n", finding.what, printable(told)),
        Err(error) => {
            let causes = printable(&with_causes(error.as_ref()));
            format!("  {:7}  FAILED: {causes}\n", finding.what)
        }
    };
    let lines: Vec<String> = findings.iter().map(line).collect();
    format!("\nA start would find\n{}", lines.concat())
}

/// Each setting with its value and where that came from; those that follow from others as they are.
fn rows(config: &Config) -> Vec<(Group, &'static str, String, String)> {
    let derived = |name: &str| match name {
        "store" => Some(config.store.to_string()),
        "state" => Some(config.state.display().to_string()),
        "socket" => Some(config.socket.display().to_string()),
        _ => None,
    };
    let row = |setting: &'static crate::config::Setting| {
        let given = config.effective.get(setting.name);
        let value = derived(setting.name).or_else(|| given.map(|given| given.value.to_string()));
        let source = given.map_or("default".to_owned(), |given| {
            without_keys(&given.source.to_string())
        });
        let value = value.filter(|value| !value.is_empty());
        let value = value.map(|value| without_secrets(&value));
        let value = value.unwrap_or_else(|| "-".to_owned());
        (setting.group, setting.name, value, source)
    };
    SETTINGS.iter().map(row).collect()
}

/// Says that there is a key, and never which.
fn auth_key(config: &Config) -> String {
    let named = config.effective.get("auth_key_file");
    match (&config.auth_key_source, named) {
        (Some(source), _) => format!("given (from {source})"),
        (None, Some(given)) => format!(
            "none, for {} (from {}) is not there: the node must have joined before",
            without_secrets(&given.value.to_string()),
            given.source
        ),
        (None, None) => "none: the node must have joined before".to_owned(),
    }
}

fn settings_text(config: &Config) -> String {
    let rows = rows(config).into_iter();
    let rows: Vec<_> = rows
        .map(|(group, name, value, source)| (group, name, printable(&value), printable(&source)))
        .collect();
    let width = |of: fn(&(Group, &'static str, String, String)) -> usize| {
        rows.iter().map(of).max().unwrap_or_default()
    };
    let names = width(|row| row.1.len());
    let values = width(|row| row.2.chars().count()).min(48);
    let mut text = String::new();
    for group in Group::ALL {
        text.push_str(&format!("{}\n", group.heading()));
        for (_, name, value, source) in rows.iter().filter(|row| row.0 == group) {
            text.push_str(&format!("  {name:names$}  {value:values$}  {source}\n"));
        }
        if group == Group::Service {
            let shown = printable(&auth_key(config));
            text.push_str(&format!("  {:names$}  {shown}\n", "auth key"));
        }
        text.push('\n');
    }
    text.push_str("Access\n");
    if config.access.is_empty() {
        text.push_str("  no rule: only grants of control give roles\n");
    }
    for (rule, number) in config.access.iter().zip(1..) {
        let who = [&rule.users, &rule.tags, &rule.nodes].map(|names| names.join(", "));
        let who: Vec<String> = who.into_iter().filter(|names| !names.is_empty()).collect();
        let who = printable(&who.join(", "));
        text.push_str(&format!("  {number}. {}: {who}\n", rule.role));
    }
    for note in &config.notes {
        text.push_str(&format!("note: {}\n", printable(note)));
    }
    text
}

fn settings_json(config: &Config, findings: &[Finding]) -> Value {
    let settings: serde_json::Map<String, Value> = rows(config)
        .into_iter()
        .map(|(_, name, value, source)| (name.to_owned(), json!({"value": value, "from": source})))
        .collect();
    let rules = config.access.iter().map(|rule| {
        json!({
            "role": rule.role.name(), "users": rule.users, "tags": rule.tags, "nodes": rule.nodes,
        })
    });
    let mut shown = json!({
        "settings": settings,
        "auth_key": auth_key(config),
        "access": rules.collect::<Vec<_>>(),
        "notes": config.notes,
    });
    if let Some(shown) = shown.as_object_mut() {
        shown.extend(findings.iter().map(|finding| {
            let told = match &finding.told {
                Ok(told) => json!(told),
                Err(error) => json!({"error": with_causes(error.as_ref())}),
            };
            (finding.what.to_owned(), told)
        }));
    }
    shown
}

#[cfg(test)]
mod tests {
    use crate::config::{self, Environment, Flags};
    use crate::tell::is_shown;

    use super::*;

    fn config(directory: &std::path::Path, file: &str) -> Config {
        let path = directory.join("tailtape.toml");
        let needed = "control_url = \"http://127.0.0.1:1\"\n";
        std::fs::write(&path, format!("{needed}{file}")).unwrap();
        let flags = Flags {
            file: Some(path),
            ..Flags::default()
        };
        let home = directory.to_str().unwrap().to_owned();
        config::load(&flags, &Environment::of(&[("HOME", home.leak())])).unwrap()
    }

    async fn shown(config: &Config, as_json: bool) -> (String, anyhow::Result<bool>) {
        let mut out = Vec::new();
        let ended = check(config, as_json, &mut out).await;
        (String::from_utf8(out).unwrap(), ended)
    }

    #[tokio::test]
    async fn nothing_that_stands_in_the_settings_steers_the_terminal() {
        let root = tempfile::tempdir().unwrap();
        let file = "store = \"s\\u001b[2Jx\"\nstate = \"t\\u202ey\"\n\
             [[access]]\nrole = \"auditor\"\nusers = [\"a\\u009bb@example.com\"]\n";
        let mut config = config(root.path(), file);
        config.notes.push("a note\r\u{200b}".to_owned());
        for as_json in [false, true] {
            let (text, ended) = shown(&config, as_json).await;
            assert!(ended.unwrap());
            assert!(
                text.chars().all(|sign| is_shown(sign) || sign == '\n'),
                "{text:?}"
            );
            assert!(
                as_json || text.contains("t·y") && text.contains("a·b@example.com"),
                "{text}"
            );
        }
        let json: Value = serde_json::from_str(&shown(&config, true).await.0).unwrap();
        assert_eq!(json["access"][0]["users"][0], "a\u{9b}b@example.com");
    }

    #[tokio::test]
    async fn a_setting_that_is_wrong_is_told_before_a_store_that_is_not_fit() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path(), "store = \"/proc/s\"\nstate = \"/proc/t\"\n");
        let (text, ended) = shown(&config, false).await;
        assert!(text.matches("FAILED").count() > 1, "{text}");
        let error = ended.unwrap_err();
        let is_setting = error.chain().any(|cause| cause.is::<ConfigError>());
        assert!(is_setting, "{error:?}");
        let config = Config {
            state: root.path().join("t"),
            socket: root.path().join("s"),
            ..config
        };
        let error = shown(&config, false).await.1.unwrap_err();
        assert!(
            error.to_string().contains("cannot keep a store"),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn an_auth_key_within_a_path_is_not_shown() {
        let root = tempfile::tempdir().unwrap();
        let file = "store = \"x/tskey-auth-s3cr3t/s\"\nstate = \"x/tskey-auth-s3cr3t/t\"\n";
        let config = config(root.path(), file);
        for as_json in [false, true] {
            let (text, ended) = shown(&config, as_json).await;
            assert!(ended.unwrap(), "{text}");
            assert!(!text.contains("s3cr3t"), "{text}");
            assert!(text.contains("tskey-…/t is made at the start"), "{text}");
            assert!(text.contains("tskey-…/t/tailtape.sock"), "{text}");
        }
    }
}
