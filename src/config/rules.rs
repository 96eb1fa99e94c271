//! The `[[access]]` rules of the settings file.
//!
//! Invariant: a rule that names nobody is refused here, so that an empty list is never read as "everybody". Called by `layers.rs`.

use std::path::Path;

use super::ConfigError;
use crate::access::{Role, Rule};
use crate::tell::without_secrets;

pub(super) fn read(table: Option<toml::Value>, file: &Path) -> Result<Vec<Rule>, ConfigError> {
    let entries = match table {
        None => return Ok(Vec::new()),
        Some(toml::Value::Array(entries)) => entries,
        Some(other) => vec![other],
    };
    let numbered = entries.into_iter().zip(1..);
    numbered
        .map(|(entry, number)| {
            rule(entry).map_err(|what| ConfigError::Rule {
                number,
                file: file.to_owned(),
                what: without_secrets(&what),
            })
        })
        .collect()
}

fn rule(entry: toml::Value) -> Result<Rule, String> {
    let toml::Value::Table(table) = entry else {
        return Err("is no table; write [[access]]".into());
    };
    let mut role = None;
    let (mut users, mut tags, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in table {
        match key.as_str() {
            "role" => {
                let name = value.as_str().unwrap_or_default();
                let known = Role::named(name);
                role = Some(known.ok_or_else(|| {
                    let names = Role::ALL.map(Role::name).join(", ");
                    format!("role {value} is unknown; roles are {names}")
                })?);
            }
            "users" => users = texts(&key, value)?,
            "tags" => tags = texts(&key, value)?,
            "nodes" => nodes = texts(&key, value)?,
            other => return Err(format!("{other} is unknown")),
        }
    }
    let role = role.ok_or("has no role")?;
    if users.is_empty() && tags.is_empty() && nodes.is_empty() {
        return Err("names nobody".into());
    }
    if let Some(tag) = tags.iter().find(|tag| !tag.starts_with("tag:")) {
        return Err(format!("{tag:?} is no tag; write tag:{tag}"));
    }
    Ok(Rule {
        role,
        users,
        tags,
        nodes,
    })
}

fn texts(key: &str, value: toml::Value) -> Result<Vec<String>, String> {
    let texts = value.as_array().and_then(|items| {
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
        texts.collect::<Option<Vec<_>>>()
    });
    let texts = texts.ok_or_else(|| format!("{key} is no list of texts"))?;
    if texts.iter().any(String::is_empty) {
        return Err(format!("{key} has an empty text"));
    }
    Ok(texts)
}
