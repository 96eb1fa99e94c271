//! One recording between its handle and the committer: what waits, and where its committed frames stand.
//!
//! Invariant: what [`Entry::take`] hands out follows what it handed out before, without a gap; its spans are in the
//! order of the stream. Pure. Called by `state.rs`.

use std::ops::Range;
use std::sync::Arc;

use object_store::path::Path;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::ids::{JournalNumber, RecordingId, StreamOffset};
use crate::recording::frame::{FRAME_OVERHEAD_BYTES, FRAME_PLAIN_BYTES_MAX, FrameKind};
use crate::store::handle::Durable;
use crate::store::ledger::ObjectKey;

/// Buffer permits that pending bytes hold until they are committed.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct Permits {
    pub(in crate::store) share: u32,
    pub(in crate::store) space: u32,
}

/// Where the frames of a recording stand side by side in one journal object.
#[derive(Debug, Clone)]
pub(in crate::store) struct Span {
    /// One allocation for all recordings in the object.
    pub(in crate::store) object: Arc<ObjectPlace>,
    pub(in crate::store) bytes: Range<u32>,
}

/// A committed journal object.
#[derive(Debug)]
pub(in crate::store) struct ObjectPlace {
    pub(in crate::store) name: Path,
    pub(in crate::store) number: JournalNumber,
    /// Counts the epochs of this process.
    pub(in crate::store) epoch_index: u64,
}

impl ObjectPlace {
    pub(in crate::store) const fn key(&self) -> ObjectKey {
        ObjectKey {
            epoch_index: self.epoch_index,
            number: self.number,
        }
    }
}

impl Span {
    pub(in crate::store) fn bytes_len(&self) -> u64 {
        u64::from(self.bytes.end.saturating_sub(self.bytes.start))
    }

    fn is(&self, other: &Self) -> bool {
        self.object.key() == other.object.key() && self.bytes == other.bytes
    }
}

/// What one recording puts into one commit.
#[derive(Debug)]
pub(in crate::store) struct BatchItem {
    pub(in crate::store) id: RecordingId,
    pub(in crate::store) open: Option<Vec<u8>>,
    pub(in crate::store) offset: StreamOffset,
    pub(in crate::store) data: Vec<u8>,
    /// In the order in which they were pushed; behind the data, before the close.
    pub(in crate::store) records: Vec<Record>,
    pub(in crate::store) close: Option<Vec<u8>>,
    pub(super) held: Permits,
}

/// A frame about a recording that is none of its bytes: a cut, a note.
#[derive(Debug)]
pub(in crate::store) struct Record {
    pub(in crate::store) kind: FrameKind,
    pub(in crate::store) offset: StreamOffset,
    pub(in crate::store) bytes: Vec<u8>,
    pub(super) committed: oneshot::Sender<()>,
}

pub(super) struct Entry {
    pub(super) open: Option<Vec<u8>>,
    pub(super) pending: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) close: Option<Vec<u8>>,
    pub(super) queued: bool,
    /// The offset of the first pending byte.
    pub(super) offset: StreamOffset,
    pub(super) held: Permits,
    pub(super) share: Arc<Semaphore>,
    pub(super) durable: watch::Sender<Durable>,
    pub(super) closed: Option<oneshot::Sender<()>>,
    /// Its end was said; it may wait for its commit still.
    pub(super) ended: bool,
    pub(super) spans: Vec<Span>,
    /// How many read the spans: their objects stay until all are done.
    pub(super) pins: u32,
}

impl Entry {
    pub(super) fn new(
        open: Vec<u8>,
        share: Arc<Semaphore>,
        durable: watch::Sender<Durable>,
    ) -> Self {
        Self {
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
            pins: 0,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.durable.borrow().failed.is_none()
    }

    /// Where `run` stands in the spans: side by side, in this order.
    pub(super) fn find_run(&self, run: &[Span]) -> Option<Range<usize>> {
        let first = run.first()?;
        let start = self.spans.iter().position(|span| span.is(first))?;
        let end = start.checked_add(run.len())?;
        let there = self.spans.get(start..end)?;
        let same = there.iter().zip(run).all(|(there, span)| there.is(span));
        same.then_some(start..end)
    }

    /// Takes what fits into `room`; `None` when nothing does. Clears `queued` when all was taken.
    pub(super) fn take(&mut self, id: RecordingId, room: &mut usize) -> Option<BatchItem> {
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

/// What a record of `bytes` takes in an object at most.
fn framed(bytes: &[u8]) -> usize {
    bytes.len().saturating_add(FRAME_OVERHEAD_BYTES)
}
