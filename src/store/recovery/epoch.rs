//! One dead epoch, from its fence to its trim.
//!
//! Invariant: the order below; after each step it is said what is true if we stop right there, and every step finds what an
//! earlier pass, or another recorder, has done already. Called by `recovery.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use object_store::ObjectStoreExt;

use super::super::create::ANSWER_TIMEOUT;
use super::super::error::StoreError;
use super::super::events::EventIndex;
use super::super::handle::End;
use super::super::opener::{self, ReadOpener};
use super::super::state::ObjectPlace;
use super::super::writer::{self, Received, SealJob, Sealed};
use super::super::{Shared, layout, store_id};
use super::epochs::{self, Listed};
use super::fencing::{self, Fence, Placed};
use super::index::{Found, Index};
use super::tail::{self, Read, Tail};
use crate::access::Identity;
use crate::ids::{EpochId, JournalNumber, RecordingId, StreamOffset};
use crate::recording::journal_object::{JournalObject, ObjectHeader, digest_of};
use crate::recording::manifest::{FLAG_OPENING_LOST, FLAG_RECOVERED};
use crate::recording::records::{FenceReason, OpenRecord};
use crate::tell;

/// How often a zombie may take the number that we want for the fence, before the next pass tries again.
const FENCE_TRIES: u32 = 100;
/// How many recordings are sealed at once: half of what running uploads may use.
const SEALS_AT_ONCE_MAX: usize = 4;
/// Under whom a recording is kept of which the opening is lost.
const UNKNOWN_UPLOADER: &str = "unknown";
/// Why a recording ended of which no end was journalled.
const STOPPED_REASON: &str = "the recorder stopped before the upload ended";

/// What was read of a fenced epoch.
pub(super) struct Reading {
    fence: Fence,
    index: Index,
    opener_is_lost: bool,
}

impl Reading {
    /// The events, once.
    pub(super) fn take_events(&mut self) -> EventIndex {
        std::mem::take(&mut self.index.events)
    }

    /// Numbers of objects that are lost or damaged.
    pub(super) fn lost(&self) -> &[JournalNumber] {
        &self.index.lost
    }
}

/// What was met in one epoch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) recordings_found: u64,
    pub(super) recordings_adopted: u64,
    pub(super) recordings_dropped: u64,
    pub(super) objects_damaged: u64,
}

/// What became of one recording.
enum Settled {
    Sealed,
    Adopted,
}

/// Fences a dead epoch and reads what is needed of it; `None` when it is closed. `found` remembers epochs from pass to pass.
pub(super) async fn open(
    shared: &Arc<Shared>,
    listed: &Listed,
    found: &mut BTreeSet<EpochId>,
) -> Result<Option<Reading>, StoreError> {
    let tail = Tail::find(shared, &listed.recorder, &listed.epoch, listed.newest).await?;
    if let Some(fence) = tail.fence.filter(Fence::is_final) {
        if listed
            .oldest
            .is_some_and(|oldest| oldest < fence.header.number)
        {
            trim(shared, listed, &fence, &[]).await?;
        }
        let lost = match listed.has_opener {
            true => None,
            false => why_lost(&read_opener(shared, listed).await?),
        };
        if let Some(what) = lost {
            tell_lost_opener(listed, what);
            count(shared, |stats| &mut stats.objects_damaged);
        }
        return Ok(None);
    }
    // Another store's epoch is another store's to close: its recordings would be sealed here under an id that is not theirs.
    let opener = read_opener(shared, listed).await?;
    match opener {
        ReadOpener::Whole { store_id, .. } => {
            store_id::agrees(shared.store_id, store_id, &listed.recorder, &listed.epoch)?;
        }
        // Nothing in it says whose it is, so the rest of the store is asked whether it is of one store with us.
        ReadOpener::Absent
        | ReadOpener::Obstructed
        | ReadOpener::Damaged
        | ReadOpener::Newer(_) => {
            let is_own = |epoch: &EpochId| shared.is_own_epoch(epoch);
            store_id::confirm(&shared.objects, shared.store_id, is_own).await?;
        }
    }
    if found.insert(listed.epoch) {
        count(shared, |stats| &mut stats.epochs_found);
        if let Some(what) = why_lost(&opener) {
            tell_lost_opener(listed, what);
        }
    }
    // If we stop here: nothing happened. The epoch's recorder, if it lives, does not know of us.
    let fence = fence(shared, listed, tail).await?;
    // If we stop here: nobody can commit to the epoch any more, so what stands before the fence is all there is. Whoever
    // comes next finds the fence and goes on from here.
    read(shared, listed, fence, &opener).await
}

