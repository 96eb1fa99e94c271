//! A store that announces what it has sealed, so that a test need not look again and again. `tailnet` wraps the store in it.

use bytes::Bytes;
use tailtape::ids::RecordingId;
use tailtape::ingest::{RecordingSink, RecordingWriter};
use tailtape::store::{Durable, End, Opening, RecordingHandle, SealedRecording, Store, StoreError};
use tokio::sync::{mpsc, watch};

#[derive(Clone, Debug)]
pub(crate) struct Announcing {
    pub(crate) store: Store,
    pub(crate) sealed: mpsc::Sender<SealedRecording>,
}

#[derive(Debug)]
pub(crate) struct AnnouncingWriter {
    inner: RecordingHandle,
    sealed: mpsc::Sender<SealedRecording>,
}

impl RecordingSink for Announcing {
    type Writer = AnnouncingWriter;

    fn begin(&self, opening: Opening) -> Result<AnnouncingWriter, StoreError> {
        Ok(AnnouncingWriter {
            inner: self.store.begin(opening)?,
            sealed: self.sealed.clone(),
        })
    }
}

impl RecordingWriter for AnnouncingWriter {
    fn id(&self) -> RecordingId {
        self.inner.id()
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.append(bytes).await
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.inner.durable()
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        let sealed = self.inner.finish(end).await?;
        self.sealed.send(sealed.clone()).await.unwrap();
        Ok(sealed)
    }
}
