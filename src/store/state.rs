//! What is buffered, in flight and durable: the bookkeeping between handles and the committer.
//!
//! Invariant: a recording's durable offset moves only in [`State::settle`], which is called after its commit point.
//! No IO and no clock in here; the lock around it is never held across an await. Called by `handle.rs`, `journal.rs`, `writer.rs`.

mod release;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use object_store::path::Path;
use tokio::sync::{Semaphore, oneshot, watch};

use super::StoreStats;
use super::error::StoreError;
use super::handle::Durable;
use super::pace::Wish;
use crate::ids::{JournalNumber, RecordingId, StreamOffset};
use crate::recording::frame::{FRAME_OVERHEAD_BYTES, FRAME_PLAIN_BYTES_MAX, FrameKind};

/// How many recordings may be open or unsealed: bounds every table here, six times the goal of 10,000 sessions.
const RECORDINGS_MAX: usize = 65_536;

/// How many records of one recording may wait for a commit: more is a fault of the caller.
const RECORDS_MAX: usize = 64;

/// Buffer permits that pending bytes hold until they are committed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Permits {
    pub(super) share: u32,
    pub(super) space: u32,
}

/// Where the frames of a recording stand side by side in one journal object.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// One allocation for all recordings in the object.
    pub(super) object: Arc<ObjectPlace>,
    pub(super) bytes: Range<u32>,
}

/// A committed journal object.
#[derive(Debug)]
pub(super) struct ObjectPlace {
    pub(super) name: Path,
    pub(super) number: JournalNumber,
    /// Counts the epochs of this process.
    pub(super) epoch_index: u64,
}

/// What one recording puts into one commit.
#[derive(Debug)]
pub(super) struct BatchItem {
    pub(super) id: RecordingId,
    pub(super) open: Option<Vec<u8>>,
    pub(super) offset: StreamOffset,
    pub(super) data: Vec<u8>,
    /// In the order in which they were pushed; behind the data, before the close.
    pub(super) records: Vec<Record>,
    pub(super) close: Option<Vec<u8>>,
    held: Permits,
}

/// A frame about a recording that is none of its bytes: a cut, a note.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: FrameKind,
    pub(super) offset: StreamOffset,
    pub(super) bytes: Vec<u8>,
    committed: oneshot::Sender<()>,
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
    /// Since the last batch was taken, an upload has filled half of its share, or waits for room.
    crowded: bool,
    trim_due: bool,
    refusing: bool,
    finishing: bool,
    halted: Option<Arc<StoreError>>,
    commit_started: Option<Instant>,
    stats: StoreStats,
}

struct Entry {
    open: Option<Vec<u8>>,
    pending: Vec<u8>,
    records: Vec<Record>,
    close: Option<Vec<u8>>,
    queued: bool,
    /// The offset of the first pending byte.
    offset: StreamOffset,
    held: Permits,
    share: Arc<Semaphore>,
    durable: watch::Sender<Durable>,
    closed: Option<oneshot::Sender<()>>,
    /// Its end was said; it may wait for its commit still.
    ended: bool,
    spans: Vec<Span>,
}

