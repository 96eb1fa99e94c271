//! `serve --check`: the settings as they would be used, without secrets, and the store proven.
//!
//! Invariant: no epoch is claimed and the tailnet is not touched, so it may run beside the recorder. Called by `main`.

use std::io::Write;

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::{Config, Group, SETTINGS};
use crate::store::Store;

/// Shows the settings on `out`, proves the store, and says so.
///
/// # Errors
/// The store cannot be proven, or `out` cannot be written.
pub async fn check(config: &Config, as_json: bool, mut out: impl Write) -> anyhow::Result<bool> {
    let proven = Store::prove(&config.store).await;
    let shown = match as_json {
        true => {
            let proof = match &proven {
                Ok(()) => json!("proven"),
                Err(error) => json!({"error": error.with_causes()}),
            };
            format!("{}\n", settings_json(config, &proof))
        }
        false => settings_text(config),
    };
    let written = || "cannot write the settings to stdout";
    out.write_all(shown.as_bytes()).with_context(written)?;
    proven.with_context(|| format!("cannot keep a store at {}", config.store))?;
    if !as_json {
        writeln!(
            out,
            "\nok: the settings can be used, and {} is proven to keep a store",
            config.store
        )
        .with_context(written)?;
    }
    Ok(true)
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
        let source = given.map_or("default".to_owned(), |given| given.source.to_string());
        let value = value.filter(|value| !value.is_empty());
        let value = value.unwrap_or_else(|| "-".to_owned());
        (setting.group, setting.name, value, source)
    };
    SETTINGS.iter().map(row).collect()
}

/// Says that there is a key, and never which.
fn auth_key(config: &Config) -> String {
    match &config.auth_key_source {
        Some(source) => format!("given (from {source})"),
        None => "none: the node must have joined before".to_owned(),
    }
}

fn settings_text(config: &Config) -> String {
    let rows = rows(config);
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
            let shown = auth_key(config);
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
        text.push_str(&format!("  {number}. {}: {}\n", rule.role, who.join(", ")));
    }
    for note in &config.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn settings_json(config: &Config, proof: &Value) -> Value {
    let settings: serde_json::Map<String, Value> = rows(config)
        .into_iter()
        .map(|(_, name, value, source)| (name.to_owned(), json!({"value": value, "from": source})))
        .collect();
    let rules = config.access.iter().map(|rule| {
        json!({
            "role": rule.role.name(), "users": rule.users, "tags": rule.tags, "nodes": rule.nodes,
        })
    });
    json!({
        "settings": settings,
        "auth_key": auth_key(config),
        "access": rules.collect::<Vec<_>>(),
        "notes": config.notes,
        "store": proof,
    })
}
