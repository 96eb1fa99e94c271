//! Which journal objects are there, which of them somebody needs, and what compaction may copy.
//!
//! Invariant: an object counts as needed while a span in it is held; `kept_bytes` is the sum of all objects that were
//! not trimmed, `open_bytes` of all held spans. Compaction is paid from `credit`: a byte that was written for the
//! first time permits one copy, so no more than half of what is written is copies (write amplification ≤ 2). Going through
//! the journal from its oldest object whenever it is larger than twice what is open never needs more: a whole round starts with
//! more than twice what it copies, and the round before wrote that. Pure. Called by `state.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::ids::{JournalNumber, RecordingId};

/// Where a journal object stands in the life of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    /// Counts the epochs of this process.
    pub(super) epoch_index: u64,
    pub(super) number: JournalNumber,
}

/// When and how much compaction of the journal copies.
#[derive(Debug, Clone, Copy)]
pub struct CompactionLimits {
    /// After as many objects the oldest are looked at.
    pub objects: u32,
    /// After as long the oldest are looked at, if anything is committed at all.
    pub interval: Duration,
    /// How much the journal may hold beyond twice what is open: one object.
    pub slack_bytes: u64,
    /// What one commit copies at most, but for one span that is larger by itself.
    pub copy_bytes_max: u64,
    /// As many spans of one recording are merged into fewer.
    pub spans_max: usize,
}

impl CompactionLimits {
    /// Rule 7 of the store: 64 objects or 5 minutes, slack of one object of 16 MiB.
    pub const STANDARD: Self = Self {
        objects: 64,
        interval: Duration::from_secs(300),
        slack_bytes: 16 * 1024 * 1024,
        // Half an object: the other half is left for new bytes.
        copy_bytes_max: 8 * 1024 * 1024,
        // 512 spans are 16 KiB: a quarter of what an idle session may cost.
        spans_max: 512,
    };
}

/// Why the oldest objects are to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The journal is too large for what is open: whatever it takes.
    Ratio,
    /// It is time: only if at least half of the objects is won.
    Due,
}

impl Default for CompactionLimits {
    fn default() -> Self {
        Self::STANDARD
    }
}

#[derive(Debug)]
struct Object {
    bytes: u64,
    held_bytes: u64,
    spans: u32,
    events: u32,
    /// Who had spans in it when it was written; some may have left.
    owners: Vec<RecordingId>,
}

/// The objects of this process's epochs, but for the openers.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    objects: BTreeMap<ObjectKey, Object>,
    needed: BTreeSet<ObjectKey>,
    kept_bytes: u64,
    open_bytes: u64,
    credit: u64,
    objects_since: u32,
    looked_at: Option<Instant>,
}

impl Ledger {
    /// An object of `bytes` was committed, of which `copied_bytes` are copies.
    pub(super) fn handle_object(&mut self, key: ObjectKey, bytes: u64, copied_bytes: u64) {
        let object = Object {
            bytes,
            held_bytes: 0,
            spans: 0,
            events: 0,
            owners: Vec::new(),
        };
        self.objects.insert(key, object);
        self.kept_bytes = self.kept_bytes.saturating_add(bytes);
        let new_bytes = bytes.saturating_sub(copied_bytes);
        self.credit = self
            .credit
            .saturating_add(new_bytes)
            .saturating_sub(copied_bytes);
        self.objects_since = self.objects_since.saturating_add(1);
    }

    /// A span of `bytes` in an object is needed: by a recording, or by a journalled event.
    pub(super) fn hold(&mut self, key: ObjectKey, bytes: u64, owner: Option<RecordingId>) {
        let Some(object) = self.objects.get_mut(&key) else {
            return;
        };
        object.held_bytes = object.held_bytes.saturating_add(bytes);
        object.spans = object.spans.saturating_add(1);
        match owner {
            Some(id) if object.owners.last() != Some(&id) => object.owners.push(id),
            Some(_) => {}
            None => object.events = object.events.saturating_add(1),
        }
        self.open_bytes = self.open_bytes.saturating_add(bytes);
        self.needed.insert(key);
    }