impl State {
    pub(super) fn begin(
        &mut self,
        id: RecordingId,
        open: Vec<u8>,
        share: Arc<Semaphore>,
    ) -> Result<watch::Receiver<Durable>, StoreError> {
        match self.halted.as_deref() {
            Some(StoreError::Fenced { number }) => {
                return Err(StoreError::Fenced { number: *number });
            }
            Some(_) => return Err(StoreError::Closed),
            None if self.refusing => return Err(StoreError::Closed),
            None if self.recordings.len() >= RECORDINGS_MAX => {
                return Err(StoreError::TooManyRecordings {
                    limit: RECORDINGS_MAX,
                });
            }
            None => {}
        }
        let (durable, receiver) = watch::channel(Durable::default());
        let entry = Entry {
            open: Some(open),
            pending: Vec::new(),
            records: Vec::new(),
            close: None,
            queued: false,
            offset: StreamOffset(0),
            held: Permits::default(),
            share,
            durable,
            closed: None,
            ended: false,
            spans: Vec::new(),
        };
        self.recordings.insert(id, entry);
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
    pub(super) fn take_batch(&mut self, bytes_max: usize, now: Instant) -> Vec<BatchItem> {
        let mut batch = Vec::new();
        let mut room = bytes_max;
        while let Some(id) = self.queue.front().copied() {
            let Some(entry) = self.recordings.get_mut(&id) else {
                self.queue.pop_front();
                continue;
            };
            let Some(item) = entry.take(id, &mut room) else {
                break;
            };
            self.pending_bytes = self.pending_bytes.saturating_sub(item.data.len());
            batch.push(item);
            if entry.queued {
                break;
            }
            self.queue.pop_front();
        }
        self.trim_due = false;
        self.crowded = false;
        self.commit_started = Some(now);
        batch
    }

    /// The commit point was passed: `place` holds `batch`, each item at its range.
    pub(super) fn settle(
        &mut self,
        place: &Arc<ObjectPlace>,
        batch: Vec<(BatchItem, Range<u32>)>,
        space: &Semaphore,
    ) {
        self.commit_started = None;
        self.stats.commits = self.stats.commits.saturating_add(1);
        for (item, bytes) in batch {
            space.add_permits(usize::try_from(item.held.space).unwrap_or_default());
            let Some(entry) = self.recordings.get_mut(&item.id) else {
                continue;
            };
            entry
                .share
                .add_permits(usize::try_from(item.held.share).unwrap_or_default());
            entry.spans.push(Span {
                object: Arc::clone(place),
                bytes,
            });
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
                // It fails when nobody waits any more, which changes nothing here.
                let _nobody_waits = closed.send(());
            }
        }
    }

