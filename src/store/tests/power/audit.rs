//! The auditor: reads every object raw, as a stranger would, and holds it against what the senders know.
//!
//! Invariant: it believes no index, no listing order and no answer of the store, only bytes. Called by `power.rs` and the
//! simulation.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};

use super::ledger::{Events, Ledger};
use crate::ids::{EpochId, EventId, RecorderId, RecordingId};
use crate::recording::frame::FrameKind;
use crate::recording::journal_object::{JournalObject, ObjectDigest, digest_of};
use crate::recording::manifest::Manifest;

/// All objects of a store.
#[derive(Debug)]
pub(in super::super) struct Objects(pub(in super::super) BTreeMap<String, Bytes>);

/// What the journal holds, epoch by epoch.
#[derive(Debug, Default)]
pub(in super::super) struct Journal {
    /// The numbers that each epoch still has.
    pub(in super::super) epochs: BTreeMap<(RecorderId, EpochId), Vec<u64>>,
    /// The bytes of each recording by their offset.
    pub(in super::super) streams: BTreeMap<RecordingId, BTreeMap<u64, Vec<u8>>>,
    /// Recordings of which a part has left the journal for segments.
    pub(in super::super) cut: BTreeSet<RecordingId>,
    pub(in super::super) bytes: u64,
}

impl Objects {
    pub(in super::super) async fn read(store: &dyn ObjectStore) -> Self {
        let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut objects = BTreeMap::new();
        for object in listed {
            let bytes = store.get(&object.location).await.unwrap();
            let bytes = bytes.bytes().await.unwrap();
            objects.insert(object.location.to_string(), bytes);
        }
        Self(objects)
    }

    /// Every manifest, by its recording: there is one of each at most.
    pub(in super::super) fn manifests(&self) -> Result<BTreeMap<RecordingId, Manifest>, String> {
        let mut manifests = BTreeMap::new();
        for (name, bytes) in &self.0 {
            if !name.ends_with(".json") {
                continue;
            }
            let manifest = Manifest::decode(bytes).map_err(|error| format!("{name}: {error}"))?;
            let id = manifest.recording_id;
            if manifests.insert(id, manifest).is_some() {
                return Err(format!("recording {id} was sealed twice"));
            }
        }
        Ok(manifests)
    }

    /// Checks every chain.
    pub(in super::super) fn journal(&self) -> Result<Journal, String> {
        let mut journal = Journal::default();
        let mut before: Option<(RecorderId, EpochId, u64, ObjectDigest, bool)> = None;
        for (name, bytes) in &self.0 {
            if !name.starts_with("journal/") {
                continue;
            }
            let object =
                JournalObject::decode(bytes).map_err(|error| format!("{name}: {error}"))?;
            let header = object.header;
            let place = (header.recorder, header.epoch);
            if *name != format!("journal/{}/{}/{:010}", place.0, place.1, header.number.0) {
                return Err(format!("{name} says that it is another object"));
            }
            let is_fence = object
                .frames()
                .next()
                .is_some_and(|frame| frame.is_ok_and(|frame| frame.kind == FrameKind::Fence));
            // A number below the fence that closed its epoch is free once it is trimmed, and another's late fence, which holds nothing, may take it.
            let closes = is_fence && header.oldest_needed == header.number;
            if let Some((recorder, epoch, number, digest, was_fence)) = before
                && (recorder, epoch) == place
                && number + 1 == header.number.0
                && header.previous != digest
                && !(closes && was_fence)
            {
                return Err(format!("the chain breaks at {name}"));
            }
            before = Some((
                place.0,
                place.1,
                header.number.0,
                digest_of(bytes),
                is_fence,
            ));
            let numbers = journal.epochs.entry(place).or_default();
            numbers.push(header.number.0);
            journal.bytes += bytes.len() as u64;
            for frame in object.frames() {
                let frame = frame.map_err(|error| format!("{name}: {error}"))?;
                if frame.kind == FrameKind::Cut {
                    journal.cut.insert(frame.recording);
                }
                if frame.kind != FrameKind::Data {
                    continue;
                }
                let plain = frame.plain().map_err(|error| format!("{name}: {error}"))?;
                let stream = journal.streams.entry(frame.recording).or_default();
                if let Some(present) = stream.insert(frame.offset.0, plain.to_vec())
                    && present != *plain
                {
                    return Err(format!("{name}: other bytes at the same offset"));
                }
            }
        }
        Ok(journal)
    }

