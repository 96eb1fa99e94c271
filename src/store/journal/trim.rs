//! What the journal needs no more: trimmed objects, and epochs that are over.
//!
//! Invariant: an object goes only when a durable one says that it is not needed; openers and fences never do; an epoch that is
//! over gets its fence before its first object goes. Called by the [`Committer`].

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStoreExt;

use super::super::create::{Created, Patience};
use super::super::state::Batch;
use super::super::{Shared, layout, recovery};
use super::{CLOSE_TRIES, Committer, TRIM_AT_ONCE_MAX};
use crate::ids::{EpochId, JournalNumber};
use crate::recording::journal_object::ObjectHeader;
use crate::recording::records::FenceReason;

impl Committer {
    /// The last act: our own fence, so that the next start has nothing to take over. What it says of the oldest object that is
    /// needed is what recovery relies on; without the fence recovery makes one.
    pub(super) async fn close_epoch(&mut self) {
        let number = self.epoch.next;
        let oldest_needed =
            self.shared
                .state()
                .oldest_needed(self.epoch.index, number, &Batch::default());
        let header = ObjectHeader {
            recorder: self.shared.config.recorder(),
            epoch: self.epoch.id,
            number,
            previous: self.epoch.previous,
            oldest_needed,
        };
        let name = layout::journal_object(&header.recorder, &header.epoch, number);
        let fence = recovery::fence_object(&self.shared, &header, FenceReason::Closed);
        let created = match &fence {
            Ok((bytes, _)) => {
                let patience = Patience::Tries(CLOSE_TRIES);
                let sends = &self.shared.journal_puts;
                let created = self.shared.objects.create(&name, bytes, patience, sends);
                created.await.map_err(|error| error.with_causes())
            }
            Err(error) => Err(error.with_causes()),
        };
        match created {
            // If we stop here: the epoch is closed; the objects that are not needed go at the next start.
            Ok(Created::Durable) => while self.trim(oldest_needed.min(number)) {},
            Ok(Created::Different(_) | Created::Poisoned(_)) => {
                tracing::warn!(%name, "the epoch is not closed by its own fence; the next start closes it");
            }
            Err(error) => {
                tracing::warn!(%name, error, "the epoch has no fence yet; the next start makes one");
            }
        }
    }

    /// Removes what a durable object says is not needed: never the opener, never what only memory says.
    /// True when something is left to trim.
    pub(super) fn trim(&mut self, oldest_needed: JournalNumber) -> bool {
        let from = self.epoch.trimmed.max(JournalNumber::OPENER.next()).0;
        let to = oldest_needed.0.min(from.saturating_add(TRIM_AT_ONCE_MAX));
        if from >= to {
            return false;
        }
        self.epoch.trimmed = JournalNumber(to);
        self.shared
            .state()
            .ledger
            .handle_trimmed(self.epoch.index, JournalNumber(to));
        let numbers = from..to;
        self.remove(self.epoch.id, numbers.map(JournalNumber).collect());
        to < oldest_needed.0
    }

    /// Removes the objects of epochs of this process that a failed fsync ended, once nobody needs any of them.
    pub(super) fn trim_ended_epochs(&mut self) {
        if self.ended_epochs.is_empty() {
            return;
        }
        let spent = self.shared.state().ledger.take_spent(self.epoch.index);
        let mut numbers = BTreeMap::<u64, Vec<JournalNumber>>::new();
        for key in spent {
            numbers.entry(key.epoch_index).or_default().push(key.number);
        }
        for (index, numbers) in numbers {
            if let Some(epoch) = self.ended_epochs.remove(&index) {
                self.remove_spent(epoch, numbers);
            }
        }
    }

    /// Fences an ended epoch, then removes its objects: without the fence a trim that stops half-way would look like loss.
    fn remove_spent(&self, epoch: EpochId, numbers: Vec<JournalNumber>) {
        let shared = Arc::clone(&self.shared);
        let first = numbers.iter().min().copied();
        let first = first.unwrap_or(JournalNumber::OPENER.next());
        let newest = numbers.iter().max().copied();
        let newest = newest.unwrap_or(JournalNumber::OPENER);
        let removal = async move {
            // If we stop here: the epoch is whole; the next start closes it.
            match recovery::close_spent(&shared, epoch, newest).await {
                // If we stop here, or within: the fence says that nothing before it is needed.
                Ok(fence) => {
                    let numbers = (first.0..fence.0).map(JournalNumber);
                    remove_objects(&shared, epoch, numbers.collect()).await;
                }
                Err(error) => {
                    tracing::warn!(%epoch, error = error.with_causes(), "an epoch that ended is not closed yet; the next start closes it");
                }
            }
        };
        self.shared.tasks.spawn_on(removal, &self.shared.runtime);
    }

    fn remove(&self, epoch: EpochId, numbers: Vec<JournalNumber>) {
        let shared = Arc::clone(&self.shared);
        let removal = async move { remove_objects(&shared, epoch, numbers).await };
        self.shared.tasks.spawn_on(removal, &self.shared.runtime);
    }
}

async fn remove_objects(shared: &Shared, epoch: EpochId, numbers: Vec<JournalNumber>) {
    let recorder = shared.config.recorder();
    for number in numbers {
        let name = layout::journal_object(&recorder, &epoch, number);
        match shared.objects.store().delete(&name).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%name, error = crate::tell::with_causes(&error), "a journal object that is not needed stays");
            }
        }
    }
}
