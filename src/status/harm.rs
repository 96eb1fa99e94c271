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

/// Counters of the store that tell of harm. Its others are sizes, and steps of work.
const STORE_HARM: [&str; 8] = [
    "stalls",
    "rolls_failed",
    "recovery_objects_damaged",
    "refused_stalled",
    "refused_disk_nearly_full",
    "refused_journal_full",
    "refused_too_many",
    "refused_closed",
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
    listed(names.filter(|(name, _)| STORE_HARM.contains(&name.as_str())))
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
