//! What the store counts, by name, for `status` and for programs.
//!
//! Invariant: every field of [`StoreStats`] and of what it holds is named here: the patterns have no `..`, so one that is added does not compile
//! before it has a name. Pure. Called by the wiring.

use super::{RecoveryStats, Refusals, StoreStats};

impl StoreStats {
    /// Every counter by the name that `status --json` has for it. What is no count is not among them: how long a commit has been trying, and where
    /// recovery stands; nor is the room of a disk that was not looked at.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Self {
            journal_puts,
            commits,
            journal_bytes,
            plain_bytes,
            epochs,
            recordings_open,
            sealed,
            seals_failed,
            cuts,
            recovery,
            commit_running_for: _,
            stalls,
            refused,
            journal_objects_kept,
            journal_bytes_kept,
            journal_bytes_open,
            compactions,
            copied_bytes,
            spans_most,
            events,
            events_journalled,
            events_rolled,
            rolls_failed,
            disk_free_bytes,
        } = *self;
        let mut named = vec![
            ("journal_puts", journal_puts),
            ("commits", commits),
            ("journal_bytes", journal_bytes),
            ("plain_bytes", plain_bytes),
            ("epochs", epochs),
            // Each epoch but the first began because a failed fsync ended the one before.
            ("epochs_poisoned", epochs.saturating_sub(1)),
            ("recordings_open", recordings_open),
            ("sealed", sealed),
            ("seals_failed", seals_failed),
            ("cuts", cuts),
            ("stalls", stalls),
            ("journal_objects_kept", journal_objects_kept),
            ("journal_bytes_kept", journal_bytes_kept),
            ("journal_bytes_open", journal_bytes_open),
            ("compactions", compactions),
            ("copied_bytes", copied_bytes),
            ("spans_most", spans_most),
            ("events", events),
            ("events_journalled", events_journalled),
            ("events_rolled", events_rolled),
            ("rolls_failed", rolls_failed),
        ];
        named.extend(of_refusals(refused));
        named.extend(of_recovery(recovery));
        named.extend(disk_free_bytes.map(|bytes| ("disk_free_bytes", bytes)));
        named
    }
}

const fn of_refusals(refused: Refusals) -> [(&'static str, u64); 5] {
    let Refusals {
        stalled,
        disk_nearly_full,
        journal_full,
        too_many,
        closed,
    } = refused;
    [
        ("refused_stalled", stalled),
        ("refused_disk_nearly_full", disk_nearly_full),
        ("refused_journal_full", journal_full),
        ("refused_too_many", too_many),
        ("refused_closed", closed),
    ]
}

const fn of_recovery(recovery: RecoveryStats) -> [(&'static str, u64); 12] {
    let RecoveryStats {
        state: _,
        epochs_found,
        epochs_fenced,
        epochs_closed,
        epochs_foreign,
        recordings_found,
        recordings_sealed,
        recordings_adopted,
        recordings_dropped,
        bytes,
        objects_damaged,
        events_rolled,
        events_lost,
    } = recovery;
    [
        ("recovery_epochs_found", epochs_found),
        ("recovery_epochs_fenced", epochs_fenced),
        ("recovery_epochs_closed", epochs_closed),
        ("recovery_epochs_foreign", epochs_foreign),
        ("recovery_recordings_found", recordings_found),
        ("recovery_recordings_sealed", recordings_sealed),
        ("recovery_recordings_adopted", recordings_adopted),
        ("recovery_recordings_dropped", recordings_dropped),
        ("recovery_bytes", bytes),
        ("recovery_objects_damaged", objects_damaged),
        ("recovery_events_rolled", events_rolled),
        ("recovery_events_lost", events_lost),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own_and_its_own_value() {
        let stats = StoreStats {
            epochs: 3,
            sealed: 7,
            disk_free_bytes: Some(9),
            recovery: RecoveryStats {
                events_lost: 5,
                objects_damaged: 4,
                ..RecoveryStats::default()
            },
            refused: Refusals {
                closed: 6,
                ..Refusals::default()
            },
            ..StoreStats::default()
        };
        let counters = stats.counters();
        let names: BTreeSet<_> = counters.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), counters.len(), "{counters:?}");
        let mut counted: Vec<_> = counters
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        counted.sort_unstable();
        assert_eq!(
            counted,
            [
                ("disk_free_bytes", 9),
                ("epochs", 3),
                ("epochs_poisoned", 2),
                ("recovery_events_lost", 5),
                ("recovery_objects_damaged", 4),
                ("refused_closed", 6),
                ("sealed", 7),
            ]
        );
        assert!(
            StoreStats::default()
                .counters()
                .iter()
                .all(|(_, count)| *count == 0)
        );
    }
}
