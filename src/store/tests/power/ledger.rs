//! What the senders know: the bytes that they sent, how far they were acked, how each recording ended.
//!
//! Invariant: a byte is written down before it is sent, an ack when it was seen; nothing is ever taken back. Called by
//! `power.rs` and the simulation, judged against the store by `audit.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::super::super::{
    Durable, End, Event, Opening, RecordingHandle, SealedRecording, Store, StoreError,
};
use super::super::world::{clean_end, opening};
use crate::ids::{EventId, RecordingId};

#[derive(Debug, Default)]
pub(in super::super) struct Ledger {
    recordings: Mutex<BTreeMap<RecordingId, Sent>>,
    events: Mutex<Events>,
}

/// Events: no two have the same body.
#[derive(Debug, Default)]
pub(in super::super) struct Events {
    pub(in super::super) sent: BTreeSet<String>,
    pub(in super::super) acked: BTreeMap<EventId, String>,
}

/// One recording as its sender knows it.
#[derive(Debug)]
pub(in super::super) struct Sent {
    pub(in super::super) bytes: Vec<u8>,
    durable: watch::Receiver<Durable>,
    /// The end of body was sent, and every append before it was taken.
    pub(in super::super) whole: bool,
    pub(in super::super) sealed: Option<SealedRecording>,
}

impl Sent {
    /// The furthest ack.
    pub(in super::super) fn acked(&self) -> u64 {
        self.durable.borrow().offset.0
    }
}

impl Ledger {
    pub(in super::super) fn sent(&self) -> MutexGuard<'_, BTreeMap<RecordingId, Sent>> {
        self.recordings.lock().unwrap()
    }

    pub(in super::super) fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap()
    }

    /// Sends an event; it is acked when this returns its id.
    pub(in super::super) async fn record_event(
        &self,
        store: &Store,
        body: String,
    ) -> Result<EventId, StoreError> {
        assert!(
            self.events().sent.insert(body.clone()),
            "{body} was sent before"
        );
        let Opening {
            received_at,
            uploader,
            ..
        } = opening();
        let event = Event {
            received_at,
            uploader,
            body: body.clone().into(),
        };
        let id = store.record_event(event).await?;
        self.events().acked.insert(id, body);
        Ok(id)
    }

    /// Bytes acked of all recordings.
    pub(in super::super) fn acked_bytes(&self) -> u64 {
        self.sent().values().map(Sent::acked).sum()
    }
}

/// A sender: whatever it does is in the ledger.
#[derive(Debug)]
pub(in super::super) struct Sender {
    ledger: Arc<Ledger>,
    pub(in super::super) handle: RecordingHandle,
    failed: bool,
}

impl Sender {
    pub(in super::super) fn begin(store: &Store, ledger: &Arc<Ledger>) -> Result<Self, StoreError> {
        let handle = store.begin(opening())?;
        let sent = Sent {
            bytes: Vec::new(),
            durable: handle.durable(),
            whole: false,
            sealed: None,
        };
        ledger.sent().insert(handle.id(), sent);
        Ok(Self {
            ledger: Arc::clone(ledger),
            handle,
            failed: false,
        })
    }

    /// Sends bytes; false when the recording has failed.
    pub(in super::super) async fn send(&mut self, bytes: Bytes) -> bool {
        if self.failed {
            return false;
        }
        let id = self.handle.id();
        if let Some(sent) = self.ledger.sent().get_mut(&id) {
            sent.bytes.extend_from_slice(&bytes);
        }
        self.failed = self.handle.append(bytes).await.is_err();
        !self.failed
    }

    /// Ends the body; waits for the seal.
    pub(in super::super) async fn finish(self) -> Result<SealedRecording, Arc<StoreError>> {
        let id = self.handle.id();
        if let Some(sent) = self.ledger.sent().get_mut(&id) {
            sent.whole = !self.failed;
        }
        let sealed = self
            .handle
            .finish(end(!self.failed))
            .await
            .map_err(Arc::new)?;
        if let Some(sent) = self.ledger.sent().get_mut(&id) {
            sent.sealed = Some(sealed.clone());
        }
        Ok(sealed)
    }
}

fn end(clean: bool) -> End {
    End {
        clean,
        ..clean_end()
    }
}
