//! What ingest asks of a store, as a trait: begin a recording, append, learn what is durable, finish; keep an event; say how it is.
//!
//! Invariant: an offset seen through [`RecordingWriter::durable`] survives the loss of this process, and so does an event that was recorded. Uploads and
//! events of [`ingest`](super) call it; the store implements it, tests and wiring may wrap it.

use std::future::Future;

use bytes::Bytes;
use tokio::sync::watch;

use crate::ids::{EventId, RecordingId};
use crate::store::{
    Durable, End, Event, Opening, RecordingHandle, SealedRecording, Store, StoreError, StoreHealth,
};

pub use crate::recording::manifest::SourceNode;

/// Where recordings go. Clones share one store.
pub trait RecordingSink: Clone + Send + Sync + 'static {
    /// Writes one recording.
    type Writer: RecordingWriter;

    /// Opens a recording; quick, since the response head waits for it.
    ///
    /// # Errors
    /// When the store takes no new recordings: the uploader is refused and goes to the next recorder.
    fn begin(&self, opening: Opening) -> Result<Self::Writer, StoreError>;

    /// Whether new recordings and events are taken, and whether running uploads are to end.
    fn health(&self) -> watch::Receiver<StoreHealth>;

    /// Keeps an event; it is durable when this returns. An event whose future is dropped may be kept all the same.
    fn record_event(
        &self,
        event: Event,
    ) -> impl Future<Output = Result<EventId, StoreError>> + Send;
}

/// One recording being written. Dropped without [`finish`](Self::finish) it is closed as incomplete.
pub trait RecordingWriter: Send + 'static {
    /// The recording's id.
    fn id(&self) -> RecordingId;

    /// Takes the next bytes; waits while this upload's share of the buffer is full. Dropping the future is safe: then either all
    /// of `bytes` were taken or none.
    fn append(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Keeps what the tailnet says of the person's node; at most once, after the header was appended.
    fn note(&mut self, note: SourceNode);

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

    fn health(&self) -> watch::Receiver<StoreHealth> {
        Self::health(self)
    }

    async fn record_event(&self, event: Event) -> Result<EventId, StoreError> {
        Self::record_event(self, event).await
    }
}

impl RecordingWriter for RecordingHandle {
    fn id(&self) -> RecordingId {
        Self::id(self)
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        Self::append(self, bytes).await
    }

    fn note(&mut self, note: SourceNode) {
        // The note stands beside the claims; without it the recording is as whole as before.
        if let Err(error) = Self::note(self, note) {
            tracing::warn!(recording = %Self::id(self), error = error.with_causes(), "what the tailnet says of the person's node is not kept");
        }
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        Self::durable(self)
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        Self::finish(self, end).await
    }
}