/// Seals and trims what was read. The events were rolled before. `sealed` remembers recordings from pass to pass, for the counts.
pub(super) async fn close(
    shared: &Arc<Shared>,
    listed: &Listed,
    reading: Reading,
    sealed: &mut BTreeSet<RecordingId>,
) -> Result<Counts, StoreError> {
    let Reading {
        fence,
        index,
        opener_is_lost,
    } = reading;
    // If we stop here: nothing but fsyncs and the roll of events happened, and both can be repeated.
    let mut counts = Counts {
        objects_damaged: length(index.lost.len()).saturating_add(u64::from(opener_is_lost)),
        ..Counts::default()
    };
    let lost = index.lost.clone();
    seal_all(shared, listed, index, sealed, &mut counts).await?;
    // If we stop here: every recording of the epoch has its manifest; the next pass finds them and makes no second one.
    let marker = mark(shared, &fence).await?;
    // If we stop here: the marker says that nothing of the epoch is needed; what is left of it is removed at the next start.
    trim(shared, listed, &marker, &lost).await?;
    Ok(counts)
}

/// Closes an epoch of our own that a failed fsync ended and of which nothing is needed any more: when this returns, its fence
/// says so, and the objects below the number returned may go, but for the opener. `newest` is the last number that was committed.
pub(in crate::store) async fn close_spent(
    shared: &Shared,
    epoch: EpochId,
    newest: JournalNumber,
) -> Result<JournalNumber, StoreError> {
    let recorder = shared.config.recorder();
    let tail = Tail::find(shared, &recorder, &epoch, newest).await?;
    if let Some(fence) = tail.fence {
        let name = layout::journal_object(&recorder, &epoch, tail.number);
        // A fence that leaves something to do is another recorder's, and so is the rest.
        return match fence.is_final() {
            true => shared.objects.sync_anew(&name).await.map(|()| tail.number),
            false => Err(StoreError::ForeignObject {
                name: name.to_string(),
            }),
        };
    }
    let number = tail.number.next();
    let header = ObjectHeader {
        recorder,
        epoch,
        number,
        previous: tail.digest,
        oldest_needed: number,
    };
    match fencing::place(shared, &header, FenceReason::Closed).await? {
        Placed::Fence { .. } => Ok(number),
        // Nobody but us commits to it, and we do not any more.
        Placed::Lost => Err(StoreError::ForeignObject {
            name: layout::journal_object(&recorder, &epoch, number).to_string(),
        }),
    }
}

/// Reads what the epoch's opener says.
async fn read_opener(shared: &Shared, listed: &Listed) -> Result<ReadOpener, StoreError> {
    match opener::read(&shared.objects, &listed.recorder, &listed.epoch).await? {
        ReadOpener::Newer(source) => Err(StoreError::Journal {
            name: listed.opener().to_string(),
            source,
        }),
        read @ (ReadOpener::Absent
        | ReadOpener::Obstructed
        | ReadOpener::Damaged
        | ReadOpener::Whole { .. }) => Ok(read),
    }
}

/// Takes the next number from the epoch's recorder. When this returns, the fence is durable.
async fn fence(shared: &Shared, listed: &Listed, mut tail: Tail) -> Result<Fence, StoreError> {
    for _ in 0..FENCE_TRIES {
        if let Some(fence) = tail.fence {
            let name = layout::journal_object(&listed.recorder, &listed.epoch, tail.number);
            shared.objects.sync_anew(&name).await?;
            return Ok(fence);
        }
        let number = tail.number.next();
        let header = ObjectHeader {
            recorder: listed.recorder,
            epoch: listed.epoch,
            number,
            previous: tail.digest,
            oldest_needed: oldest_needed(shared, listed, &tail).await?,
        };
        match fencing::place(shared, &header, FenceReason::TakenOver).await? {
            Placed::Fence { fence, ours } => {
                // The number may have been free because its recorder lives, and has committed, sealed and trimmed it since we asked: then the
                // object that let it trim stands beyond, and has since before our fence. If we stop here: such a fence is no tail, so whoever
                // comes next looks beyond it.
                let newest = epochs::newest(shared, listed).await?;
                if newest > number {
                    tail = Tail::find(shared, &listed.recorder, &listed.epoch, newest).await?;
                    continue;
                }
                if ours {
                    count(shared, |stats| &mut stats.epochs_fenced);
                }
                return Ok(fence);
            }
            // Its recorder lives and was quicker: that commit counts, and is acked.
            Placed::Lost => {
                tail = Tail::find(shared, &listed.recorder, &listed.epoch, number).await?;
            }
        }
    }
    Err(StoreError::ForeignObject {
        name: layout::journal_object(&listed.recorder, &listed.epoch, tail.number).to_string(),
    })
}

