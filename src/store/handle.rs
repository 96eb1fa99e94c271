//! One recording while it is written: bytes in, durable offset out, and its end.
//!
//! Invariant: an append is taken whole or not at all, also when its future is dropped; a handle that is dropped
//! without [`RecordingHandle::finish`] ends its recording as incomplete. Called by ingest.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cut::{Cutter, Learned, cut_bytes};
use super::error::StoreError;
use super::writer::{self, Received, SealOrder};
use super::{Store, state};
use crate::access::Identity;
use crate::ids::{RecordingId, StreamOffset};
use crate::recording::frame::{FRAME_PLAIN_BYTES_MAX, FrameKind};
use crate::recording::hash::Sha256;
use crate::recording::manifest::SourceNode;
use crate::recording::records::{CloseRecord, OpenRecord};
use crate::recording::seal::HexDigest;

/// How much of an end's reason is kept: it may quote a peer.
const REASON_BYTES_MAX: usize = 1024;

/// Who uploads a recording, where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The authenticated identity of the uploader.
    pub uploader: Identity,
    /// The endpoint that takes it, such as `/v2/record`.
    pub endpoint: &'static str,
    /// When, by the recorder's clock.
    pub received_at: Timestamp,
}

/// How a recording ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Whether the upload had a clean end of body.
    pub clean: bool,
    /// Why it ended, in words; at most 1 KiB is kept.
    pub reason: String,
    /// When, by the recorder's clock.
    pub ended_at: Timestamp,
    /// What was special about the upload, such as a limit that it met. What the content says is read behind the journal.
    pub flags: Vec<String>,
}

/// How far a recording is durable.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    /// Every byte below this offset is committed: it may be acked.
    pub offset: StreamOffset,
    /// Set once when no further byte will be: the upload must end.
    pub failed: Option<Arc<StoreError>>,
}

/// A recording whose manifest is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecording {
    /// The recording.
    pub id: RecordingId,
    /// The manifest's object name.
    pub manifest_name: String,
    /// Its segments' object names, in order.
    pub segment_names: Vec<String>,
    /// The length of the plain stream.
    pub bytes: u64,
    /// SHA-256 of the plain stream as it was read back from the store.
    pub sha256: [u8; 32],
}

/// The one writer of a recording.
pub struct RecordingHandle {
    store: Store,
    id: RecordingId,
    opening: Arc<OpenRecord>,
    share: Arc<Semaphore>,
    durable: watch::Receiver<Durable>,
    received: u64,
    hasher: Sha256,
    learned: Learned,
    cutting: Option<JoinHandle<()>>,
    /// Tells the cut in flight that the upload has ended.
    cut_ended: CancellationToken,
    ended: bool,
}

impl RecordingHandle {
    pub(super) fn begin(
        store: Store,
        id: RecordingId,
        opening: Opening,
    ) -> Result<Self, StoreError> {
        let opening = Arc::new(OpenRecord {
            uploader: opening.uploader,
            endpoint: opening.endpoint.into(),
            received_at: opening.received_at,
        });
        let record = serde_json::to_vec(&*opening).map_err(|source| StoreError::Json {
            what: "an opening",
            source,
        })?;
        if record.len() > FRAME_PLAIN_BYTES_MAX {
            return Err(StoreError::OpeningTooLarge {
                bytes: record.len(),
            });
        }
        let share = Arc::new(Semaphore::new(
            store
                .shared
                .config
                .upload_buffer_bytes_max
                .min(Semaphore::MAX_PERMITS),
        ));
        let durable = store.shared.state().begin(id, record, Arc::clone(&share))?;
        Ok(Self {
            store,
            id,
            opening,
            share,
            durable,
            received: 0,
            hasher: Sha256::default(),
            learned: Learned::default(),
            cutting: None,
            cut_ended: CancellationToken::new(),
            ended: false,
        })
    }

    /// The recording's id.
    pub fn id(&self) -> RecordingId {
        self.id
    }

