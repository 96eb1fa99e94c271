//! Events on their way: waiting for a commit, then journalled until they are rolled into an object of their uploader.
//!
//! Invariant: an event leaves only when the mark that names its object is committed; the events of an uploader are
//! rolled in the order in which they were committed, one roll at a time. Pure. Called by `state.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Span;
use crate::store::error::StoreError;

/// An uploader's journalled events are rolled when the first of them is as old.
pub(crate) const ROLL_INTERVAL: Duration = Duration::from_secs(3600);
/// Or when they have as many bytes: what one object holds, and what a roll holds in memory.
const ROLL_BYTES: u64 = 8 * 1024 * 1024;
/// So many journalled events of all uploaders are rolled at once, whoever's: their index is in memory.
const JOURNALLED_MAX: usize = 65_536;
/// The pause after a roll that failed.
const ROLL_PAUSE: Duration = Duration::from_secs(10);

/// What became of the commit of an event.
pub(in crate::store) type Committed = oneshot::Sender<Result<(), Arc<StoreError>>>;

/// A frame that is of no recording.
#[derive(Debug)]
pub(in crate::store) struct EventFrame {
    pub(in crate::store) bytes: Bytes,
    pub(in crate::store) then: Then,
    pub(in crate::store) committed: Option<Committed>,
    /// What the event holds of the bytes that may be in flight; given back when the frame is gone.
    pub(in crate::store) _held: Option<OwnedSemaphorePermit>,
}

/// What a committed frame means for the journal.
#[derive(Debug, Clone)]
pub(in crate::store) enum Then {
    /// It is needed until it is rolled.
    Keep {
        /// The uploader's StableID.
        uploader: Arc<str>,
    },
    /// Its event has an object already: nothing needs the frame.
    Nothing,
    /// It names the object into which the first `count` events of `uploader` were rolled.
    Release {
        /// The uploader's StableID.
        uploader: Arc<str>,
        /// How many.
        count: usize,
    },
}

/// The events of one uploader that are to be rolled.
#[derive(Debug, Clone)]
pub(in crate::store) struct RollOrder {
    pub(in crate::store) uploader: Arc<str>,
    /// Where their lines stand, in the order of their commits.
    pub(in crate::store) spans: Vec<Span>,
}

#[derive(Debug)]
struct Group {
    /// When the first of `spans` was committed.
    since: Instant,
    /// The plain bytes of their lines: what a roll holds in memory.
    bytes: u64,
    spans: VecDeque<(Span, u32)>,
    rolling: bool,
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
pub(in crate::store) struct EventQueue {
    waiting: VecDeque<EventFrame>,
    in_flight: usize,
    groups: BTreeMap<Arc<str>, Group>,
    journalled: usize,
    /// All are to be rolled whatever their age: the journal's oldest objects wait for them, or the store closes.
    roll_all: bool,
}

impl EventQueue {
    pub(in crate::store) fn push(&mut self, frame: EventFrame) {
        self.waiting.push_back(frame);
    }

    pub(in crate::store) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the frames that fit into `room`, each with `overhead`.
    pub(in crate::store) fn take(&mut self, room: &mut usize, overhead: usize) -> Vec<EventFrame> {
        let mut taken = Vec::new();
        while let Some(frame) = self.waiting.front() {
            let Some(left) = room.checked_sub(frame.bytes.len().saturating_add(overhead)) else {
                break;
            };
            *room = left;
            taken.extend(self.waiting.pop_front());
        }
        self.in_flight = taken.len();
        taken
    }

    /// A frame was committed at `span`; returns the spans that are needed no more, its own among them if nothing needs it.
    pub(in crate::store) fn settle(
        &mut self,
        frame: EventFrame,
        span: Span,
        now: Instant,
    ) -> Vec<Span> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let released = match frame.then {
            Then::Nothing => vec![span],
            Then::Keep { uploader } => {
                let bytes = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
                self.keep(uploader, span, bytes, now);
                Vec::new()
            }
            Then::Release { uploader, count } => {
                let mut released = self.release(&uploader, count, now);
                released.push(span);
                released
            }
        };
        if let Some(committed) = frame.committed {
            // It fails when nobody waits any more, which changes nothing here.
            let _nobody_waits = committed.send(Ok(()));
        }
        released
    }

    fn keep(&mut self, uploader: Arc<str>, span: Span, bytes: u32, now: Instant) {
        let group = self.groups.entry(uploader).or_insert_with(|| Group {
            since: now,
            bytes: 0,
            spans: VecDeque::new(),
            rolling: false,
            not_before: None,
        });
        group.bytes = group.bytes.saturating_add(bytes.into());
        group.spans.push_back((span, bytes));
        self.journalled = self.journalled.saturating_add(1);
    }