/// What the newest object that can be read says; nothing at all is needed of an epoch that has only its opener.
async fn oldest_needed(
    shared: &Shared,
    listed: &Listed,
    tail: &Tail,
) -> Result<JournalNumber, StoreError> {
    if tail.number == JournalNumber::OPENER {
        return Ok(tail.number.next());
    }
    if let Some(oldest) = tail.oldest_needed {
        return Ok(oldest);
    }
    for number in (1..tail.number.0).rev() {
        let name = layout::journal_object(&listed.recorder, &listed.epoch, JournalNumber(number));
        if let Read::Whole { bytes, .. } = tail::read(shared, &name).await?
            && let Ok(object) = JournalObject::decode(&bytes)
        {
            return Ok(object.header.oldest_needed);
        }
    }
    Ok(JournalNumber::OPENER.next())
}

/// Reads what is needed of the epoch, from the fence downward: each object vouches for the one before it. `None` when another
/// recorder has closed the epoch in the meantime.
async fn read(
    shared: &Arc<Shared>,
    listed: &Listed,
    fence: Fence,
    opener: &ReadOpener,
) -> Result<Option<Reading>, StoreError> {
    let mut index = Index::default();
    let first = fence.header.oldest_needed.max(JournalNumber::OPENER.next());
    let mut expected = Some(fence.header.previous);
    for number in (first.0..fence.header.number.0).rev().map(JournalNumber) {
        let name = layout::journal_object(&listed.recorder, &listed.epoch, number);
        let (bytes, stored_at) = match tail::read(shared, &name).await? {
            Read::Whole { bytes, stored_at } => (bytes, stored_at),
            Read::Absent if is_marked(shared, &fence).await? => return Ok(None),
            lost @ (Read::Absent | Read::Damaged { .. }) => {
                tracing::error!(
                    %name, epoch = %listed.epoch, number = number.0, what = what_is_lost(&lost),
                    "a journal object is lost: recordings with bytes in it have gaps, and events in it are lost"
                );
                index.handle_lost(number);
                expected = None;
                continue;
            }
        };
        let object = JournalObject::decode(&bytes).map_err(|source| StoreError::Journal {
            name: name.to_string(),
            source,
        })?;
        let header = object.header;
        let in_place = (header.recorder, header.epoch, header.number)
            == (listed.recorder, listed.epoch, number);
        let vouched_for = expected.is_none_or(|digest| digest == digest_of(&bytes));
        if !in_place || !vouched_for {
            tracing::error!(
                %name, epoch = %listed.epoch, number = number.0,
                "a journal object is not the one that its successor names: recordings with bytes in it have gaps, and events in it are lost"
            );
            index.handle_lost(number);
            expected = None;
            continue;
        }
        // Its writer may have died before the fsync: what is relied on is brought to the disk first.
        shared.objects.sync(&name).await?;
        expected = Some(header.previous);
        let place = Arc::new(ObjectPlace {
            name,
            number,
            epoch_index: u64::MAX,
        });
        index.handle_object(&place, &object, stored_at);
    }
    let opener_is_lost = match opener {
        ReadOpener::Whole { digest, .. } => {
            // A fence that was placed while its opener could not be hashed vouches for none.
            let vouched = expected.filter(|digest| *digest != [0; 32]);
            let vouched = vouched.filter(|_| first == JournalNumber::OPENER.next());
            let replaced = vouched.is_some_and(|vouched| vouched != *digest);
            if replaced {
                tell_lost_opener(listed, "not the one that its successor names");
            }
            replaced
        }
        ReadOpener::Absent
        | ReadOpener::Obstructed
        | ReadOpener::Damaged
        | ReadOpener::Newer(_) => true,
    };
    Ok(Some(Reading {
        fence,
        index,
        opener_is_lost,
    }))
}

/// In which way an object that was read is lost, with its causes.
fn what_is_lost(read: &Read) -> String {
    match read {
        Read::Whole { .. } => "whole".to_owned(),
        Read::Absent => "absent".to_owned(),
        Read::Damaged { why: None, .. } => "damaged: larger than any journal object".to_owned(),
        Read::Damaged { why: Some(why), .. } => format!("damaged: {}", tell::with_causes(why)),
    }
}

