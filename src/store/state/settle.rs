//! A commit point was passed: what it means for everyone who had something in the object.
//!
//! Invariant: this is the only place where a durable offset moves, a span is added or moved, and a sender is told. Pure.
//! Called by the journal through [`State`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::compacting::Compacting;
use super::{BatchItem, EventFrame, Move, ObjectPlace, Placed, Span, State, Then, count};
use crate::ids::StreamOffset;
use crate::store::ledger::ObjectKey;

impl State {
    /// The commit point was passed: `place`, an object of `object_bytes`, holds `placed`.
    pub(in crate::store) fn settle(
        &mut self,
        place: &Arc<ObjectPlace>,
        object_bytes: usize,
        placed: Placed,
        space: &Semaphore,
        now: Instant,
    ) {
        let copied = placed.moves.iter().map(|(one, _)| one.frames.len());
        let copied = u64::try_from(copied.sum::<usize>()).unwrap_or_default();
        self.note_object(place.key(), object_bytes, copied);
        for (one, bytes) in placed.moves {
            self.settle_move(place, &one, bytes);
        }
        for (item, bytes) in placed.items {
            self.settle_item(place, item, bytes, space);
        }
        for (frame, bytes) in placed.events {
            self.settle_event(place, frame, bytes, now);
        }
        if matches!(self.compacting, Compacting::Committing) {
            self.compacting = Compacting::Idle;
        }
        self.handle_commit();
    }

    fn note_object(&mut self, key: ObjectKey, object_bytes: usize, copied_bytes: u64) {
        let object_bytes = u64::try_from(object_bytes).unwrap_or_default();
        self.ledger.handle_object(key, object_bytes, copied_bytes);
        let stats = &mut self.stats;
        stats.commits = stats.commits.saturating_add(1);
        stats.journal_bytes = stats.journal_bytes.saturating_add(object_bytes);
        stats.copied_bytes = stats.copied_bytes.saturating_add(copied_bytes);
        if copied_bytes > 0 {
            count(&mut stats.compactions);
        }
    }

    fn settle_move(&mut self, place: &Arc<ObjectPlace>, one: &Move, bytes: Range<u32>) {
        // Somebody may have begun to read the old place since: then the copy is not used.
        let Some(run) = self.can_move(one) else {
            return;
        };
        let Some(entry) = self.recordings.get_mut(&one.id) else {
            return;
        };
        let span = Span {
            object: Arc::clone(place),
            bytes,
        };
        self.ledger
            .hold(place.key(), span.bytes_len(), Some(one.id));
        for old in entry.spans.splice(run, [span]) {
            self.ledger
                .release(old.object.key(), old.bytes_len(), false);
        }
        if entry.spans.len() < self.limits.spans_max {
            self.crowded_spans.remove(&one.id);
        }
    }

    fn settle_item(
        &mut self,
        place: &Arc<ObjectPlace>,
        item: BatchItem,
        bytes: Range<u32>,
        space: &Semaphore,
    ) {
        space.add_permits(usize::try_from(item.held.space).unwrap_or_default());
        let Some(entry) = self.recordings.get_mut(&item.id) else {
            return;
        };
        entry
            .share
            .add_permits(usize::try_from(item.held.share).unwrap_or_default());
        let span = Span {
            object: Arc::clone(place),
            bytes,
        };
        self.ledger
            .hold(place.key(), span.bytes_len(), Some(item.id));
        entry.spans.push(span);
        let spans = u64::try_from(entry.spans.len()).unwrap_or_default();
        self.stats.spans_most = self.stats.spans_most.max(spans);
        if entry.spans.len() >= self.limits.spans_max {
            self.crowded_spans.insert(item.id);
        }
        let added = u64::try_from(item.data.len()).unwrap_or_default();
        self.stats.plain_bytes = self.stats.plain_bytes.saturating_add(added);
        if added > 0 {
            let end = StreamOffset(item.offset.0.saturating_add(added));
            entry.durable.send_modify(|durable| durable.offset = end);
        }
        for record in item.records {
            // It fails when nobody waits any more, which changes nothing here.
            let _nobody_waits = record.committed.send(());
        }
        if item.close.is_some()
            && let Some(closed) = entry.closed.take()
        {
            let _nobody_waits = closed.send(());
        }
    }

    fn settle_event(
        &mut self,
        place: &Arc<ObjectPlace>,
        frame: EventFrame,
        bytes: Range<u32>,
        now: Instant,
    ) {
        let span = Span {
            object: Arc::clone(place),
            bytes,
        };
        match &frame.then {
            Then::Keep { .. } | Then::Nothing => count(&mut self.stats.events),
            Then::Release { count: rolled, .. } => {
                let rolled = u64::try_from(*rolled).unwrap_or_default();
                self.stats.events_rolled = self.stats.events_rolled.saturating_add(rolled);
                self.trim_due = true;
            }
        }
        self.ledger.hold(place.key(), span.bytes_len(), None);
        for gone in self.events.settle(frame, span, now) {
            self.ledger
                .release(gone.object.key(), gone.bytes_len(), true);
        }
    }
}