    /// What the power or a kill left: each acked byte is in a sealed recording or in the journal.
    pub(in super::super) fn hold_what_was_acked(&self, ledger: &Ledger) -> Result<(), String> {
        let (journal, manifests) = (self.journal()?, self.manifests()?);
        for (id, sent) in &*ledger.sent() {
            let acked = usize::try_from(sent.acked()).unwrap();
            let stored = match manifests.get(id) {
                Some(manifest) => {
                    self.sealed_to(manifest, &sent.bytes, sent.acked())?;
                    continue;
                }
                None if journal.cut.contains(id) => continue,
                None => journal.joined(id),
            };
            if !sent.bytes.starts_with(&stored) {
                return Err(format!("recording {id} is not what was sent"));
            }
            if stored.len() < acked {
                let stored = stored.len();
                return Err(format!("recording {id}: {stored} bytes of {acked} acked"));
            }
        }
        Ok(())
    }

    /// After recovery: each acked byte is sealed, once, in order, and the manifests say what is true.
    pub(in super::super) fn seal_what_was_acked(&self, ledger: &Ledger) -> Result<Sealed, String> {
        let manifests = self.manifests()?;
        let (ledger, events) = (ledger.sent(), ledger.events());
        let mut sealed = Sealed::default();
        if let Some(unknown) = manifests.keys().find(|id| !ledger.contains_key(id)) {
            return Err(format!("recording {unknown} was never begun"));
        }
        for (id, sent) in &*ledger {
            let Some(manifest) = manifests.get(id) else {
                if sent.acked() > 0 || sent.sealed.is_some() {
                    return Err(format!(
                        "recording {id}: {} acked bytes have no manifest",
                        sent.acked()
                    ));
                }
                continue;
            };
            let has = |flag: &str| manifest.flags.iter().any(|present| present == flag);
            let sealed_to = self.sealed_to(manifest, &sent.bytes, sent.acked())?;
            if has("complete") == has("incomplete") {
                return Err(format!("recording {id}: flags {:?}", manifest.flags));
            }
            if has("complete") && !(sent.whole && sealed_to == sent.bytes.len()) {
                return Err(format!("recording {id} is not complete, but says so"));
            }
            if let Some(told) = &sent.sealed
                && (told.bytes, told.sha256) != (manifest.bytes, manifest.cast_sha256.0)
            {
                return Err(format!(
                    "recording {id}: the sender was told of another seal"
                ));
            }
            sealed.recordings += 1;
            sealed.complete += u64::from(has("complete"));
            sealed.recovered += u64::from(has("recovered"));
            sealed.cut += u64::from(is_cut(manifest));
            sealed.gaps_flagged += u64::from(has("gaps"));
        }
        sealed.events = self.hold_every_event_once(&events)?;
        Ok(sealed)
    }

    /// Each acked event is one line below `events/`, its body verbatim; an event that was not acked is one at most.
    fn hold_every_event_once(&self, events: &Events) -> Result<u64, String> {
        let mut stored = BTreeMap::<EventId, String>::new();
        let mut bodies = BTreeSet::new();
        for (name, bytes) in &self.0 {
            if !name.starts_with("events/") {
                continue;
            }
            let text = std::str::from_utf8(bytes).map_err(|error| format!("{name}: {error}"))?;
            for line in text.lines() {
                let parsed: EventLine<'_> =
                    serde_json::from_str(line).map_err(|error| format!("{name}: {error}"))?;
                let body = parsed.event.get().to_owned();
                if !events.sent.contains(&body) {
                    return Err(format!("{name}: event {} was never sent", parsed.id));
                }
                if !bodies.insert(body.clone()) || stored.insert(parsed.id, body).is_some() {
                    return Err(format!("{name}: event {} is stored twice", parsed.id));
                }
            }
        }
        for (id, body) in &events.acked {
            if stored.get(id) != Some(body) {
                return Err(format!("event {id} is acked and not stored"));
            }
        }
        Ok(events.acked.len() as u64)
    }