/// In which way an opener that was read is lost, if it is.
const fn why_lost(opener: &ReadOpener) -> Option<&'static str> {
    match opener {
        ReadOpener::Absent => Some("absent"),
        ReadOpener::Obstructed => Some("a directory or a link to nothing stands under its name"),
        ReadOpener::Damaged => Some("damaged"),
        ReadOpener::Whole { .. } | ReadOpener::Newer(_) => None,
    }
}

/// No recording needs its opener: what is lost are the only words on whose the epoch was.
fn tell_lost_opener(listed: &Listed, what: &'static str) {
    tracing::error!(
        name = %listed.opener(), epoch = %listed.epoch, what,
        "the opener of an epoch is lost: which store and which log key the epoch was of, and which epoch came before it, is not told any more; its recordings are recovered"
    );
}

/// Whether the marker stands behind the fence: everything of the epoch is sealed, and may be gone.
async fn is_marked(shared: &Shared, fence: &Fence) -> Result<bool, StoreError> {
    let header = &fence.header;
    let name = layout::journal_object(&header.recorder, &header.epoch, header.number.next());
    let marker = shared.objects.read(&name).await?;
    Ok(marker.is_some_and(|bytes| Fence::of(&bytes).is_some_and(|fence| fence.is_final())))
}

async fn seal_all(
    shared: &Arc<Shared>,
    listed: &Listed,
    index: Index,
    sealed: &mut BTreeSet<RecordingId>,
    counts: &mut Counts,
) -> Result<(), StoreError> {
    let lost = index.lost;
    let mut sealed_before = BTreeSet::new();
    let has_opening = |found: &Found| found.opening().is_some();
    if !lost.is_empty() && !index.recordings.values().all(has_opening) {
        sealed_before = sealed_recordings(shared).await?;
    }
    let jobs = index.recordings.into_iter().filter_map(|(id, found)| {
        // What is unsealed has its opening in what is needed of the journal, unless that is damaged.
        let dropped = found.opening().is_none() && (lost.is_empty() || sealed_before.contains(&id));
        if dropped {
            counts.recordings_dropped = counts.recordings_dropped.saturating_add(1);
        }
        (!dropped).then(|| job_of(listed, id, found, &lost))
    });
    let jobs: Vec<SealJob> = jobs.collect();
    let mut settled = stream::iter(jobs)
        .map(|job| async move { (job.id, settle(shared, &job).await) })
        .buffer_unordered(SEALS_AT_ONCE_MAX);
    let mut failure = None;
    while let Some((id, result)) = settled.next().await {
        match result {
            Ok(Settled::Sealed) => {
                sealed.insert(id);
            }
            Ok(Settled::Adopted) if !sealed.contains(&id) => {
                counts.recordings_adopted = counts.recordings_adopted.saturating_add(1);
            }
            Ok(Settled::Adopted) => {}
            Err(error) => {
                tracing::warn!(recording = %id, error = error.with_causes(), "a recovered recording is not sealed yet");
                failure = Some(error);
                continue;
            }
        }
        counts.recordings_found = counts.recordings_found.saturating_add(1);
    }
    failure.map_or(Ok(()), Err)
}

/// Adopts the manifest that is there, or seals.
async fn settle(shared: &Shared, job: &SealJob) -> Result<Settled, StoreError> {
    let uploader = &job.opening.uploader.stable_id;
    let manifest = layout::manifest(uploader, job.opening.received_at, &job.id);
    if writer::adopt_if_sealed(shared, job.id, &manifest)
        .await?
        .is_some()
    {
        return Ok(Settled::Adopted);
    }
    // If we stop here, or anywhere in the attempt: no manifest, the journal has all, segments are orphans.
    match writer::attempt(shared, job).await? {
        Sealed::Ours(recording) => {
            tracing::info!(recording = %job.id, bytes = recording.bytes, gaps = job.gaps.len(), "a recording is recovered");
            shared.recovery.send_modify(|status| {
                let stats = &mut status.stats;
                stats.recordings_sealed = stats.recordings_sealed.saturating_add(1);
                stats.bytes = stats.bytes.saturating_add(recording.bytes);
            });
            Ok(Settled::Sealed)
        }
        Sealed::Theirs(_) => Ok(Settled::Adopted),
    }
}

