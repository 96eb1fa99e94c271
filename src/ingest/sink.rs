//! What ingest asks of a store, as a trait: begin a recording, append, learn what is durable, finish.
//!
//! Invariant: an offset seen through [`RecordingWriter::durable`] survives the loss of this process. The uploads of
//! [`record_v2`](super::record_v2) call it; the store implements it, tests and wiring may wrap it.

use std::future::Future;

use bytes::Bytes;
use tokio::sync::watch;

use crate::ids::RecordingId;
use crate::store::{Durable, End, Opening, RecordingHandle, SealedRecording, Store, StoreError};

/// Where recordings go. Clones share one store.
pub trait RecordingSink: Clone + Send + Sync + 'static {
    /// Writes one recording.
    type Writer: RecordingWriter;

    /// Opens a recording; quick, since the response head waits for it.
    ///
    /// # Errors
    /// When the store takes no new recordings: the uploader is refused and goes to the next recorder.
    fn begin(&self, opening: Opening) -> Result<Self::Writer, StoreError>;
}

/// One recording being written. Dropped without [`finish`](Self::finish) it is closed as incomplete.
pub trait RecordingWriter: Send + 'static {
    /// The recording's id.
    fn id(&self) -> RecordingId;

    /// Takes the next bytes; waits while this upload's share of the buffer is full. Dropping the future is safe: then either all
    /// of `bytes` were taken or none.
    fn append(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How much is durable, as it moves, and whether the store failed for good.
    fn durable(&self) -> watch::Receiver<Durable>;

    /// Seals the recording; everything appended is durable when this returns.
    fn finish(self, end: End) -> impl Future<Output = Result<SealedRecording, StoreError>> + Send;
}

impl RecordingSink for Store {
    type Writer = RecordingHandle;

    fn begin(&self, opening: Opening) -> Result<RecordingHandle, StoreError> {
        Self::begin(self, opening)
    }
}

impl RecordingWriter for RecordingHandle {
    fn id(&self) -> RecordingId {
        Self::id(self)
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        Self::append(self, bytes).await
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        Self::durable(self)
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        Self::finish(self, end).await
    }
}