    /// That span is needed no more.
    pub(super) fn release(&mut self, key: ObjectKey, bytes: u64, is_event: bool) {
        let Some(object) = self.objects.get_mut(&key) else {
            return;
        };
        object.held_bytes = object.held_bytes.saturating_sub(bytes);
        object.spans = object.spans.saturating_sub(1);
        object.events = object.events.saturating_sub(u32::from(is_event));
        self.open_bytes = self.open_bytes.saturating_sub(bytes);
        if object.spans == 0 {
            object.owners = Vec::new();
            self.needed.remove(&key);
        }
    }

    /// The oldest needed object of an epoch, if `moved` spans (a count by object) were needed no more.
    pub(super) fn oldest_needed(
        &self,
        epoch_index: u64,
        moved: &BTreeMap<ObjectKey, u32>,
    ) -> Option<JournalNumber> {
        let stays = |key: &&ObjectKey| {
            let spans = self.objects.get(key).map_or(0, |object| object.spans);
            moved.get(key).is_none_or(|moved| spans > *moved)
        };
        let key = self.needed.range(of_epoch(epoch_index)).find(stays)?;
        Some(key.number)
    }

    /// Objects of the epoch below `below` were removed.
    pub(super) fn handle_trimmed(&mut self, epoch_index: u64, below: JournalNumber) {
        let (first, _) = of_epoch(epoch_index).into_inner();
        let end = ObjectKey {
            epoch_index,
            number: below,
        };
        let gone: Vec<ObjectKey> = self
            .objects
            .range(first..end)
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(object) = self.objects.remove(&key) {
                self.kept_bytes = self.kept_bytes.saturating_sub(object.bytes);
                self.open_bytes = self.open_bytes.saturating_sub(object.held_bytes);
            }
            self.needed.remove(&key);
        }
    }

    /// Takes out the objects of epochs before `epoch_index` of which nobody needs any.
    pub(super) fn take_spent(&mut self, epoch_index: u64) -> Vec<ObjectKey> {
        let (current, _) = of_epoch(epoch_index).into_inner();
        let mut epochs: Vec<u64> = self
            .objects
            .range(..current)
            .map(|(key, _)| key.epoch_index)
            .collect();
        epochs.dedup();
        let mut spent = Vec::new();
        for epoch in epochs {
            if self.needed.range(of_epoch(epoch)).next().is_some() {
                continue;
            }
            spent.extend(self.objects.range(of_epoch(epoch)).map(|(key, _)| *key));
            self.handle_trimmed(epoch, JournalNumber(u64::MAX));
        }
        spent
    }

    /// Why the oldest objects are to be looked at now, if they are; a look starts a new interval.
    pub(super) fn look(&mut self, now: Instant, limits: &CompactionLimits) -> Option<Reason> {
        let looked_at = *self.looked_at.get_or_insert(now);
        // The rest of the slack is left for what is written until the copies are.
        let bound = self
            .open_bytes
            .saturating_mul(2)
            .saturating_add(limits.slack_bytes / 4);
        let due = self.objects_since >= limits.objects
            || now.saturating_duration_since(looked_at) >= limits.interval;
        let reason = if self.kept_bytes > bound {
            Reason::Ratio
        } else if due && self.objects_since > 0 {
            Reason::Due
        } else {
            return None;
        };
        self.objects_since = 0;
        self.looked_at = Some(now);
        Some(reason)
    }

    /// The oldest objects of an epoch: key, all bytes, held bytes, journalled events, who had spans in it.
    pub(super) fn oldest(
        &self,
        epoch_index: u64,
    ) -> impl Iterator<Item = (ObjectKey, u64, u64, u32, &[RecordingId])> {
        let objects = self.objects.range(of_epoch(epoch_index));
        objects.map(|(key, object)| {
            let owners = object.owners.as_slice();
            (*key, object.bytes, object.held_bytes, object.events, owners)
        })
    }

    /// How many bytes may be copied before the copies are more than half of all.
    pub(super) const fn credit(&self) -> u64 {
        self.credit
    }

    /// The bytes of all objects that were not trimmed.
    pub(super) const fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// The bytes of all held spans.
    pub(super) const fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    /// How many objects were not trimmed.
    pub(super) fn kept_objects(&self) -> usize {
        self.objects.len()
    }
}

