//! What is buffered, in flight and durable: the bookkeeping between handles and the committer.
//!
//! Invariant: a recording's durable offset moves only in [`State::settle`], which is called after its commit point.
//! No IO and no clock in here; the lock around it is never held across an await. Called by `handle.rs`, `journal.rs`,
//! `compaction.rs`, `events.rs`, `writer.rs`.

mod compacting;
mod entry;
mod events;
mod health;
mod moves;
mod release;
mod settle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, oneshot, watch};

use super::StoreStats;
use super::error::StoreError;
use super::handle::Durable;
use super::health::{StoreHealth, Vitals};
use super::ledger::{CompactionLimits, Ledger};
use super::pace::Wish;
use crate::ids::{JournalNumber, RecordingId, StreamOffset};
use crate::recording::frame::{FRAME_OVERHEAD_BYTES, FRAME_PLAIN_BYTES_MAX, FrameKind};
use compacting::Compacting;
use entry::Entry;
pub(super) use entry::{BatchItem, ObjectPlace, Permits, Record, Span};
use events::EventQueue;
pub(super) use events::{EventFrame, RollOrder, Then};
pub(super) use moves::Move;

/// How many recordings may be open or unsealed: bounds every table here, six times the goal of 10,000 sessions.
const RECORDINGS_MAX: usize = 65_536;

/// How many records of one recording may wait for a commit: more is a fault of the caller.
const RECORDS_MAX: usize = 64;

/// What one object is to hold, or holds.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Copies of frames that stand in older objects.
    pub(super) moves: Vec<Move>,
    pub(super) items: Vec<BatchItem>,
    pub(super) events: Vec<EventFrame>,
}

/// The same with the place of each part in the object.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub(super) moves: Vec<(Move, Range<u32>)>,
    pub(super) items: Vec<(BatchItem, Range<u32>)>,
    pub(super) events: Vec<(EventFrame, Range<u32>)>,
}

impl Placed {
    /// Without the places: the object came to nothing.
    pub(super) fn into_batch(self) -> Batch {
        Batch {
            moves: self.moves.into_iter().map(|(one, _)| one).collect(),
            items: self.items.into_iter().map(|(item, _)| item).collect(),
            events: self.events.into_iter().map(|(frame, _)| frame).collect(),
        }
    }
}

/// What a sealer needs to know of a recording.
#[derive(Debug)]
pub(super) struct SealBasis {
    pub(super) spans: Vec<Span>,
    pub(super) durable: Durable,
}

#[derive(Default)]
pub(super) struct State {
    recordings: BTreeMap<RecordingId, Entry>,
    /// Recordings with something to commit, in the order in which they got it.
    queue: VecDeque<RecordingId>,
    pending_bytes: usize,
    pub(super) events: EventQueue,
    pub(super) ledger: Ledger,
    limits: CompactionLimits,
    /// Recordings with so many spans that some are to be merged.
    crowded_spans: BTreeSet<RecordingId>,
    compacting: Compacting,
    /// Since the last batch was taken, an upload has filled half of its share, or waits for room.
    crowded: bool,
    trim_due: bool,
    finishing: bool,
    vitals: Vitals,
    health: watch::Sender<StoreHealth>,
    commit_started: Option<Instant>,
    /// Since when a commit has been trying, over all epochs.
    unproven_since: Option<Instant>,
    stats: StoreStats,
    /// Why the newest seal failed, for operators; unset by one that succeeds.
    seal_failure: Option<Arc<str>>,
}