fn job_of(listed: &Listed, id: RecordingId, mut found: Found, lost: &[JournalNumber]) -> SealJob {
    let mut flags = vec![FLAG_RECOVERED.to_owned()];
    let opening = found.opening().cloned().unwrap_or_else(|| {
        flags.push(FLAG_OPENING_LOST.into());
        lost_opening(&listed.epoch)
    });
    let (spans, plan) = found.plan(lost);
    let source_node = found.take_source_node();
    let received = found.close.as_ref().map(|close| Received {
        bytes: StreamOffset(close.bytes),
        sha256: close.cast_sha256.0,
    });
    let end = match found.close {
        Some(close) => {
            flags.extend(close.flags);
            End {
                clean: close.clean,
                reason: close.reason,
                ended_at: close.ended_at,
                flags,
            }
        }
        None => End {
            clean: false,
            reason: STOPPED_REASON.into(),
            ended_at: found.stored_at,
            flags,
        },
    };
    SealJob {
        id,
        opening: Arc::new(opening),
        end,
        spans,
        length: StreamOffset(plan.length),
        received,
        cut: found.cut.take().map(Arc::new),
        gaps: plan.gaps,
        source_node,
    }
}

/// What stands in for an opening that is lost: the same for whoever recovers it, since it goes into the manifest's name.
fn lost_opening(epoch: &EpochId) -> OpenRecord {
    let started_ms = i64::try_from(epoch.started_ms()).unwrap_or(i64::MAX);
    OpenRecord {
        uploader: Identity {
            stable_id: UNKNOWN_UPLOADER.into(),
            node_name: String::new(),
            user: None,
            tags: Vec::new(),
            address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            capabilities: std::collections::BTreeMap::new(),
        },
        endpoint: String::new(),
        received_at: Timestamp::from_millisecond(started_ms).unwrap_or_default(),
    }
}

/// The ids of all sealed recordings, by listing: asked only when the journal is damaged.
async fn sealed_recordings(shared: &Shared) -> Result<BTreeSet<RecordingId>, StoreError> {
    let prefix = layout::recordings();
    let mut names = shared.objects.store().list(Some(&prefix));
    let mut ids = BTreeSet::new();
    while let Some(object) = epochs::next_listed(&mut names, &prefix).await? {
        ids.extend(layout::manifest_of(&object.location));
    }
    Ok(ids)
}

/// Says, durably, that nothing before is needed: by the fence itself if it said so from the start, else by a second one.
async fn mark(shared: &Shared, fence: &Fence) -> Result<Fence, StoreError> {
    if fence.is_final() {
        return Ok(*fence);
    }
    let number = fence.header.number.next();
    let header = ObjectHeader {
        number,
        previous: fence.digest,
        oldest_needed: number,
        ..fence.header
    };
    match fencing::place(shared, &header, FenceReason::Recovered).await? {
        Placed::Fence { fence, .. } => Ok(fence),
        Placed::Lost => Err(StoreError::ForeignObject {
            name: layout::journal_object(&header.recorder, &header.epoch, number).to_string(),
        }),
    }
}

/// Removes everything below the marker but the opener, the fence, and what is damaged and somebody may want to look at.
async fn trim(
    shared: &Shared,
    listed: &Listed,
    marker: &Fence,
    damaged: &[JournalNumber],
) -> Result<(), StoreError> {
    for name in epochs::numbers_below(shared, listed, marker.header.number).await? {
        let number = layout::journal_place_of(&name).map(|(_, _, number)| number);
        if number.is_some_and(|number| damaged.contains(&number)) {
            continue;
        }
        if is_fence_below(shared, &name, marker, number).await? {
            continue;
        }
        // If we stop here: the rest is removed by the next start, which finds the marker.
        let deleting = shared.objects.store().delete(&name);
        match tokio::time::timeout(ANSWER_TIMEOUT, deleting).await {
            Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
            Err(_) => tracing::warn!(%name, "a journal object that is not needed stays: no answer"),
            Ok(Err(error)) => {
                tracing::warn!(%name, error = tell::with_causes(&error), "a journal object that is not needed stays");
            }
        }
    }
    Ok(())
}

/// Whether `name` is the fence right below its marker: removed, it would let its old recorder write again.
async fn is_fence_below(
    shared: &Shared,
    name: &object_store::path::Path,
    marker: &Fence,
    number: Option<JournalNumber>,
) -> Result<bool, StoreError> {
    if number.map(JournalNumber::next) != Some(marker.header.number) {
        return Ok(false);
    }
    let bytes = shared.objects.read(name).await?;
    Ok(bytes.is_some_and(|bytes| Fence::of(&bytes).is_some()))
}

fn count(shared: &Shared, of: impl FnOnce(&mut super::RecoveryStats) -> &mut u64) {
    shared.recovery.send_modify(|status| {
        let counter = of(&mut status.stats);
        *counter = counter.saturating_add(1);
    });
}

fn length(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}