    /// Where the stored stream ends. Every byte of it is the one that was sent at its place; what is missing is not acked, and
    /// the manifest says so.
    fn sealed_to(&self, manifest: &Manifest, sent: &[u8], acked: u64) -> Result<usize, String> {
        let id = manifest.recording_id;
        let mut at = 0_u64;
        let mut missing = Vec::new();
        for segment in &manifest.segments {
            if segment.plain_offset > at {
                missing.push(at..segment.plain_offset);
            }
            at = segment.plain_offset;
            let bytes = self.0.get(&segment.name);
            let bytes = bytes.ok_or_else(|| format!("segment {} is gone", segment.name))?;
            let start = usize::try_from(at).unwrap();
            at += bytes.len() as u64;
            if sent.get(start..usize::try_from(at).unwrap()) != Some(bytes) {
                return Err(format!("recording {id} is not what was sent"));
            }
        }
        if at < acked {
            return Err(format!(
                "recording {id}: {at} bytes sealed of {acked} acked"
            ));
        }
        for missing in missing {
            if missing.start < acked {
                return Err(format!(
                    "recording {id}: {missing:?} is lost of {acked} acked"
                ));
            }
            let told = manifest.gaps.iter().any(|gap| {
                gap.offset == missing.start && gap.bytes == Some(missing.end - missing.start)
            });
            if !told || !manifest.flags.iter().any(|flag| flag == "gaps") {
                return Err(format!(
                    "recording {id}: the gap {missing:?} is not flagged"
                ));
            }
        }
        Ok(usize::try_from(at).unwrap())
    }

    /// Everything is sealed: no byte of a recording stands in the journal any more, but openers and fences do.
    pub(in super::super) fn have_a_trimmed_journal(&self) -> Result<(), String> {
        let journal = self.journal()?;
        for ((recorder, epoch), numbers) in &journal.epochs {
            if numbers.first() != Some(&0) {
                return Err(format!("epoch {recorder}/{epoch} has lost its opener"));
            }
            if numbers.len() < 2 {
                return Err(format!("epoch {recorder}/{epoch} has no fence"));
            }
        }
        match journal.streams.keys().next() {
            Some(id) => Err(format!("recording {id} is sealed and still in the journal")),
            None => Ok(()),
        }
    }
}

/// What a sound store holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Sealed {
    pub(in super::super) recordings: u64,
    pub(in super::super) complete: u64,
    pub(in super::super) recovered: u64,
    pub(in super::super) gaps_flagged: u64,
    pub(in super::super) cut: u64,
    pub(in super::super) events: u64,
}

/// What the auditor reads of a line.
#[derive(serde::Deserialize)]
struct EventLine<'a> {
    id: EventId,
    #[serde(borrow)]
    event: &'a serde_json::value::RawValue,
}

/// Its segments are of more than one attempt: the first were written while it ran.
fn is_cut(manifest: &Manifest) -> bool {
    let attempts: BTreeSet<_> = manifest
        .segments
        .iter()
        .filter_map(|segment| segment.name.rsplit('.').nth(2))
        .collect();
    attempts.len() > 1
}

impl Journal {
    /// The bytes of a recording from its beginning to the first that is missing.
    fn joined(&self, id: &RecordingId) -> Vec<u8> {
        let mut joined = Vec::new();
        for (offset, bytes) in self.streams.get(id).into_iter().flatten() {
            if *offset != joined.len() as u64 {
                break;
            }
            joined.extend_from_slice(bytes);
        }
        joined
    }
}
