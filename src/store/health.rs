//! Whether the store takes new recordings now, and why not: one word that everyone watches.
//!
//! Invariant: `Ready` is not said while a commit has been trying for the stall limit; what is said here never loses a
//! byte, it only decides who is refused and who is sent away. [`Vitals`] is pure. Called by the journal, which says
//! it, and by ingest and the wiring, which watch it.

use std::sync::Arc;

use super::error::StoreError;

/// What an uploader can expect of the store.
#[derive(Debug, Clone, Default)]
pub enum StoreHealth {
    /// Recordings are taken.
    #[default]
    Ready,
    /// New recordings are refused, running ones go on: the journal or the disk is nearly full.
    Refusing(Arc<StoreError>),
    /// No commit got through for the stall limit: new recordings are refused, running ones are to end as far as they came.
    /// What was taken of them stays in the buffer and is committed when the store is back.
    Stalled(Arc<StoreError>),
    /// The journal has ended for good (closed, fenced).
    Ended(Arc<StoreError>),
}

impl StoreHealth {
    /// Why new recordings are refused, if they are.
    #[must_use]
    pub fn refusal(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Ready => None,
            Self::Refusing(why) | Self::Stalled(why) | Self::Ended(why) => Some(why),
        }
    }

    /// Why running recordings are to end now, if they are.
    #[must_use]
    pub fn ends_running(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Ready | Self::Refusing(_) => None,
            Self::Stalled(why) | Self::Ended(why) => Some(why),
        }
    }

    /// Whether `other` says the same for the same reason.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready, Self::Ready) => true,
            (Self::Refusing(one), Self::Refusing(other))
            | (Self::Stalled(one), Self::Stalled(other))
            | (Self::Ended(one), Self::Ended(other)) => Arc::ptr_eq(one, other),
            (Self::Ready | Self::Refusing(_) | Self::Stalled(_) | Self::Ended(_), _) => false,
        }
    }
}

/// Why new recordings may have to be refused, each reason by itself.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    ended: Option<Arc<StoreError>>,
    stalled: Option<Arc<StoreError>>,
    closing: Option<Arc<StoreError>>,
    disk: Option<Arc<StoreError>>,
    journal: Option<Arc<StoreError>>,
}

impl Vitals {
    /// The store's word: the gravest reason wins.
    pub(super) fn health(&self) -> StoreHealth {
        let refusing = [&self.closing, &self.disk, &self.journal];
        match (&self.ended, &self.stalled) {
            (Some(why), _) => StoreHealth::Ended(Arc::clone(why)),
            (None, Some(why)) => StoreHealth::Stalled(Arc::clone(why)),
            (None, None) => refusing
                .into_iter()
                .flatten()
                .next()
                .map_or(StoreHealth::Ready, |why| {
                    StoreHealth::Refusing(Arc::clone(why))
                }),
        }
    }

    /// No commit will follow. The first reason stays; it is returned.
    pub(super) fn handle_end(&mut self, error: StoreError) -> Arc<StoreError> {
        Arc::clone(self.ended.get_or_insert_with(|| Arc::new(error)))
    }

    /// The store is about to end: it takes nothing new.
    pub(super) fn handle_closing(&mut self) {
        self.closing
            .get_or_insert_with(|| Arc::new(StoreError::Closed));
    }

    /// A commit has been trying for the stall limit; true when this is news.
    pub(super) fn handle_stall(&mut self, error: StoreError) -> bool {
        let news = self.stalled.is_none();
        self.stalled.get_or_insert_with(|| Arc::new(error));
        news
    }

    /// A commit got through; true when the store was stalled.
    pub(super) fn handle_commit(&mut self) -> bool {
        self.stalled.take().is_some()
    }

    /// The disk was asked how much room it has.
    pub(super) fn handle_free(&mut self, free_bytes: u64, free_bytes_min: u64) {
        let refuses = is_short(free_bytes, free_bytes_min, self.disk.is_some());
        let error = || {
            Arc::new(StoreError::DiskNearlyFull {
                free_bytes,
                free_bytes_min,
            })
        };
        // While it lasts the first reason stays, so that nobody is told the same news each second.
        self.disk = refuses.then(|| self.disk.take().unwrap_or_else(error));
    }

    /// The journal grew or was trimmed.
    pub(super) fn handle_journal(&mut self, bytes: u64, bytes_max: u64) {
        let left = bytes_max.saturating_sub(bytes);
        // As long as it is refused, a tenth must be free again.
        let wanted = if self.journal.is_some() {
            bytes_max / HYSTERESIS
        } else {
            1
        };
        let error = || Arc::new(StoreError::JournalFull { bytes, bytes_max });
        self.journal = (left < wanted).then(|| self.journal.take().unwrap_or_else(error));
    }
}

/// Whether `free` is too little. Once it was, it takes a tenth more than `min` to be enough again.
fn is_short(free: u64, min: u64, was_short: bool) -> bool {
    let more = if was_short { min / HYSTERESIS } else { 0 };
    free < min.saturating_add(more)
}

/// A limit that was met holds until it is cleared by its tenth part: no flapping at the edge.
const HYSTERESIS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_reason_is_the_stores_word() {
        let mut vitals = Vitals::default();
        assert!(matches!(vitals.health(), StoreHealth::Ready));
        vitals.handle_journal(100, 100);
        assert!(matches!(vitals.health(), StoreHealth::Refusing(_)));
        let stall = || StoreError::Unanswered {
            step: "create",
            name: "x".into(),
        };
        assert!(vitals.handle_stall(stall()));
        assert!(!vitals.handle_stall(stall()), "no news");
        assert!(vitals.health().ends_running().is_some());
        assert!(vitals.handle_commit());
        assert!(matches!(vitals.health(), StoreHealth::Refusing(_)));
        vitals.handle_end(StoreError::Closed);
        vitals.handle_end(StoreError::TaskLost);
        let StoreHealth::Ended(why) = vitals.health() else {
            panic!()
        };
        assert!(matches!(*why, StoreError::Closed), "the first reason stays");
    }

    #[test]
    fn a_disk_that_was_short_of_room_needs_a_tenth_more_than_the_limit() {
        let mut vitals = Vitals::default();
        // (free bytes, whether new recordings are refused) with a limit of 1000, one after the other.
        let rows = [
            (1000, false),
            (999, true),
            (1099, true),
            (1100, false),
            (1000, false),
        ];
        for (free, refused) in rows {
            vitals.handle_free(free, 1000);
            assert_eq!(vitals.health().refusal().is_some(), refused, "{free}");
        }
        vitals.handle_free(0, 0);
        assert!(vitals.health().refusal().is_none(), "no limit, no refusal");
    }

    #[test]
    fn a_journal_that_was_full_needs_a_tenth_of_room() {
        let mut vitals = Vitals::default();
        let rows = [
            (999, false),
            (1000, true),
            (901, true),
            (900, false),
            (999, false),
        ];
        for (bytes, refused) in rows {
            vitals.handle_journal(bytes, 1000);
            assert_eq!(vitals.health().refusal().is_some(), refused, "{bytes}");
        }
    }
}