fn of_epoch(epoch_index: u64) -> std::ops::RangeInclusive<ObjectKey> {
    let at = |number| ObjectKey {
        epoch_index,
        number: JournalNumber(number),
    };
    at(0)..=at(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CompactionLimits = CompactionLimits {
        objects: 4,
        interval: Duration::from_secs(300),
        slack_bytes: 100,
        copy_bytes_max: 1000,
        spans_max: 8,
    };

    fn key(epoch_index: u64, number: u64) -> ObjectKey {
        let number = JournalNumber(number);
        ObjectKey {
            epoch_index,
            number,
        }
    }

    fn none() -> BTreeMap<ObjectKey, u32> {
        BTreeMap::new()
    }

    #[test]
    fn an_object_is_needed_until_its_last_span_is_released() {
        let mut ledger = Ledger::default();
        let id = RecordingId::from_bytes([1; 10]);
        for number in 1..=3 {
            ledger.handle_object(key(0, number), 100, 0);
            ledger.hold(key(0, number), 40, Some(id));
        }
        ledger.hold(key(0, 1), 20, None);
        assert_eq!((ledger.kept_bytes(), ledger.open_bytes()), (300, 140));
        assert_eq!(ledger.oldest_needed(0, &none()), Some(JournalNumber(1)));
        ledger.release(key(0, 1), 40, false);
        assert_eq!(ledger.oldest_needed(0, &none()), Some(JournalNumber(1)));
        let moved = BTreeMap::from([(key(0, 1), 1)]);
        assert_eq!(ledger.oldest_needed(0, &moved), Some(JournalNumber(2)));
        ledger.release(key(0, 1), 20, true);
        assert_eq!(ledger.oldest_needed(0, &none()), Some(JournalNumber(2)));
        ledger.handle_trimmed(0, JournalNumber(2));
        assert_eq!((ledger.kept_bytes(), ledger.open_bytes()), (200, 80));
        assert_eq!(ledger.oldest_needed(1, &none()), None, "another epoch");
    }

    #[test]
    fn an_epoch_that_is_over_is_spent_when_nobody_needs_any_of_it() {
        let mut ledger = Ledger::default();
        for (epoch, number) in [(0, 1), (0, 2), (1, 1), (2, 1)] {
            ledger.handle_object(key(epoch, number), 10, 0);
        }
        ledger.hold(key(0, 2), 5, None);
        assert_eq!(ledger.take_spent(2), [key(1, 1)]);
        ledger.release(key(0, 2), 5, true);
        assert_eq!(ledger.take_spent(2), [key(0, 1), key(0, 2)]);
        assert_eq!(ledger.take_spent(2), []);
        assert_eq!(
            ledger.kept_objects(),
            1,
            "the current epoch is trimmed by its own rule"
        );
    }

    #[test]
    fn copies_are_paid_for_by_first_writes() {
        let mut ledger = Ledger::default();
        ledger.handle_object(key(0, 1), 100, 0);
        assert_eq!(ledger.credit(), 100);
        ledger.handle_object(key(0, 2), 100, 70);
        assert_eq!(ledger.credit(), 60);
    }

    #[test]
    fn the_oldest_are_looked_at_by_ratio_by_count_and_by_time_but_never_when_idle() {
        let start = tokio::time::Instant::now().into_std();
        let mut ledger = Ledger::default();
        assert_eq!(ledger.look(start, &LIMITS), None);
        ledger.handle_object(key(0, 1), 26, 0);
        assert_eq!(ledger.look(start, &LIMITS), Some(Reason::Ratio));
        ledger.hold(key(0, 1), 26, None);
        assert_eq!(ledger.look(start, &LIMITS), None);
        for number in 2..=5 {
            ledger.handle_object(key(0, number), 1, 0);
        }
        assert_eq!(ledger.look(start, &LIMITS), Some(Reason::Due));
        assert_eq!(ledger.look(start, &LIMITS), None);
        assert_eq!(ledger.look(start + LIMITS.interval, &LIMITS), None, "idle");
        ledger.handle_object(key(0, 6), 1, 0);
        let later = start + 2 * LIMITS.interval;
        assert_eq!(ledger.look(later, &LIMITS), Some(Reason::Due));
    }
}