impl State {
    pub(super) fn new(limits: CompactionLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub(super) fn begin(
        &mut self,
        id: RecordingId,
        open: Vec<u8>,
        share: Arc<Semaphore>,
    ) -> Result<watch::Receiver<Durable>, StoreError> {
        self.admit()?;
        if self.recordings.len() >= RECORDINGS_MAX {
            count(&mut self.stats.refused.too_many);
            return Err(StoreError::TooManyRecordings {
                limit: RECORDINGS_MAX,
            });
        }
        let (durable, receiver) = watch::channel(Durable::default());
        self.recordings.insert(id, Entry::new(open, share, durable));
        Ok(receiver)
    }

    /// Takes bytes of an upload whose share is `share_bytes_max`; false when the recording has failed.
    pub(super) fn append(
        &mut self,
        id: RecordingId,
        bytes: &[u8],
        held: Permits,
        share_bytes_max: usize,
    ) -> bool {
        let Some(entry) = self
            .recordings
            .get_mut(&id)
            .filter(|entry| entry.is_alive())
        else {
            return false;
        };
        entry.pending.extend_from_slice(bytes);
        entry.held.share = entry.held.share.saturating_add(held.share);
        entry.held.space = entry.held.space.saturating_add(held.space);
        self.pending_bytes = self.pending_bytes.saturating_add(bytes.len());
        // At half, so that the other half fills while this one is committed.
        self.crowded |= entry.pending.len() >= share_bytes_max / 2;
        if !std::mem::replace(&mut entry.queued, true) {
            self.queue.push_back(id);
        }
        true
    }

    /// An append waits for room: what is pending is to be committed at once.
    pub(super) fn make_room(&mut self) {
        self.crowded |= !self.queue.is_empty();
    }

    /// Takes the end of a recording; the receiver resolves when it is committed, or never will be.
    pub(super) fn close(
        &mut self,
        id: RecordingId,
        record: Vec<u8>,
    ) -> Option<oneshot::Receiver<()>> {
        let entry = self
            .recordings
            .get_mut(&id)
            .filter(|entry| entry.is_alive())?;
        let (sender, receiver) = oneshot::channel();
        entry.close = Some(record);
        entry.closed = Some(sender);
        entry.ended = true;
        if !std::mem::replace(&mut entry.queued, true) {
            self.queue.push_back(id);
        }
        Some(receiver)
    }

    /// Takes a record about a recording: it is committed behind the bytes that were appended before it. The receiver
    /// resolves when it is committed, or never will be. `None` when the recording has failed or has its end already,
    /// when the record is larger than a frame, or when too many wait.
    pub(super) fn push_record(
        &mut self,
        id: RecordingId,
        kind: FrameKind,
        offset: StreamOffset,
        bytes: Vec<u8>,
    ) -> Option<oneshot::Receiver<()>> {
        let entry = self.recordings.get_mut(&id).filter(|entry| {
            entry.is_alive() && !entry.ended && entry.records.len() < RECORDS_MAX
        })?;
        if bytes.len() > FRAME_PLAIN_BYTES_MAX {
            return None;
        }
        let (committed, receiver) = oneshot::channel();
        entry.records.push(Record {
            kind,
            offset,
            bytes,
            committed,
        });
        if !std::mem::replace(&mut entry.queued, true) {
            self.queue.push_back(id);
        }
        Some(receiver)
    }

    /// Takes out what the next object is to hold: at most `bytes_max` with all overhead, whole recordings if they fit.
    pub(super) fn take_batch(&mut self, bytes_max: usize, now: Instant) -> Batch {
        let moves = self.take_moves();
        let moved_bytes: usize = moves.iter().map(|one| one.frames.len()).sum();
        let mut room = bytes_max.saturating_sub(moved_bytes);
        // A flood of events leaves half of each object to recordings.
        let mut event_room = if self.queue.is_empty() {
            room
        } else {
            room / 2
        };
        let before = event_room;
        let events = self.events.take(&mut event_room, FRAME_OVERHEAD_BYTES);
        room = room.saturating_sub(before.saturating_sub(event_room));
        let items = self.take_items(room);
        self.trim_due = false;
        self.crowded = false;
        self.commit_started = Some(now);
        self.unproven_since.get_or_insert(now);
        Batch {
            moves,
            items,
            events,
        }
    }

    fn take_items(&mut self, mut room: usize) -> Vec<BatchItem> {
        let mut items = Vec::new();
        while let Some(id) = self.queue.front().copied() {
            let Some(entry) = self.recordings.get_mut(&id) else {
                self.queue.pop_front();
                continue;
            };
            let Some(item) = entry.take(id, &mut room) else {
                break;
            };
            self.pending_bytes = self.pending_bytes.saturating_sub(item.data.len());
            items.push(item);
            if entry.queued {
                break;
            }
            self.queue.pop_front();
        }
        items
    }

    /// The oldest object of the epoch that somebody needs once `batch` is durable; `next` when nobody does.
    pub(super) fn oldest_needed(
        &self,
        epoch_index: u64,
        next: JournalNumber,
        batch: &Batch,
    ) -> JournalNumber {
        let moved = moves::count_by_object(batch.moves.iter());
        self.ledger
            .oldest_needed(epoch_index, &moved)
            .unwrap_or(next)
    }

    /// Ends every open recording: what is not durable will not be. `space` gets its permits back.
    pub(super) fn fail_all(
        &mut self,
        error: &Arc<StoreError>,
        in_flight: Batch,
        space: &Semaphore,
    ) {
        self.commit_started = None;
        self.compacting = match std::mem::take(&mut self.compacting) {
            reading @ Compacting::Reading { .. } => reading,
            Compacting::Idle | Compacting::Ready { .. } | Compacting::Committing => {
                Compacting::Idle
            }
        };
        self.events.fail(error, in_flight.events);
        for item in in_flight.items {
            space.add_permits(usize::try_from(item.held.space).unwrap_or_default());
        }
        for entry in self
            .recordings
            .values_mut()
            .filter(|entry| entry.is_alive())
        {
            space.add_permits(usize::try_from(entry.held.space).unwrap_or_default());
            entry.held = Permits::default();
            entry.share.close();
            (entry.open, entry.pending, entry.close) = (None, Vec::new(), None);
            entry.records = Vec::new();
            entry.queued = false;
            entry
                .durable
                .send_modify(|durable| durable.failed = Some(Arc::clone(error)));
            entry.closed = None;
        }
        self.queue.clear();
        self.pending_bytes = 0;
        self.crowded = false;
    }

    /// The recording is sealed: its journal bytes are needed no more.
    pub(super) fn forget_sealed(&mut self, id: RecordingId) {
        if let Some(entry) = self.recordings.remove(&id) {
            for span in entry.spans {
                self.ledger
                    .release(span.object.key(), span.bytes_len(), false);
            }
        }
        self.crowded_spans.remove(&id);
        self.seal_failure = None;
        self.stats.sealed = self.stats.sealed.saturating_add(1);
        self.trim_due = true;
    }

    /// The seal was given up: the bytes stay in the journal, and the entry with them.
    pub(super) fn note_seal_failed(&mut self, id: RecordingId, error: &StoreError) {
        self.unpin(id);
        self.seal_failure = Some(error.for_operators().into());
        self.stats.seals_failed = self.stats.seals_failed.saturating_add(1);
    }

    /// Why the newest seal failed, if none has succeeded since.
    pub(super) fn seal_failure(&self) -> Option<Arc<str>> {
        self.seal_failure.clone()
    }

    /// What a commit has to do, if anything.
    pub(super) fn commit_wish(&self) -> Option<Wish> {
        let (moves_are_ready, moves_at_once) = match &self.compacting {
            Compacting::Ready { at_once, .. } => (true, *at_once),
            Compacting::Idle | Compacting::Reading { .. } | Compacting::Committing => {
                (false, false)
            }
        };
        let has_events = self.events.has_waiting();
        let wished = self.trim_due || moves_are_ready || has_events || !self.queue.is_empty();
        wished.then_some(Wish {
            pending_bytes: self.pending_bytes,
            at_once: self.crowded || has_events || moves_at_once,
        })
    }

    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty() || self.events.has_waiting()
    }

