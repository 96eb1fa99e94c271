//! Group commit: frames of all recordings in, durable offsets out.
//!
//! Invariant: one commit is in flight; the bytes of number N are fixed at the first send and N+1 is not begun before
//! N is resolved; offsets move only after that. The order of a commit, and what is true if we stop right there, is
//! written beside [`Committer::commit`]. Called by [`super::Store::open`], which runs the committer as a task.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};

use super::create::{Created, Patience, RETRY_PAUSE};
use super::error::StoreError;
use super::pace::Pace;
use super::state::{BatchItem, ObjectPlace};
use super::{Shared, layout, recovery};
use crate::ids::{EpochId, JournalNumber, LogKey, RecorderId, RecordingId, StoreId, StreamOffset};
use crate::recording::compression::Compressor;
use crate::recording::frame::{FRAME_PLAIN_BYTES_MAX, FrameKind};
use crate::recording::journal_object::{
    OBJECT_BYTES_MAX, OBJECT_HEADER_BYTES, OBJECT_TRAILER_BYTES, ObjectDigest, ObjectError,
    ObjectHeader, ObjectWriter,
};
use crate::recording::records::FenceReason;

/// What the frames of one object may take, unpacked.
const BATCH_BYTES_MAX: usize = OBJECT_BYTES_MAX - OBJECT_HEADER_BYTES - OBJECT_TRAILER_BYTES;
/// Above this, encoding takes long enough (0.1 ms) to be worth a thread of its own.
const ENCODE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often the start tries to claim an epoch before it gives up.
const CLAIM_TRIES: u32 = 3;
/// How many objects one commit may trim: the rest goes with the next.
const TRIM_AT_ONCE_MAX: u64 = 256;
/// How often an idle recorder of a fleet commits an empty object (store rule 11): the others take over after 90 s without.
const FLEET_BEAT: Duration = Duration::from_secs(20);
/// How often the fence of a clean close is tried.
const CLOSE_TRIES: u32 = 3;

/// The JSON in an opener, object 0 of an epoch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OpenerRecord {
    version: u32,
    recorder: RecorderId,
    log_key: LogKey,
    epoch: EpochId,
    store_id: StoreId,
    /// The epoch that this recorder knew to be its last; absent at the first, or when none was found.
    previous_epoch: Option<EpochId>,
}

/// The journal's one writer.
pub(super) struct Committer {
    shared: Arc<Shared>,
    epoch: Epoch,
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

/// An object, encoded: the items come back with the ranges of their frames.
struct Encoded {
    bytes: Bytes,
    digest: ObjectDigest,
    batch: Vec<(BatchItem, Range<u32>)>,
}

impl Committer {
    /// Claims the first epoch of this process.
    pub(super) async fn claim_epoch(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let previous = newest_epoch(&shared).await?;
        let epoch = claim(&shared, 0, previous, Patience::Tries(CLAIM_TRIES)).await?;
        let compressor = Compressor::new().map_err(StoreError::Compress)?;
        Ok(Self {
            shared,
            epoch,
            compressor: Arc::new(Mutex::new(compressor)),
        })
    }

