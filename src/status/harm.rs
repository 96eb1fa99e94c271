//! Which counters tell of harm: recordings cut short, peers turned away, faults.
//!
//! Invariant: a counter that this file does not know as harmless is harm, so one that is added shows before anybody thinks of it. Pure. Called by
//! `text.rs`.

use std::collections::BTreeMap;

/// Counters of ingest that tell of work done.
const HARMLESS: [&str; 6] = [
    "connections",
    "recordings",
    "recording_bytes",
    "ended_complete",
    "events",
    "event_bytes",
];

/// Counters of the store that tell of work done, of sizes and of what others do; and `seals_failed`, which the text tells in words of its own.
const STORE_HARMLESS: [&str; 29] = [
    "journal_puts",
    "commits",
    "journal_bytes",
    "plain_bytes",
    "epochs",
    "recordings_open",
    "sealed",
    "seals_failed",
    "cuts",
    "journal_objects_kept",
    "journal_bytes_kept",
    "journal_bytes_open",
    "compactions",
    "copied_bytes",
    "spans_most",
    "events",
    "events_journalled",
    "events_rolled",
    "disk_free_bytes",
    "recovery_epochs_found",
    "recovery_epochs_fenced",
    "recovery_epochs_closed",
    "recovery_epochs_foreign",
    "recovery_recordings_found",
    "recovery_recordings_sealed",
    "recovery_recordings_adopted",
    "recovery_recordings_dropped",
    "recovery_bytes",
    "recovery_events_rolled",
];

/// What became of uploads besides success; each list has the names that `--json` has, and what is 0 is left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Harm {
    /// Recordings that ended before their session did.
    pub(super) cut_short: Vec<String>,
    /// Who was turned away.
    pub(super) refused: Vec<String>,
    /// Everything else.
    pub(super) other: Vec<String>,
}

/// Of the counters of ingest.
pub(super) fn of_ingest(counters: &BTreeMap<String, u64>) -> Harm {
    let harm = |belongs: fn(&str) -> bool| {
        let names = counters.iter();
        listed(names.filter(|(name, _)| !HARMLESS.contains(&name.as_str()) && belongs(name)))
    };
    Harm {
        cut_short: harm(|name| name.starts_with("ended_")),
        refused: harm(|name| name.starts_with("refused_")),
        other: harm(|name| !name.starts_with("ended_") && !name.starts_with("refused_")),
    }
}

/// Of the counters of the store.
pub(super) fn of_store(counters: &BTreeMap<String, u64>) -> Vec<String> {
    let names = counters.iter();
    listed(names.filter(|(name, _)| !STORE_HARMLESS.contains(&name.as_str())))
}

/// Stands between a name and its number, so that no line ends between the two.
pub(super) const NO_BREAK: char = '\u{a0}';

/// Those that are not 0, the largest first.
pub(super) fn listed<'a>(counters: impl Iterator<Item = (&'a String, &'a u64)>) -> Vec<String> {
    let mut counted: Vec<_> = counters.filter(|(_, count)| **count > 0).collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown = counted
        .into_iter()
        .map(|(name, count)| format!("{name}{NO_BREAK}{count}"));
    shown.collect()
}