    /// How far it is durable; changes after each commit that holds bytes of it.
    pub fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.clone()
    }

    /// Appends `bytes` to the buffer; waits while this upload's share or the whole buffer is full.
    ///
    /// Returning says nothing of durability: see [`RecordingHandle::durable`]. Dropping the future takes nothing.
    ///
    /// # Errors
    /// [`StoreError::RecordingFailed`] once [`Durable::failed`] is set.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let config = &self.store.shared.config;
        // One append above a limit is taken when the buffer is empty: its bytes are in memory already.
        let share_bytes = permits(bytes.len(), config.upload_buffer_bytes_max);
        let space_bytes = permits(bytes.len(), config.buffer_bytes_max);
        let shared = &self.store.shared;
        let Ok(share) = shared.room(&self.share, share_bytes).await else {
            return Err(self.failure());
        };
        let Ok(space) = shared.room(&shared.space, space_bytes).await else {
            return Err(self.failure());
        };

        // Nothing waits from here on, so the append is whole.
        let held = state::Permits {
            share: share_bytes,
            space: space_bytes,
        };
        let share_bytes_max = config.upload_buffer_bytes_max;
        if !shared
            .state()
            .append(self.id, &bytes, held, share_bytes_max)
        {
            return Err(self.failure());
        }
        share.forget();
        space.forget();
        shared.wake_committer.notify_one();
        self.hasher.update(&bytes);
        self.received = self
            .received
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.cut_if_due();
        Ok(())
    }

    /// Notes what the tailnet says of the person's node: it is journalled, and stands in the manifest. The last one counts.
    ///
    /// # Errors
    /// [`StoreError::RecordingFailed`] once [`Durable::failed`] is set; [`StoreError::NoteTooLarge`].
    pub fn note(&mut self, note: SourceNode) -> Result<(), StoreError> {
        let record = serde_json::to_vec(&note).map_err(|source| StoreError::Json {
            what: "a note",
            source,
        })?;
        if record.len() > FRAME_PLAIN_BYTES_MAX {
            return Err(StoreError::NoteTooLarge {
                bytes: record.len(),
            });
        }
        self.learned.set_source_node(note);
        let offset = StreamOffset(self.received);
        let shared = &self.store.shared;
        let pushed = shared
            .state()
            .push_record(self.id, FrameKind::Note, offset, record);
        shared.wake_committer.notify_one();
        // Nobody waits for it: until it is committed the seal has it from memory, and a crash loses no acked byte by it.
        pushed.map(drop).ok_or_else(|| self.failure())
    }

    /// Starts a cut when enough is durable behind the last one, and none is in flight.
    fn cut_if_due(&mut self) {
        let shared = &self.store.shared;
        let last = self.learned.cut().map_or(0, |cut| cut.offset);
        let durable = self.durable.borrow().offset.0;
        let in_flight = self
            .cutting
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        if durable.saturating_sub(last) < cut_bytes(shared)
            || in_flight
            || self.cut_ended.is_cancelled()
        {
            return;
        }
        let cutter = Cutter {
            shared: Arc::clone(&self.store.shared),
            id: self.id,
            opening: Arc::clone(&self.opening),
            learned: self.learned.clone(),
            ended: self.cut_ended.clone(),
        };
        self.cutting = Some(self.store.shared.runtime.spawn(cutter.run()));
    }

    /// Ends the recording: commits what is pending, seals it, returns when the manifest is durable.
    ///
    /// Goes on in the background when its future is dropped. After a failure, what was durable is sealed as incomplete.
    ///
    /// # Errors
    /// Any [`StoreError`] of the seal: the bytes then stay in the journal. [`StoreError::RecordingFailed`] when fenced.
    pub async fn finish(mut self, end: End) -> Result<SealedRecording, StoreError> {
        let sealing = self.end(end)?;
        sealing.await.map_err(|_| StoreError::TaskLost)?
    }

    fn end(
        &mut self,
        mut end: End,
    ) -> Result<JoinHandle<Result<SealedRecording, StoreError>>, StoreError> {
        self.ended = true;
        let kept = end.reason.floor_char_boundary(REASON_BYTES_MAX);
        end.reason.truncate(kept);
        let sha256 = self.hasher.clone().finalize();
        let record = CloseRecord {
            clean: end.clean,
            reason: end.reason.clone(),
            ended_at: end.ended_at,
            bytes: self.received,
            cast_sha256: HexDigest(sha256),
            flags: end.flags.clone(),
        };
        let record = serde_json::to_vec(&record).map_err(|source| StoreError::Json {
            what: "an end",
            source,
        })?;
        let closed = self.store.shared.state().close(self.id, record);
        self.store.shared.wake_committer.notify_one();
        let order = SealOrder {
            id: self.id,
            opening: Arc::clone(&self.opening),
            end,
            received: Received {
                bytes: StreamOffset(self.received),
                sha256,
            },
            learned: self.learned.clone(),
        };
        let shared = Arc::clone(&self.store.shared);
        let cutting = self.cutting.take();
        self.cut_ended.cancel();
        let seal = async move {
            // A cut whose record is on its way is waited for: it may release what the seal would read.
            if let Some(cutting) = cutting {
                drop(cutting.await);
            }
            // Resolves when the close frame is committed, or when it never will be: the state says which.
            if let Some(closed) = closed {
                drop(closed.await);
            }
            writer::seal(&shared, order).await
        };
        Ok(self
            .store
            .shared
            .tasks
            .spawn_on(seal, &self.store.shared.runtime))
    }

    fn failure(&self) -> StoreError {
        let failed = self.durable.borrow().failed.clone();
        let source = failed.unwrap_or_else(|| Arc::new(StoreError::Closed));
        StoreError::RecordingFailed {
            recording: self.id,
            source,
        }
    }
}

impl Drop for RecordingHandle {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let end = End {
            clean: false,
            reason: "dropped".into(),
            ended_at: (self.store.shared.wall_clock)(),
            flags: Vec::new(),
        };
        // The seal goes on in its task; nobody is left to be told how it went, but for the log.
        if let Err(error) = self.end(end) {
            tracing::error!(recording = %self.id, error = error.with_causes(), "a dropped recording stays unsealed");
        }
    }
}

impl std::fmt::Debug for RecordingHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingHandle")
            .field("id", &self.id)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

fn permits(bytes: usize, limit: usize) -> u32 {
    u32::try_from(bytes.min(limit)).unwrap_or(u32::MAX)
}
