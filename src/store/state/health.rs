//! Whether the store takes anything new: what was noticed, and the word that everyone watches.
//!
//! Invariant: every change of the vitals is published before the lock is given back. Pure. Called by the journal and by whoever
//! wants to begin something, through [`State`].

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{State, count};
use crate::store::error::StoreError;
use crate::store::health::StoreHealth;
use crate::store::trouble::Trouble;

impl State {
    /// Whether anything new is taken now; a refusal is counted by its reason.
    pub(in crate::store) fn admit(&mut self) -> Result<(), StoreError> {
        let health = self.vitals.health();
        let refused = &mut self.stats.refused;
        let (count_of, why) = match &health {
            StoreHealth::Ready => return Ok(()),
            StoreHealth::Stalled(why) => (&mut refused.stalled, why),
            StoreHealth::Ended(why) => (&mut refused.closed, why),
            StoreHealth::Refusing(why) if matches!(**why, StoreError::DiskNearlyFull { .. }) => {
                (&mut refused.disk_nearly_full, why)
            }
            StoreHealth::Refusing(why) if matches!(**why, StoreError::JournalFull { .. }) => {
                (&mut refused.journal_full, why)
            }
            StoreHealth::Refusing(why) => (&mut refused.closed, why),
        };
        count(count_of);
        Err(why.repeated())
    }

    /// A commit got through, or a new epoch was claimed: the store is there.
    pub(in crate::store) fn handle_commit(&mut self) {
        self.commit_started = None;
        self.unproven_since = None;
        if self.vitals.handle_commit() {
            tracing::info!("the store takes commits again");
        }
        self.publish();
    }

    /// A commit has been trying for `stalled_for`.
    pub(in crate::store) fn handle_stall(&mut self, stalled_for: Duration, trouble: Trouble) {
        let said = (!trouble.said.is_empty()).then(|| {
            let said: Box<dyn std::error::Error + Send + Sync> = trouble.said.into();
            said.into()
        });
        let error = StoreError::Stalled {
            stalled_for,
            cause: trouble.cause,
            said,
        };
        let told = error.with_causes();
        if self.vitals.handle_stall(error) {
            count(&mut self.stats.stalls);
            tracing::error!(error = told, "the store is stalled");
        }
        self.publish();
    }

    /// The disk was asked how much room it has.
    pub(in crate::store) fn handle_free(&mut self, free_bytes: u64, free_bytes_min: u64) {
        self.stats.disk_free_bytes = Some(free_bytes);
        self.vitals.handle_free(free_bytes, free_bytes_min);
        self.publish();
    }

    /// The journal grew, or was trimmed.
    pub(in crate::store) fn handle_journal(&mut self, journal_bytes_max: u64) {
        self.vitals
            .handle_journal(self.ledger.kept_bytes(), journal_bytes_max);
        self.publish();
    }

    pub(in crate::store) fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }

    pub(super) fn publish(&self) {
        let now = self.vitals.health();
        self.health.send_if_modified(|said| {
            let news = !said.is_same(&now);
            *said = now;
            news
        });
    }

    /// Since when a commit has been trying, if one is.
    pub(in crate::store) const fn unproven_since(&self) -> Option<Instant> {
        self.unproven_since
    }

    /// No commit will follow.
    pub(in crate::store) fn has_ended(&self) -> bool {
        matches!(self.vitals.health(), StoreHealth::Ended(_))
    }

    pub(in crate::store) fn refuse_new(&mut self) {
        self.vitals.handle_closing();
        self.publish();
    }
}