    pub(super) fn finish_commits(&mut self) {
        self.finishing = true;
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// No commit will follow. Returns the first reason for which this was said, and tells open recordings.
    pub(super) fn halt(&mut self, error: StoreError, space: &Semaphore) -> Arc<StoreError> {
        let reason = self.vitals.handle_end(error);
        self.fail_all(&reason, Batch::default(), space);
        self.publish();
        reason
    }

    /// The first reason that [`State::halt`] was told.
    pub(super) fn halted(&self) -> Option<Arc<StoreError>> {
        match self.vitals.health() {
            StoreHealth::Ended(why) => Some(why),
            StoreHealth::Ready | StoreHealth::Refusing(_) | StoreHealth::Stalled(_) => None,
        }
    }

    pub(super) fn note_roll_failed(&mut self) {
        count(&mut self.stats.rolls_failed);
    }

    pub(super) fn note_epoch(&mut self) {
        self.stats.epochs = self.stats.epochs.saturating_add(1);
    }

    pub(super) fn stats(&self, now: Instant) -> StoreStats {
        let number = |count: usize| u64::try_from(count).unwrap_or_default();
        StoreStats {
            recordings_open: number(self.recordings.len()),
            commit_running_for: self
                .commit_started
                .map(|started| now.saturating_duration_since(started)),
            journal_objects_kept: number(self.ledger.kept_objects()),
            journal_bytes_kept: self.ledger.kept_bytes(),
            journal_bytes_open: self.ledger.open_bytes(),
            events_journalled: number(self.events.journalled()),
            ..self.stats
        }
    }
}

fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests;