    fn release(&mut self, uploader: &Arc<str>, count: usize, now: Instant) -> Vec<Span> {
        let Some(group) = self.groups.get_mut(uploader) else {
            return Vec::new();
        };
        let count = count.min(group.spans.len());
        let mut released = Vec::with_capacity(count);
        for (span, bytes) in group.spans.drain(..count) {
            group.bytes = group.bytes.saturating_sub(bytes.into());
            released.push(span);
        }
        group.rolling = false;
        group.since = now;
        if group.spans.is_empty() {
            self.groups.remove(uploader);
        }
        self.journalled = self.journalled.saturating_sub(count);
        released
    }

    /// The commit of `in_flight` failed, and no other will hold what waits: their senders are told.
    pub(in crate::store) fn fail(&mut self, error: &Arc<StoreError>, in_flight: Vec<EventFrame>) {
        self.in_flight = 0;
        for frame in in_flight.into_iter().chain(self.waiting.drain(..)) {
            if let Then::Release { uploader, .. } = &frame.then
                && let Some(group) = self.groups.get_mut(uploader)
            {
                // The mark is lost, so its events are rolled again: into the same object, which then exists.
                group.rolling = false;
            }
            if let Some(committed) = frame.committed {
                let _nobody_waits = committed.send(Err(Arc::clone(error)));
            }
        }
    }

    /// Everything journalled is to be rolled now.
    pub(in crate::store) fn roll_all(&mut self) {
        self.roll_all = !self.groups.is_empty();
    }

    /// What is to be rolled now; an order is given once until [`EventQueue::handle_roll_failed`] or its mark.
    pub(in crate::store) fn take_due(&mut self, now: Instant) -> Vec<RollOrder> {
        let all = std::mem::take(&mut self.roll_all) || self.journalled >= JOURNALLED_MAX;
        let mut orders = Vec::new();
        for (uploader, group) in &mut self.groups {
            let due = all || group.due().is_none_or(|due| due <= now);
            if group.rolling || !due || group.not_before.is_some_and(|then| then > now) {
                // What could not go now goes with the next; the wish stays.
                self.roll_all |= all;
                continue;
            }
            group.rolling = true;
            let mut bytes = 0_u64;
            // No object mixes epochs: the mark stands in the newest and may be gone before an older epoch is. Whoever recovers that one meets
            // the object all the same, under the name of the epoch's own first event.
            let of_epoch = group.spans.front().map(|(span, _)| span.object.epoch_index);
            let fits = group.spans.iter().take_while(|(span, line_bytes)| {
                bytes = bytes.saturating_add(u64::from(*line_bytes));
                bytes <= ROLL_BYTES && Some(span.object.epoch_index) == of_epoch
            });
            // A line is far smaller than an object, so there is always one that fits.
            let spans: Vec<Span> = fits.map(|(span, _)| span.clone()).collect();
            self.roll_all |= all && spans.len() < group.spans.len();
            orders.push(RollOrder {
                uploader: Arc::clone(uploader),
                spans,
            });
        }
        orders
    }

    /// When the next roll is due, if any is; not later than now means at once.
    pub(in crate::store) fn next_due(&self, now: Instant) -> Option<Instant> {
        let all = self.roll_all || self.journalled >= JOURNALLED_MAX;
        let dues = self.groups.values().filter(|group| !group.rolling);
        let dues = dues.map(|group| {
            let due = if all { now } else { group.due().unwrap_or(now) };
            group.not_before.map_or(due, |then| due.max(then))
        });
        dues.min()
    }

    /// The roll failed; its events stay where they are.
    pub(in crate::store) fn handle_roll_failed(&mut self, uploader: &Arc<str>, now: Instant) {
        if let Some(group) = self.groups.get_mut(uploader) {
            group.rolling = false;
            group.not_before = now.checked_add(ROLL_PAUSE);
        }
    }

    /// Nothing waits, nothing is in flight, nothing is journalled.
    pub(in crate::store) fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0 && self.groups.is_empty()
    }

    pub(in crate::store) const fn journalled(&self) -> usize {
        self.journalled
    }
}

