//! Group commit: frames of all recordings in, durable offsets out.
//!
//! Invariant: one commit is in flight; the bytes of number N are fixed at the first send and N+1 is not begun before
//! N is resolved; offsets move only after that. The order of a commit, and what is true if we stop right there, is
//! written beside [`Committer::commit`]. Called by [`super::Store::open`], which runs the committer as a task.

mod fence_watch;
mod trim;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::create::{Created, Patience, RETRY_PAUSE};
use super::error::StoreError;
use super::opener::Opener;
use super::pace::Pace;
use super::repeats::Repeats;
use super::state::{Batch, BatchItem, Move, ObjectPlace, Placed};
use super::{Shared, compaction, layout, store_id};
use crate::ids::{EpochId, JournalNumber, RecordingId, StreamOffset};
use crate::recording::compression::Compressor;
use crate::recording::frame::{FRAME_PLAIN_BYTES_MAX, FrameKind};
use crate::recording::journal_object::{
    OBJECT_BYTES_MAX, OBJECT_HEADER_BYTES, OBJECT_TRAILER_BYTES, ObjectDigest, ObjectError,
    ObjectHeader, ObjectWriter,
};
use fence_watch::{FenceWatch, Next};

/// What the frames of one object may take, unpacked.
const BATCH_BYTES_MAX: usize = OBJECT_BYTES_MAX - OBJECT_HEADER_BYTES - OBJECT_TRAILER_BYTES;
/// Above this, encoding takes long enough (0.1 ms) to be worth a thread of its own.
const ENCODE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often the start tries to claim an epoch before it gives up.
const CLAIM_TRIES: u32 = 3;
/// How many milliseconds one claim tries when another process has them: each has random bits of its own, so one more is enough.
const CLAIM_MOMENTS_MAX: u64 = 16;
/// How many objects one commit may trim: the rest goes with the next.
const TRIM_AT_ONCE_MAX: u64 = 256;
/// How often an idle recorder of a fleet commits an empty object (store rule 11): the others take over after 90 s without.
const FLEET_BEAT: Duration = Duration::from_secs(20);
/// How often the fence of a clean close is tried.
const CLOSE_TRIES: u32 = 3;

/// How often the disk is asked for its room while nothing is committed: others may fill it, whether we record or not.
const DISK_LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The journal's one writer.
pub(super) struct Committer {
    shared: Arc<Shared>,
    epoch: Epoch,
    fence_watch: FenceWatch,
    /// The epochs of this process that a failed fsync ended and that were not trimmed yet, by index.
    ended_epochs: BTreeMap<u64, EpochId>,
    /// Used by one encoding at a time; shared only to reach its thread.
    compressor: Arc<Mutex<Compressor>>,
}

struct Epoch {
    id: EpochId,
    /// Counts the epochs of this process.
    index: u64,
    next: JournalNumber,
    previous: ObjectDigest,
    /// Objects below this one are trimmed, but for the opener.
    trimmed: JournalNumber,
}

/// An object, encoded: its parts come back with the ranges of their frames.
struct Encoded {
    bytes: Bytes,
    digest: ObjectDigest,
    placed: Placed,
}

/// Why the committer waits no longer.
enum Due {
    Commit,
    /// The store is closed and nothing is pending.
    End,
    /// Another recorder wrote our next number.
    Fenced,
}

impl Committer {
    /// Claims the first epoch of this process.
    pub(super) async fn claim_epoch(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let previous = newest_epoch(&shared).await?;
        let epoch = claim(&shared, 0, previous, Patience::Tries(CLAIM_TRIES)).await?;
        let compressor = Compressor::new().map_err(StoreError::Compress)?;
        let now = tokio::time::Instant::now().into_std();
        let fence_watch = FenceWatch::new(shared.config.fence_look_interval, now);
        Ok(Self {
            shared,
            epoch,
            fence_watch,
            ended_epochs: BTreeMap::new(),
            compressor: Arc::new(Mutex::new(compressor)),
        })
    }