    /// Ends every open recording: what is not durable will not be. `space` gets its permits back.
    pub(super) fn fail_all(
        &mut self,
        error: &Arc<StoreError>,
        in_flight: Vec<BatchItem>,
        space: &Semaphore,
    ) {
        self.commit_started = None;
        for item in in_flight {
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

    pub(super) fn seal_basis(&self, id: RecordingId) -> Option<SealBasis> {
        let entry = self.recordings.get(&id)?;
        Some(SealBasis {
            spans: entry.spans.clone(),
            durable: entry.durable.borrow().clone(),
        })
    }

    /// The recording is sealed: its journal bytes are needed no more.
    pub(super) fn forget_sealed(&mut self, id: RecordingId) {
        self.recordings.remove(&id);
        self.stats.sealed = self.stats.sealed.saturating_add(1);
        self.trim_due = true;
    }

    /// The seal was given up: the bytes stay in the journal, and the entry with them.
    pub(super) fn note_seal_failed(&mut self) {
        self.stats.seals_failed = self.stats.seals_failed.saturating_add(1);
    }

    /// The oldest object of the epoch that an unsealed recording needs; `next` when none does.
    pub(super) fn oldest_needed(&self, epoch_index: u64, next: JournalNumber) -> JournalNumber {
        let firsts = self.recordings.values().filter_map(|entry| {
            let first = entry
                .spans
                .iter()
                .find(|span| span.object.epoch_index == epoch_index);
            first.map(|span| span.object.number)
        });
        firsts.min().unwrap_or(next)
    }

    /// What a commit has to do, if anything.
    pub(super) fn commit_wish(&self) -> Option<Wish> {
        (self.trim_due || !self.queue.is_empty()).then_some(Wish {
            pending_bytes: self.pending_bytes,
            crowded: self.crowded,
        })
    }

    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn refuse_new(&mut self) {
        self.refusing = true;
    }

    pub(super) fn finish_commits(&mut self) {
        self.finishing = true;
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// No commit will follow. Returns the first reason for which this was said, and tells open recordings.
    pub(super) fn halt(&mut self, error: StoreError, space: &Semaphore) -> Arc<StoreError> {
        let reason = Arc::clone(self.halted.get_or_insert_with(|| Arc::new(error)));
        self.fail_all(&reason, Vec::new(), space);
        reason
    }

    /// The first reason that [`State::halt`] was told.
    pub(super) fn halted(&self) -> Option<Arc<StoreError>> {
        self.halted.clone()
    }

    pub(super) fn note_object(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        self.stats.journal_bytes = self.stats.journal_bytes.saturating_add(bytes);
    }

    pub(super) fn note_epoch(&mut self) {
        self.stats.epochs = self.stats.epochs.saturating_add(1);
    }

    pub(super) fn stats(&self, now: Instant) -> StoreStats {
        StoreStats {
            recordings_open: u64::try_from(self.recordings.len()).unwrap_or_default(),
            commit_running_for: self
                .commit_started
                .map(|started| now.saturating_duration_since(started)),
            ..self.stats
        }
    }
}

/// What a record of `bytes` takes in an object at most.
fn framed(bytes: &[u8]) -> usize {
    bytes.len().saturating_add(FRAME_OVERHEAD_BYTES)
}

impl Entry {
    fn is_alive(&self) -> bool {
        self.durable.borrow().failed.is_none()
    }

    /// Takes what fits into `room`; `None` when nothing does. Clears `queued` when all was taken.
    fn take(&mut self, id: RecordingId, room: &mut usize) -> Option<BatchItem> {
        let mut left = room.checked_sub(self.open.as_deref().map_or(0, framed))?;
        let data = self.take_data(left);
        let frames_bytes = data
            .len()
            .div_ceil(FRAME_PLAIN_BYTES_MAX)
            .saturating_mul(FRAME_OVERHEAD_BYTES);
        left = left.saturating_sub(data.len().saturating_add(frames_bytes));
        let all_data = self.pending.is_empty();
        let records = if all_data {
            self.take_records(&mut left)
        } else {
            Vec::new()
        };
        let close_fits = all_data
            && self.records.is_empty()
            && self
                .close
                .as_deref()
                .is_some_and(|close| left >= framed(close));
        if !close_fits && data.is_empty() && records.is_empty() {
            // Nothing but an opening would go: it waits for the next object.
            return None;
        }
        let close = if close_fits { self.close.take() } else { None };
        *room = left.saturating_sub(close.as_deref().map_or(0, framed));
        self.queued = !(all_data && self.records.is_empty() && self.close.is_none());
        // Permits of a part stay held until the rest is committed: a full buffer is the safe side.
        let held = if all_data {
            std::mem::take(&mut self.held)
        } else {
            Permits::default()
        };
        let offset = self.offset;
        self.offset = StreamOffset(
            offset
                .0
                .saturating_add(u64::try_from(data.len()).unwrap_or_default()),
        );
        Some(BatchItem {
            id,
            open: self.open.take(),
            offset,
            data,
            records,
            close,
            held,
        })
    }

    fn take_records(&mut self, room: &mut usize) -> Vec<Record> {
        let mut fitting = 0_usize;
        for record in &self.records {
            let Some(left) = room.checked_sub(framed(&record.bytes)) else {
                break;
            };
            *room = left;
            fitting = fitting.saturating_add(1);
        }
        self.records.drain(..fitting).collect()
    }

    fn take_data(&mut self, room: usize) -> Vec<u8> {
        let frames = room.div_ceil(FRAME_PLAIN_BYTES_MAX.saturating_add(FRAME_OVERHEAD_BYTES));
        let fits = room.saturating_sub(frames.saturating_mul(FRAME_OVERHEAD_BYTES));
        if self.pending.len() <= fits {
            return std::mem::take(&mut self.pending);
        }
        let rest = self.pending.split_off(fits);
        std::mem::replace(&mut self.pending, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_with(bytes: &[&[u8]]) -> State {
        let mut state = State::default();
        for (n, bytes) in (0..).zip(bytes) {
            let id = RecordingId::from_bytes([n; 10]);
            state
                .begin(id, b"{}".to_vec(), Arc::new(Semaphore::new(0)))
                .unwrap();
            assert!(state.append(id, bytes, Permits { share: 1, space: 1 }, 1000));
        }
        state
    }

    #[test]
    fn one_batch_takes_the_bytes_of_all_recordings() {
        let mut state = state_with(&[b"one", b"two", b"three"]);
        let batch = state.take_batch(10_000, tokio::time::Instant::now().into_std());
        let data: Vec<_> = batch.iter().map(|item| item.data.as_slice()).collect();
        assert_eq!(data, [b"one".as_slice(), b"two", b"three"]);
        assert_eq!(state.commit_wish(), None);
    }

    #[test]
    fn a_record_goes_behind_the_bytes_before_it_and_ahead_of_the_end() {
        let mut state = state_with(&[&[b'a'; 300]]);
        let id = RecordingId::from_bytes([0; 10]);
        let push = |state: &mut State, bytes: usize| {
            state.push_record(id, FrameKind::Cut, StreamOffset(300), vec![b'r'; bytes])
        };
        let mut committed = push(&mut state, 200).unwrap();
        assert!(push(&mut state, FRAME_PLAIN_BYTES_MAX + 1).is_none());
        assert!(state.close(id, b"{}".to_vec()).is_some());
        assert!(push(&mut state, 1).is_none(), "its end was said");

        let now = tokio::time::Instant::now().into_std();
        // The first object has room for the bytes alone, the second for the record, the third for the end.
        let shapes = [(300, 0, false), (0, 1, false), (0, 0, true)];
        for ((bytes, records, closed), room) in shapes.into_iter().zip([400, 250, 250]) {
            let batch = state.take_batch(room, now);
            let item = &batch[0];
            let shape = (item.data.len(), item.records.len(), item.close.is_some());
            assert_eq!(shape, (bytes, records, closed));
            assert!(committed.try_recv().is_err() || closed);
            let place = Arc::new(ObjectPlace {
                name: Path::from("object"),
                number: JournalNumber(1),
                epoch_index: 0,
            });
            let batch = batch.into_iter().map(|item| (item, 0..0)).collect();
            state.settle(&place, batch, &Semaphore::new(0));
            if records > 0 {
                committed.try_recv().unwrap();
            }
        }
        assert_eq!(state.commit_wish(), None);
    }

    #[test]
    fn a_batch_splits_at_the_object_limit_and_loses_nothing() {
        let mut state = state_with(&[&[b'a'; 300], &[b'b'; 300], b"c"]);
        let id = RecordingId::from_bytes([2; 10]);
        assert!(state.close(id, vec![b'x'; 150]).is_some());
        let mut streams = BTreeMap::<RecordingId, Vec<u8>>::new();
        let mut closes = 0;
        let mut batches = 0;
        while state.has_queue() {
            let batch = state.take_batch(250, tokio::time::Instant::now().into_std());
            assert!(!batch.is_empty(), "a batch that takes nothing would loop");
            let size: usize = batch
                .iter()
                .flat_map(|item| {
                    [
                        item.open.as_deref(),
                        Some(item.data.as_slice()),
                        item.close.as_deref(),
                    ]
                })
                .flatten()
                .filter(|piece| !piece.is_empty())
                .map(|piece| piece.len() + FRAME_OVERHEAD_BYTES)
                .sum();
            assert!(size <= 250, "{size}");
            for item in batch {
                let stream = streams.entry(item.id).or_default();
                assert_eq!(item.offset.0, stream.len() as u64);
                stream.extend(item.data);
                closes += usize::from(item.close.is_some());
            }
            batches += 1;
        }
        assert!(batches >= 4);
        assert_eq!(closes, 1);
        assert_eq!(
            streams.values().map(Vec::len).collect::<Vec<_>>(),
            [300, 300, 1]
        );
    }
}
