//! A store that announces what it has sealed: a wrapper around any sink.
//!
//! Invariant: an announcement follows the seal; it never delays or fails an upload. `dev` and the tests wrap a store in it.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::ids::{EventId, RecordingId};
use crate::ingest::{RecordingSink, RecordingWriter, SourceNode};
use crate::store::{Durable, End, Event, Opening, SealedRecording, StoreError, StoreHealth};

/// Announcements that nobody has taken yet; more are dropped.
const ANNOUNCEMENTS_MAX: usize = 16;

/// A sink, or a writer of one, whose seals are announced.
#[derive(Clone, Debug)]
pub struct Announcing<S> {
    inner: S,
    sealed: mpsc::Sender<SealedRecording>,
}

impl<S> Announcing<S> {
    /// Wraps `inner`; the receiver hears of each recording once its manifest is durable.
    pub fn new(inner: S) -> (Self, mpsc::Receiver<SealedRecording>) {
        let (sealed, announcements) = mpsc::channel(ANNOUNCEMENTS_MAX);
        (Self { inner, sealed }, announcements)
    }
}

impl<S: RecordingSink> RecordingSink for Announcing<S> {
    type Writer = Announcing<S::Writer>;

    fn begin(&self, opening: Opening) -> Result<Self::Writer, StoreError> {
        Ok(Announcing {
            inner: self.inner.begin(opening)?,
            sealed: self.sealed.clone(),
        })
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.inner.health()
    }

    async fn record_event(&self, event: Event) -> Result<EventId, StoreError> {
        self.inner.record_event(event).await
    }
}

impl<W: RecordingWriter> RecordingWriter for Announcing<W> {
    fn id(&self) -> RecordingId {
        self.inner.id()
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.append(bytes).await
    }

    fn note(&mut self, note: SourceNode) {
        self.inner.note(note);
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.inner.durable()
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        let sealed = self.inner.finish(end).await?;
        if let Err(error) = self.sealed.try_send(sealed.clone()) {
            tracing::debug!(%error, "nobody heard of a sealed recording");
        }
        Ok(sealed)
    }
}
