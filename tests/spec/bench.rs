//! Ingest without a tunnel, over a store in memory that can be made ill: for what a healthy recorder on a healthy disk never shows.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tailtape::access::Identity;
use tailtape::ids::{EventId, LogKey, RecordingId};
use tailtape::ingest::{Ingest, IngestConfig, RecordingSink, RecordingWriter, SourceNode};
use tailtape::recording::manifest::Manifest;
use tailtape::store::{
    Durable, End, Event, Opening, RecordingHandle, SealedRecording, Store, StoreConfig, StoreError,
    StoreHealth, StoreUrl,
};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::soon;

/// The node that uploads here.
pub(crate) const STABLE_ID: &str = "nBenchCNTRL";

/// A recorder's ingest and what it writes into.
pub(crate) struct Bench {
    pub(crate) ingest: Ingest<IllStore>,
    pub(crate) store: IllStore,
}

impl Bench {
    pub(crate) async fn start(config: IngestConfig) -> Self {
        let settings = StoreConfig::new(StoreUrl::Memory, LogKey::from_bytes([7; LogKey::BYTES]));
        let store = IllStore {
            inner: Store::open(settings).await.unwrap(),
            health: watch::Sender::default(),
            seal_delay: Arc::default(),
            events: Arc::default(),
            sealed: watch::Sender::default(),
        };
        Self {
            ingest: Ingest::new(store.clone(), config),
            store,
        }
    }

    /// The far end of a new connection.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let identity = Identity {
            stable_id: STABLE_ID.to_owned(),
            node_name: "bench.tail.test".to_owned(),
            user: None,
            tags: vec!["tag:ssh".to_owned()],
            address: IpAddr::from([100, 64, 0, 7]),
            capabilities: std::collections::BTreeMap::new(),
        };
        let ingest = self.ingest.clone();
        tokio::spawn(async move {
            ingest
                .serve_connection(far, identity, CancellationToken::new())
                .await;
        });
        near
    }
}

/// A real store whose health, seals and events are the test's.
#[derive(Clone)]
pub(crate) struct IllStore {
    pub(crate) inner: Store,
    health: watch::Sender<StoreHealth>,
    seal_delay: Arc<Mutex<Duration>>,
    events: Arc<Mutex<Vec<Event>>>,
    sealed: watch::Sender<Vec<SealedRecording>>,
}

impl IllStore {
    /// Nothing gets through any more, as far as ingest is told.
    pub(crate) fn stall(&self) {
        let why = StoreError::Unanswered {
            step: "create",
            name: "journal/0".to_owned(),
        };
        let health = StoreHealth::Stalled(Arc::new(why));
        self.health.send_replace(health);
    }

    /// How long each seal takes from now on.
    pub(crate) fn delay_seals(&self, delay: Duration) {
        *self.seal_delay.lock().unwrap() = delay;
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// The manifest of the only recording, once it is sealed.
    pub(crate) async fn manifest(&self) -> Manifest {
        let mut sealed = self.sealed.subscribe();
        let any = soon("a seal", sealed.wait_for(|sealed| !sealed.is_empty()));
        let name = any.await.unwrap()[0].manifest_name.clone();
        self.inner.manifest(&name).await.unwrap()
    }
}

impl RecordingSink for IllStore {
    type Writer = IllWriter;

    fn begin(&self, opening: Opening) -> Result<IllWriter, StoreError> {
        Ok(IllWriter {
            inner: self.inner.begin(opening)?,
            store: self.clone(),
        })
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }

    async fn record_event(&self, event: Event) -> Result<EventId, StoreError> {
        self.events.lock().unwrap().push(event);
        let mut rng = <rand_chacha::ChaCha20Rng as rand_core::SeedableRng>::seed_from_u64(1);
        Ok(EventId::random(0, &mut rng))
    }
}

/// A writer of an [`IllStore`].
pub(crate) struct IllWriter {
    inner: RecordingHandle,
    store: IllStore,
}

impl RecordingWriter for IllWriter {
    fn id(&self) -> RecordingId {
        self.inner.id()
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.append(bytes).await
    }

    fn note(&mut self, note: SourceNode) {
        RecordingWriter::note(&mut self.inner, note);
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.inner.durable()
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        let delay = *self.store.seal_delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let sealed = self.inner.finish(end).await?;
        let announced = sealed.clone();
        self.store
            .sealed
            .send_modify(|sealed| sealed.push(announced));
        Ok(sealed)
    }
}