    /// Commits until the store is closed or fenced.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut pace = Pace::new(shared.config.commit_interval, shared.config.commit_bytes);
        loop {
            match self.wait_until_due(&pace).await {
                Due::Commit => {}
                Due::End => break,
                Due::Fenced => {
                    // If we stop here: nothing is in flight; what was pending was never acked.
                    let number = self.epoch.next;
                    let gone = shared.objects.still_there().await.err();
                    stop(&shared, gone.unwrap_or(StoreError::Fenced { number }));
                    return;
                }
            }
            let now = tokio::time::Instant::now().into_std();
            let (batch, oldest_needed, left_behind) = {
                let mut state = shared.state();
                let batch = state.take_batch(BATCH_BYTES_MAX, now);
                let oldest_needed = state.oldest_needed(self.epoch.index, self.epoch.next, &batch);
                (batch, oldest_needed, state.has_queue())
            };
            pace.handle_commit(now, left_behind);
            let committed = watch_for_stall(&shared, self.commit(batch, oldest_needed)).await;
            if let Err(error) = committed {
                stop(&shared, error);
                return;
            }
            let now = tokio::time::Instant::now().into_std();
            self.fence_watch.handle_commit(now);
            self.compact();
            shared.wake_roller.notify_one();
            shared.events_settled.notify_waiters();
            shared.look_at_disk().await;
        }
        self.close_epoch().await;
    }

    /// Waits for a commit to be due, or for another end of the waiting.
    async fn wait_until_due(&mut self, pace: &Pace) -> Due {
        let next = Next {
            epoch: self.epoch.id,
            number: self.epoch.next,
        };
        let watches_disk = self.shared.has_disk_limit();
        let since = tokio::time::Instant::now();
        // Neither waits longer because the other came first.
        let (beat_at, mut look_at) = (since + FLEET_BEAT, since + DISK_LOOK_INTERVAL);
        loop {
            let (wish, finishing) = {
                let state = self.shared.state();
                (state.commit_wish(), state.is_finishing())
            };
            let woken = self.shared.wake_committer.notified();
            match wish {
                None if finishing => return Due::End,
                None => {
                    let shared = &self.shared;
                    let fenced = self.fence_watch.fenced(shared, next, None);
                    let looked = async {
                        tokio::time::sleep_until(look_at).await;
                        // A commit does not wait for a disk that is slow to say.
                        shared.look_at_disk().await;
                    };
                    tokio::select! {
                        biased;
                        // An empty object says to the others of a fleet that we live.
                        () = tokio::time::sleep_until(beat_at), if shared.config.fleet => return Due::Commit,
                        () = woken => {}
                        () = looked, if watches_disk => {
                            look_at = tokio::time::Instant::now() + DISK_LOOK_INTERVAL;
                        }
                        () = fenced => return Due::Fenced,
                    }
                }
                Some(_) if finishing => return Due::Commit,
                Some(wish) => {
                    let now = tokio::time::Instant::now().into_std();
                    let due = pace.due(now, wish);
                    if due <= now {
                        return Due::Commit;
                    }
                    let fenced = self.fence_watch.fenced(&self.shared, next, Some(due));
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = woken => {}
                        () = fenced => return Due::Fenced,
                    }
                }
            }
        }
    }

    /// One commit. An error is the end of the journal: fenced, or an object that cannot be made.
    async fn commit(
        &mut self,
        batch: Batch,
        oldest_needed: JournalNumber,
    ) -> Result<(), StoreError> {
        let header = ObjectHeader {
            recorder: self.shared.config.recorder(),
            epoch: self.epoch.id,
            number: self.epoch.next,
            previous: self.epoch.previous,
            oldest_needed,
        };
        let name = layout::journal_object(&header.recorder, &header.epoch, header.number);
        let place = Arc::new(ObjectPlace {
            name,
            number: header.number,
            epoch_index: self.epoch.index,
        });
        let encoded = self.encode(header, batch).await?;
        // If we stop here: the batch is lost. It was never acked; the uploader replays it elsewhere. What compaction
        // copied stands in its old place.
        let created = self
            .shared
            .objects
            .create_telling(
                &place.name,
                &encoded.bytes,
                Patience::Endless,
                &self.shared.journal_puts,
                |trouble| self.shared.note_trouble(trouble),
            )
            .await?;
        match created {
            Created::Durable => {}
            Created::Different(_) => {
                // If we stop here: another recorder owns the epoch's end and seals what stands before it. Ours never counts.
                let number = header.number;
                let error = Arc::new(StoreError::Fenced { number });
                let lost = encoded.placed.into_batch();
                let mut state = self.shared.state();
                state.fail_all(&error, lost, &self.shared.space);
                return Err(StoreError::Fenced { number });
            }
            Created::Poisoned(source) => {
                // If we stop here: the object may or may not survive the power. Nothing of it was acked.
                let error = StoreError::SyncFailed {
                    name: place.name.to_string(),
                    source,
                };
                self.shared.note_trouble(&error);
                let error = Arc::new(error);
                tracing::error!(
                    error = error.with_causes(),
                    "the epoch is poisoned; a new one begins"
                );
                {
                    let mut state = self.shared.state();
                    // It may stand there, needed by nobody: it goes when its epoch does.
                    let bytes = u64::try_from(encoded.bytes.len()).unwrap_or_default();
                    state.ledger.handle_object(place.key(), bytes, 0);
                    let lost = encoded.placed.into_batch();
                    state.fail_all(&error, lost, &self.shared.space);
                }
                return self.begin_new_epoch().await;
            }
        }
        // The commit point is passed. If we stop here: the bytes are durable, the uploader was not told; it sends
        // them again elsewhere, and recovery keeps both, each under its own id. Copies stand in both places.
        let number = header.number;
        self.epoch.next = number.next();
        self.epoch.previous = encoded.digest;
        let now = tokio::time::Instant::now().into_std();
        let trimmable = {
            let mut state = self.shared.state();
            let bytes = encoded.bytes.len();
            state.settle(&place, bytes, encoded.placed, &self.shared.space, now);
            // Somebody may have begun to read the old place of a copy since the object was made: it stays for them.
            let needed = state.oldest_needed(self.epoch.index, number, &Batch::default());
            needed.min(oldest_needed).min(number)
        };
        // If we stop here: offsets moved and every byte below them is durable. Acks follow.
        self.trim(trimmable);
        // If we stop here: some objects below the durable `oldest_needed` are left; recovery may remove them.
        self.trim_ended_epochs();
        // If we stop here: the same of epochs that were poisoned; every recording in them has its manifest.
        self.shared
            .state()
            .handle_journal(self.shared.config.journal_bytes_max);
        Ok(())
    }

    /// Starts the reading of what compaction copies into the next object, off the ack path.
    fn compact(&self) {
        let now = tokio::time::Instant::now().into_std();
        let planned = self.shared.state().plan_compaction(self.epoch.index, now);
        if planned.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(async move {
            let moves = compaction::read_moves(&shared.objects, planned).await;
            shared.state().handle_moves_read(moves);
            shared.wake_committer.notify_one();
        });
    }

    /// Fixes the bytes of the object. Large batches are packed off the runtime's threads.
    async fn encode(&self, header: ObjectHeader, batch: Batch) -> Result<Encoded, StoreError> {
        let recorded: usize = batch.items.iter().map(|item| item.data.len()).sum();
        let copied: usize = batch.moves.iter().map(|one| one.frames.len()).sum();
        let of_events: usize = batch.events.iter().map(|frame| frame.bytes.len()).sum();
        let plain_bytes = recorded.saturating_add(copied).saturating_add(of_events);
        let compressor = Arc::clone(&self.compressor);
        let encode = move || {
            let mut compressor = compressor.lock().unwrap_or_else(PoisonError::into_inner);
            encode_object(&header, batch, &mut compressor)
        };
        if plain_bytes <= ENCODE_INLINE_BYTES_MAX {
            return encode();
        }
        tokio::task::spawn_blocking(encode)
            .await
            .map_err(|_| StoreError::TaskLost)?
    }

    /// The old epoch's objects stay as they are: recordings in them are sealed from there, or recovered.
    async fn begin_new_epoch(&mut self) -> Result<(), StoreError> {
        let index = self.epoch.index.saturating_add(1);
        let mut repeats = Repeats::default();
        loop {
            match claim(&self.shared, index, Some(self.epoch.id), Patience::Tries(1)).await {
                Ok(epoch) => {
                    let ended = std::mem::replace(&mut self.epoch, epoch);
                    self.ended_epochs.insert(ended.index, ended.id);
                    self.shared.state().handle_commit();
                    return Ok(());
                }
                Err(error)
                    if self.shared.state().is_finishing()
                        || matches!(error, StoreError::Replaced { .. }) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    self.shared.note_trouble(&error);
                    let now = tokio::time::Instant::now().into_std();
                    if let Some(so_far) = repeats.handle_trouble(now) {
                        tracing::error!(
                            error = error.with_causes(),
                            failing_seconds = so_far.as_secs(),
                            "no new epoch yet; it will be tried again"
                        );
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

/// The end of the journal: no commit will follow, and everybody is told.
fn stop(shared: &Shared, error: StoreError) {
    tracing::error!(error = error.with_causes(), "the journal stops");
    shared.state().halt(error, &shared.space);
    shared.events_settled.notify_waiters();
}

/// Says that the store is stalled while `commit` goes on past the limit: it is the probe that finds the store back.
async fn watch_for_stall<T>(shared: &Shared, commit: impl Future<Output = T>) -> T {
    let limit = shared.config.store_stall_limit;
    let started = shared.state().unproven_since();
    let stalls_at = started.and_then(|started| started.checked_add(limit));
    let mut commit = std::pin::pin!(commit);
    if let Some(stalls_at) = stalls_at {
        tokio::select! {
            biased;
            done = &mut commit => return done,
            () = tokio::time::sleep_until(stalls_at.into()) => {}
        }
        let trouble = shared.last_trouble();
        shared.state().handle_stall(limit, trouble);
    }
    commit.await
}

fn encode_object(
    header: &ObjectHeader,
    batch: Batch,
    compressor: &mut Compressor,
) -> Result<Encoded, StoreError> {
    let failed = |source| StoreError::Journal {
        name: layout::journal_object(&header.recorder, &header.epoch, header.number).to_string(),
        source,
    };
    let mut writer = ObjectWriter::new(header);
    let mut placed = Placed::default();
    let mut copies = BTreeMap::<RecordingId, Vec<Move>>::new();
    for one in batch.moves {
        copies.entry(one.id).or_default().push(one);
    }
    // Copies go right before the new bytes of the same recording: its frames stand side by side.
    for item in batch.items {
        for one in copies.remove(&item.id).unwrap_or_default() {
            let frames = push_copy(&mut writer, &one).map_err(failed)?;
            placed.moves.push((one, frames));
        }
        let frames = push_frames(&mut writer, &item, compressor).map_err(failed)?;
        placed.items.push((item, frames));
    }
    for one in copies.into_values().flatten() {
        let frames = push_copy(&mut writer, &one).map_err(failed)?;
        placed.moves.push((one, frames));
    }
    for frame in batch.events {
        let start = position(&writer).map_err(failed)?;
        let nobody = RecordingId::from_bytes([0; RecordingId::BYTES]);
        let (kind, offset) = (FrameKind::Event, StreamOffset(0));
        writer
            .push(Some(&mut *compressor), kind, nobody, offset, &frame.bytes)
            .map_err(failed)?;
        let end = position(&writer).map_err(failed)?;
        placed.events.push((frame, start..end));
    }
    let (bytes, digest) = writer.finish();
    Ok(Encoded {
        bytes,
        digest,
        placed,
    })
}

fn push_copy(writer: &mut ObjectWriter, one: &Move) -> Result<Range<u32>, ObjectError> {
    let start = position(writer)?;
    writer.push_encoded(&one.frames, one.frame_count)?;
    Ok(start..position(writer)?)
}

/// Writes the frames of one recording side by side; returns where.
fn push_frames(
    writer: &mut ObjectWriter,
    item: &BatchItem,
    compressor: &mut Compressor,
) -> Result<Range<u32>, ObjectError> {
    let start = position(writer)?;
    let offset = item.offset;
    let mut push = |kind, offset, bytes: &[u8]| {
        writer.push(Some(&mut *compressor), kind, item.id, offset, bytes)
    };
    if let Some(open) = &item.open {
        push(FrameKind::Open, StreamOffset(0), open)?;
    }
    let mut end = offset.0;
    for piece in item.data.chunks(FRAME_PLAIN_BYTES_MAX) {
        push(FrameKind::Data, StreamOffset(end), piece)?;
        end = end.saturating_add(u64::try_from(piece.len()).unwrap_or_default());
    }
    for record in &item.records {
        push(record.kind, record.offset, &record.bytes)?;
    }
    if let Some(close) = &item.close {
        push(FrameKind::Close, StreamOffset(end), close)?;
    }
    Ok(start..position(writer)?)
}

fn position(writer: &ObjectWriter) -> Result<u32, ObjectError> {
    u32::try_from(writer.position()).map_err(|_| ObjectError::TooLarge(writer.position()))
}

/// Claims an epoch by creating its number 0. Where another process has drawn the same epoch in the same millisecond, as copies of one
/// virtual machine may, it is the other's, and the next millisecond is ours.
async fn claim(
    shared: &Shared,
    index: u64,
    previous: Option<EpochId>,
    patience: Patience,
) -> Result<Epoch, StoreError> {
    let now_ms = u64::try_from((shared.wall_clock)().as_millisecond()).unwrap_or_default();
    let mut taken = String::new();
    for started_ms in now_ms..now_ms.saturating_add(CLAIM_MOMENTS_MAX) {
        let id = shared.draw(|rng| EpochId::random(started_ms, rng));
        match claim_as(shared, id, index, previous, patience).await? {
            Claimed::Ours(epoch) => return Ok(epoch),
            Claimed::Taken { name } => {
                tracing::warn!(%name, "another process has claimed the same epoch: the next is taken");
                taken = name;
            }
        }
    }
    Err(StoreError::ForeignObject { name: taken })
}

/// What became of a claim.
enum Claimed {
    Ours(Epoch),
    /// Another's opener stands there.
    Taken {
        name: String,
    },
}

async fn claim_as(
    shared: &Shared,
    id: EpochId,
    index: u64,
    previous: Option<EpochId>,
    patience: Patience,
) -> Result<Claimed, StoreError> {
    // Before it exists, so that our own recovery never takes it for a dead one.
    shared.note_own_epoch(id);
    let opener = Opener {
        log_key: shared.config.log_key,
        epoch: id,
        store_id: shared.store_id,
        previous_epoch: previous,
    };
    let name = opener.name();
    let (bytes, digest) = opener.encode()?;
    match shared
        .objects
        .create(&name, &bytes, patience, &shared.journal_puts)
        .await?
    {
        // Every later object of the epoch stands in this directory: once for all of them.
        Created::Durable => shared.objects.sync(&name).await?,
        Created::Different(_) => {
            // It is a dead epoch like any other once its process has ended, and recovery is to find it.
            shared.forget_own_epoch(id);
            return Ok(Claimed::Taken {
                name: name.to_string(),
            });
        }
        Created::Poisoned(source) => {
            return Err(StoreError::SyncFailed {
                name: name.to_string(),
                source,
            });
        }
    }
    shared.state().note_epoch();
    Ok(Claimed::Ours(Epoch {
        id,
        index,
        next: JournalNumber::OPENER.next(),
        previous: digest,
        trimmed: JournalNumber::OPENER.next(),
    }))
}

/// The newest epoch of this recorder that a listing shows: a hint for people and for recovery, never a proof.
async fn newest_epoch(shared: &Shared) -> Result<Option<EpochId>, StoreError> {
    let of_recorder = layout::journal_of(&shared.config.recorder());
    let epochs = store_id::names_in::<EpochId>(&shared.objects, &of_recorder).await?;
    Ok(epochs.into_iter().max())
}