    /// Commits until the store is closed or fenced.
    pub(super) async fn run(mut self) {
        let config = &self.shared.config;
        let mut pace = Pace::new(config.commit_interval, config.commit_bytes);
        while self.wait_until_due(&pace).await {
            let now = tokio::time::Instant::now().into_std();
            let (batch, oldest_needed, left_behind) = {
                let mut state = self.shared.state();
                let batch = state.take_batch(BATCH_BYTES_MAX, now);
                let oldest_needed = state.oldest_needed(self.epoch.index, self.epoch.next);
                (batch, oldest_needed, state.has_queue())
            };
            pace.handle_commit(now, left_behind);
            if let Err(error) = self.commit(batch, oldest_needed).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the journal stops"
                );
                self.shared.state().halt(error, &self.shared.space);
                return;
            }
        }
        self.close_epoch().await;
    }

    /// The last act: our own fence, so that the next start has nothing to take over. What it says of the oldest object that is
    /// needed is what recovery relies on; without the fence recovery makes one.
    async fn close_epoch(&mut self) {
        let number = self.epoch.next;
        let oldest_needed = self.shared.state().oldest_needed(self.epoch.index, number);
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

    /// Waits for a commit to be due; false when the store is closed and nothing is pending.
    async fn wait_until_due(&self, pace: &Pace) -> bool {
        loop {
            let (wish, finishing) = {
                let state = self.shared.state();
                (state.commit_wish(), state.is_finishing())
            };
            let woken = self.shared.wake_committer.notified();
            match wish {
                None if finishing => return false,
                None if self.shared.config.fleet => {
                    // An empty object says to the others that we live.
                    if tokio::time::timeout(FLEET_BEAT, woken).await.is_err() {
                        return true;
                    }
                }
                None => woken.await,
                Some(_) if finishing => return true,
                Some(wish) => {
                    let now = tokio::time::Instant::now().into_std();
                    let due = pace.due(now, wish);
                    if due <= now {
                        return true;
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = woken => {}
                    }
                }
            }
        }
    }

    /// One commit. An error is the end of the journal: fenced, or an object that cannot be made.
    async fn commit(
        &mut self,
        batch: Vec<BatchItem>,
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
        let encoded = self.encode(header, batch).await?;
        // If we stop here: the batch is lost. It was never acked; the uploader replays it elsewhere.
        let created = self
            .shared
            .objects
            .create(
                &name,
                &encoded.bytes,
                Patience::Endless,
                &self.shared.journal_puts,
            )
            .await?;
        match created {
            Created::Durable => {}
            Created::Different(_) => {
                // If we stop here: another recorder owns the epoch's end and seals what stands before it. Ours never counts.
                let error = StoreError::Fenced {
                    number: header.number,
                };
                self.give_back(encoded.batch);
                return Err(error);
            }
            Created::Poisoned(source) => {
                // If we stop here: the object may or may not survive the power. Nothing of it was acked.
                let error = Arc::new(StoreError::SyncFailed {
                    name: name.to_string(),
                    source,
                });
                tracing::error!(
                    error = &*error as &dyn std::error::Error,
                    "the epoch is poisoned; a new one begins"
                );
                self.shared.state().fail_all(
                    &error,
                    encoded.batch.into_iter().map(|(item, _)| item).collect(),
                    &self.shared.space,
                );
                return self.begin_new_epoch().await;
            }
        }
        // The commit point is passed. If we stop here: the bytes are durable, the uploader was not told; it sends
        // them again elsewhere, and recovery keeps both, each under its own id.
        let number = header.number;
        self.epoch.next = number.next();
        self.epoch.previous = encoded.digest;
        let place = Arc::new(ObjectPlace {
            name,
            number,
            epoch_index: self.epoch.index,
        });
        {
            let mut state = self.shared.state();
            state.note_object(encoded.bytes.len());
            state.settle(&place, encoded.batch, &self.shared.space);
        }
        // If we stop here: offsets moved and every byte below them is durable. Acks follow.
        self.trim(oldest_needed.min(number));
        // If we stop here: some objects below the durable `oldest_needed` are left; recovery may remove them.
        Ok(())
    }

    /// Fixes the bytes of the object. Large batches are packed off the runtime's threads.
    async fn encode(
        &self,
        header: ObjectHeader,
        batch: Vec<BatchItem>,
    ) -> Result<Encoded, StoreError> {
        let plain_bytes: usize = batch.iter().map(|item| item.data.len()).sum();
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

    fn give_back(&self, batch: Vec<(BatchItem, Range<u32>)>) {
        let error = Arc::new(StoreError::Fenced {
            number: self.epoch.next,
        });
        let items = batch.into_iter().map(|(item, _)| item).collect();
        self.shared
            .state()
            .fail_all(&error, items, &self.shared.space);
    }

    /// The old epoch's objects stay as they are: recordings in them are sealed from there, or recovered.
    async fn begin_new_epoch(&mut self) -> Result<(), StoreError> {
        let index = self.epoch.index.saturating_add(1);
        loop {
            match claim(&self.shared, index, Some(self.epoch.id), Patience::Tries(1)).await {
                Ok(epoch) => {
                    self.epoch = epoch;
                    return Ok(());
                }
                Err(error) if self.shared.state().is_finishing() => return Err(error),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "no new epoch yet; it will be tried again"
                    );
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Removes what a durable object says is not needed: never the opener, never what only memory says.
    /// True when something is left to trim.
    fn trim(&mut self, oldest_needed: JournalNumber) -> bool {
        let from = self.epoch.trimmed.max(JournalNumber::OPENER.next()).0;
        let to = oldest_needed.0.min(from.saturating_add(TRIM_AT_ONCE_MAX));
        if from >= to {
            return false;
        }
        self.epoch.trimmed = JournalNumber(to);
        let (shared, epoch) = (Arc::clone(&self.shared), self.epoch.id);
        let removal = async move {
            for number in from..to {
                let name = layout::journal_object(
                    &shared.config.recorder(),
                    &epoch,
                    JournalNumber(number),
                );
                if let Err(error) = shared.objects.store().delete(&name).await {
                    tracing::warn!(%name, %error, "a journal object that is not needed stays");
                }
            }
        };
        self.shared.tasks.spawn_on(removal, &self.shared.runtime);
        to < oldest_needed.0
    }
}

fn encode_object(
    header: &ObjectHeader,
    batch: Vec<BatchItem>,
    compressor: &mut Compressor,
) -> Result<Encoded, StoreError> {
    let failed = |source| StoreError::Journal {
        name: layout::journal_object(&header.recorder, &header.epoch, header.number).to_string(),
        source,
    };
    let mut writer = ObjectWriter::new(header);
    let mut placed = Vec::with_capacity(batch.len());
    for item in batch {
        let frames = push_frames(&mut writer, &item, compressor).map_err(failed)?;
        placed.push((item, frames));
    }
    let (bytes, digest) = writer.finish();
    Ok(Encoded {
        bytes,
        digest,
        batch: placed,
    })
}

/// Writes the frames of one recording side by side; returns where.
fn push_frames(
    writer: &mut ObjectWriter,
    item: &BatchItem,
    compressor: &mut Compressor,
) -> Result<Range<u32>, ObjectError> {
    let start = position(writer)?;
    if let Some(open) = &item.open {
        writer.push(
            Some(&mut *compressor),
            FrameKind::Open,
            item.id,
            StreamOffset(0),
            open,
        )?;
    }
    let mut offset = item.offset.0;
    for piece in item.data.chunks(FRAME_PLAIN_BYTES_MAX) {
        writer.push(
            Some(&mut *compressor),
            FrameKind::Data,
            item.id,
            StreamOffset(offset),
            piece,
        )?;
        offset = offset.saturating_add(u64::try_from(piece.len()).unwrap_or_default());
    }
    for record in &item.records {
        writer.push(
            Some(&mut *compressor),
            record.kind,
            item.id,
            record.offset,
            &record.bytes,
        )?;
    }
    if let Some(close) = &item.close {
        writer.push(
            Some(&mut *compressor),
            FrameKind::Close,
            item.id,
            StreamOffset(offset),
            close,
        )?;
    }
    Ok(start..position(writer)?)
}

fn position(writer: &ObjectWriter) -> Result<u32, ObjectError> {
    u32::try_from(writer.position()).map_err(|_| ObjectError::TooLarge(writer.position()))
}

/// Claims an epoch by creating its number 0.
async fn claim(
    shared: &Shared,
    index: u64,
    previous: Option<EpochId>,
    patience: Patience,
) -> Result<Epoch, StoreError> {
    let started_ms = u64::try_from((shared.wall_clock)().as_millisecond()).unwrap_or_default();
    let id = shared.draw(|rng| EpochId::random(started_ms, rng));
    // Before it exists, so that our own recovery never takes it for a dead one.
    shared.note_own_epoch(id);
    let recorder = shared.config.recorder();
    let record = OpenerRecord {
        version: 1,
        recorder,
        log_key: shared.config.log_key,
        epoch: id,
        store_id: shared.store_id,
        previous_epoch: previous,
    };
    let record = serde_json::to_vec(&record).map_err(|source| StoreError::Json {
        what: "an opener",
        source,
    })?;
    let number = JournalNumber::OPENER;
    let name = layout::journal_object(&recorder, &id, number);
    let header = ObjectHeader {
        recorder,
        epoch: id,
        number,
        previous: [0; 32],
        oldest_needed: number.next(),
    };
    let mut writer = ObjectWriter::new(&header);
    writer
        .push(
            None,
            FrameKind::Opener,
            RecordingId::from_bytes([0; 10]),
            StreamOffset(0),
            &record,
        )
        .map_err(|source| StoreError::Journal {
            name: name.to_string(),
            source,
        })?;
    let (bytes, digest) = writer.finish();
    match shared
        .objects
        .create(&name, &bytes, patience, &shared.journal_puts)
        .await?
    {
        // Every later object of the epoch stands in this directory: once for all of them.
        Created::Durable => shared.objects.sync(&name).await?,
        Created::Different(_) => {
            return Err(StoreError::ForeignObject {
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
    Ok(Epoch {
        id,
        index,
        next: number.next(),
        previous: digest,
        trimmed: number.next(),
    })
}

/// The newest epoch of this recorder that a listing shows: a hint for people and for recovery, never a proof.
async fn newest_epoch(shared: &Shared) -> Result<Option<EpochId>, StoreError> {
    let of_recorder = layout::journal_of(&shared.config.recorder());
    let listed = shared
        .objects
        .store()
        .list_with_delimiter(Some(&of_recorder))
        .await;
    let listed = listed.map_err(|source| StoreError::Object {
        step: "list",
        name: of_recorder.to_string(),
        source,
    })?;
    let epochs = listed
        .common_prefixes
        .iter()
        .filter_map(|prefix| prefix.filename()?.parse().ok());
    Ok(epochs.max())
}