impl Group {
    /// When it is due by its age; `None` when it is due by its size.
    fn due(&self) -> Option<Instant> {
        (self.bytes < ROLL_BYTES)
            .then(|| self.since.checked_add(ROLL_INTERVAL))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;

    use super::super::ObjectPlace;
    use super::*;
    use crate::ids::JournalNumber;

    fn line(uploader: &str, bytes: usize) -> EventFrame {
        EventFrame {
            bytes: vec![b'x'; bytes].into(),
            then: Then::Keep {
                uploader: uploader.into(),
            },
            committed: None,
            _held: None,
        }
    }

    /// Numbers from here on are of the next epoch.
    const EPOCH: u64 = 1000;

    fn span(number: u64, bytes: u32) -> Span {
        let object = ObjectPlace {
            name: Path::from("object"),
            number: JournalNumber(number),
            epoch_index: number / EPOCH,
        };
        Span {
            object: Arc::new(object),
            bytes: 0..bytes,
        }
    }

    fn commit(queue: &mut EventQueue, number: u64, now: Instant) -> Vec<Span> {
        let mut room = usize::MAX;
        let taken = queue.take(&mut room, 46);
        let settled = taken.into_iter().map(|frame| {
            let bytes = u32::try_from(frame.bytes.len()).unwrap();
            (frame, bytes)
        });
        let settled: Vec<_> = settled.collect();
        let released = settled
            .into_iter()
            .map(|(frame, bytes)| queue.settle(frame, span(number, bytes), now));
        released.flatten().collect()
    }

    #[test]
    fn an_uploaders_events_are_rolled_after_an_hour_and_leave_with_their_mark() {
        let start = tokio::time::Instant::now().into_std();
        let mut queue = EventQueue::default();
        assert_eq!(queue.next_due(start), None);
        queue.push(line("a", 10));
        queue.push(line("b", 10));
        queue.push(line("a", 10));
        assert!(commit(&mut queue, 1, start).is_empty());
        assert!(queue.take_due(start).is_empty());
        let due = queue.next_due(start).unwrap();
        assert_eq!(due, start + ROLL_INTERVAL);
        let orders = queue.take_due(due);
        let shape: Vec<_> = orders
            .iter()
            .map(|order| (&*order.uploader, order.spans.len()))
            .collect();
        assert_eq!(shape, [("a", 2), ("b", 1)]);
        assert!(queue.take_due(due).is_empty(), "an order is given once");

        // One of them fails; the other's mark is committed while a new event came.
        queue.handle_roll_failed(&orders[1].uploader, due);
        assert_eq!(queue.next_due(due), Some(due + ROLL_PAUSE));
        queue.push(line("a", 10));
        commit(&mut queue, 2, due);
        queue.push(EventFrame {
            then: Then::Release {
                uploader: "a".into(),
                count: 2,
            },
            ..line("", 5)
        });
        let released = commit(&mut queue, 3, due);
        let numbers: Vec<_> = released.iter().map(|span| span.object.number.0).collect();
        assert_eq!(numbers, [1, 1, 3], "both events, and the mark itself");
        assert_eq!(queue.journalled(), 2);
        assert!(!queue.is_drained());
    }

    #[test]
    fn no_roll_mixes_events_of_two_epochs() {
        let now = tokio::time::Instant::now().into_std();
        let mut queue = EventQueue::default();
        for number in [1, 2, EPOCH, EPOCH + 1, EPOCH + 2] {
            queue.push(line("a", 10));
            commit(&mut queue, number, now);
        }
        queue.roll_all();
        for (count, left) in [(2, 3), (3, 0)] {
            assert_eq!(queue.next_due(now), Some(now));
            let orders = queue.take_due(now);
            assert_eq!(orders[0].spans.len(), count);
            queue.push(EventFrame {
                then: Then::Release {
                    uploader: "a".into(),
                    count,
                },
                ..line("", 5)
            });
            commit(&mut queue, EPOCH + 3, now);
            assert_eq!(queue.journalled(), left);
        }
        assert!(queue.is_drained());
    }

    #[test]
    fn eight_mebibytes_are_rolled_at_once_and_no_more_than_they_in_one_object() {
        let now = tokio::time::Instant::now().into_std();
        let mut queue = EventQueue::default();
        for number in 0..40 {
            queue.push(line("a", 256 * 1024));
            commit(&mut queue, number, now);
        }
        assert_eq!(queue.next_due(now), Some(now));
        let orders = queue.take_due(now);
        assert_eq!(orders[0].spans.len(), 32);
    }

    #[test]
    fn what_is_to_be_rolled_at_once_is_rolled_whatever_its_age() {
        let now = tokio::time::Instant::now().into_std();
        let mut queue = EventQueue::default();
        queue.push(line("a", 10));
        commit(&mut queue, 1, now);
        queue.roll_all();
        assert_eq!(queue.next_due(now), Some(now));
        assert_eq!(queue.take_due(now).len(), 1);
        assert_eq!(queue.next_due(now), None, "under way");
    }

    #[test]
    fn a_lost_mark_lets_its_events_be_rolled_again() {
        let now = tokio::time::Instant::now().into_std();
        let mut queue = EventQueue::default();
        queue.push(line("a", 10));
        commit(&mut queue, 1, now);
        queue.roll_all();
        let first = queue.take_due(now);
        queue.push(EventFrame {
            then: Then::Release {
                uploader: Arc::clone(&first[0].uploader),
                count: 1,
            },
            ..line("", 5)
        });
        queue.fail(&Arc::new(StoreError::Closed), Vec::new());
        queue.roll_all();
        assert_eq!(queue.take_due(now).len(), 1);
    }
}
